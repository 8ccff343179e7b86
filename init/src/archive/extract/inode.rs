//! What is made in a directory, and what is said of it afterwards, always through its descriptor.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmod,
    chownat, fstat, fstatvfs, openat, setxattr, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::rules::Rules;
use crate::archive::entry::{Content, Segment};
use crate::archive::feeder::Feeder;

/// Bytes that are looked at together for being all zero: a block of most file systems.
const BLOCK: u64 = 4096;

/// What tells an inode from all others: its device and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(u64, u64);

/// An inode, held by a descriptor, perhaps one with `O_PATH`.
pub(super) struct Inode {
    descriptor: OwnedFd,
    id: Id,
    kind: FileType,
}

impl Inode {
    /// What a descriptor is for.
    pub(super) fn of(descriptor: OwnedFd) -> Result<Inode> {
        let stat = fstat(&descriptor).context("cannot look at it")?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        Ok(Inode { descriptor, id: Id(stat.st_dev, stat.st_ino), kind })
    }

    /// What was just made in a directory.
    ///
    /// # Errors
    /// Something else is there by now.
    pub(super) fn made(directory: &OwnedFd, name: &[u8], kind: FileType) -> Result<Inode> {
        let there = Inode::there(directory, name)?.filter(|there| there.kind == kind);
        there.context("somebody replaced it while it was made")
    }

    /// What has a name in a directory, itself and not what it points to.
    pub(super) fn there(directory: &OwnedFd, name: &[u8]) -> Result<Option<Inode>> {
        match openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            there => Inode::of(there.context("cannot look at what is in its place")?).map(Some),
        }
    }

    pub(super) fn id(&self) -> Id {
        self.id
    }

    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }

    /// A path that leads to this inode whatever names it has. The kernel follows it to the inode and no further.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.descriptor.as_raw_fd())
    }

    pub(super) fn set_owner(&self, uid: u32, gid: u32) -> Result<()> {
        // The highest number means "no change" to the kernel.
        ensure!(uid != u32::MAX && gid != u32::MAX, "its owner is out of range");
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(CWD, self.path(), Some(uid), Some(gid), AtFlags::empty()).context("cannot set its owner")
    }

    /// Sets the mode of what has one; a symbolic link has none.
    pub(super) fn set_mode(&self, mode: u16) -> Result<()> {
        if self.kind == FileType::Symlink {
            return Ok(());
        }
        chmod(self.path(), Mode::from_raw_mode(mode.into())).context("cannot set its mode")
    }

    /// Sets an attribute; passes over one that the file system does not have, as docker does, and unless `must`, one that
    /// this user may not set.
    pub(super) fn set_attribute(&self, name: &str, value: &[u8], must: bool) -> Result<()> {
        match setxattr(self.path(), name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => Ok(()),
            Err(Errno::PERM | Errno::ACCESS) if !must => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn set_time(&self, (seconds, nanoseconds): (i64, u32)) -> Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
        };
        utimensat(CWD, self.path(), &times, AtFlags::empty()).context("cannot set its time")
    }
}

/// Makes something that must not exist yet, in place of what is there unless that is a directory.
pub(super) fn replace<T>(
    directory: &OwnedFd,
    name: &[u8],
    make: impl Fn() -> rustix::io::Result<T>,
) -> Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            let there = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
                bail!("cannot replace a directory by a file");
            }
            unlinkat(directory, name, AtFlags::empty())?;
            Ok(make()?)
        }
        made => Ok(made?),
    }
}

/// Makes a regular file with the content that comes next. Half a file is removed again, since it looks like a whole one.
pub(super) fn write_file<R: Read>(
    directory: &OwnedFd,
    name: &[u8],
    content: &Content,
    feeder: &mut Feeder<R>,
    rules: &Rules,
) -> Result<Inode> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let created =
        replace(directory, name, || openat(directory, name, flags | OFlags::CREATE | OFlags::EXCL, mode));
    let file = match created {
        Err(e) if e.downcast_ref() == Some(&Errno::BUSY) && rules.writes_to_what_was_there() => {
            openat(directory, name, flags | OFlags::TRUNC, mode)?
        }
        created => created?,
    };
    let file = File::from(file);
    let fits = if rules.needs_space() { check_space(&file, content.size) } else { Ok(()) };
    let written = fits.and_then(|()| write_content(&file, content, feeder));
    if written.is_err() {
        let _ = unlinkat(directory, name, AtFlags::empty());
    }
    written?;
    Inode::of(file.into())
}

/// Errors where less is free than a file is long, holes included: an archive may announce what never comes to an end, and a
/// file of exabytes is a trap for whoever reads it.
fn check_space(file: &File, needed: u64) -> Result<()> {
    let space = fstatvfs(file).context("cannot see how much space is free")?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    // Some file systems of programs say nothing.
    ensure!(needed <= free || space.f_blocks == 0, "it has {needed} bytes, and {free} are free");
    Ok(())
}

fn write_content<R: Read>(file: &File, content: &Content, feeder: &mut Feeder<R>) -> Result<()> {
    // At once: a size that the file system does not take is refused before its content comes. Holes are made by it too.
    file.set_len(content.size).with_context(|| format!("cannot make it {} bytes long", content.size))?;
    let whole = [Segment { offset: 0, length: content.size }];
    for segment in content.segments.as_deref().unwrap_or(&whole) {
        let mut at = segment.offset;
        let end = segment.offset + segment.length;
        while at < end {
            let piece = feeder.content_piece(end - at)?;
            ensure!(!piece.is_empty(), "its content is shorter than its size");
            write_past_holes(file, piece, at)?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

/// Writes bytes to a place in a file that is all holes. Blocks of zeros read the same as holes, and cost nothing.
fn write_past_holes(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    let first = (BLOCK - at % BLOCK).min(bytes.len() as u64) as usize;
    let (head, rest) = bytes.split_at(first);
    // What is to be written together, as a range of `bytes`.
    let mut data = 0..0;
    let write = |data: &Range<usize>| file.write_all_at(&bytes[data.clone()], at + data.start as u64);
    for block in std::iter::once(head).chain(rest.chunks(BLOCK as usize)) {
        let end = data.end + block.len();
        if block.iter().all(|byte| *byte == 0) {
            write(&data)?;
            data = end..end;
        } else {
            data.end = end;
        }
    }
    write(&data)
}
