//! Disks: [`ext4`] file systems made from an image's tree, qcow2 files around and on top of them, and named
//! [volumes](volume).

pub mod copy;
pub mod ext4;
pub mod guestfs;
pub mod size;
pub mod volume;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

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

/// The file that a qcow2 lies on, as its header names it; `None` where it stands alone or is no qcow2.
pub fn backing_file(qcow2: &Utf8Path) -> Option<Utf8PathBuf> {
    use std::os::unix::fs::FileExt as _;
    // QEMU's docs/interop/qcow2.txt: magic, version, backing_file_offset (u64 at 8), backing_file_size (u32 at 16).
    let file = std::fs::File::open(qcow2).ok()?;
    let mut header = [0; 20];
    file.read_exact_at(&mut header, 0).ok()?;
    let offset = u64::from_be_bytes(*header[8..].first_chunk()?);
    let length = u32::from_be_bytes(*header[16..].first_chunk()?);
    if !header.starts_with(b"QFI\xfb") || offset == 0 || length > 1023 {
        return None;
    }
    let mut name = vec![0; length as usize];
    file.read_exact_at(&mut name, offset).ok()?;
    String::from_utf8(name).ok().map(Utf8PathBuf::from)
}
