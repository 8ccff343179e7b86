//! podman and buildah inside a [`sandbox`](super::sandbox): with storage of their own, and copies of those of the user's
//! images that a Dockerfile builds on. So a build can neither read nor write other images of the user's.
//!
//! The storage is a cache of layers. A build that was killed leaves half-made containers there, which nothing else
//! could tell from another build's: then all of it is removed before the next one begins.

use std::fs::File;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::builder::Builder;
use super::sandbox::{Order, RUNTIME};
use super::store::fingerprint;
use crate::artifact::{create_folder, remove_any, sync_names, sync_tree, write_whole};
use crate::host::tools;

/// Variables of ours that are the builder's too: how it reaches the network, which time it is to write.
const VARIABLES: [&str; 9] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SOURCE_DATE_EPOCH",
    "LANG",
    "TZ",
];

/// All that a build may leave half made.
const LAYERS: &str = "layers";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A builder with its storage, which it shares with other builds that run at the same time.
#[derive(Debug)]
pub(super) struct Confined {
    builder: Builder,
    driver: String,
    layers: Utf8PathBuf,
    begun: Begun,
}

impl Confined {
    /// Takes part in the storage in `folder`, which is made or, after a build that was killed, made anew.
    pub(super) fn new(builder: Builder, folder: &Utf8Path) -> anyhow::Result<Confined> {
        let begun = Begun::new(folder)?;
        let confined = Confined { builder, driver: driver_of(builder)?, layers: folder.join(LAYERS), begun };
        create_folder(&confined.storage())?;
        Ok(confined)
    }

    fn storage(&self) -> Utf8PathBuf {
        self.layers.join("storage")
    }

    /// The user's images that were copied, by their names; each file holds an image's id.
    fn mark_of(&self, base: &str) -> Utf8PathBuf {
        self.layers.join("bases").join(&fingerprint(base)[..24])
    }

    /// True if an image of the user's has been copied, and has not moved since.
    pub(super) fn has_base(&self, base: &str, id: &str) -> bool {
        std::fs::read_to_string(self.mark_of(base)).is_ok_and(|known| known == id)
    }

    /// The words that copy an image out of an archive.
    pub(super) fn load_words(&self, archive: &Utf8Path) -> Vec<String> {
        match self.builder {
            Builder::Buildah => vec!["pull".into(), "--quiet".into(), format!("docker-archive:{archive}")],
            _ => ["load", "--quiet", "--input", archive.as_str()].map(str::to_owned).into(),
        }
    }

    /// That was done.
    pub(super) fn remember_base(&self, base: &str, id: &str) -> anyhow::Result<()> {
        write_whole(&self.mark_of(base), id.as_bytes())
    }

    /// An order for the builder: `words` without the program's name. It reads `input` and writes `output`, both in
    /// the folder `work`, in which the order needs room of its own.
    pub(super) fn order(&self, work: &Utf8Path, words: &[String]) -> anyhow::Result<Order> {
        let [root, temporary, input, output] = ["root", "tmp", "in", "out"].map(|name| work.join(name));
        for folder in [&root, &temporary, &input, &output] {
            create_folder(folder)?;
        }
        let program = self.builder.program();
        let program = tools::find(program).with_context(|| format!("`{program}` was not found on PATH"))?;
        let mut all = vec![program.into_string()];
        all.extend(self.storage_words());
        all.extend(words.iter().cloned());
        let given = VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        let fixed = [("PATH", PATH), ("HOME", "/root"), ("TMPDIR", "/var/tmp")];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(Order {
            root,
            input,
            writable: vec![self.storage(), output],
            temporary,
            environment: given.chain(fixed).collect(),
            words: all,
        })
    }

    /// How RUN is confined inside: as a container, in this sandbox's network.
    pub(super) fn build_words(&self) -> Vec<String> {
        let mut words = vec!["--isolation=oci", "--runtime-flag=cgroup-manager=disabled", "--network=host"];
        let runtime = format!("--runtime={RUNTIME}");
        if self.builder == Builder::Buildah {
            words.push(&runtime);
        }
        words.into_iter().map(str::to_owned).collect()
    }

    fn storage_words(&self) -> Vec<String> {
        let root = self.storage();
        let words = ["--root", root.as_str(), "--runroot=/run/containers", "--storage-driver", &self.driver];
        let runtime = format!("--runtime={RUNTIME}");
        let podman = ["--tmpdir=/run/libpod", "--cgroup-manager=cgroupfs", &runtime];
        let more: &[&str] = if self.builder == Builder::Podman { &podman } else { &[] };
        words.iter().chain(more).map(|&word| word.to_owned()).collect()
    }

