//! Named volumes: each an ext4 disk of its own in the cache, which outlives the machines that mount it.
//!
//! A disk is made empty; PID 1 fills it with what the image has at its mount point. A machine holds a [lock](take) on
//! every volume that it mounts: alone, or beside other readers. Disks that were [kept](super::kept) are locked the same way.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, anyhow};
use camino::{Utf8Path, Utf8PathBuf};

use super::ext4::Plan;
use super::kept;
use crate::artifact::{InUse, Lock, Staged, discard, require_space};
use crate::error::{Hint as _, hinted, usage};
use crate::image::tree::Tree;
use crate::name;
use crate::workspace::Workspace;

/// What the guest sees of a volume, in bytes. The file is sparse: it takes the space that is written to.
const SIZE: u64 = 16 << 30;

/// The ending of a volume's file.
const SUFFIX: &str = ".ext4";

/// What an empty file system takes, with room for its first contents, in bytes.
const LEAST_SPACE: u64 = 16 << 20;

/// What a machine does with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It reads, and others may read too.
    Read,
    /// It writes, which nobody else may look at: a kernel does not expect its disk to change.
    Write,
}

impl Access {
    /// Of a mount.
    pub fn of(read_only: bool) -> Access {
        if read_only { Access::Read } else { Access::Write }
    }
}

/// A kind of disk that outlives machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Made by `boot -v NAME:GUEST`
    Volume,
    /// Made by `boot --persist`
    Kept,
}

impl Kind {
    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Volume => "volume",
            Kind::Kept => "kept",
        }
    }
}

/// A disk that outlives machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes that it takes on the host.
    pub space: u64,
    /// A machine has it.
    pub in_use: bool,
}

/// Where the disk of a volume is, or will be.
pub fn disk(workspace: &Workspace, name: &str) -> Utf8PathBuf {
    workspace.volumes().join(format!("{name}{SUFFIX}"))
}

/// Takes a volume for one machine; makes its disk where it is not there yet. Errors where another machine has it.
pub fn take(workspace: &Workspace, disk: &Utf8Path, access: Access) -> anyhow::Result<Lock> {
    let _turn = turn(workspace)?;
    if !disk.exists() {
        make(disk).with_context(|| format!("failed to make the volume `{disk}`"))?;
    }
    lock(disk, access)
}

fn make(disk: &Utf8Path) -> anyhow::Result<()> {
    let staged = Staged::new(disk)?;
    let file = fs::File::create_new(staged.path())?;
    require_space(disk.parent().unwrap_or(Utf8Path::new(".")), LEAST_SPACE, "a volume")?;
    Plan::new(Tree::default())?.write(&[], &file, SIZE, |_| {})?;
    staged.publish()
}

/// All volumes and kept disks, by name.
pub fn all(workspace: &Workspace) -> anyhow::Result<Vec<Volume>> {
    let mut volumes = Vec::new();
    for (name, path) in files(&workspace.volumes(), SUFFIX)? {
        let in_use = is_in_use(workspace, &path)?;
        volumes.push(Volume { name, kind: Kind::Volume, space: space(&path), in_use });
    }
    for kept in kept::all(workspace)? {
        let in_use = kept::is_in_use(workspace, &kept.path)?;
        volumes.push(Volume { name: kept.name, kind: Kind::Kept, space: space(&kept.path), in_use });
    }
    volumes.sort_by(|a, b| (&a.name, a.kind.word()).cmp(&(&b.name, b.kind.word())));
    Ok(volumes)
}

/// The files in a folder with this ending: their names without it, and their paths.
pub(super) fn files(folder: &Utf8Path, suffix: &str) -> anyhow::Result<Vec<(String, Utf8PathBuf)>> {
    let reading = || format!("failed to read `{folder}`");
    let entries = match folder.read_dir_utf8() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(reading)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.with_context(reading)?;
        if let Some(name) = entry.file_name().strip_suffix(suffix) {
            files.push((name.to_owned(), entry.path().to_owned()));
        }
    }
    files.sort();
    Ok(files)
}

