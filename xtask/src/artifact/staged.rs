//! What is written under a temporary name and gets its own when it is whole.
//!
//! A temporary folder beside the destination holds it, `.NAME.RANDOM.microvm-tmp`, which its process locks. One
//! without a lock was left by a process that was killed, and the next task that stages something beside it removes it.

use std::fs::{self, DirBuilder, File};
use std::hash::BuildHasher as _;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::durable::{sync_names, sync_tree};
use super::{create_folder, remove_any};
use crate::interrupt;

/// The ending of temporary folders.
const SUFFIX: &str = ".microvm-tmp";

/// So much of a destination's name is in that of its temporary folder, in bytes; names end at 255 (limits.h).
const NAME_PART: usize = 100;

/// How often another name is tried for a temporary folder that is removed before it is locked.
const TRIES: u32 = 100;

/// A file or folder to be written at [`path`](Staged::path) and then [published](Staged::publish).
#[derive(Debug)]
pub struct Staged {
    folder: Utf8PathBuf,
    path: Utf8PathBuf,
    destination: Utf8PathBuf,
    /// Shows other tasks that this one lives.
    _lock: File,
}

impl Staged {
    /// Prepares to write `destination`, a file or a folder; its parent is created. What killed tasks have left there is
    /// removed.
    pub fn new(destination: &Utf8Path) -> anyhow::Result<Staged> {
        let parent = parent(destination);
        create_folder(parent)?;
        remove_leftovers(parent);
        let name = destination.file_name().unwrap_or("artifact");
        let (folder, lock) = temporary_folder(parent, name)
            .with_context(|| format!("failed to make a temporary folder in `{parent}`"))?;
        interrupt::remove_on_interrupt(&folder);
        Ok(Staged { path: folder.join(name), folder, destination: destination.to_owned(), _lock: lock })
    }

    /// Where to write.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Chooses another destination on the same file system, for names that are known only in the end.
    pub fn aimed_at(mut self, destination: &Utf8Path) -> anyhow::Result<Staged> {
        create_folder(parent(destination))?;
        self.destination = destination.to_owned();
        Ok(self)
    }

    /// Puts the finished file or folder at its destination, in place of what was there. A power cut leaves it whole, or
    /// what was there before.
    pub fn publish(self) -> anyhow::Result<()> {
        sync_tree(&self.path)?;
        self.place()?;
        sync_names(parent(&self.destination))
    }

    /// The same without waiting for the disk: after a power cut the file may be empty or torn. For what nobody reads
    /// once this host has been started again, or whose reader can tell.
    pub fn publish_unsynced(self) -> anyhow::Result<()> {
        self.place()
    }

    fn place(&self) -> anyhow::Result<()> {
        let (from, to) = (self.path.as_std_path(), self.destination.as_std_path());
        let result = match fs::rename(from, to) {
            // A folder with something in it, or a folder in a file's place: they change places, and go with this value.
            Err(error) if is_in_the_way(&error) => exchange(&self.path, &self.destination),
            result => result,
        };
        result.with_context(|| format!("failed to move `{}` to `{}`", self.path, self.destination))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        interrupt::forget(&self.folder);
        // What cannot be removed now is removed by the next task.
        let _ = remove_any(&self.folder);
    }
}

fn parent(path: &Utf8Path) -> &Utf8Path {
    path.parent().filter(|parent| !parent.as_str().is_empty()).unwrap_or(Utf8Path::new("."))
}

fn is_in_the_way(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | IsADirectory | NotADirectory)
}

fn exchange(one: &Utf8Path, other: &Utf8Path) -> io::Result<()> {
    let here = rustix::fs::CWD;
    let one_step =
        rustix::fs::renameat_with(here, one.as_std_path(), here, other.as_std_path(), RenameFlags::EXCHANGE);
    match one_step {
        // Not every file system can do it in one step.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            remove_any(other).map_err(io::Error::other)?;
            fs::rename(one, other)
        }
        result => Ok(result?),
    }
}

/// Makes a folder that is its owner's alone, and locks it.
fn temporary_folder(parent: &Utf8Path, name: &str) -> io::Result<(Utf8PathBuf, File)> {
    let end = (0..=name.len().min(NAME_PART)).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    for _ in 0..TRIES {
        let random = std::hash::RandomState::new().hash_one(std::process::id());
        let folder = parent.join(format!(".{}.{random:016x}{SUFFIX}", &name[..end]));
        DirBuilder::new().mode(0o700).create(&folder)?;
        // Another task may take it for a leftover before it is locked.
        match open_folder(&folder) {
            Ok(file) if is_ours(&file)? => return Ok((folder, file)),
            Ok(_) => {}
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("other tasks remove it time and again"))
}

fn is_ours(folder: &File) -> io::Result<bool> {
    match folder.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        // A file system without locks: nobody takes it for a leftover there.
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(folder.metadata()?.nlink() > 0),
    }
}

fn open_folder(path: &Utf8Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path.as_std_path(), flags, Mode::empty()).map(File::from)
}

/// Removes what killed tasks have left in a folder.
pub(crate) fn remove_leftovers(folder: &Utf8Path) {
    for (path, _lock) in leftovers(folder) {
        // Another user's may stay.
        let _ = remove_any(&path);
    }
}

