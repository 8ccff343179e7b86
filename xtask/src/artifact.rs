//! Files that are whole or absent, also after a power cut: written under a temporary name, renamed when done, removed
//! when not.
//!
//! [`Staged`] is the temporary file or folder, [`Lock`] makes two tasks on one artifact take turns. What is staged
//! is also removed when the process is interrupted ([`crate::interrupt`]), and what a killed process has left by the
//! next one that writes there.

mod durable;
pub mod later;
mod lock;
mod staged;

use std::fs;
use std::io::Write as _;

use anyhow::Context as _;
use camino::Utf8Path;

use crate::error::Hint as _;
use crate::host::private;
use crate::ui::human_bytes;
use crate::workspace::CACHE_VARIABLE;

pub(crate) use self::durable::{sync_names, sync_tree};
pub use self::lock::{InUse, Lock, inherit};
pub use self::staged::Staged;
pub(crate) use self::staged::{discard, leftovers, remove_leftovers};

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
    // A link is whole in its folder, or absent from it.
    staged.publish_unsynced()
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

/// Writes a small file whole or not at all; its owner alone can read it.
pub fn write_whole(path: &Utf8Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_staged(path, bytes)?.publish()
}

/// The same without waiting for the disk, see [`Staged::publish_unsynced`].
pub fn write_unsynced(path: &Utf8Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_staged(path, bytes)?.publish_unsynced()
}

fn write_staged(path: &Utf8Path, bytes: &[u8]) -> anyhow::Result<Staged> {
    let staged = Staged::new(path)?;
    let write = || private::create(staged.path()).and_then(|mut file| file.write_all(bytes));
    write().with_context(|| format!("failed to write `{path}`"))?;
    Ok(staged)
}

/// Gives a finished file beside its destination its name, whole or not at all.
pub fn publish_file(file: &Utf8Path, destination: &Utf8Path) -> anyhow::Result<()> {
    sync_tree(file)?;
    fs::rename(file, destination).with_context(|| format!("failed to move `{file}` to `{destination}`"))?;
    sync_names(destination.parent().unwrap_or(Utf8Path::new(".")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use camino::Utf8PathBuf;

    pub(super) fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    /// Waits for a lock that was let go of: a child of another test holds it too, between its fork and its exec.
    pub(crate) fn wait_for<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            if let Some(found) = attempt() {
                return found;
            }
            assert!(std::time::Instant::now() < deadline, "waited in vain");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_link_is_replaced_and_one_that_is_right_is_left_alone() {
        use std::os::unix::fs::MetadataExt as _;
        let (_guard, folder) = scratch();
        let link = folder.join("link");
        publish_link(Utf8Path::new("one"), &link).unwrap();
        publish_link(Utf8Path::new("two"), &link).unwrap();
        let inode = link.symlink_metadata().unwrap().ino();
        publish_link(Utf8Path::new("two"), &link).unwrap();
        assert_eq!(link.read_link_utf8().unwrap(), "two");
        assert_eq!(link.symlink_metadata().unwrap().ino(), inode);
    }

    #[test]
    fn a_finished_file_gets_its_name() {
        let (_guard, folder) = scratch();
        let (part, whole) = (folder.join("file.part"), folder.join("file"));
        fs::write(&part, "all of it").unwrap();
        publish_file(&part, &whole).unwrap();
        assert_eq!((read_text(&whole).unwrap().as_str(), part.exists()), ("all of it", false));
        assert!(publish_file(&part, &whole).is_err());
    }

    #[test]
    fn space_that_is_not_there_is_refused_with_both_numbers() {
        let (_guard, folder) = scratch();
        require_space(&folder, 1, "a test").unwrap();
        let error = require_space(&folder, u64::MAX, "a test").unwrap_err();
        assert!(
            error.to_string().starts_with("a test needs ") || format!("{error:#}").contains("a test needs ")
        );
    }
}
