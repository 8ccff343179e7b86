//! Disks: [`ext4`] file systems made from an image's tree, and qcow2 files around and on top of them.

pub mod copy;
pub mod ext4;
pub mod size;

use anyhow::Context as _;
use camino::Utf8Path;

use crate::host::process::run_watched;
use crate::vm::machine::DiskFormat;

/// Makes an empty qcow2 overlay: reads come from `base` (left as it is), writes stay in `overlay`.
pub fn overlay(base: &Utf8Path, format: DiskFormat, overlay: &Utf8Path) -> anyhow::Result<()> {
    let base = camino::absolute_utf8(base).context("failed to name the base disk")?;
    let create =
        duct::cmd!("qemu-img", "create", "-q", "-f", "qcow2", "-F", format.name(), "-b", &base, overlay);
    run_watched("`qemu-img create`", &create, |_| {})
        .with_context(|| format!("failed to make an overlay of `{base}`"))
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