    /// The builder has ended by itself, well or not: what it left in its storage is whole.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        self.begun.finish()
    }
}

/// How the builder keeps layers on this host.
fn driver_of(builder: Builder) -> anyhow::Result<String> {
    let program = builder.program();
    let words: &[&str] = if builder == Builder::Buildah { &["info"] } else { &["info", "--format=json"] };
    let info = duct::cmd(program, words).stdin_null().stderr_capture().read();
    let info = info.with_context(|| format!("failed to ask {program} how it keeps images"))?;
    let info: Value =
        serde_json::from_str(&info).with_context(|| format!("failed to understand {program}'s `info`"))?;
    // Podman's spelling and buildah's.
    let driver = ["graphDriverName", "GraphDriverName"].iter().find_map(|name| info["store"][name].as_str());
    driver.map(str::to_owned).with_context(|| format!("{program} does not say how it keeps images"))
}

/// Does something to the layers in `folder` while no build uses them; `None` where one does, or there are none.
pub(super) fn while_idle<T>(
    folder: &Utf8Path,
    act: impl FnOnce(&Utf8Path) -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    let layers = folder.join(LAYERS);
    if !layers.exists() {
        return Ok(None);
    }
    let lock = Begun::open_lock(folder)?;
    if lock.try_lock().is_err() { Ok(None) } else { act(&layers).map(Some) }
}

/// A mark beside the storage for as long as a build runs; where one stays without its build, that was killed.
#[derive(Debug)]
struct Begun {
    mark: Utf8PathBuf,
    /// Shared by builds that run. Who has it alone knows that every mark is of a build that was killed.
    _lock: File,
}

impl Begun {
    fn new(folder: &Utf8Path) -> anyhow::Result<Begun> {
        let marks = folder.join("running");
        create_folder(&marks)?;
        let lock = Begun::open_lock(folder)?;
        let is_marked = || marks.read_dir_utf8().is_ok_and(|mut marks| marks.next().is_some());
        if lock.try_lock().is_ok() && is_marked() {
            remove_any(&folder.join(LAYERS))?;
            remove_any(&marks)?;
            create_folder(&marks)?;
        }
        lock.lock_shared().with_context(|| format!("failed to lock `{folder}`"))?;
        // The builder has it too: where this process is killed, the lock is held until the builder has ended.
        rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty())
            .with_context(|| format!("failed to hand on the lock of `{folder}`"))?;
        let mark = marks.join(std::process::id().to_string());
        File::create(&mark).with_context(|| format!("failed to create `{mark}`"))?;
        sync_names(&marks)?;
        Ok(Begun { mark, _lock: lock })
    }

    fn open_lock(folder: &Utf8Path) -> anyhow::Result<File> {
        let path = folder.join("lock");
        let lock = File::options().create(true).append(true).open(&path);
        lock.with_context(|| format!("failed to open the lock `{path}`"))
    }

    fn finish(self) -> anyhow::Result<()> {
        // After a power cut the storage is whole, or the mark is still there.
        let layers = self.mark.ancestors().nth(2).map(|folder| folder.join(LAYERS));
        if let Some(layers) = layers.filter(|layers| layers.exists()) {
            sync_tree(&layers)?;
        }
        remove_any(&self.mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let guard = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(guard.path().to_owned()).unwrap();
        create_folder(&path.join("layers/one")).unwrap();
        (guard, path)
    }

    #[test]
    fn a_build_that_was_killed_takes_the_storage_along() {
        let (_guard, path) = folder();
        Begun::new(&path).unwrap().finish().unwrap();
        assert!(path.join("layers/one").exists());
        drop(Begun::new(&path).unwrap());
        Begun::new(&path).unwrap().finish().unwrap();
        assert!(!path.join("layers/one").exists());
    }

    #[test]
    fn a_build_that_runs_keeps_the_storage() {
        let (_guard, path) = folder();
        let running = Begun::new(&path).unwrap();
        Begun::new(&path).unwrap().finish().unwrap();
        assert!(path.join("layers/one").exists());
        assert_eq!(while_idle(&path, |_| Ok(())).unwrap(), None);
        running.finish().unwrap();
        assert_eq!(while_idle(&path, |_| Ok(())).unwrap(), Some(()));
    }
}