/// One that goes in this moment takes none.
fn space(disk: &Utf8Path) -> u64 {
    // A block is 512 bytes here, whatever the file system's (stat(2)).
    disk.metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

/// Removes a volume or a kept disk with all its data. Without `kind`, whichever of them there is. Errors where there is
/// none, where there are both, and where a machine has it.
pub fn remove(workspace: &Workspace, name: &str, kind: Option<Kind>) -> anyhow::Result<()> {
    let name = &name::parse(name).map_err(usage)?;
    let is_there = (disk(workspace, name).exists(), kept::disk(workspace, name).exists());
    match (kind, is_there) {
        (None, (true, true)) => Err(anyhow!("`{name}` is a volume, and a kept disk too"))
            .hint("say which: `--kind volume` or `--kind kept`"),
        (Some(Kind::Kept), _) | (None, (false, true)) => kept::remove(workspace, name),
        (Some(Kind::Volume) | None, _) => remove_volume(workspace, name),
    }
}

fn remove_volume(workspace: &Workspace, name: &str) -> anyhow::Result<()> {
    let disk = disk(workspace, name);
    let _turn = turn(workspace)?;
    if !disk.exists() {
        return Err(anyhow!("there is no volume `{name}`")).hint("`cargo xtask volume ls` lists them");
    }
    let _lock = lock(&disk, Access::Write)?;
    discard(&disk)
}

/// Errors where a machine has the volume.
pub fn check_free(workspace: &Workspace, name: &str, access: Access) -> anyhow::Result<()> {
    let disk = disk(workspace, name);
    let _turn = turn(workspace)?;
    if disk.exists() { lock(&disk, access).map(drop) } else { Ok(()) }
}

fn is_in_use(workspace: &Workspace, disk: &Utf8Path) -> anyhow::Result<bool> {
    let _turn = turn(workspace)?;
    Ok(disk.exists() && lock(disk, Access::Write).is_err())
}

/// Held while volumes come, go and are looked at, so that nobody takes a look for a machine.
fn turn(workspace: &Workspace) -> anyhow::Result<Lock> {
    Lock::hold_briefly(&workspace.lock("volumes"))
}

/// Takes a disk for one machine, until what this yields is dropped or the process ends in any way.
pub(super) fn lock(disk: &Utf8Path, access: Access) -> anyhow::Result<Lock> {
    let taken = match access {
        Access::Read => Lock::try_share(disk)?,
        Access::Write => Lock::try_own(disk)?,
    };
    match taken {
        Ok(lock) => lock.with_context(|| format!("the disk `{disk}` is gone")),
        Err(InUse) => {
            let name = disk.file_stem().unwrap_or(disk.as_str());
            let what = if disk.as_str().ends_with(SUFFIX) { "volume" } else { "disk" };
            Err(hinted(
                anyhow!("the {what} `{name}` is in use by another machine"),
                "a disk that a machine writes to is that machine's alone: end the other one first",
            ))
        }
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
    use crate::artifact::tests::wait_for;

    fn world() -> (tempfile::TempDir, Workspace) {
        let guard = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_test(Utf8Path::from_path(guard.path()).unwrap());
        (guard, workspace)
    }

    #[test]
    fn a_volume_has_one_writer_or_many_readers() {
        let (_guard, workspace) = world();
        let data = disk(&workspace, "data");
        let writer = take(&workspace, &data, Access::Write).unwrap();
        for access in [Access::Read, Access::Write] {
            let refusal = take(&workspace, &data, access).unwrap_err().to_string();
            assert_eq!(refusal, "the volume `data` is in use by another machine");
            assert!(check_free(&workspace, "data", access).is_err());
        }
        drop(writer);
        let readers =
            [Access::Read, Access::Read].map(|access| wait_for(|| take(&workspace, &data, access).ok()));
        check_free(&workspace, "data", Access::Read).unwrap();
        assert!(take(&workspace, &data, Access::Write).is_err());
        assert!(remove(&workspace, "data", None).is_err());
        let all = all(&workspace).unwrap();
        assert_eq!((all.len(), all[0].name.as_str(), all[0].in_use), (1, "data", true));
        assert!((1..64 << 20).contains(&all[0].space), "{} bytes", all[0].space);
        drop(readers);
        wait_for(|| remove(&workspace, "data", None).ok());
        assert!(!data.exists());
        check_free(&workspace, "data", Access::Write).unwrap();
        let error = remove(&workspace, "data", None).unwrap_err().to_string();
        assert_eq!(error, "there is no volume `data`");
    }

    #[test]
    fn whoever_looks_takes_turns_with_whoever_takes() {
        let (_guard, workspace) = world();
        let data = disk(&workspace, "data");
        drop(take(&workspace, &data, Access::Write).unwrap());
        // While somebody else has the turn, nobody has the lock that a look takes.
        let other = turn(&workspace).unwrap();
        let looks = [
            std::thread::spawn({
                let workspace = workspace.clone();
                move || all(&workspace).map(drop)
            }),
            std::thread::spawn({
                let workspace = workspace.clone();
                move || check_free(&workspace, "data", Access::Write)
            }),
        ];
        drop(wait_for(|| lock(&data, Access::Write).ok()));
        assert!(looks.iter().all(|look| !look.is_finished()));
        drop(other);
        looks.into_iter().for_each(|look| look.join().unwrap().unwrap());
    }

    #[test]
    fn a_name_of_both_kinds_has_to_say_which() {
        let (_guard, workspace) = world();
        drop(take(&workspace, &disk(&workspace, "db"), Access::Write).unwrap());
        fs::create_dir_all(workspace.persistent_disks()).unwrap();
        fs::write(kept::disk(&workspace, "db"), "").unwrap();
        let kinds: Vec<&str> = all(&workspace).unwrap().iter().map(|volume| volume.kind.word()).collect();
        assert_eq!(kinds, ["kept", "volume"]);
        assert!(remove(&workspace, "db", None).is_err());
        wait_for(|| remove(&workspace, "db", Some(Kind::Volume)).ok());
        assert!(remove(&workspace, "db", Some(Kind::Volume)).is_err());
        assert!(kept::disk(&workspace, "db").exists());
        wait_for(|| remove(&workspace, "db", None).ok());
        assert_eq!(all(&workspace).unwrap(), []);
    }
}
