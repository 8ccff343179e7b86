//! Named volumes: each an ext4 disk of its own in the cache, which outlives the machines that mount it.
//!
//! A disk is made empty; PID 1 fills it with what the image has at its mount point. A machine holds the
//! [lock](lock) of every disk that it writes to, and no other machine starts with that disk.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use super::ext4::Plan;
use crate::artifact::{Lock, Staged, remove_any};
use crate::error::Hint as _;
use crate::image::tree::Tree;
use crate::workspace::Workspace;

/// What the guest sees of a volume, in bytes. The file is sparse: it takes the space that is written to.
const SIZE: u64 = 16 << 30;

/// The ending of a volume's file.
const SUFFIX: &str = ".ext4";

/// A volume in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Bytes that it takes on the host.
    pub space: u64,
    /// A machine has it.
    pub in_use: bool,
}

/// Where the disk of a volume is, or will be.
pub fn disk(workspace: &Workspace, name: &str) -> Utf8PathBuf {
    workspace.volumes().join(format!("{name}{SUFFIX}"))
}

/// Makes the disk of a new volume; one that is there is left alone.
pub fn ensure(workspace: &Workspace, disk: &Utf8Path) -> anyhow::Result<()> {
    let _turn = Lock::hold(&workspace.cache().join("locks/volumes.lock"), "the volumes")?;
    if disk.exists() {
        return Ok(());
    }
    let make = || {
        let staged = Staged::new(disk)?;
        let file = File::create_new(staged.path())?;
        Plan::new(Tree::default())?.write(&[], &file, SIZE, |_| {})?;
        staged.publish()
    };
    make().with_context(|| format!("failed to make the volume `{disk}`"))
}

/// All volumes, by name.
pub fn all(workspace: &Workspace) -> anyhow::Result<Vec<Volume>> {
    let folder = workspace.volumes();
    let entries = match folder.read_dir_utf8() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("failed to read `{folder}`"))?,
    };
    let mut volumes = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("failed to read `{folder}`"))?;
        let Some(name) = entry.file_name().strip_suffix(SUFFIX) else { continue };
        let metadata = entry.metadata().with_context(|| format!("failed to look at `{}`", entry.path()))?;
        volumes.push(Volume {
            name: name.to_owned(),
            // A block is 512 bytes here, whatever the file system's (stat(2)).
            space: metadata.blocks() * 512,
            in_use: lock(entry.path()).is_err(),
        });
    }
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(volumes)
}

/// Removes a volume with all its data. Errors where there is none, or a machine has it.
pub fn remove(workspace: &Workspace, name: &str) -> anyhow::Result<()> {
    let disk = disk(workspace, name);
    if !disk.exists() {
        return Err(anyhow::anyhow!("there is no volume `{name}`"))
            .hint("`cargo xtask volume ls` lists them");
    }
    let _lock = lock(&disk)?;
    remove_any(&disk)
}

/// Errors where a machine has the volume.
pub fn check_free(workspace: &Workspace, name: &str) -> anyhow::Result<()> {
    let disk = disk(workspace, name);
    if disk.exists() { lock(&disk).map(drop) } else { Ok(()) }
}

/// Takes a disk for one machine, until what this yields is dropped or the process ends in any way.
pub fn lock(disk: &Utf8Path) -> anyhow::Result<File> {
    let file = File::open(disk).with_context(|| format!("failed to open the disk `{disk}`"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let name = disk.file_stem().unwrap_or(disk.as_str());
            let what = if disk.as_str().ends_with(SUFFIX) { "volume" } else { "disk" };
            Err(anyhow::anyhow!("the {what} `{name}` is in use by another machine"))
                .hint("two machines that write to one disk would destroy it: end the other one first")
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("failed to lock `{disk}`")),
    }
}

/// Gives a machine a file of the host in a folder of its own, as another name of the same file. `None` where the file
/// system does not allow that: across file systems, or for another user's file.
pub fn link_file(file: &Utf8Path, folder: &Utf8Path, name: &str) -> Option<()> {
    fs::create_dir_all(folder).ok()?;
    fs::hard_link(file, folder.join(name)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_taken_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Utf8Path::from_path(folder.path()).unwrap().join("data.ext4");
        fs::write(&disk, "").unwrap();
        let held = lock(&disk).unwrap();
        assert_eq!(lock(&disk).unwrap_err().to_string(), "the volume `data` is in use by another machine");
        drop(held);
        assert!(lock(&disk).is_ok());
    }
}
