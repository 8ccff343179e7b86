//! What the cache holds, and how its space is freed. A disk that a machine's overlay lies on is never removed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt as _;

use anyhow::bail;
use camino::{Utf8Path, Utf8PathBuf};

use super::store::{CachedDisk, Store};
use crate::artifact::remove_any;
use crate::disk::backing_file;
use crate::nearest::nearest;
use crate::workspace::Workspace;

/// Bytes that a file or folder takes on the host's disk.
pub fn space(path: &Utf8Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below = if metadata.is_dir() { path.read_dir_utf8().ok() } else { None };
    let below: u64 = below.into_iter().flatten().flatten().map(|entry| space(entry.path())).sum();
    // stat(2) counts in 512 bytes, whatever the file system's block is.
    below + metadata.blocks() * 512
}

/// Removes the disks of these names or digests. Gives the bytes that were freed.
pub fn remove(workspace: &Workspace, wanted: &[String]) -> anyhow::Result<u64> {
    let store = Store::new(workspace);
    let disks = store.disks();
    let mut chosen = BTreeMap::new();
    for word in wanted {
        let matching: Vec<&CachedDisk> = disks.iter().filter(|disk| matches(disk, word)).collect();
        if matching.is_empty() {
            let names: BTreeSet<String> = disks.iter().map(|disk| disk.record.name.clone()).collect();
            match nearest(word, names.iter().map(String::as_str)) {
                Some(near) => bail!("there is no image `{word}` in the cache; is it `{near}`?"),
                None => bail!(
                    "there is no image `{word}` in the cache; `cargo xtask image ls` shows what is there"
                ),
            }
        }
        chosen.extend(matching.into_iter().map(|disk| (disk.folder.clone(), disk)));
    }
    let users = users(workspace);
    for disk in chosen.values() {
        if let Some(user) = users.get(&disk.disk()) {
            bail!("the image `{}` is in use by `{user}`", disk.record.name);
        }
    }
    let mut freed = 0;
    for folder in chosen.keys() {
        freed += free(folder)?;
    }
    Ok(freed)
}

/// A name, or the first digits of a digest (at least four of them).
fn matches(disk: &CachedDisk, word: &str) -> bool {
    let digits = word.strip_prefix("sha256:").unwrap_or(word);
    let hex = disk.record.digest.trim_start_matches("sha256:");
    disk.record.name == word || digits.len() >= 4 && hex.starts_with(digits)
}

/// Removes disks that a newer one of the same name has replaced and what killed tasks have left; with `all` every
/// disk and layer that no machine uses. Gives the bytes that were freed.
pub fn prune(workspace: &Workspace, all: bool) -> anyhow::Result<u64> {
    let store = Store::new(workspace);
    let users = users(workspace);
    let mut names = HashSet::new();
    let mut freed = 0;
    // The newest of each name comes first.
    for disk in store.disks() {
        let is_newest = names.insert(disk.record.name.clone());
        if (all || !is_newest) && !users.contains_key(&disk.disk()) {
            freed += free(&disk.folder)?;
        }
    }
    freed += free_leftovers(&store.scratch())?;
    if all {
        freed += free(&store.blobs_folder())?;
    }
    Ok(freed)
}

/// Temporary files of tasks that are no more. Their names end in the process's number ([`crate::artifact::Staged`]).
fn free_leftovers(scratch: &Utf8Path) -> anyhow::Result<u64> {
    let mut freed = 0;
    for entry in scratch.read_dir_utf8().into_iter().flatten().flatten() {
        let process =
            entry.file_name().trim_end_matches(".tmp").rsplit('.').next().and_then(|word| word.parse().ok());
        let is_alive = |process: u32| Utf8Path::new(&format!("/proc/{process}")).exists();
        if !process.is_some_and(is_alive) {
            freed += free(entry.path())?;
        }
    }
    Ok(freed)
}

fn free(path: &Utf8Path) -> anyhow::Result<u64> {
    let bytes = space(path);
    remove_any(path)?;
    Ok(bytes)
}

/// The disks that overlays lie on, and the machine or volume that the overlay belongs to.
fn users(workspace: &Workspace) -> BTreeMap<Utf8PathBuf, String> {
    let mut users = BTreeMap::new();
    for folder in [workspace.machines(), workspace.persistent_disks()] {
        for entry in folder.read_dir_utf8().into_iter().flatten().flatten() {
            let below = entry.path().read_dir_utf8().into_iter().flatten().flatten();
            let files = below.map(|file| file.path().to_owned()).chain([entry.path().to_owned()]);
            for base in files.filter(|file| file.is_file()).filter_map(|file| backing_file(&file)) {
                users.insert(base, entry.file_name().to_owned());
            }
        }
    }
    users
}
