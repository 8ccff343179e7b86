//! What the cache holds, and how its space is freed. A disk that a machine uses, or that a kept disk lies on, is never
//! removed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt as _;

use anyhow::{anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};

use super::confined;
use super::store::{CachedDisk, Store, users_file};
use crate::artifact::{InUse, Lock, discard, leftovers};
use crate::disk::kept;
use crate::error::Hint as _;
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
    // All of them or none: a lock that is held now cannot be taken by a machine.
    let mut alone = Vec::new();
    for disk in chosen.values() {
        match claim(workspace, &disk.folder)? {
            Claim::Free(lock) => alone.push(lock),
            Claim::Gone => {}
            Claim::Used => bail!("the image `{}` is in use by a machine", disk.record.name),
            Claim::Kept(name) => {
                return Err(anyhow!("the kept disk `{name}` lies on the image `{}`", disk.record.name))
                    .hint(format!("`cargo xtask volume rm {name}` removes the kept disk with all its data"));
            }
        }
    }
    chosen.keys().try_fold(0, |freed, folder| Ok(freed + free(folder)?))
}

/// Whether a disk may be removed.
enum Claim {
    /// It may, while the lock is held.
    Free(Lock),
    /// A machine, or a task that makes one, has it.
    Used,
    /// A kept disk of this name lies on it.
    Kept(String),
    /// Somebody else has removed it.
    Gone,
}

fn claim(workspace: &Workspace, folder: &Utf8Path) -> anyhow::Result<Claim> {
    let Some(users) = users_file(folder)? else { return Ok(Claim::Gone) };
    let lock = match Lock::try_own(&users)? {
        Ok(Some(lock)) => lock,
        Ok(None) => return Ok(Claim::Gone),
        Err(InUse) => return Ok(Claim::Used),
    };
    // Looked for under the lock: whoever makes a kept disk holds what it lies on.
    let kept = kept::all(workspace)?
        .into_iter()
        .find(|kept| kept.base.as_deref() == Some(&CachedDisk::disk_in(folder)));
    Ok(kept.map_or(Claim::Free(lock), |kept| Claim::Kept(kept.name)))
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
    let mut freed = 0;
    for folder in workspace.folders() {
        for (left, _lock) in leftovers(&folder) {
            freed += free(&left)?;
        }
    }
    let mut names = HashSet::new();
    // The newest of each name comes first.
    let newest = store.disks().into_iter().filter(|disk| names.insert(disk.record.name.clone()));
    let keep: HashSet<Utf8PathBuf> = newest.filter(|_| !all).map(|disk| disk.folder).collect();
    for entry in workspace.disks().read_dir_utf8().into_iter().flatten().flatten() {
        // One without a record is being made, in use therefore, or was left by a task that was killed.
        if !keep.contains(entry.path())
            && let Claim::Free(_lock) = claim(workspace, entry.path())?
        {
            freed += free(entry.path())?;
        }
    }
    if all {
        freed += free(&store.blobs_folder())? + free(&workspace.dry_runs())?;
        freed += confined::while_idle(&store.builder_storage(), free)?.unwrap_or(0);
    }
    Ok(freed)
}

fn free(path: &Utf8Path) -> anyhow::Result<u64> {
    let bytes = space(path);
    discard(path)?;
    Ok(bytes)
}
