//! Kept disks: overlays that `boot --persist` leaves for the next boot under the same name.
//!
//! Each remembers what it was made on. An overlay over another disk than its own would be a heap of torn files, and one
//! over its own disk beside another image's config a machine that nobody asked for: both are refused.

use anyhow::{Context as _, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::volume::{self, Access};
use super::{backing_file, overlay};
use crate::artifact::{Lock, Staged, discard, later, read_text, write_whole};
use crate::error::{Hint as _, hinted};
use crate::ui::human_bytes;
use crate::vm::machine::Base;
use crate::workspace::Workspace;

/// The ending of a kept disk's file; beside it, its base's description has another one.
const SUFFIX: &str = ".qcow2";

/// What a kept disk was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The image, for people.
    pub image: String,
    /// The image's digest, or that of the disk's file where there is no image.
    pub digest: String,
    /// What the guest sees of the disk, in bytes.
    pub size: u64,
}

impl Origin {
    /// A name does not make another disk.
    fn is_same_disk(&self, other: &Origin) -> bool {
        (&self.digest, self.size) == (&other.digest, other.size)
    }

    fn describe(&self) -> String {
        let digest = self.digest.get(..19).unwrap_or(&self.digest);
        format!("`{}` ({digest}, {})", self.image, human_bytes(self.size))
    }
}

/// What a machine is to lie on; beside a kept disk, what that one does lie on. No other file is read through it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What the base is.
    pub origin: Origin,
    /// Its file.
    pub base: Base,
}

/// A kept disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: Utf8PathBuf,
    /// The file that it lies on.
    pub base: Option<Utf8PathBuf>,
}

/// Where the kept disk of a name is, or will be.
pub fn disk(workspace: &Workspace, name: &str) -> Utf8PathBuf {
    workspace.persistent_disks().join(format!("{name}{SUFFIX}"))
}

/// Takes the kept disk of a name for one machine; makes it where it is not there yet, or where what was kept is to be
/// `discarded`. Yields the file that it lies on, too. Errors where another machine has it, and where it was made of
/// something else than what is `wanted`.
pub fn take(
    workspace: &Workspace,
    name: &str,
    wanted: &Wanted,
    discarded: bool,
) -> anyhow::Result<(Lock, Base)> {
    let disk = disk(workspace, name);
    let _turn = turn(workspace)?;
    if disk.exists() {
        let lock = volume::lock(&disk, Access::Write)?;
        if !discarded && !is_unfinished(&disk)? {
            let base = check(&disk, name, wanted).hint(format!(
                "`--persist=reset` discards all that `{name}` has kept; another `--name` begins a disk of its own"
            ))?;
            return Ok((lock, base));
        }
        discard(&disk)?;
    }
    // After a power cut it is not to be there without what it lies on.
    later::finish();
    write_whole(&record(&disk), &serde_json::to_vec_pretty(wanted)?)?;
    let staged = Staged::new(&disk)?;
    overlay(&wanted.base, staged.path())?;
    staged.publish()?;
    Ok((volume::lock(&disk, Access::Write)?, wanted.base.clone()))
}

/// A workbench before this one was killed while it made the file: nothing was kept yet.
fn is_unfinished(disk: &Utf8Path) -> anyhow::Result<bool> {
    Ok(disk.metadata().with_context(|| format!("failed to look at `{disk}`"))?.len() == 0)
}

/// What the kept disk lies on. Errors where that is not what is wanted.
fn check(disk: &Utf8Path, name: &str, wanted: &Wanted) -> anyhow::Result<Base> {
    let Some(lies_on) = backing_file(disk) else {
        bail!("the kept disk `{name}` is damaged: `{disk}` is no overlay");
    };
    let known = match recorded(disk) {
        Some(known) => known,
        // An earlier workbench made it.
        None if lies_on == wanted.base.path => wanted.clone(),
        None => {
            bail!(
                "the kept disk `{name}` was made on `{lies_on}`, and this boot is of `{}`",
                wanted.base.path
            )
        }
    };
    if !known.origin.is_same_disk(&wanted.origin) {
        bail!(
            "the kept disk `{name}` was made on {}, and this boot is of {}",
            known.origin.describe(),
            wanted.origin.describe()
        );
    }
    if !known.base.path.exists() {
        bail!("the kept disk `{name}` lies on `{lies_on}`, which is gone");
    }
    Ok(known.base)
}

fn record(disk: &Utf8Path) -> Utf8PathBuf {
    disk.with_extension("base.json")
}

/// `None` where an earlier workbench made the disk.
fn recorded(disk: &Utf8Path) -> Option<Wanted> {
    serde_json::from_str(&read_text(&record(disk)).ok()?).ok()
}

/// All kept disks, by name.
pub fn all(workspace: &Workspace) -> anyhow::Result<Vec<Kept>> {
    let disks = volume::files(&workspace.persistent_disks(), SUFFIX)?;
    Ok(disks.into_iter().map(|(name, path)| Kept { name, base: backing_file(&path), path }).collect())
}

/// Removes a kept disk with all its data. Errors where there is none, or a machine has it.
pub fn remove(workspace: &Workspace, name: &str) -> anyhow::Result<()> {
    let disk = disk(workspace, name);
    let _turn = turn(workspace)?;
    if !disk.exists() {
        return Err(hinted(anyhow!("there is no kept disk `{name}`"), "`cargo xtask volume ls` lists them"));
    }
    let _lock = volume::lock(&disk, Access::Write)?;
    discard(&disk)?;
    discard(&record(&disk))
}

