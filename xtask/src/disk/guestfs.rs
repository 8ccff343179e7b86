//! The recipe's own way to make a disk, for comparison: guestfs's `virt-make-fs`, which boots a small machine.

use anyhow::Context as _;
use camino::Utf8Path;

use crate::error::Hint as _;
use crate::host::process::run_watched;
use crate::ui;

/// Makes a raw ext4 disk of a root file system's tar.
pub fn make(tar: &Utf8Path, disk: &Utf8Path, size: u64) -> anyhow::Result<()> {
    let spinner = ui::spinner("making the disk with `virt-make-fs`");
    let made = run_watched("`virt-make-fs`", &command(tar, disk, size), |_| {});
    spinner.finish_and_clear();
    made.with_context(|| format!("failed to make `{disk}`"))
        .hint("`LIBGUESTFS_DEBUG=1 LIBGUESTFS_TRACE=1` shows what it does; it needs a kernel in `/boot`")
}

/// guestfs tries `/dev/kvm` where it opens, and hangs where it does not work: without a word from the user it emulates.
fn command(tar: &Utf8Path, disk: &Utf8Path, size: u64) -> duct::Expression {
    let size = format!("--size={size}");
    let mut command = duct::cmd!("virt-make-fs", "--format=raw", "--type=ext4", size, tar, disk);
    for (name, value) in [("LIBGUESTFS_BACKEND", "direct"), ("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")] {
        if std::env::var_os(name).is_none() {
            command = command.env(name, value);
        }
    }
    command
}
