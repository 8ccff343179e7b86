//! Folders and files that are this user's alone. Others can read no secret in them, connect to no socket, hold no lock,
//! and put nothing in their place.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};

use anyhow::{Context as _, bail};
use camino::Utf8Path;
use rustix::fs::OFlags;

/// Nobody else may enter a folder (stat(2)).
const FOLDER: u32 = 0o700;
/// Nobody else may read a file.
const FILE: u32 = 0o600;
/// What anybody else may do.
const OTHERS: u32 = 0o077;
/// What makes another user able to put something else in the place of an entry, unless the folder is sticky.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Makes a folder in which the last `levels` parts of its path are ours alone, or takes those that are there. Errors where
/// one of them is a link or another user's, or where one above them can be changed by another user.
pub fn make_folder(path: &Utf8Path, levels: usize) -> anyhow::Result<()> {
    let parts = ours(path, levels);
    check_above(&parts)?;
    parts.into_iter().try_for_each(make_one)
}

/// The same for what is there of it.
pub fn check_folder(path: &Utf8Path, levels: usize) -> anyhow::Result<()> {
    let parts = ours(path, levels);
    check_above(&parts)?;
    parts.into_iter().take_while(|part| part.symlink_metadata().is_ok()).try_for_each(take)
}

/// The last parts of a path, from above.
fn ours(path: &Utf8Path, levels: usize) -> Vec<&Utf8Path> {
    let mut parts: Vec<&Utf8Path> = path.ancestors().take(levels).collect();
    parts.reverse();
    parts
}

fn check_above(parts: &[&Utf8Path]) -> anyhow::Result<()> {
    check_all(parts.first().and_then(|part| part.parent()).unwrap_or(Utf8Path::new("/")))
}

/// Makes one folder, or takes one that is ours for ourselves alone. Nothing is asked of those above it.
pub fn make_one(path: &Utf8Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(FOLDER).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("failed to create the folder `{path}`"))
        }
        _ => take(path),
    }
}

/// Takes a folder of ours for ourselves alone. Errors where it is a link or another user's.
pub fn take(path: &Utf8Path) -> anyhow::Result<()> {
    let looking = || format!("failed to look at `{path}`");
    let metadata = path.symlink_metadata().with_context(looking)?;
    check_owner(path, &metadata, false)?;
    if !metadata.is_dir() {
        bail!("`{path}` is not a folder");
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let folder = File::options().read(true).custom_flags(flags.bits() as i32).open(path);
    let folder = folder.with_context(looking)?;
    let metadata = folder.metadata().with_context(looking)?;
    check_owner(path, &metadata, false)?;
    if metadata.mode() & OTHERS != 0 {
        folder
            .set_permissions(fs::Permissions::from_mode(FOLDER))
            .with_context(|| format!("failed to restrict `{path}` to its owner"))?;
    }
    Ok(())
}

/// A step to take where a folder for sockets is refused.
pub const SOCKETS_HINT: &str = "set XDG_RUNTIME_DIR to a folder of your own, or remove what is in the way";

/// Errors where another user could put something else in the place of this folder, under any of its names.
fn check_all(folder: &Utf8Path) -> anyhow::Result<()> {
    let real = folder.canonicalize_utf8().with_context(|| format!("failed to look at `{folder}`"))?;
    for part in folder.ancestors().chain(real.ancestors()).filter(|part| !part.as_str().is_empty()) {
        let metadata = part.symlink_metadata().with_context(|| format!("failed to look at `{part}`"))?;
        check_owner(part, &metadata, true)?;
        // A link has no mode of its own.
        let is_open =
            metadata.is_dir() && metadata.mode() & OTHERS_WRITE != 0 && metadata.mode() & STICKY == 0;
        if is_open {
            bail!("other users can change the folder `{part}`");
        }
    }
    Ok(())
}

fn check_owner(path: &Utf8Path, metadata: &Metadata, or_root: bool) -> anyhow::Result<()> {
    let (owner, ours) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner == ours || (or_root && owner == 0) {
        return Ok(());
    }
    bail!("`{path}` belongs to another user ({owner})")
}

/// Creates a file, or empties one that is there.
pub fn create(path: &Utf8Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(FILE).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(FILE))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use camino::Utf8PathBuf;

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn mode(path: &Utf8Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Utf8Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn folders_are_made_and_those_that_are_ours_taken_from_others() {
        let (_guard, folder) = scratch();
        let path = folder.join("a/b");
        check_folder(&path, 2).unwrap();
        assert!(!folder.join("a").exists());
        make_folder(&path, 2).unwrap();
        for part in ["a", "a/b"] {
            set_mode(&folder.join(part), 0o755);
        }
        check_folder(&path, 2).unwrap();
        assert_eq!((mode(&path), mode(&folder.join("a"))), (0o700, 0o700));
    }

    #[test]
    fn a_link_or_a_file_in_the_place_of_a_folder_is_refused_and_left_alone() {
        let (_guard, folder) = scratch();
        let victim = folder.join("victim");
        fs::create_dir(&victim).unwrap();
        set_mode(&victim, 0o755);
        std::os::unix::fs::symlink(&victim, folder.join("link")).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        for name in ["link", "file"] {
            let path = folder.join(name).join("below");
            let error = make_folder(&path, 2).unwrap_err().to_string();
            assert_eq!(error, format!("`{}` is not a folder", folder.join(name)));
            assert!(check_folder(&path, 2).is_err());
        }
        assert_eq!((mode(&victim), victim.join("below").exists()), (0o755, false));
    }

    #[test]
    fn a_folder_below_one_that_others_can_change_is_refused_unless_it_is_sticky() {
        let (_guard, folder) = scratch();
        let open = folder.join("open");
        fs::create_dir(&open).unwrap();
        for wrong in [0o777, 0o770, 0o702] {
            set_mode(&open, wrong);
            let error = make_folder(&open.join("ours"), 1).unwrap_err().to_string();
            assert_eq!(error, format!("other users can change the folder `{open}`"));
        }
        set_mode(&open, 0o1777);
        make_folder(&open.join("ours"), 1).unwrap();
    }

    #[test]
    fn files_are_their_owners_alone_from_the_beginning() {
        let (_guard, folder) = scratch();
        let path = folder.join("file");
        fs::write(&path, "old").unwrap();
        set_mode(&path, 0o644);
        create(&path).unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap().len()), (0o600, 0));
    }
}
