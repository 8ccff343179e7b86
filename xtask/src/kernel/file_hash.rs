//! The sha256 of large files, remembered for as long as the file stays the same file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::artifact::{read_text, write_whole};
use crate::ui;
use crate::workspace::{Workspace, hex};

/// A change of any of these means another content; the same habit as make's and git's.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Of the file that a path leads to.
    pub(super) fn of(path: &Utf8Path) -> std::io::Result<Stamp> {
        let metadata = path.metadata()?;
        Ok(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    stamp: Stamp,
    sha256: String,
}

/// Lower-case hexadecimal sha256 of a file, from memory where the file has not changed.
pub fn sha256(workspace: &Workspace, path: &Utf8Path) -> anyhow::Result<String> {
    let stamp = Stamp::of(path).with_context(|| format!("failed to read `{path}`"))?;
    let canonical = path.canonicalize_utf8().with_context(|| format!("failed to resolve `{path}`"))?;
    let name = hex(&Sha256::digest(canonical.as_str()))[..16].to_owned();
    let memory = workspace.verdicts().join(format!("sha256-{name}.json"));
    if let Ok(text) = read_text(&memory)
        && let Ok(remembered) = serde_json::from_str::<Remembered>(&text)
        && remembered.stamp == stamp
    {
        return Ok(remembered.sha256);
    }

    let remembered = Remembered { stamp, sha256: compute(path)? };
    write_whole(&memory, &serde_json::to_vec(&remembered)?)?;
    Ok(remembered.sha256)
}

/// Lower-case hexadecimal sha256 of a file, read to its end.
pub fn compute(path: &Utf8Path) -> anyhow::Result<String> {
    let reading = || format!("failed to read `{path}`");
    let file = File::open(path).with_context(reading)?;
    let bytes = file.metadata().with_context(reading)?.len();
    let bar = ui::byte_bar(&format!("checking {}", path.file_name().unwrap_or_default()), Some(bytes));
    let mut hasher = Sha256::new();
    let mut reader = bar.wrap_read(file);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer).with_context(reading)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    bar.finish_and_clear();
    Ok(hex(&hasher.finalize()))
}
