//! A set of artifacts: one folder that holds all that a machine boots from, under the recipe's names.
//!
//! `collect` brings a set from another machine; `boot --from` runs one. Loading looks only at which files are there.

use anyhow::{Context as _, bail};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use crate::workspace::{Workspace, hex};

/// PID 1: a static ELF.
pub const INIT: &str = "init";
/// `bzImage`, or `vmlinux` with a PVH entry.
pub const KERNEL: &str = "kernel";
/// The root file system in a qcow2 file.
pub const DISK: &str = "hda.qcow2";
/// The image's config (ENTRYPOINT, ENV, …) as the OCI image spec has it; sets made by hand lack it.
pub const IMAGE_CONFIG: &str = "image.json";

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
}
