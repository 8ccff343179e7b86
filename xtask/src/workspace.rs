//! Every path that is read or written, named once.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use crate::error::Hint as _;
use crate::host::private;

/// Names the cache folder, for CI and for machines whose home is small.
pub const CACHE_VARIABLE: &str = "MICROVM_CACHE";

/// Folders of the cache, by which it is known to be one.
const FOLDERS: [&str; 17] = [
    "artifacts",
    "blobs",
    "builder",
    "console-logs",
    "disks",
    "downloads",
    "dry-run",
    "init",
    "kernel-builds",
    "kernels",
    "locks",
    "machines",
    "persistent",
    "scratch",
    "sources",
    "verdicts",
    "volumes",
];

/// The checkout and the folders beside it that tasks use.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: Utf8PathBuf,
    cache: Utf8PathBuf,
    artifacts: Utf8PathBuf,
    sockets: Utf8PathBuf,
}

impl Workspace {
    /// Finds the checkout that this program was built from, and this user's cache.
    pub fn discover() -> anyhow::Result<Workspace> {
        // Cargo names the package's folder at run time too; a binary started by hand remembers where it was built.
        let package = std::env::var("CARGO_MANIFEST_DIR")
            .ok()
            .filter(|folder| folder.ends_with("/xtask"))
            .unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").to_owned());
        let root = Utf8Path::new(&package).parent().unwrap_or(Utf8Path::new(".")).to_owned();
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = match (variable(CACHE_VARIABLE), variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(folder), _, _) => camino::absolute_utf8(folder)?,
            (None, Some(folder), _) => Utf8PathBuf::from(folder).join("microvm-workbench"),
            (None, None, Some(home)) => Utf8PathBuf::from(home).join(".cache/microvm-workbench"),
            (None, None, None) => {
                return Err(anyhow::anyhow!("no folder for the cache: HOME is not set"))
                    .hint(format!("set {CACHE_VARIABLE} to a folder"));
            }
        };
        let artifacts = match variable(CACHE_VARIABLE) {
            Some(_) => cache.join("artifacts"),
            None => root.join("target/artifacts"),
        };
        // Socket paths end at 107 bytes (unix(7)), so running machines live under a short path.
        let runtime = match variable("XDG_RUNTIME_DIR").filter(|folder| folder.len() < 40) {
            Some(folder) => Utf8PathBuf::from(folder).join("microvm"),
            None => Utf8PathBuf::from(format!("/tmp/microvm-{}", rustix::process::getuid().as_raw())),
        };
        let sockets = runtime.join(world(&cache));
        Ok(Workspace { root, cache, artifacts, sockets })
    }

    /// Makes the cache its owner's alone: there are secrets in it, and locks that others must not hold. A folder that was
    /// named for it and holds other things keeps its mode; what is ours in it does not. Errors where it is another user's.
    pub fn make_private(&self) -> anyhow::Result<()> {
        let Ok(cache) = self.cache.canonicalize_utf8() else { return Ok(()) };
        let entries: Vec<_> =
            cache.read_dir_utf8().with_context(|| format!("failed to read `{cache}`"))?.flatten().collect();
        let is_ours = |name: &str| FOLDERS.contains(&name);
        if entries.is_empty() || entries.iter().any(|entry| is_ours(entry.file_name())) {
            return private::take(&cache).hint(format!("set {CACHE_VARIABLE} to a folder of your own"));
        }
        for name in FOLDERS {
            private::make_one(&cache.join(name))?;
        }
        Ok(())
    }

    /// The same for a task that writes to the cache, which is there from then on.
    pub fn create_private(&self) -> anyhow::Result<()> {
        // One that cannot be made is named by the first who needs it.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(&self.cache);
        self.make_private()
    }

    /// The same checkout with another cache, as [`CACHE_VARIABLE`] would name it.
    pub fn with_cache(&self, cache: Utf8PathBuf) -> Workspace {
        let artifacts = cache.join("artifacts");
        Workspace {
            root: self.root.clone(),
            artifacts,
            sockets: self.sockets.with_file_name(world(&cache)),
            cache,
        }
    }

    /// One whose cache is below this folder, for tests.
    #[cfg(test)]
    pub(crate) fn for_test(cache: &Utf8Path) -> Workspace {
        let folder = |name: &str| cache.join(name);
        Workspace {
            root: folder("root"),
            cache: cache.to_owned(),
            artifacts: folder("artifacts"),
            sockets: folder("sockets"),
        }
    }

    /// The checkout.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// Config fragments, the recipe's config and `sources.toml`.
    pub fn kernel_folder(&self) -> Utf8PathBuf {
        self.root.join("kernel")
    }

    /// Short shell scripts.
    pub fn scripts_folder(&self) -> Utf8PathBuf {
        self.root.join("scripts")
    }

    /// The set that `collect` fetches: `init`, `kernel`, `hda.qcow2` and the image's config, as links into the cache.
    /// A cache that was named has its own set, so that a trial leaves the checkout's as it is.
    pub fn artifacts(&self) -> Utf8PathBuf {
        self.artifacts.clone()
    }

    /// Sets that `collect` brought from other machines, one folder for each host. Nobody else's to rebuild, so not in
    /// `target/`.
    pub fn collected(&self) -> Utf8PathBuf {
        self.root.join("collected")
    }

    /// Where everything that costs time is kept, outside `target/`.
    pub fn cache(&self) -> &Utf8Path {
        &self.cache
    }

    /// Downloaded files, verified or partial.
    pub fn downloads(&self) -> Utf8PathBuf {
        self.cache.join("downloads")
    }

    /// Unpacked kernel sources and their build folders.
    pub fn kernel_builds(&self) -> Utf8PathBuf {
        buildable(self.cache.join("kernel-builds"))
    }

    /// Where Cargo builds PID 1. This checkout's own: Cargo takes another checkout's build for this one's where it is newer
    /// than the sources.
    pub fn init_builds(&self) -> Utf8PathBuf {
        buildable(self.root.join("target/init"))
    }

    /// Finished kernels, one folder for each source, config and compiler.
    pub fn kernels(&self) -> Utf8PathBuf {
        self.cache.join("kernels")
    }

    /// Builds of PID 1 with their initramfs.
    pub fn init_folder(&self) -> Utf8PathBuf {
        self.cache.join("init")
    }

    /// Base disks with their configs, one folder for each image digest.
    pub fn disks(&self) -> Utf8PathBuf {
        self.cache.join("disks")
    }

    /// Named overlays that outlive their machine.
    pub fn persistent_disks(&self) -> Utf8PathBuf {
        self.cache.join("persistent")
    }

    /// Named volumes.
    pub fn volumes(&self) -> Utf8PathBuf {
        self.cache.join("volumes")
    }

    /// Consoles of machines that failed.
    pub fn console_logs(&self) -> Utf8PathBuf {
        self.cache.join("console-logs")
    }

    /// What the command lines of `boot --dry-run` name.
    pub fn dry_runs(&self) -> Utf8PathBuf {
        self.cache.join("dry-run")
    }

    /// What was found out about this host and is worth remembering.
    pub fn verdicts(&self) -> Utf8PathBuf {
        self.cache.join("verdicts")
    }

    /// The file that tasks lock which take turns at this.
    pub fn lock(&self, what: &str) -> Utf8PathBuf {
        self.cache.join("locks").join(format!("{what}.lock"))
    }

    /// Every folder in which tasks write under temporary names.
    pub fn folders(&self) -> Vec<Utf8PathBuf> {
        let below = |name: &str| self.cache.join(name);
        let mut folders = vec![
            self.cache.clone(),
            self.artifacts(),
            self.downloads(),
            self.kernel_builds(),
            self.kernels(),
            self.kernels().join("by-request"),
            self.init_folder(),
            self.disks(),
            self.persistent_disks(),
            self.volumes(),
            self.verdicts(),
            self.machines(),
            self.dry_runs(),
            below("scratch"),
            below("sources"),
            below("blobs/sha256"),
        ];
        for folder in [self.disks(), self.machines()] {
            let inner = folder.read_dir_utf8().into_iter().flatten().flatten();
            folders.extend(inner.map(camino::Utf8DirEntry::into_path));
        }
        folders
    }

    /// One folder for each private network, with its members' sockets.
    pub fn networks(&self) -> Utf8PathBuf {
        Utf8PathBuf::from(format!("{}.net", self.sockets))
    }

    /// One folder for each running or ended machine.
    pub fn machines(&self) -> Utf8PathBuf {
        self.cache.join("machines")
    }

    /// One folder for the sockets of each running machine; its path is short enough for them.
    pub fn sockets(&self) -> Utf8PathBuf {
        self.sockets.clone()
    }
}

