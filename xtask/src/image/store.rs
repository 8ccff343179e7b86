//! The cache of base disks: one folder for each image, size and way of making it, and a memory of which source had
//! which digest when it was last looked at.
//!
//! Everything is written whole or not at all, so the cache can be read without a lock.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::config::ImageConfig;
use super::registry::Blobs;
use crate::artifact::write_whole;
use crate::workspace::{Workspace, hex};

/// Raised whenever the same image would give another disk; old disks are then no longer found.
const DISK_FORMAT: u32 = 2;

/// What a base disk was made from: `image.json` beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The last name that was given to it.
    pub name: String,
    /// The source as it was given.
    pub source: String,
    /// The image's digest.
    pub digest: String,
    /// The disk's size in bytes, as the guest sees it.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

/// A base disk in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedDisk {
    /// Its folder.
    pub folder: Utf8PathBuf,
    /// What it was made from.
    pub record: DiskRecord,
}

impl CachedDisk {
    /// The raw ext4 file system.
    pub fn disk(&self) -> Utf8PathBuf {
        self.folder.join("disk.ext4")
    }

    /// The image's config.
    pub fn config(&self) -> anyhow::Result<ImageConfig> {
        read_json(&self.folder.join("config.json"))
    }

    /// How long ago it was made.
    pub fn age(&self) -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH + Duration::from_secs(self.record.created))
            .unwrap_or_default()
    }
}

/// The cache.
#[derive(Debug, Clone, Copy)]
pub struct Store<'a> {
    workspace: &'a Workspace,
}

impl<'a> Store<'a> {
    /// The workspace's cache.
    pub fn new(workspace: &'a Workspace) -> Store<'a> {
        Store { workspace }
    }

    /// Where temporary files go: the same file system as the disks.
    pub fn scratch(&self) -> Utf8PathBuf {
        self.workspace.cache().join("scratch")
    }

    /// Layers that came from registries.
    pub fn blobs(&self) -> Blobs {
        Blobs::new(self.blobs_folder())
    }

    /// Where they are kept.
    pub fn blobs_folder(&self) -> Utf8PathBuf {
        self.workspace.cache().join("blobs")
    }

    /// The lock for making one artifact.
    pub fn lock_path(&self, key: &str) -> Utf8PathBuf {
        self.workspace.cache().join("locks").join(format!("image-{key}"))
    }

    /// Where the disk of an image is, or will be. `size` is the one that was asked for, if any.
    pub fn folder(&self, digest: &str, size: Option<u64>, way: &str) -> Utf8PathBuf {
        self.workspace.disks().join(&fingerprint(&format!("{DISK_FORMAT}\0{digest}\0{size:?}\0{way}"))[..24])
    }

    /// The disk in a folder, if it is there.
    pub fn disk(&self, folder: &Utf8Path) -> Option<CachedDisk> {
        let record = read_json(&folder.join("image.json")).ok()?;
        folder.join("disk.ext4").exists().then(|| CachedDisk { folder: folder.to_owned(), record })
    }

    /// All disks, by name and then by age.
    pub fn disks(&self) -> Vec<CachedDisk> {
        let folders = self.workspace.disks().read_dir_utf8().into_iter().flatten().flatten();
        let mut disks: Vec<CachedDisk> = folders.filter_map(|folder| self.disk(folder.path())).collect();
        disks.sort_by(|a, b| {
            (&a.record.name, b.record.created, &a.folder).cmp(&(&b.record.name, a.record.created, &b.folder))
        });
        disks
    }

    /// Writes a disk's record beside it.
    pub fn save(&self, disk: &CachedDisk) -> anyhow::Result<()> {
        write_json(&disk.folder.join("image.json"), &disk.record)
    }

    /// Writes an image's config beside its disk.
    pub fn save_config(&self, disk: &CachedDisk, config: &ImageConfig) -> anyhow::Result<()> {
        write_json(&disk.folder.join("config.json"), config)
    }

    /// The digest that a source had when it was last read. `identity` changes whenever the source does.
    pub fn remembered(&self, identity: &str) -> Option<String> {
        fs::read_to_string(self.memory(identity)).ok().filter(|text| text.starts_with("sha256:"))
    }

    /// When a source was last found to have this digest.
    pub fn last_seen(&self, digest: &str) -> Option<SystemTime> {
        let memories = self.workspace.cache().join("sources").read_dir_utf8().ok()?.flatten();
        memories
            .filter(|memory| fs::read_to_string(memory.path()).is_ok_and(|known| known == digest))
            .filter_map(|memory| memory.metadata().and_then(|metadata| metadata.modified()).ok())
            .max()
    }

    /// Remembers a source's digest.
    pub fn remember(&self, identity: &str, digest: &str) -> anyhow::Result<()> {
        write_whole(&self.memory(identity), digest.as_bytes())
    }

    fn memory(&self, identity: &str) -> Utf8PathBuf {
        self.workspace.cache().join("sources").join(&fingerprint(identity)[..32])
    }
}

/// SHA-256 of a text, in hexadecimal.
pub fn fingerprint(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn read_json<T: DeserializeOwned>(path: &Utf8Path) -> anyhow::Result<T> {
    let text = crate::artifact::read_text(path)?;
    serde_json::from_str(&text).with_context(|| format!("failed to read `{path}`"))
}

fn write_json(path: &Utf8Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut json = serde_json::to_vec_pretty(value).with_context(|| format!("failed to write `{path}`"))?;
    json.push(b'\n');
    write_whole(path, &json)
}