/// Looks whether a machine has it.
pub(super) fn is_in_use(workspace: &Workspace, disk: &Utf8Path) -> anyhow::Result<bool> {
    let _turn = turn(workspace)?;
    Ok(volume::lock(disk, Access::Read).is_err())
}

/// Held while disks come, go and are looked at, so that nobody takes a look for a machine.
fn turn(workspace: &Workspace) -> anyhow::Result<Lock> {
    Lock::hold_briefly(&workspace.lock("kept-disks"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::tests::wait_for;
    use crate::vm::machine::DiskFormat;
    use std::fs;

    fn world() -> (tempfile::TempDir, Workspace, Wanted) {
        let guard = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_test(Utf8Path::from_path(guard.path()).unwrap());
        let path = workspace.cache().join("base");
        fs::create_dir_all(workspace.cache()).unwrap();
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let origin =
            Origin { image: "app".into(), digest: format!("sha256:{}", "1".repeat(64)), size: 1 << 20 };
        (guard, workspace, Wanted { origin, base: Base { path, format: DiskFormat::Raw } })
    }

    /// Why the disk is refused, other than for a lock.
    fn refusal(workspace: &Workspace, wanted: &Wanted) -> String {
        wait_for(|| {
            let text = crate::error::render(&take(workspace, "box", wanted, false).unwrap_err());
            (!text.contains("in use")).then_some(text)
        })
    }

    #[test]
    fn a_kept_disk_belongs_to_one_machine_and_stays() {
        let (_guard, workspace, base) = world();
        let (lock, _) = take(&workspace, "box", &base, false).unwrap();
        for discarded in [false, true] {
            let refusal = take(&workspace, "box", &base, discarded).unwrap_err().to_string();
            assert_eq!(refusal, "the disk `box` is in use by another machine");
        }
        assert!(remove(&workspace, "box").is_err());
        assert!(is_in_use(&workspace, &disk(&workspace, "box")).unwrap());
        drop(lock);
        wait_for(|| (!is_in_use(&workspace, &disk(&workspace, "box")).unwrap()).then_some(()));
        let all = all(&workspace).unwrap();
        assert_eq!(
            (all.len(), all[0].name.as_str(), &all[0].base),
            (1, "box", &Some(base.base.path.clone()))
        );
        drop(wait_for(|| take(&workspace, "box", &base, false).ok()));
        // Another name of the same disk is not another disk.
        let renamed =
            Wanted { origin: Origin { image: "other".into(), ..base.origin.clone() }, ..base.clone() };
        drop(wait_for(|| take(&workspace, "box", &renamed, false).ok()));
        wait_for(|| remove(&workspace, "box").ok());
        assert_eq!(workspace.persistent_disks().read_dir_utf8().unwrap().count(), 0);
        assert!(remove(&workspace, "box").unwrap_err().to_string().contains("there is no kept disk `box`"));
    }

    #[test]
    fn a_changed_base_is_refused_with_both_names_until_what_was_kept_is_discarded() {
        let (_guard, workspace, base) = world();
        drop(wait_for(|| take(&workspace, "box", &base, false).ok()));
        let kept = fs::read(disk(&workspace, "box")).unwrap();
        let digest = format!("sha256:{}", "2".repeat(64));
        let changed = [
            Wanted { origin: Origin { digest, ..base.origin.clone() }, ..base.clone() },
            Wanted { origin: Origin { size: 2 << 20, ..base.origin.clone() }, ..base.clone() },
        ];
        for (other, says) in changed.iter().zip(["`app` (sha256:222222222222, 1.00 MiB)", "2.00 MiB)"]) {
            let text = refusal(&workspace, other);
            assert!(
                text.contains("was made on `app` (sha256:111111111111, 1.00 MiB), and this boot is of"),
                "{text}"
            );
            assert!(text.contains(says) && text.contains("--persist=reset"), "{text}");
            assert_eq!(fs::read(disk(&workspace, "box")).unwrap(), kept);
        }
        drop(wait_for(|| take(&workspace, "box", &changed[0], true).ok()));
        drop(wait_for(|| take(&workspace, "box", &changed[0], false).ok()));
        assert!(take(&workspace, "box", &base, false).is_err());
    }

    #[test]
    fn what_is_no_overlay_is_made_anew_only_where_nothing_can_be_lost() {
        let (_guard, workspace, base) = world();
        let path = disk(&workspace, "box");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        drop(wait_for(|| take(&workspace, "box", &base, false).ok()));
        assert_eq!(backing_file(&path).as_ref(), Some(&base.base.path));
        fs::write(&path, "something").unwrap();
        let text = refusal(&workspace, &base);
        assert!(
            text.contains("the kept disk `box` is damaged") && text.contains("--persist=reset"),
            "{text}"
        );
        drop(wait_for(|| take(&workspace, "box", &base, true).ok()));
        fs::remove_file(&base.base.path).unwrap();
        assert!(refusal(&workspace, &base).contains("which is gone"));
    }

    #[test]
    fn a_disk_of_an_earlier_workbench_is_known_by_the_file_that_it_lies_on() {
        let (_guard, workspace, base) = world();
        drop(wait_for(|| take(&workspace, "box", &base, false).ok()));
        fs::remove_file(record(&disk(&workspace, "box"))).unwrap();
        drop(wait_for(|| take(&workspace, "box", &base, false).ok()));
        let elsewhere = Wanted { base: Base { path: workspace.cache().join("other"), ..base.base }, ..base };
        assert!(refusal(&workspace, &elsewhere).contains("and this boot is of `"));
    }
}