/// Machines of one cache are one world: a test with a cache of its own sees only its own.
fn world(cache: &Utf8Path) -> String {
    hex(&Sha256::digest(cache.as_str()))[..8].to_owned()
}

/// True for a path that make and Cargo can have: they split some at blanks and colons, and hand others to a shell.
pub fn is_plain(path: &Utf8Path) -> bool {
    path.as_str().chars().all(|c| c.is_alphanumeric() || "/._-+@".contains(c))
}

/// A folder to build in, or one elsewhere that stands for it where its path, or the one that links lead to, is not plain.
fn buildable(usual: Utf8PathBuf) -> Utf8PathBuf {
    let real = usual.ancestors().find_map(|part| part.canonicalize_utf8().ok());
    if is_plain(&usual) && real.is_none_or(|real| is_plain(&real)) {
        return usual;
    }
    builds_elsewhere().join(world(&usual))
}

/// Large files that outlive a restart, and a path without a blank (hier(7)).
fn builds_elsewhere() -> Utf8PathBuf {
    Utf8PathBuf::from(format!("/var/tmp/microvm-{}", rustix::process::geteuid().as_raw()))
}

/// Makes a folder for builds; one that is elsewhere, where other users write too, is its owner's alone.
pub fn create_builds(folder: &Utf8Path) -> anyhow::Result<()> {
    if folder.starts_with(builds_elsewhere()) {
        return private::make_folder(folder, 2);
    }
    crate::artifact::create_folder(folder)
}

/// Lower-case hexadecimal digits of some bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_have_plain_paths() {
        for path in ["/home/me/.cache/x", "/home/josé/a+b@c_d-e"] {
            assert_eq!(buildable(path.into()), path);
        }
        for path in [
            "/a b", "/it's", "/a:b", "/a$b", "/a#b", "/a%b", "/a\tb", "/a(b)", "/a&b", "/a\\b", "/a;b", "/~b",
        ] {
            let elsewhere = buildable(path.into());
            assert!(is_plain(&elsewhere) && elsewhere.starts_with("/var/tmp"), "{path}");
        }
        assert_ne!(buildable("/a b".into()), buildable("/a  b".into()));
        // A link with a plain name that leads to a folder without one.
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        std::fs::create_dir(folder.join("a b")).unwrap();
        std::os::unix::fs::symlink("a b", folder.join("link")).unwrap();
        assert!(buildable(folder.join("link/builds")).starts_with("/var/tmp"));
    }
}
