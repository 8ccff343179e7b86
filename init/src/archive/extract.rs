//! A tar stream into a directory.
//!
//! Nothing is written outside that directory: names with `..` are refused, and a symbolic link on the way to an entry
//! is followed by the kernel under `RESOLVE_BENEATH`, so that neither a link of the archive's nor one that a process
//! swaps in leads out. The links themselves are made as they are; where they point is nobody's harm until followed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, chmodat,
    chownat, linkat, lsetxattr, makedev, mkdirat, mknodat, open, openat, openat2, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use tar_core::EntryType;

use super::entry::{Entry, Parts, Stream, parts};

/// Bytes that are looked at together for being all zero: a block of most file systems.
const BLOCK: usize = 4096;

/// Unpacks `archive` into the directory `target`. Unless `keep_owners`, everything belongs to whoever unpacks it, and
/// attributes that only root can set are passed over.
///
/// # Errors
/// `target` is no directory, the archive is damaged or cut off, or an entry cannot be written; it is named.
pub fn extract(archive: impl Read, target: &Path, keep_owners: bool) -> Result<()> {
    let root = open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("cannot write into `{}`", target.display()))?;
    // An absolute link in the root directory leads nowhere but into it.
    let resolve = if target == Path::new("/") { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
    let mut tree = Tree { root, resolve, keep_owners, parent: None, directories: Vec::new() };
    let mut stream = Stream::new(archive);
    while let Some(entry) = stream.next_entry()? {
        tree.write(&entry, &mut stream).with_context(|| format!("cannot write `{}`", shown(&entry.path)))?;
    }
    tree.date_directories()
}

fn shown(path: &[Vec<u8>]) -> String {
    if path.is_empty() { ".".into() } else { String::from_utf8_lossy(&path.join(&b"/"[..])).into_owned() }
}

struct Tree {
    root: OwnedFd,
    resolve: ResolveFlags,
    keep_owners: bool,
    /// The directory of the latest entry; the next one is mostly in it too.
    parent: Option<(Parts, OwnedFd)>,
    /// Directories get their times when nothing more is put into them.
    directories: Vec<(Parts, Timespec)>,
}

impl Tree {
    fn write<R: Read>(&mut self, entry: &Entry, stream: &mut Stream<R>) -> Result<()> {
        let Some((name, parent)) = entry.path.split_last() else {
            // The target itself, which is there.
            self.directories.push((Vec::new(), entry.time));
            let root = self.directory(&[])?;
            return self.describe(entry, &root, b".");
        };
        let directory = self.directory(parent)?;
        match entry.kind {
            EntryType::Directory => {
                make_directory(&directory, name)?;
                self.directories.push((entry.path.clone(), entry.time));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
                if let Err(e) = write_file(&directory, name, entry, stream) {
                    // Half a file looks like a whole one.
                    let _ = unlinkat(&directory, &name[..], AtFlags::empty());
                    return Err(e);
                }
            }
            EntryType::Symlink => {
                replace(&directory, name, || symlinkat(&entry.link[..], &directory, &name[..]))?
            }
            EntryType::Link => {
                let link = parts(&entry.link)?;
                let (original, parent) = link.split_last().context("a hard link to the directory itself")?;
                let parent = self.directory(parent)?;
                replace(&directory, name, || {
                    linkat(&parent, &original[..], &directory, &name[..], AtFlags::empty())
                })
                .with_context(|| format!("cannot link it to `{}`", shown(&link)))?;
                // The link shares all that the original has.
                return Ok(());
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let kind = match entry.kind {
                    EntryType::Fifo => FileType::Fifo,
                    EntryType::Char => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                let device = makedev(entry.device.0, entry.device.1);
                replace(&directory, name, || {
                    mknodat(&directory, &name[..], kind, Mode::RUSR | Mode::WUSR, device)
                })?;
            }
            other => bail!("its type `{}` is not known", char::from(other.to_byte())),
        }
        self.describe(entry, &directory, name)?;
        self.parent = Some((parent.to_vec(), directory));
        Ok(())
    }

    /// The directory of this path, created where missing.
    fn directory(&mut self, path: &[Vec<u8>]) -> Result<OwnedFd> {
        if let Some((_, fd)) = self.parent.take_if(|(cached, _)| cached == path) {
            return Ok(fd);
        }
        let opened = match (self.open_directory(path), path.split_last()) {
            (Err(Errno::NOENT), Some((name, parent))) => {
                let parent = self.directory(parent)?;
                make_directory(&parent, name)?;
                self.open_directory(path)
            }
            (opened, _) => opened,
        };
        opened.map_err(|e| {
            let path = shown(path);
            match e {
                Errno::XDEV => anyhow!("`{path}` leads out of the directory by a symbolic link"),
                e => anyhow!("cannot enter `{path}`: {e}"),
            }
        })
    }

    fn open_directory(&self, path: &[Vec<u8>]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b".".to_vec() } else { path.join(&b"/"[..]) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.root, path, flags, Mode::empty(), self.resolve | ResolveFlags::NO_MAGICLINKS)
    }

