//! The files of a build context, on a disk that others may write to meanwhile: none of them makes a build wait for ever
//! or read without end, whatever it is and becomes.

use std::fs::{File, FileType};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::dockerignore::DockerIgnore;
use crate::error::Hint as _;

/// More entries than any source tree has: somebody's whole disk. Their names are kept in memory.
const ENTRIES_LIMIT: usize = 1_000_000;

/// As much as all of a context's files may hold (bytes). A builder copies them more than once.
const BYTES_LIMIT: u64 = 64 << 30;

/// As long as a Dockerfile or a list of what it ignores may be (bytes): a thousand times what people write.
const TEXT_LIMIT: u64 = 4 << 20;

/// One file, folder or link.
#[derive(Debug)]
pub(super) struct Entry {
    /// Relative to the context's folder.
    pub(super) path: String,
    pub(super) kind: FileType,
    pub(super) mode: u32,
    /// When it was listed (bytes); no more is read of it.
    pub(super) size: u64,
}

/// All that is not ignored, each folder before what is in it. Pipes, sockets and devices are passed over, and links not followed.
pub(super) fn list(folder: &Utf8Path, ignore: &DockerIgnore) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    list_below(folder, "", ignore, &mut entries)?;
    let bytes = entries
        .iter()
        .filter(|entry| entry.kind.is_file())
        .fold(0, |sum: u64, entry| sum.saturating_add(entry.size));
    let is_bounded = if bytes <= BYTES_LIMIT {
        Ok(())
    } else {
        Err(anyhow::anyhow!("the build context `{folder}` holds more than {} GiB", BYTES_LIMIT >> 30))
    };
    is_bounded.hint("name what is not needed in a `.dockerignore`")?;
    Ok(entries)
}

fn list_below(
    folder: &Utf8Path,
    below: &str,
    ignore: &DockerIgnore,
    entries: &mut Vec<Entry>,
) -> anyhow::Result<()> {
    let here = folder.join(below);
    let unreadable = || format!("failed to list the build context `{here}`");
    let mut children: Vec<_> =
        here.read_dir_utf8().with_context(unreadable)?.collect::<Result<_, _>>().with_context(unreadable)?;
    children.sort_by(|a, b| a.file_name().cmp(b.file_name()));
    for child in children {
        let path = if below.is_empty() {
            child.file_name().to_owned()
        } else {
            format!("{below}/{}", child.file_name())
        };
        let metadata =
            child.path().symlink_metadata().with_context(|| format!("failed to read `{}`", child.path()))?;
        let (kind, size) = (metadata.file_type(), metadata.len());
        let is_ignored = ignore.ignores(&path);
        let entry = Entry { path, kind, mode: metadata.mode() & 0o7777, size };
        if kind.is_dir() {
            let at = entries.len();
            if !is_ignored || ignore.has_exceptions() {
                list_below(folder, &entry.path, ignore, entries)?;
            }
            if !is_ignored || entries.len() > at {
                entries.insert(at, entry);
            }
        } else if !is_ignored && (kind.is_file() || kind.is_symlink()) {
            entries.push(entry);
        }
        let is_bounded = if entries.len() <= ENTRIES_LIMIT {
            Ok(())
        } else {
            Err(anyhow::anyhow!("the build context `{folder}` has more than {ENTRIES_LIMIT} files"))
        };
        is_bounded.hint("name what is not needed in a `.dockerignore`")?;
    }
    Ok(())
}

/// Opens a regular file for reading: a pipe or a device that has taken its name is an error and no wait.
pub(super) fn open(path: &Utf8Path) -> anyhow::Result<File> {
    // Without NONBLOCK, opening a pipe waits for its writer.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.with_context(|| format!("failed to read `{path}`"))?;
    let metadata = file.metadata().with_context(|| format!("failed to read `{path}`"))?;
    ensure!(metadata.is_file(), "`{path}` is not a regular file");
    Ok(file)
}

/// The text of a Dockerfile, or of a list of what it ignores.
pub(super) fn read_text(path: &Utf8Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = open(path)?.take(TEXT_LIMIT + 1).read_to_string(&mut text);
    read.with_context(|| format!("failed to read `{path}`"))?;
    ensure!(text.len() as u64 <= TEXT_LIMIT, "`{path}` is longer than {} MiB", TEXT_LIMIT >> 20);
    Ok(text)
}

/// Adds at most the first `limit` bytes of a file's contents to a hash.
pub(super) fn hash(hash: &mut Sha256, path: &Utf8Path, limit: u64) -> anyhow::Result<()> {
    let mut file = open(path)?.take(limit);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("failed to read `{path}`"))?;
        if read == 0 {
            return Ok(());
        }
        hash.update(&buffer[..read]);
    }
}

/// Copies at most the first `limit` bytes of a file.
pub(super) fn copy(from: &Utf8Path, to: &Utf8Path, limit: u64) -> anyhow::Result<()> {
    let failed = || format!("failed to copy `{from}` into the build context");
    let source = open(from)?;
    let permissions = source.metadata().with_context(failed)?.permissions();
    let mut target = File::create_new(to).with_context(failed)?;
    std::io::copy(&mut source.take(limit), &mut target).with_context(failed)?;
    target.set_permissions(permissions).with_context(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use camino::Utf8PathBuf;

    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let guard = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(guard.path().to_owned()).unwrap();
        (guard, path)
    }

    #[test]
    fn pipes_are_passed_over_and_one_in_a_files_place_is_an_error() {
        let (_guard, path) = folder();
        duct::cmd!("mkfifo", path.join("pipe")).run().unwrap();
        std::os::unix::fs::symlink("/dev/zero", path.join("device")).unwrap();
        fs::write(path.join("file"), "text").unwrap();
        let entries = list(&path, &DockerIgnore::default()).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.path.as_str()).collect::<Vec<_>>(), ["device", "file"]);
        for name in ["pipe", "device"] {
            let error = open(&path.join(name)).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
    }

    #[test]
    fn texts_that_are_too_long_are_refused() {
        let (_guard, path) = folder();
        let file = path.join("Dockerfile");
        fs::write(&file, "FROM scratch").unwrap();
        assert_eq!(read_text(&file).unwrap(), "FROM scratch");
        // A line of a terabyte takes no room here.
        fs::File::options().write(true).open(&file).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read_text(&file).unwrap_err().to_string(), format!("`{file}` is longer than 4 MiB"));
    }

    #[test]
    fn a_context_that_holds_too_much_is_refused() {
        let (_guard, path) = folder();
        fs::File::create(path.join("huge")).unwrap().set_len(BYTES_LIMIT + 1).unwrap();
        let error = list(&path, &DockerIgnore::default()).unwrap_err();
        assert!(format!("{error:#}").contains("holds more than 64 GiB"), "{error:#}");
        list(&path, &DockerIgnore::parse("huge")).unwrap();
    }

    #[test]
    fn no_more_is_read_of_a_file_than_was_listed() {
        let (_guard, path) = folder();
        fs::write(path.join("file"), "text and more").unwrap();
        copy(&path.join("file"), &path.join("copy"), 4).unwrap();
        assert_eq!(fs::read_to_string(path.join("copy")).unwrap(), "text");
    }
}
