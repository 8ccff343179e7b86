//! A tar stream into a directory, by one of two [`Rules`].
//!
//! Nothing is written outside that directory: names with `..` are refused, and a path is resolved by the kernel under
//! `RESOLVE_BENEATH`, so that neither a link of the archive's nor one that a process swaps in leads out. Owner, mode, attributes
//! and time go to the inode that was made, through its descriptor, and never to whatever has its name by then. Symbolic links
//! are made as they are; where they point is nobody's harm until followed.

mod inode;
mod place;
mod rules;

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, linkat, makedev, mknodat, symlinkat};

pub use rules::Rules;

use self::inode::{Id, Inode};
use self::place::{Place, Relative};
use super::display;
use super::entry::{Entry, Kind, Metadata, Special, Xattrs};
use super::feeder::Feeder;

/// Paths and attributes of directories are held until the end; together they take at most so many bytes.
const MAX_HELD: usize = 256 << 20;

/// Unpacks `archive` into the directory `target`. `complain` hears of entries that the rules leave out.
///
/// # Errors
/// `target` is no directory, the archive is damaged or cut off, or an entry is against the rules or cannot be written; it is
/// named.
pub fn extract(
    archive: impl Read,
    target: &Path,
    rules: &Rules,
    complain: &mut dyn FnMut(String),
) -> Result<()> {
    let place = Place::new(target, rules)?;
    let mut tree =
        Tree { place, rules, complain, brought: HashSet::new(), directories: HashMap::new(), held: 0 };
    let written = tree.all(Feeder::new(archive));
    // Directories that were made get what is known of them, also where the rest is missing.
    let finished = tree.finish_directories();
    written.and(finished)
}

struct Tree<'a> {
    place: Place,
    rules: &'a Rules,
    complain: &'a mut dyn FnMut(String),
    /// The inodes that this archive has made, directories apart; kept where the rules ask for them.
    brought: HashSet<Id>,
    /// Directories get what is said of them when nothing more is put into them: one may be closed to its owner, and a
    /// default ACL is for files that come later than this archive's.
    directories: HashMap<Id, Described>,
    /// Bytes that `directories` holds.
    held: usize,
}

/// A directory, and what its entry says of it.
struct Described {
    path: Relative,
    metadata: Metadata,
    xattrs: Xattrs,
}

