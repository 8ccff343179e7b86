//! Finished kernels: one folder each, named by the hash of source, final config and compiler, and beside them a
//! link from each request to the kernel that answers it.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::artifact::{Staged, create_folder, publish_link, read_text};
use crate::workspace::Workspace;

const MANIFEST: &str = "kernel.json";
const REQUESTS: &str = "by-request";

/// What is known about a finished kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its folder's name.
    pub key: String,
    /// `6.12.117 microvm (debian)`.
    pub description: String,
    /// The config's name, to guess how long the next one takes.
    pub config_name: String,
    /// Identity of the source.
    pub source_sha256: String,
    /// sha256 of the final `.config`.
    pub config_sha256: String,
    /// First line of `gcc --version`.
    pub compiler: String,
    /// `vmlinux` can be booted as it is (`CONFIG_PVH=y`).
    pub pvh: bool,
    /// How many steps make reported.
    pub steps: u64,
    /// How long the compile took.
    pub compile_seconds: u64,
    /// When it was finished, in seconds since 1970.
    pub built_unix_seconds: u64,
}

/// A kernel that can be booted.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Uncompressed ELF file with symbols.
    pub vmlinux: Utf8PathBuf,
    /// Compressed image, which every loader boots.
    pub bz_image: Utf8PathBuf,
    /// Its final `.config`.
    pub config: Utf8PathBuf,
    /// For people: `6.12.117 microvm (debian)`.
    pub description: String,
    /// Identifies source, config and compiler.
    pub key: String,
    /// `vmlinux` carries a PVH entry, so that QEMU boots it with nothing to unpack.
    pub pvh: bool,
    /// When it was built.
    pub built: SystemTime,
}

impl Kernel {
    /// The quickest file to boot.
    pub fn boot_image(&self) -> &Utf8Path {
        if self.pvh { &self.vmlinux } else { &self.bz_image }
    }

    fn new(folder: &Utf8Path, manifest: &Manifest) -> Kernel {
        Kernel {
            vmlinux: folder.join("vmlinux"),
            bz_image: folder.join("bzImage"),
            config: folder.join("config"),
            description: manifest.description.clone(),
            key: manifest.key.clone(),
            pvh: manifest.pvh,
            built: SystemTime::UNIX_EPOCH + Duration::from_secs(manifest.built_unix_seconds),
        }
    }
}

fn load(folder: &Utf8Path) -> Option<(Kernel, Manifest)> {
    let manifest: Manifest = serde_json::from_str(&read_text(&folder.join(MANIFEST)).ok()?).ok()?;
    let kernel = Kernel::new(folder, &manifest);
    (kernel.vmlinux.is_file() && kernel.bz_image.is_file()).then_some((kernel, manifest))
}

/// The kernel of this key.
pub fn by_key(workspace: &Workspace, key: &str) -> Option<Kernel> {
    load(&workspace.kernels().join(key)).map(|(kernel, _)| kernel)
}

/// The kernel that answers a request. With `compiler`, only one that was built by it.
pub fn by_request(workspace: &Workspace, request: &str, compiler: Option<&str>) -> Option<Kernel> {
    let link = workspace.kernels().join(REQUESTS).join(request);
    let (kernel, manifest) = load(&link.canonicalize_utf8().ok()?)?;
    compiler.is_none_or(|compiler| compiler == manifest.compiler).then_some(kernel)
}

/// Every finished kernel, the newest first.
pub fn all(workspace: &Workspace) -> Vec<(Kernel, Manifest)> {
    let folders = workspace.kernels().read_dir_utf8().into_iter().flatten().flatten();
    let mut kernels: Vec<_> = folders.filter_map(|entry| load(entry.path())).collect();
    kernels.sort_by_key(|(kernel, _)| std::cmp::Reverse(kernel.built));
    kernels
}

/// Remembers that this kernel answers a request.
pub fn remember(workspace: &Workspace, request: &str, key: &str) -> anyhow::Result<()> {
    let link = workspace.kernels().join(REQUESTS).join(request);
    publish_link(&Utf8Path::new("..").join(key), &link)
}

/// Copies the results of a build to their folder, which appears whole or not at all.
pub fn publish(workspace: &Workspace, build: &Utf8Path, manifest: &Manifest) -> anyhow::Result<Kernel> {
    let folder = workspace.kernels().join(&manifest.key);
    let staged = Staged::new(&folder)?;
    create_folder(staged.path())?;
    for (from, to) in [("vmlinux", "vmlinux"), ("arch/x86/boot/bzImage", "bzImage"), (".config", "config")] {
        let (from, to) = (build.join(from), staged.path().join(to));
        std::fs::copy(&from, &to).with_context(|| format!("failed to copy `{from}` to `{to}`"))?;
    }
    let path = staged.path().join(MANIFEST);
    std::fs::write(&path, serde_json::to_vec_pretty(manifest)?)
        .with_context(|| format!("failed to write `{path}`"))?;
    staged.publish()?;
    Ok(Kernel::new(&folder, manifest))
}
