//! A set of artifacts: one folder that holds all that a machine boots from, under the recipe's names.
//!
//! `collect` brings a set from another machine; `boot --from` runs one. Loading looks only at which files are there.

use std::fs;

use anyhow::{Context as _, bail};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use crate::artifact::{Staged, discard, remove_any, sync_names};
use crate::workspace::{Workspace, hex};

/// PID 1: a static ELF.
pub const INIT: &str = "init";
/// `bzImage`, or `vmlinux` with a PVH entry.
pub const KERNEL: &str = "kernel";
/// The root file system in a qcow2 file.
pub const DISK: &str = "hda.qcow2";
/// The image's config (ENTRYPOINT, ENV, …) as the OCI image spec has it; sets made by hand lack it.
pub const IMAGE_CONFIG: &str = "image.json";

/// A folder in a set's in which a newer set has arrived whole. Until its files are in place, the set is half of each.
const ARRIVED: &str = ".arrived";
/// In that folder: the newer set has no [`IMAGE_CONFIG`].
const NO_IMAGE_CONFIG: &str = "no-image.json";

/// The files of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// [`INIT`]; `None` where the disk carries its own as `/sbin/init`.
    pub init: Option<Utf8PathBuf>,
    /// [`KERNEL`].
    pub kernel: Utf8PathBuf,
    /// [`DISK`].
    pub disk: Utf8PathBuf,
    /// [`IMAGE_CONFIG`].
    pub image_config: Option<Utf8PathBuf>,
}

impl Set {
    /// The lock of the set in a folder, which may not be there yet: held alone by whoever replaces the set, and shared by
    /// those that are about to open its files.
    pub fn lock(workspace: &Workspace, folder: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
        let folder = match folder.canonicalize_utf8() {
            Ok(folder) => folder,
            Err(_) => camino::absolute_utf8(folder).context("failed to name the folder")?,
        };
        Ok(workspace.lock(&format!("set-{}", &hex(&Sha256::digest(folder.as_str()))[..16])))
    }

    /// Puts the set that was written to `staged` in place of the one in a folder, which stays the same folder. Where that
    /// is cut short, [`Set::settle`] goes on with it.
    pub fn replace(staged: Staged, folder: &Utf8Path) -> anyhow::Result<()> {
        if !staged.path().join(IMAGE_CONFIG).exists() {
            let mark = staged.path().join(NO_IMAGE_CONFIG);
            fs::write(&mark, "").with_context(|| format!("failed to write `{mark}`"))?;
        }
        staged.aimed_at(&folder.join(ARRIVED))?.publish()?;
        Set::settle(folder)
    }

    /// True where a newer set has arrived and is not in place.
    pub fn is_half(folder: &Utf8Path) -> bool {
        folder.join(ARRIVED).is_dir()
    }

    /// Puts the files of a set that has arrived in place. To be called with the [lock](Set::lock).
    pub fn settle(folder: &Utf8Path) -> anyhow::Result<()> {
        let arrived = folder.join(ARRIVED);
        if !Set::is_half(folder) {
            return Ok(());
        }
        if arrived.join(NO_IMAGE_CONFIG).exists() {
            // The config of another image must not stay beside this disk.
            remove_any(&folder.join(IMAGE_CONFIG))?;
        }
        for name in [INIT, KERNEL, DISK, IMAGE_CONFIG] {
            let (from, to) = (arrived.join(name), folder.join(name));
            if from.exists() {
                fs::rename(&from, &to).with_context(|| format!("failed to move `{from}` to `{to}`"))?;
            }
        }
        sync_names(folder)?;
        discard(&arrived)
    }

    /// Finds a set in a folder. Errors name everything that is missing from it.
    pub fn load(folder: &Utf8Path) -> anyhow::Result<Set> {
        if !folder.is_dir() {
            bail!("`{folder}` is not a folder");
        }
        let missing: Vec<String> = [KERNEL, DISK]
            .into_iter()
            .filter(|name| !folder.join(name).is_file())
            .map(|name| format!("`{name}`"))
            .collect();
        if !missing.is_empty() {
            bail!("`{folder}` holds no {}", missing.join(" and no "));
        }
        let optional = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        Ok(Set {
            init: optional(INIT),
            kernel: folder.join(KERNEL),
            disk: folder.join(DISK),
            image_config: optional(IMAGE_CONFIG),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_whole_with_kernel_and_disk_and_errors_name_what_is_missing() {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        let error = |folder: &Utf8Path| Set::load(folder).unwrap_err().to_string();
        assert_eq!(error(&folder.join("none")), format!("`{folder}/none` is not a folder"));
        assert_eq!(error(folder), format!("`{folder}` holds no `kernel` and no `hda.qcow2`"));
        std::fs::write(folder.join(KERNEL), "k").unwrap();
        assert_eq!(error(folder), format!("`{folder}` holds no `hda.qcow2`"));
        std::fs::write(folder.join(DISK), "d").unwrap();
        let set = Set::load(folder).unwrap();
        assert_eq!((set.init, set.image_config), (None, None));
        std::fs::write(folder.join(INIT), "i").unwrap();
        assert_eq!(Set::load(folder).unwrap().init, Some(folder.join(INIT)));
    }

    #[test]
    fn a_set_is_replaced_whole_wherever_that_was_cut_short() {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        let write = |folder: &Utf8Path, names: &[&str], text: &str| {
            fs::create_dir_all(folder).unwrap();
            names.iter().for_each(|name| fs::write(folder.join(name), text).unwrap());
        };
        let all = [INIT, KERNEL, DISK, IMAGE_CONFIG];
        for with_config in [true, false] {
            let names = if with_config { &all[..] } else { &all[..3] };
            for moved in 0..=names.len() {
                let set = folder.join(format!("{with_config}-{moved}"));
                write(&set, &all, "old");
                write(&set, &["mine"], "stays");
                // As far as it came: some files are in place, the others wait.
                write(&set, &names[..moved], "new");
                write(&set.join(ARRIVED), &names[moved..], "new");
                if !with_config {
                    write(&set.join(ARRIVED), &[NO_IMAGE_CONFIG], "");
                }
                assert!(Set::is_half(&set));
                Set::settle(&set).unwrap();
                assert!(!Set::is_half(&set));
                names.iter().for_each(|name| assert_eq!(fs::read_to_string(set.join(name)).unwrap(), "new"));
                assert_eq!(set.join(IMAGE_CONFIG).exists(), with_config);
                assert_eq!(set.read_dir_utf8().unwrap().count(), names.len() + 1);
            }
        }
        let set = folder.join("false-0");
        let staged = Staged::new(&set.join("collect")).unwrap();
        write(staged.path(), &all, "newer");
        Set::replace(staged, &set).unwrap();
        all.iter().for_each(|name| assert_eq!(fs::read_to_string(set.join(name)).unwrap(), "newer"));
        assert_eq!(set.read_dir_utf8().unwrap().count(), 5);
    }
}