impl Tree<'_> {
    fn all<R: Read>(&mut self, mut feeder: Feeder<R>) -> Result<()> {
        let mut last = None;
        let cut_off = |last: &Option<Relative>| match last {
            Some(path) => format!("the archive is incomplete after {}", path.shown()),
            None => "the archive is none, or has no entry".to_owned(),
        };
        while let Some(entry) = feeder.next_entry().with_context(|| cut_off(&last))? {
            let path = Relative::new(&entry.path)?;
            self.rules.check_name(&path)?;
            self.entry(&entry, &path, &mut feeder)
                .with_context(|| format!("cannot write {}", path.shown()))?;
            last = Some(path);
        }
        ensure!(feeder.is_complete() && last.is_some(), cut_off(&last));
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &Entry, path: &Relative, feeder: &mut Feeder<R>) -> Result<()> {
        let Some((parent, name)) = path.split() else {
            ensure!(entry.kind == Kind::Directory, "the directory itself cannot be replaced");
            let root = Inode::of(self.place.directory(path)?)?;
            return self.describe_directory(&root, path, entry);
        };
        if self.is_left_out(&entry.kind) {
            (self.complain)(format!("{} is a device and was left out", path.shown()));
            return Ok(());
        }
        let directory = self.place.directory(&parent)?;
        match &entry.kind {
            Kind::Directory => {
                let made = self.place.make_directory(&directory, path, name)?;
                self.describe_directory(&made, path, entry)?;
            }
            Kind::File(content) => {
                let file = inode::write_file(&directory, name, content, feeder, self.rules)?;
                self.bring(&file)?;
                self.describe(&file, &entry.metadata, &entry.xattrs)?;
            }
            Kind::Hardlink(original) => self.hard_link(&directory, name, &Relative::new(original)?)?,
            Kind::Symlink(target) => {
                inode::replace(&directory, name, || symlinkat(&target[..], &directory, name))?;
                let link = Inode::made(&directory, name, FileType::Symlink)?;
                self.bring(&link)?;
                self.describe(&link, &entry.metadata, &entry.xattrs)?;
            }
            Kind::Special(special) => {
                let (kind, device) = match *special {
                    Special::CharDevice { major, minor } => {
                        (FileType::CharacterDevice, makedev(major, minor))
                    }
                    Special::BlockDevice { major, minor } => (FileType::BlockDevice, makedev(major, minor)),
                    Special::Fifo => (FileType::Fifo, 0),
                };
                let mode = Mode::RUSR | Mode::WUSR;
                inode::replace(&directory, name, || mknodat(&directory, name, kind, mode, device))?;
                let node = Inode::made(&directory, name, kind)?;
                self.bring(&node)?;
                self.describe(&node, &entry.metadata, &entry.xattrs)?;
            }
        }
        self.place.remember(parent, directory);
        Ok(())
    }

    fn is_left_out(&self, kind: &Kind) -> bool {
        let is_device =
            matches!(kind, Kind::Special(Special::CharDevice { .. } | Special::BlockDevice { .. }));
        is_device && !self.rules.makes_devices()
    }

    /// Takes note of an inode that was made.
    fn bring(&mut self, made: &Inode) -> Result<()> {
        self.place.count()?;
        if self.rules.links_to_own_only() {
            self.brought.insert(made.id());
        }
        Ok(())
    }

    fn hard_link(&mut self, directory: &OwnedFd, name: &[u8], original: &Relative) -> Result<()> {
        self.link_to(directory, name, original)
            .with_context(|| format!("cannot link it to {}", original.shown()))
    }

    fn link_to(&mut self, directory: &OwnedFd, name: &[u8], original: &Relative) -> Result<()> {
        let original = Inode::of(self.place.open(original)?)?;
        if self.rules.links_to_own_only() && !self.brought.contains(&original.id()) {
            bail!("the archive has not brought it");
        }
        if Inode::there(directory, name)?.is_some_and(|there| there.id() == original.id()) {
            return Ok(());
        }
        self.place.count()?;
        // By its descriptor, so that it is the one that was looked at.
        let by_descriptor = original.path();
        inode::replace(directory, name, || {
            linkat(rustix::fs::CWD, &*by_descriptor, directory, name, AtFlags::SYMLINK_FOLLOW)
        })
    }

    /// Keeps what is said of a directory for the end, where the rules let the archive say it.
    fn describe_directory(&mut self, directory: &Inode, path: &Relative, entry: &Entry) -> Result<()> {
        if !self.rules.describes_what_was_there() && !self.place.has_made(directory.id()) {
            return Ok(());
        }
        let xattrs = entry.xattrs.clone();
        self.held += size_of::<Described>() + path.len();
        self.held += xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        ensure!(self.held <= MAX_HELD, "paths and attributes of directories take more than {MAX_HELD} bytes");
        let described = Described { path: path.clone(), metadata: entry.metadata, xattrs };
        self.directories.insert(directory.id(), described);
        Ok(())
    }

    fn finish_directories(&mut self) -> Result<()> {
        let mut directories: Vec<(Id, Described)> = self.directories.drain().collect();
        // What is inside first: the directory around it may be closed afterwards.
        directories.sort_unstable_by(|(_, a), (_, b)| b.path.cmp(&a.path));
        let mut finished = Ok(());
        for (id, Described { path, metadata, xattrs }) in directories {
            // Another one may have its name by now.
            let there = self.place.enter(&path).map_err(Into::into).and_then(Inode::of);
            if let Ok(directory) = there.as_ref()
                && directory.id() == id
            {
                let described = self.describe(directory, &metadata, &xattrs);
                finished = finished.and(described.with_context(|| format!("cannot finish {}", path.shown())));
            }
        }
        finished
    }

    /// Gives an inode its owner, attributes, mode and time, in the order in which none undoes another, as far as the rules
    /// let the archive say them.
    fn describe(&self, inode: &Inode, metadata: &Metadata, xattrs: &Xattrs) -> Result<()> {
        if self.rules.gives_owners() {
            inode.set_owner(metadata.uid, metadata.gid)?;
        }
        let kept = xattrs.iter().filter(|(name, _)| self.rules.keeps_attribute(name));
        let (acls, others): (Vec<_>, Vec<_>) =
            kept.partition(|(name, _)| name.starts_with("system.posix_acl_"));
        // A file that is closed to its owner takes no attributes, and an access ACL is part of the mode.
        for (name, value) in others {
            self.set_attribute(inode, name, value)?;
        }
        inode.set_mode(metadata.mode & self.rules.mode_mask())?;
        for (name, value) in acls {
            self.set_attribute(inode, name, value)?;
        }
        inode.set_time(metadata.mtime)
    }

    fn set_attribute(&self, inode: &Inode, name: &str, value: &[u8]) -> Result<()> {
        inode
            .set_attribute(name, value, self.rules.must_set_attributes())
            .with_context(|| format!("cannot set its attribute {}", display(name.as_bytes())))
    }
}

#[cfg(test)]
mod tests;
