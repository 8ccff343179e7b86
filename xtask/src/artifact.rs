//! Files that are whole or absent: written under a temporary name, renamed when done, removed when not.
//!
//! [`Staged`] is the temporary file or folder, [`Lock`] makes two tasks on one artifact take turns. What is staged
//! is also removed when the process is interrupted ([`crate::interrupt`]).

use std::fs::{self, File, TryLockError};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use crate::error::Hint as _;
use crate::interrupt;
use crate::ui::human_bytes;
use crate::workspace::CACHE_VARIABLE;

/// A path beside the final one, to be written and then [published](Staged::publish).
#[derive(Debug)]
pub struct Staged {
    temporary: Utf8PathBuf,
    destination: Utf8PathBuf,
    published: bool,
}

impl Staged {
    /// Prepares to write `destination`, a file or a folder; its parent is created.
    pub fn new(destination: &Utf8Path) -> anyhow::Result<Staged> {
        let parent = destination.parent().unwrap_or(Utf8Path::new("."));
        create_folder(parent)?;
        let name = destination.file_name().unwrap_or("artifact");
        let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
        remove_any(&temporary)?;
        interrupt::remove_on_interrupt(&temporary);
        Ok(Staged { temporary, destination: destination.to_owned(), published: false })
    }

    /// Where to write.
    pub fn path(&self) -> &Utf8Path {
        &self.temporary
    }

    /// Puts the finished file or folder at another destination on the same file system, for names that are known
    /// only in the end.
    pub fn publish_as(mut self, destination: &Utf8Path) -> anyhow::Result<()> {
        create_folder(destination.parent().unwrap_or(Utf8Path::new(".")))?;
        self.destination = destination.to_owned();
        self.publish()
    }

    /// Puts the finished file or folder at its destination, in place of what was there.
    pub fn publish(mut self) -> anyhow::Result<()> {
        if self.destination.is_dir() && !self.destination.is_symlink() {
            remove_any(&self.destination)?;
        }
        fs::rename(&self.temporary, &self.destination)
            .with_context(|| format!("failed to move `{}` to `{}`", self.temporary, self.destination))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        interrupt::forget(&self.temporary);
        if !self.published {
            // The task has failed with a better message already.
            let _ = remove_any(&self.temporary);
        }
    }
}

/// Held while an artifact is made; released when dropped or when the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock file at `path`, waiting for another task that holds it and saying so. `what` names the artifact.
    pub fn hold(path: &Utf8Path, what: &str) -> anyhow::Result<Lock> {
        create_folder(path.parent().unwrap_or(Utf8Path::new(".")))?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(|| format!("failed to open the lock `{path}`"))?;
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => crate::note!("waiting for another task that works on {what}"),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("failed to lock `{path}`"));
            }
        }
        file.lock().with_context(|| format!("failed to lock `{path}`"))?;
        Ok(Lock { _file: file })
    }
}

/// `mkdir -p` with the path in the error.
pub fn create_folder(path: &Utf8Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("failed to create the folder `{path}`"))
}

/// Removes a file, a link or a whole folder; nothing there is fine.
pub fn remove_any(path: &Utf8Path) -> anyhow::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.with_context(|| format!("failed to remove `{path}`"))
}

/// Points the link `link` at `target`, in place of the link that was there.
pub fn publish_link(target: &Utf8Path, link: &Utf8Path) -> anyhow::Result<()> {
    if link.read_link_utf8().is_ok_and(|known| known == target) {
        return Ok(());
    }
    let staged = Staged::new(link)?;
    std::os::unix::fs::symlink(target, staged.path())
        .with_context(|| format!("failed to link `{link}` to `{target}`"))?;
    staged.publish()
}

/// Makes sure, before slow work starts, that `bytes` more fit where `folder` (which exists) is. `what` needs them.
pub fn require_space(folder: &Utf8Path, bytes: u64, what: &str) -> anyhow::Result<()> {
    let status = rustix::fs::statvfs(folder.as_std_path())
        .with_context(|| format!("failed to ask for the free space of `{folder}`"))?;
    let free = status.f_bavail * status.f_frsize;
    if free < bytes {
        return Err(anyhow::anyhow!(
            "{what} needs {} in `{folder}`, and {} are free",
            human_bytes(bytes),
            human_bytes(free)
        ))
        .hint(format!("free some, or set {CACHE_VARIABLE} to a folder on a larger disk"));
    }
    Ok(())
}

/// Reads a file as text, with the path in the error.
pub fn read_text(path: &Utf8Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read `{path}`"))
}

/// Writes a small file whole or not at all.
pub fn write_whole(path: &Utf8Path, bytes: &[u8]) -> anyhow::Result<()> {
    let staged = Staged::new(path)?;
    fs::write(staged.path(), bytes).with_context(|| format!("failed to write `{path}`"))?;
    staged.publish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    #[test]
    fn what_is_not_published_leaves_nothing() {
        let (_guard, folder) = scratch();
        let staged = Staged::new(&folder.join("disk")).unwrap();
        fs::write(staged.path(), "half").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn publishing_replaces_a_file_and_a_folder() {
        let (_guard, folder) = scratch();
        write_whole(&folder.join("file"), b"old").unwrap();
        write_whole(&folder.join("file"), b"new").unwrap();
        assert_eq!(read_text(&folder.join("file")).unwrap(), "new");

        create_folder(&folder.join("kernel/old")).unwrap();
        let staged = Staged::new(&folder.join("kernel")).unwrap();
        create_folder(&staged.path().join("new")).unwrap();
        staged.publish().unwrap();
        assert!(folder.join("kernel/new").is_dir() && !folder.join("kernel/old").exists());
    }

    #[test]
    fn a_held_lock_makes_the_next_task_wait() {
        let (_guard, folder) = scratch();
        let path = folder.join("lock");
        let held = Lock::hold(&path, "a test").unwrap();
        let other = File::options().write(true).open(&path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(other.try_lock().is_ok());
    }
}
