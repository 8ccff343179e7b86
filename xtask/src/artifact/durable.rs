//! Makes sure that files are on the disk itself, so that a power cut does not undo them.
//!
//! A rename may reach the disk before the contents of the renamed file do: what is to be whole or absent after a power
//! cut has to be [synced](sync_tree) before it gets its name, and its folder after that. Measured on an NVMe disk: 4 ms
//! for each call, and 0.1 s more for 178 MiB that were just written.

use std::fs::{self, File};
use std::io;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::io::Errno;

/// From so many files on, one `syncfs` of the whole file system takes less time than a call for each of them.
const MANY: usize = 32;

/// Writes a file, or a folder with all that is in it, to the disk. A link's target is not looked at: a link is part of
/// its folder.
pub(crate) fn sync_tree(path: &Utf8Path) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    let all = collect(path, &mut paths).with_context(|| format!("failed to look through `{path}`"))?;
    if all { paths.iter().try_for_each(|path| sync(path)) } else { sync_file_system(path) }
}

/// Writes a folder's list of names to the disk.
pub(crate) fn sync_names(folder: &Utf8Path) -> anyhow::Result<()> {
    sync(folder)
}

/// The files and folders from `path` on, inner ones first. False where there are [too many](MANY).
fn collect(path: &Utf8Path, paths: &mut Vec<Utf8PathBuf>) -> io::Result<bool> {
    let kind = path.symlink_metadata()?.file_type();
    if kind.is_dir() {
        for entry in path.read_dir_utf8()? {
            if !collect(entry?.path(), paths)? {
                return Ok(false);
            }
        }
    }
    if kind.is_dir() || kind.is_file() {
        paths.push(path.to_owned());
    }
    Ok(paths.len() <= MANY)
}

fn sync(path: &Utf8Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("failed to open `{path}`"))?;
    tolerate(rustix::fs::fsync(&file)).with_context(|| format!("failed to write `{path}` to the disk"))
}

fn sync_file_system(path: &Utf8Path) -> anyhow::Result<()> {
    let file = fs::File::open(path).with_context(|| format!("failed to open `{path}`"))?;
    tolerate(rustix::fs::syncfs(&file)).with_context(|| format!("failed to write `{path}` to the disk"))
}

/// Some file systems have no such call, for folders above all (fsync(2)): there is nothing to be done then.
fn tolerate(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::INVAL | Errno::ROFS | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_walked_with_inner_paths_first_and_links_left_alone() {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/nowhere", folder.join("a/link")).unwrap();
        let mut paths = Vec::new();
        assert!(collect(&folder.join("a"), &mut paths).unwrap());
        assert_eq!(paths, ["a/b/file", "a/b", "a"].map(|path| folder.join(path)));
        sync_tree(folder).unwrap();
        assert!(sync_tree(&folder.join("none")).is_err());
    }

    #[test]
    fn many_files_are_synced_by_one_call() {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        (0..MANY).for_each(|number| fs::write(folder.join(number.to_string()), "x").unwrap());
        let mut paths = Vec::new();
        // The folder is one more.
        assert!(!collect(folder, &mut paths).unwrap());
        fs::remove_file(folder.join("0")).unwrap();
        assert!(collect(folder, &mut Vec::new()).unwrap());
        sync_tree(folder).unwrap();
    }

    #[test]
    fn only_a_missing_call_is_tolerated() {
        assert!(tolerate(Err(Errno::INVAL)).is_ok());
        assert_eq!(tolerate(Err(Errno::NOSPC)), Err(Errno::NOSPC));
        assert_eq!(tolerate(Err(Errno::IO)), Err(Errno::IO));
    }
}