    /// Gives what was just made its owner, mode, attributes and time, in the order in which none undoes another.
    fn describe(&self, entry: &Entry, directory: &OwnedFd, name: &[u8]) -> Result<()> {
        if self.keep_owners {
            let (uid, gid) = entry.owner;
            chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .context("cannot set its owner")?;
        }
        if entry.kind != EntryType::Symlink {
            chmodat(directory, name, entry.mode, AtFlags::empty()).context("cannot set its mode")?;
        }
        for (attribute, value) in &entry.xattrs {
            // There is no call that sets attributes by directory and name.
            let path = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat();
            match lsetxattr(path, &attribute[..], value, XattrFlags::empty()) {
                // A file system without them; docker passes over it as well.
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(Errno::PERM) if !self.keep_owners => {}
                Err(e) => {
                    let attribute = String::from_utf8_lossy(attribute);
                    return Err(e).with_context(|| format!("cannot set its attribute `{attribute}`"));
                }
            }
        }
        if entry.kind != EntryType::Directory {
            set_time(directory, name, entry.time)?;
        }
        Ok(())
    }

    fn date_directories(mut self) -> Result<()> {
        for (path, time) in std::mem::take(&mut self.directories) {
            let directory = self.directory(&path)?;
            set_time(&directory, b".", time)?;
        }
        Ok(())
    }
}

fn set_time(directory: &OwnedFd, name: &[u8], time: Timespec) -> Result<()> {
    let times =
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: time };
    utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW).context("cannot set its time")
}

fn make_directory(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => {
            // A link to a directory counts as one, as it does for docker and GNU tar.
            let there =
                statat(parent, name, AtFlags::empty()).context("cannot look at what is in its place")?;
            match FileType::from_raw_mode(there.st_mode) {
                FileType::Directory => Ok(()),
                _ => Err(anyhow!("cannot replace a file by a directory")),
            }
        }
        made => made.context("cannot create the directory"),
    }
}

/// Makes something that must not exist yet, in place of what is there unless that is a directory.
fn replace<T>(directory: &OwnedFd, name: &[u8], make: impl Fn() -> rustix::io::Result<T>) -> Result<T> {
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

fn write_file<R: Read>(
    directory: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    stream: &mut Stream<R>,
) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let created =
        replace(directory, name, || openat(directory, name, flags | OFlags::CREATE | OFlags::EXCL, mode));
    let file = match created {
        // A file that is mounted on its own, as `/etc/hosts` is, cannot be replaced but can be written.
        Err(e) if e.downcast_ref() == Some(&Errno::BUSY) => {
            openat(directory, name, flags | OFlags::TRUNC, mode)?
        }
        created => created?,
    };
    let mut file = File::from(file);
    let Some((map, size)) = &entry.sparse else {
        let mut size = 0;
        loop {
            let piece = stream.content_piece()?;
            if piece.is_empty() {
                // A hole at the end is made by the length alone.
                return Ok(file.set_len(size)?);
            }
            for block in piece.chunks(BLOCK) {
                // An archive may have written holes out; zeros read the same and cost nothing.
                if block.iter().all(|byte| *byte == 0) {
                    file.seek_relative(block.len() as i64)?;
                } else {
                    file.write_all(block)?;
                }
            }
            size += piece.len() as u64;
        }
    };
    for part in map {
        file.seek(SeekFrom::Start(part.offset))?;
        let mut left = part.length;
        while left > 0 {
            let piece = stream.content_piece_of(left)?;
            if piece.is_empty() {
                bail!("its map of holes does not fit its content");
            }
            file.write_all(piece)?;
            left -= piece.len() as u64;
        }
    }
    Ok(file.set_len(*size)?)
}

#[cfg(test)]
mod tests;
