//! Disks: [`ext4`] file systems made from an image's tree, qcow2 files around and on top of them, those that are
//! [kept](kept) from boot to boot, and named [volumes](volume).

pub mod copy;
pub mod ext4;
pub mod guestfs;
pub mod kept;
pub mod opened;
pub mod qcow2;
pub mod size;
pub mod volume;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use crate::host::process::run_watched;
use crate::vm::machine::Base;

/// Makes an empty qcow2 overlay: reads come from `base` (left as it is), writes stay in `overlay`. The base is not opened
/// by `qemu-img`; its owner alone can read what is written.
pub fn overlay(base: &Base, overlay: &Utf8Path) -> anyhow::Result<()> {
    let size = opened::size(&base.path, base.format)?;
    let Base { path, format } = base;
    let words = ["create", "-q", "-u", "-f", "qcow2", "-F", format.name(), "-b", path.as_str()];
    let create = duct::cmd("qemu-img", words.into_iter().chain([overlay.as_str(), &size.to_string()]));
    run_watched("`qemu-img create`", &for_us_alone(&create), |_| {})
        .with_context(|| format!("failed to make an overlay of `{path}`"))
}

/// What the program writes is its owner's alone.
fn for_us_alone(expression: &duct::Expression) -> duct::Expression {
    expression.before_spawn(|command| {
        let mask = || {
            rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
            Ok(())
        };
        #[expect(unsafe_code, reason = "the umask is a process's, and the child's alone is to change")]
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(command, mask);
        }
        Ok(())
    })
}

/// Turns a raw disk into a standalone qcow2 file.
pub fn to_qcow2(raw: &Utf8Path, qcow2: &Utf8Path, compress: bool) -> anyhow::Result<()> {
    let compression: &[&str] =
        if compress { &["-c", "-W", "-m", "8", "-o", "compression_type=zstd"] } else { &[] };
    let arguments =
        ["convert", "-f", "raw", "-O", "qcow2"].iter().chain(compression).copied().map(str::to_owned);
    let convert = duct::cmd("qemu-img", arguments.chain([raw.to_string(), qcow2.to_string()]));
    run_watched("`qemu-img convert`", &convert, |_| {})
        .with_context(|| format!("failed to convert `{raw}` to qcow2"))
}

/// The file that a qcow2 lies on, as its header names it; `None` where it stands alone or is no qcow2.
pub fn backing_file(qcow2: &Utf8Path) -> Option<Utf8PathBuf> {
    let file = std::fs::File::open(qcow2).ok()?;
    Some(opened::header(&file, qcow2).ok()?.backing?.name.into())
}
