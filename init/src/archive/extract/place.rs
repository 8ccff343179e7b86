//! The directory that an archive is unpacked into: paths below it become descriptors here, and directories are made.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;

use super::inode::{Id, Inode};
use super::rules::Rules;
use crate::archive::display;

/// How often a path is resolved again that somebody was moving.
const TRIES: usize = 64;

/// A path below the target: names joined by slashes, with no `.` or `..` among them; empty for the target itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Relative(Vec<u8>);

impl Relative {
    /// Cleans an archive's name, which is relative whatever it says.
    ///
    /// # Errors
    /// It has a part `..`.
    pub(super) fn new(name: &[u8]) -> Result<Relative> {
        let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        let parts: Vec<&[u8]> = parts.collect();
        if parts.contains(&&b".."[..]) {
            bail!("the archive has the name {}, which leads out of the directory", display(name));
        }
        Ok(Relative(parts.join(&b'/')))
    }

    /// The directory that it is in, and its name there; nothing for the target itself.
    pub(super) fn split(&self) -> Option<(Relative, &[u8])> {
        let at = self.0.iter().rposition(|byte| *byte == b'/');
        let name = &self.0[at.map_or(0, |at| at + 1)..];
        (!name.is_empty()).then(|| (Relative(self.0[..at.unwrap_or(0)].to_vec()), name))
    }

    /// The first name in it.
    pub(super) fn first(&self) -> Option<&[u8]> {
        self.0.split(|byte| *byte == b'/').next().filter(|name| !name.is_empty())
    }

    /// For messages.
    pub(super) fn shown(&self) -> String {
        display(self.as_bytes())
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn as_bytes(&self) -> &[u8] {
        if self.0.is_empty() { b"." } else { &self.0 }
    }

    /// Where each of its names ends.
    fn ends(&self) -> Vec<usize> {
        let slashes = self.0.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        slashes.chain([self.0.len()]).collect()
    }

    fn up_to(&self, end: usize) -> Relative {
        Relative(self.0[..end].to_vec())
    }
}

/// The target.
pub(super) struct Place {
    root: OwnedFd,
    resolve: ResolveFlags,
    /// The directory of the latest entry; the next one is mostly in it too.
    latest: Option<(Relative, OwnedFd)>,
    /// The directories that were made.
    made: HashSet<Id>,
    /// How many inodes and names were made, and may be.
    count: u64,
    most: u64,
}

impl Place {
    /// # Errors
    /// The target is no directory.
    pub(super) fn new(target: &Path, rules: &Rules) -> Result<Place> {
        let root = open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("cannot write into `{}`", target.display()))?;
        Ok(Place {
            root,
            resolve: rules.resolve(target == Path::new("/")),
            latest: None,
            made: HashSet::new(),
            count: 0,
            most: rules.most_made(),
        })
    }

    /// Counts what is made.
    ///
    /// # Errors
    /// It is too much.
    pub(super) fn count(&mut self) -> Result<()> {
        self.count += 1;
        ensure!(self.count <= self.most, "the archive makes more than {} files and directories", self.most);
        Ok(())
    }

    /// Keeps the directory of an entry for the next one.
    pub(super) fn remember(&mut self, path: Relative, directory: OwnedFd) {
        self.latest = Some((path, directory));
    }

    /// Whether this archive made the directory.
    pub(super) fn has_made(&self, directory: Id) -> bool {
        self.made.contains(&directory)
    }

