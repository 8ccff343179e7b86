//! Opens the files of a disk for QEMU. What was judged is what QEMU gets: the same open file, whatever becomes of its name.

use std::fs::{File, Metadata};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use anyhow::{Context as _, bail, ensure};
use camino::Utf8Path;

use super::qcow2::{self, Backing, Header};
use crate::error::Hint as _;
use crate::vm::machine::{Base, Disk, DiskFormat};

/// A disk's files, open.
#[derive(Debug)]
pub struct Opened {
    /// The file, once for reading and, where the guest may write, once for reading and writing.
    pub file: Vec<File>,
    /// What it lies on.
    pub base: Option<File>,
}

/// Opens a disk and what it lies on. Errors where a file refers to anything that [`Disk`] does not name.
pub fn open(disk: &Disk) -> anyhow::Result<Opened> {
    let file = regular(&disk.path, !disk.read_only)?;
    check(&file, &disk.path, disk.format, disk.base.as_ref())?;
    let base = disk.base.as_ref().map(open_base).transpose()?;
    if disk.read_only {
        return Ok(Opened { file: vec![file], base });
    }
    // QEMU reads before it asks for the right to write. Its own name for an open file leads to no other one.
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reading = File::open(again).with_context(|| format!("failed to open the disk `{}`", disk.path))?;
    Ok(Opened { file: vec![reading, file], base })
}

fn open_base(base: &Base) -> anyhow::Result<File> {
    let file = regular(&base.path, false)?;
    check(&file, &base.path, base.format, None)?;
    Ok(file)
}

/// Errors where a disk from elsewhere is not a qcow2 that stands alone. `name` is what it is called there.
pub fn check_alone(path: &Utf8Path, name: &Utf8Path) -> anyhow::Result<()> {
    check(&regular(path, false)?, name, DiskFormat::Qcow2, None)
}

/// Bytes of the disk that a guest sees of a file that stands alone.
pub fn size(path: &Utf8Path, format: DiskFormat) -> anyhow::Result<u64> {
    let file = regular(path, false)?;
    match format {
        DiskFormat::Raw => Ok(file.metadata().with_context(|| format!("failed to read `{path}`"))?.len()),
        DiskFormat::Qcow2 => Ok(header(&file, path)?.size),
    }
}

/// True where nobody else can write to a file: those who can could do so after it was judged.
pub fn is_ours_alone(metadata: &Metadata) -> bool {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owned = [user, 0].contains(&metadata.uid());
    // A umask of 002 goes with a group of the user's own.
    let by_group = metadata.mode() & 0o020 != 0 && ![group, 0].contains(&metadata.gid());
    owned && !by_group && metadata.mode() & 0o002 == 0
}

/// The header of a qcow2 file.
pub fn header(file: &File, path: &Utf8Path) -> anyhow::Result<Header> {
    let read = || -> anyhow::Result<Header> {
        let length = file.metadata()?.len();
        let mut head = vec![0; length.min(qcow2::HEAD as u64) as usize];
        file.read_exact_at(&mut head, 0)?;
        qcow2::parse(&head, length)
    };
    read().map_err(|error| anyhow::anyhow!("`{path}` cannot be a disk: {error:#}"))
}

fn check(file: &File, path: &Utf8Path, format: DiskFormat, base: Option<&Base>) -> anyhow::Result<()> {
    if format == DiskFormat::Raw {
        // No format is guessed: its bytes mean nothing to QEMU.
        return Ok(());
    }
    let named = |Base { path, format }: &Base| Backing {
        name: path.to_string(),
        format: Some(format.name().to_owned()),
    };
    match (header(file, path)?.backing, base.map(named)) {
        (None, None) => Ok(()),
        (Some(backing), Some(base)) if backing == base => Ok(()),
        (Some(Backing { name, .. }), None) => Err(anyhow::anyhow!(
            "`{path}` cannot be a disk: it lies on another file, `{name}`"
        ))
        .hint(format!(
            "where you trust it, `qemu-img convert -f qcow2 -O qcow2 {path} NEW` makes one that stands alone"
        )),
        (found, Some(base)) => {
            let found = found.map_or_else(|| "nothing".to_owned(), |backing| format!("`{}`", backing.name));
            bail!("`{path}` lies on {found}, and was made to lie on `{}`", base.name)
        }
    }
}

/// Opens a file that is one: not a pipe, a device or a folder.
fn regular(path: &Utf8Path, write: bool) -> anyhow::Result<File> {
    // Nobody is waited for at the other end of a pipe.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true).write(write), nonblocking);
    let file = options.open(path).with_context(|| format!("failed to open the disk `{path}`"))?;
    let metadata = file.metadata().with_context(|| format!("failed to open the disk `{path}`"))?;
    ensure!(metadata.is_file(), "`{path}` cannot be a disk: it is no file");
    Ok(file)
}