/// What killed tasks have left in a folder, each with a lock that keeps other tasks from removing it too.
pub(crate) fn leftovers(folder: &Utf8Path) -> Vec<(Utf8PathBuf, File)> {
    let entries = folder.read_dir_utf8().into_iter().flatten().flatten();
    let ours =
        entries.filter(|entry| entry.file_name().starts_with('.') && entry.file_name().ends_with(SUFFIX));
    let opened = ours.filter_map(|entry| Some((entry.path().to_owned(), open_folder(entry.path()).ok()?)));
    opened.filter(|(_, folder)| folder.try_lock().is_ok()).collect()
}

/// Removes a file or a folder that is there; whoever looks finds all of it or nothing.
pub(crate) fn discard(path: &Utf8Path) -> anyhow::Result<()> {
    let staged = Staged::new(path)?;
    match fs::rename(path, staged.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.with_context(|| format!("failed to remove `{path}`"))?,
    }
    remove_any(&staged.folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::tests::scratch;
    use crate::artifact::{read_text, write_whole};

    fn names(folder: &Utf8Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_not_published_leaves_nothing() {
        let (_guard, folder) = scratch();
        let staged = Staged::new(&folder.join("disk")).unwrap();
        fs::write(staged.path(), "half").unwrap();
        assert_eq!(names(&folder).len(), 1);
        drop(staged);
        assert_eq!(names(&folder), [""; 0]);
    }

    #[test]
    fn publishing_replaces_a_file_and_a_folder_and_each_by_the_other() {
        let (_guard, folder) = scratch();
        write_whole(&folder.join("file"), b"old").unwrap();
        write_whole(&folder.join("file"), b"new").unwrap();
        assert_eq!(read_text(&folder.join("file")).unwrap(), "new");

        create_folder(&folder.join("kernel/old")).unwrap();
        for kind in ["publish", "publish_unsynced"] {
            let staged = Staged::new(&folder.join("kernel")).unwrap();
            create_folder(&staged.path().join(kind)).unwrap();
            if kind == "publish" { staged.publish() } else { staged.publish_unsynced() }.unwrap();
            assert_eq!(names(&folder.join("kernel")), [kind]);
        }
        write_whole(&folder.join("kernel"), b"a file").unwrap();
        assert_eq!(read_text(&folder.join("kernel")).unwrap(), "a file");
        let staged = Staged::new(&folder.join("elsewhere")).unwrap();
        create_folder(&staged.path().join("inner")).unwrap();
        staged.aimed_at(&folder.join("kernel")).unwrap().publish().unwrap();
        assert!(folder.join("kernel/inner").is_dir());
        assert_eq!(names(&folder), ["file", "kernel"]);
    }

    #[test]
    fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
        let (_guard, folder) = scratch();
        let living = Staged::new(&folder.join("living")).unwrap();
        fs::write(living.path(), "half").unwrap();
        let dead = folder.join(format!(".dead.0123456789abcdef{SUFFIX}"));
        create_folder(&dead.join("with/more")).unwrap();
        // Nobody is led elsewhere, and names of others are others' business.
        let elsewhere = folder.join("elsewhere");
        create_folder(&elsewhere.join("kept")).unwrap();
        let link = folder.join(format!(".link{SUFFIX}"));
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        create_folder(&folder.join(".other.tmp")).unwrap();
        create_folder(&folder.join(format!("visible{SUFFIX}"))).unwrap();

        write_whole(&folder.join("file"), b"x").unwrap();
        assert!(!dead.exists());
        assert!(living.path().exists() && elsewhere.join("kept").exists() && link.is_symlink());
        assert!(folder.join(".other.tmp").exists() && folder.join(format!("visible{SUFFIX}")).exists());
        living.publish().unwrap();
        assert_eq!(read_text(&folder.join("living")).unwrap(), "half");
    }

    #[test]
    fn what_is_discarded_goes_in_one_step() {
        let (_guard, folder) = scratch();
        create_folder(&folder.join("kernel/inner")).unwrap();
        write_whole(&folder.join("file"), b"x").unwrap();
        for name in ["kernel", "file", "none"] {
            discard(&folder.join(name)).unwrap();
        }
        assert_eq!(names(&folder), [""; 0]);
    }

    #[test]
    fn long_names_can_be_staged() {
        let (_guard, folder) = scratch();
        for name in ["x".repeat(255), "ä".repeat(127)] {
            write_whole(&folder.join(&name), b"x").unwrap();
            assert!(folder.join(name).is_file());
        }
    }

    #[test]
    fn many_tasks_stage_in_one_folder_at_once() {
        let (_guard, folder) = scratch();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = folder.join(number.to_string());
                scope.spawn(move || {
                    for round in 0..50 {
                        write_unsynced(&path, &round.to_string());
                    }
                });
            }
        });
        assert_eq!(names(&folder).len(), 8);
    }

    fn write_unsynced(path: &Utf8Path, text: &str) {
        let staged = Staged::new(path).unwrap();
        fs::write(staged.path(), text).unwrap();
        staged.publish_unsynced().unwrap();
    }
}