    /// What is at a path, itself and not what it points to.
    pub(super) fn open(&self, path: &Relative) -> Result<OwnedFd> {
        self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW).map_err(|e| self.cannot_enter(path, e))
    }

    /// The directory at a path, made where it is missing, and those above it.
    pub(super) fn directory(&mut self, path: &Relative) -> Result<OwnedFd> {
        if let Some((_, directory)) = self.latest.take_if(|(latest, _)| latest == path) {
            return Ok(directory);
        }
        match self.enter(path) {
            Err(Errno::NOENT) => self.make_all(path),
            opened => opened.map_err(|e| self.cannot_enter(path, e)),
        }
    }

    fn make_all(&mut self, path: &Relative) -> Result<OwnedFd> {
        let ends = path.ends();
        // The first of its directories that is missing. The search halves the path each time: it may have 2,000 names.
        let missing = ends.partition_point(|end| self.enter(&path.up_to(*end)).is_ok());
        let there = path.up_to(if missing == 0 { 0 } else { ends[missing - 1] });
        let mut directory = self.enter(&there).map_err(|e| self.cannot_enter(&there, e))?;
        for end in &ends[missing..] {
            let path = path.up_to(*end);
            let Some((_, name)) = path.split() else { continue };
            directory = self.make(&directory, &path, name, Mode::from_raw_mode(0o755))?.into_descriptor();
        }
        Ok(directory)
    }

    /// Makes the directory of an entry, open to nobody else until its entry's mode is set; or takes the one that is there.
    pub(super) fn make_directory(&mut self, parent: &OwnedFd, path: &Relative, name: &[u8]) -> Result<Inode> {
        self.make(parent, path, name, Mode::RWXU)
    }

    fn make(&mut self, parent: &OwnedFd, path: &Relative, name: &[u8], mode: Mode) -> Result<Inode> {
        let is_new = match mkdirat(parent, name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e).context("cannot create the directory"),
        };
        if is_new {
            self.count()?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(parent, name, flags, Mode::empty());
            let made = Inode::of(made.context("cannot enter the directory")?)?;
            self.made.insert(made.id());
            return Ok(made);
        }
        // A link to a directory counts as one where links are followed at all, as it does for docker and GNU tar.
        match self.enter(path) {
            Err(Errno::NOTDIR | Errno::NOENT) => bail!("cannot replace a file by a directory"),
            there => Inode::of(there.map_err(|e| self.cannot_enter(path, e))?),
        }
    }

    /// The directory at a path.
    pub(super) fn enter(&self, path: &Relative) -> rustix::io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn resolve(&self, path: &Relative, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let mut tries = 0;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match openat2(&self.root, path.as_bytes(), flags, Mode::empty(), self.resolve) {
                // Something on the way was moved meanwhile.
                Err(Errno::AGAIN) if tries < TRIES => tries += 1,
                opened => return opened,
            }
        }
    }

    fn cannot_enter(&self, path: &Relative, error: Errno) -> anyhow::Error {
        let path = path.shown();
        match error {
            Errno::XDEV => anyhow!("{path} leads out of the directory by a symbolic link"),
            Errno::LOOP if self.resolve.contains(ResolveFlags::NO_SYMLINKS) => {
                anyhow!("{path} is a symbolic link or leads through one, and none is followed")
            }
            e => anyhow::Error::new(e).context(format!("cannot enter {path}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(name: &str) -> Relative {
        Relative::new(name.as_bytes()).unwrap()
    }

    #[test]
    fn paths_come_apart() {
        for (name, cleaned) in
            [("a", "a"), ("/a//b/./c/", "a/b/c"), ("./", "."), ("", "."), ("/", "."), ("...", "...")]
        {
            assert_eq!(relative(name).shown(), format!("`{cleaned}`"));
        }
        for name in ["..", "a/..", "../a", "a/../b", "/.."] {
            let said = Relative::new(name.as_bytes()).unwrap_err().to_string();
            assert_eq!(said, format!("the archive has the name `{name}`, which leads out of the directory"));
        }
        let split = |name: &str| {
            let path = relative(name);
            path.split().map(|(parent, name)| (parent.shown(), String::from_utf8(name.to_vec()).unwrap()))
        };
        assert_eq!(split("."), None);
        assert_eq!(split("a"), Some(("`.`".into(), "a".into())));
        assert_eq!(split("a/b/c"), Some(("`a/b`".into(), "c".into())));
        assert_eq!(relative("a/b").first(), Some(&b"a"[..]));
        assert_eq!(relative("./").first(), None);
        assert_eq!(relative("a/bc/d").ends(), [1, 4, 6]);
        assert_eq!(relative("a/bc").len(), 4);
    }

    #[test]
    fn what_is_made_is_counted() {
        let folder = std::env::temp_dir().join(format!("init-archive-place-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("there")).unwrap();
        let rules = Rules::Foreign { name: b".".to_vec(), keep_all: false };
        assert_eq!(Place::new(&folder, &rules).unwrap().most, 4_000_000);
        assert_eq!(Place::new(&folder, &Rules::Own).unwrap().most, u64::MAX);
        let mut place = Place { most: 3, ..Place::new(&folder, &rules).unwrap() };
        place.directory(&relative("there/a/b")).unwrap();
        assert_eq!((place.count, place.made.len()), (2, 2));
        let (a, there) =
            (place.enter(&relative("there/a")).unwrap(), place.enter(&relative("there")).unwrap());
        assert!(place.has_made(Inode::of(a).unwrap().id()));
        assert!(!place.has_made(Inode::of(there).unwrap().id()));
        place.directory(&relative("there/a/b")).unwrap();
        place.directory(&relative("c")).unwrap();
        let said = place.directory(&relative("d")).unwrap_err().to_string();
        assert_eq!(said, "the archive makes more than 3 files and directories");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
