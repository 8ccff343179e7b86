//! Locks between tasks. The kernel releases one when its holder ends in any way, so none is ever left behind.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use camino::Utf8Path;
use rustix::io::FdFlags;

use super::create_folder;

/// A lock on a file; released when dropped or when the process ends in any way. A child that inherits the descriptor
/// holds the lock too.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock file at `path`, waiting for another task that holds it and saying so. `what` names the artifact.
    pub fn hold(path: &Utf8Path, what: &str) -> anyhow::Result<Lock> {
        Lock::wait(path, what, File::try_lock, File::lock)
    }

    /// The same beside other holders of this kind.
    pub fn hold_beside_others(path: &Utf8Path, what: &str) -> anyhow::Result<Lock> {
        Lock::wait(path, what, File::try_lock_shared, File::lock_shared)
    }

    fn wait(
        path: &Utf8Path,
        what: &str,
        attempt: impl Fn(&File) -> Result<(), TryLockError>,
        wait: impl Fn(&File) -> io::Result<()>,
    ) -> anyhow::Result<Lock> {
        let file = lock_file(path)?;
        match attempt(&file) {
            Ok(()) => return Ok(Lock { file }),
            Err(TryLockError::WouldBlock) => crate::note!("waiting for another task that works on {what}"),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("failed to lock `{path}`"));
            }
        }
        wait(&file).with_context(|| format!("failed to lock `{path}`"))?;
        Ok(Lock { file })
    }

    /// The same for work that takes no time worth a word.
    pub fn hold_briefly(path: &Utf8Path) -> anyhow::Result<Lock> {
        let file = lock_file(path)?;
        file.lock().with_context(|| format!("failed to lock `{path}`"))?;
        Ok(Lock { file })
    }

    /// Keeps the artifact that `file` is, or is a part of, from being removed or changed by others; waits while it is
    /// being removed. `None` where it is gone.
    pub fn share(path: &Utf8Path) -> anyhow::Result<Option<Lock>> {
        let Some(file) = existing(path)? else { return Ok(None) };
        file.lock_shared().with_context(|| format!("failed to lock `{path}`"))?;
        Ok(is_there(&file, path)?.then_some(Lock { file }))
    }

    /// Takes the artifact for one holder alone. `Err(None)` where others have it, `Ok(None)` where it is gone.
    pub fn try_own(path: &Utf8Path) -> anyhow::Result<Result<Option<Lock>, InUse>> {
        Lock::attempt(path, File::try_lock)
    }

    /// The same beside other holders of this kind.
    pub fn try_share(path: &Utf8Path) -> anyhow::Result<Result<Option<Lock>, InUse>> {
        Lock::attempt(path, File::try_lock_shared)
    }

    fn attempt(
        path: &Utf8Path,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> anyhow::Result<Result<Option<Lock>, InUse>> {
        let Some(file) = existing(path)? else { return Ok(Ok(None)) };
        match lock(&file) {
            Ok(()) => Ok(Ok(is_there(&file, path)?.then_some(Lock { file }))),
            Err(TryLockError::WouldBlock) => Ok(Err(InUse)),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("failed to lock `{path}`")),
        }
    }
}

/// Lets the programs that are started from now on hold these locks too, until they end. To be taken back by the
/// inverse when the one that they are meant for runs.
pub fn inherit(locks: &[Lock], inherited: bool) -> anyhow::Result<()> {
    let flags = if inherited { FdFlags::empty() } else { FdFlags::CLOEXEC };
    locks
        .iter()
        .try_for_each(|lock| rustix::io::fcntl_setfd(lock, flags))
        .context("failed to hand locks over")
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Another task has the artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse;

fn lock_file(path: &Utf8Path) -> anyhow::Result<File> {
    create_folder(path.parent().unwrap_or(Utf8Path::new(".")))?;
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("failed to open the lock `{path}`"))
}

fn existing(path: &Utf8Path) -> anyhow::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to open `{path}`")),
    }
}

/// A file may have been removed, or another put in its place, between being opened and being locked.
fn is_there(file: &File, path: &Utf8Path) -> anyhow::Result<bool> {
    let ours = file.metadata().with_context(|| format!("failed to look at `{path}`"))?;
    Ok(path.metadata().is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::tests::{scratch, wait_for};
    use std::fs;

    #[test]
    fn a_held_lock_makes_the_next_task_wait() {
        let (_guard, folder) = scratch();
        let path = folder.join("locks/one");
        let held = Lock::hold(&path, "a test").unwrap();
        let other = File::options().write(true).open(&path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        wait_for(|| other.try_lock().ok());
        drop(other);
        let held = Lock::hold_briefly(&path).unwrap();
        let waiting = std::thread::spawn(move || Lock::hold_briefly(&path).map(drop));
        drop(held);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn users_share_an_artifact_and_its_remover_has_it_alone() {
        let (_guard, folder) = scratch();
        let path = folder.join("disk");
        assert!(Lock::share(&path).unwrap().is_none());
        assert!(Lock::try_own(&path).unwrap().unwrap().is_none());
        assert!(Lock::try_share(&path).unwrap().unwrap().is_none());
        fs::write(&path, "").unwrap();
        let first = Lock::share(&path).unwrap().unwrap();
        let second = Lock::try_share(&path).unwrap().unwrap().unwrap();
        assert_eq!(Lock::try_own(&path).unwrap().unwrap_err(), InUse);
        drop(first);
        assert_eq!(Lock::try_own(&path).unwrap().unwrap_err(), InUse);
        drop(second);
        let owner = wait_for(|| Lock::try_own(&path).unwrap().ok()).unwrap();
        assert_eq!(Lock::try_share(&path).unwrap().unwrap_err(), InUse);
        // A user that comes while it is removed finds that it is gone.
        let late = std::thread::spawn({
            let path = path.clone();
            move || Lock::share(&path).unwrap().is_none()
        });
        fs::remove_file(&path).unwrap();
        drop(owner);
        assert!(late.join().unwrap());
    }

    #[test]
    fn a_file_that_another_one_has_replaced_counts_as_gone() {
        let (_guard, folder) = scratch();
        let path = folder.join("disk");
        fs::write(&path, "").unwrap();
        let old = File::open(&path).unwrap();
        assert!(is_there(&old, &path).unwrap());
        fs::write(folder.join("new"), "").unwrap();
        fs::rename(folder.join("new"), &path).unwrap();
        assert!(!is_there(&old, &path).unwrap());
    }
}
