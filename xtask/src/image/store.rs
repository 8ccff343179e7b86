//! The cache of base disks: one folder for each image, size and way of making it, and a memory of which source had
//! which digest when it was last looked at.
//!
//! Everything is written whole or not at all, so the cache can be read without a lock. A disk counts once its record is
//! beside it, which is written when the disk itself is safe from a power cut. Whoever needs a disk to stay [holds](Store::take) it.

use std::fs::{self, File};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::config::ImageConfig;
use super::registry::Blobs;
use crate::artifact::{Lock, write_unsynced, write_whole};
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

/// The file in a disk's folder on which its users hold a shared lock, and whoever removes it an exclusive one.
const USERS: &str = "users";

/// The image's config beside its disk.
const CONFIG: &str = "config.json";

/// A disk that nobody removes for as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// The disk.
    pub disk: CachedDisk,
    /// A shared lock on it.
    pub lock: Lock,
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
        CachedDisk::disk_in(&self.folder)
    }

    /// The same for a folder of which only that is known.
    pub(super) fn disk_in(folder: &Utf8Path) -> Utf8PathBuf {
        folder.join("disk.ext4")
    }

    /// The image's config.
    pub fn config(&self) -> anyhow::Result<ImageConfig> {
        read_json(&self.config_file())
    }

    /// Where the image's config is.
    pub fn config_file(&self) -> Utf8PathBuf {
        self.folder.join(CONFIG)
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

    /// The workspace that it belongs to.
    pub fn workspace(&self) -> &'a Workspace {
        self.workspace
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

    /// Where confined builders keep their layers.
    pub fn builder_storage(&self) -> Utf8PathBuf {
        self.workspace.cache().join("builder")
    }

    /// The lock for making one artifact.
    pub fn lock_path(&self, key: &str) -> Utf8PathBuf {
        self.workspace.cache().join("locks").join(format!("image-{key}"))
    }

    /// Where the disk of an image is, or will be. `size` is the one that was asked for, if any.
    pub fn folder(&self, digest: &str, size: Option<u64>, way: &str) -> Utf8PathBuf {
        self.workspace.disks().join(&fingerprint(&format!("{DISK_FORMAT}\0{digest}\0{size:?}\0{way}"))[..24])
    }

    /// The disk in a folder, if it is there and whole.
    pub fn disk(&self, folder: &Utf8Path) -> Option<CachedDisk> {
        let record: DiskRecord = read_json(&folder.join("image.json")).ok()?;
        let disk = CachedDisk { folder: folder.to_owned(), record };
        let is_whole = disk.disk().metadata().is_ok_and(|metadata| metadata.len() == disk.record.size);
        (is_whole && disk.config_file().is_file()).then_some(disk)
    }

    /// The same, kept from being removed.
    pub fn take(&self, folder: &Utf8Path) -> anyhow::Result<Option<Held>> {
        let Some(file) = users_file(folder)? else { return Ok(None) };
        let Some(lock) = Lock::share(&file)? else { return Ok(None) };
        Ok(self.disk(folder).map(|disk| Held { disk, lock }))
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
        write_whole(&disk.folder.join("image.json"), &json(&disk.record)?)
    }

    /// Writes an image's config beside a disk that is being made.
    pub fn save_config(&self, folder: &Utf8Path, config: &ImageConfig) -> anyhow::Result<()> {
        write_unsynced(&folder.join(CONFIG), &json(config)?)
    }

    /// The digest that a source had when it was last read. `identity` changes whenever the source does.
    pub fn remembered(&self, identity: &str) -> Option<String> {
        // After a power cut it may be torn.
        fs::read_to_string(self.memory(identity)).ok().filter(|text| is_digest(text))
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
        write_unsynced(&self.memory(identity), digest.as_bytes())
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

fn json(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    Ok(json)
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|digits| digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The file that the users of the disk in a folder lock; `None` where there is no such folder.
pub(super) fn users_file(folder: &Utf8Path) -> anyhow::Result<Option<Utf8PathBuf>> {
    let path = folder.join(USERS);
    match File::options().create(true).append(true).open(&path) {
        Ok(_) => Ok(Some(path)),
        // A cache that may only be read is nobody's to clean.
        Err(_) if path.exists() => Ok(Some(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to create `{path}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(store: &Store<'_>, digest: &str) -> CachedDisk {
        let folder = store.folder(digest, None, "ext4");
        crate::artifact::create_folder(&folder).unwrap();
        let record =
            DiskRecord { name: "x".into(), source: "x".into(), digest: digest.into(), size: 5, created: 1 };
        let disk = CachedDisk { folder, record };
        fs::write(disk.disk(), "bytes").unwrap();
        store.save_config(&disk.folder, &ImageConfig::default()).unwrap();
        store.save(&disk).unwrap();
        disk
    }

    #[test]
    fn a_disk_counts_with_its_record_its_config_and_its_whole_size() {
        let guard = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_test(Utf8Path::from_path(guard.path()).unwrap());
        let store = Store::new(&workspace);
        let whole = disk(&store, "sha256:1");
        assert_eq!(store.disk(&whole.folder), Some(whole.clone()));
        assert_eq!(store.disks(), std::slice::from_ref(&whole));
        for file in ["image.json", "config.json", "disk.ext4"] {
            let path = whole.folder.join(file);
            let text = fs::read(&path).unwrap();
            for torn in ["", "1234"] {
                fs::write(&path, torn).unwrap();
                assert!(file == "config.json" || store.disk(&whole.folder).is_none(), "{file} is `{torn}`");
            }
            fs::remove_file(&path).unwrap();
            assert_eq!(store.disk(&whole.folder), None, "{file} is gone");
            fs::write(&path, text).unwrap();
        }
        assert_eq!(store.disk(&whole.folder), Some(whole));
    }

    #[test]
    fn a_torn_memory_is_none() {
        let guard = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_test(Utf8Path::from_path(guard.path()).unwrap());
        let store = Store::new(&workspace);
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(store.remembered("source"), None);
        store.remember("source", &digest).unwrap();
        assert_eq!(store.remembered("source").as_ref(), Some(&digest));
        assert!(store.last_seen(&digest).is_some() && store.last_seen("sha256:other").is_none());
        for torn in [String::new(), digest[..70].to_owned(), "\0".repeat(71), digest.replace('0', "x")] {
            fs::write(store.memory("source"), &torn).unwrap();
            assert_eq!(store.remembered("source"), None, "{torn:?}");
        }
    }

    #[test]
    fn a_disk_that_is_held_has_a_shared_lock_and_a_missing_one_is_not_held() {
        let guard = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_test(Utf8Path::from_path(guard.path()).unwrap());
        let store = Store::new(&workspace);
        let cached = disk(&store, "sha256:1");
        let users = users_file(&cached.folder).unwrap().unwrap();
        let held =
            [store.take(&cached.folder).unwrap().unwrap(), store.take(&cached.folder).unwrap().unwrap()];
        assert!(Lock::try_own(&users).unwrap().is_err());
        drop(held);
        crate::artifact::tests::wait_for(|| Lock::try_own(&users).unwrap().ok());
        assert!(store.take(&store.folder("sha256:2", None, "ext4")).unwrap().is_none());
        fs::remove_file(cached.folder.join("image.json")).unwrap();
        assert!(store.take(&cached.folder).unwrap().is_none());
    }
}
