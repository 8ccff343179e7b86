//! Kernels for the machine: from a [source] and a [config] by way of a [build] to the [store].
//!
//! [`ensure`] is the way in. A request that was answered before is answered from the store in milliseconds and with
//! no network contact. Otherwise the source is brought here, configured, checked and compiled; afterwards only the
//! finished kernel and a downloaded tarball stay, since an unpacked tree (1.5 GiB) is quick to make again. A tree of
//! the user's own (`--source DIR`) keeps its build folder, so that the next build of it compiles what changed.

pub mod build;
mod compiler;
pub mod config;
pub mod download;
pub mod file_hash;
pub mod kconfig;
pub mod plan;
pub mod source;
pub mod store;
pub mod tree;

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use self::build::Build;
use self::plan::Plan;
use self::source::{Content, Source};
use crate::artifact::{Lock, create_folder, publish_link, read_text, remove_any, require_space};
use crate::host::tools::Purpose;
use crate::note;
use crate::tasks::Context;
use crate::workspace::{Workspace, create_builds, hex, is_plain};

pub use self::plan::ConfigChoice;
pub use self::source::SourceChoice;
pub use self::store::Kernel;

/// Which kernel is wanted. The default is the one that `boot` uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelRequest {
    /// What to start from.
    pub config: ConfigChoice,
    /// Fragments on top of it, later ones win.
    pub fragments: Vec<Utf8PathBuf>,
    /// `CONFIG_X=y` on top of those.
    pub sets: Vec<String>,
    /// Kernel version, or for `debian` the package's series; `None` is the pinned one.
    pub version: Option<String>,
    /// Where the source comes from.
    pub source: SourceChoice,
}

/// Object files and what is linked from them, with some room (microvm config: 0.4 GiB).
const BUILD_BYTES: u64 = 1 << 30;

/// Steps of a compile that was never seen: the microvm config on 6.12.
const USUAL_STEPS: u64 = 1800;

/// The kernel that answers the request, if it is there already.
pub fn ready(workspace: &Workspace, request: &KernelRequest) -> anyhow::Result<Option<Kernel>> {
    source::check(workspace, request)?;
    find(workspace, request, &Plan::load(workspace, request)?)
}

/// The kernel that answers the request, built where it is not there yet.
///
/// Errors where the request cannot be met, where a download is not what it should be, where an option did not take
/// and where the compile fails. Nothing that looks finished is left then.
pub fn ensure(context: &Context, request: &KernelRequest) -> anyhow::Result<Kernel> {
    let workspace = &context.workspace;
    source::check(workspace, request)?;
    let plan = Plan::load(workspace, request)?;
    if let Some(kernel) = find(workspace, request, &plan)? {
        return publish_links(workspace, kernel);
    }
    context.require(&[Purpose::Kernel])?;
    // One kernel at a time: a compile uses every core as it is.
    let _lock = Lock::hold(&workspace.kernels().join("lock"), "a kernel")?;
    if let Some(kernel) = find(workspace, request, &plan)? {
        return publish_links(workspace, kernel);
    }
    require_room(workspace, request)?;
    let source = source::resolve(context, request)?;
    let kernel = make(workspace, &plan, &source)
        .with_context(|| format!("failed to build the kernel `{}` from {}", plan.name, source.label))?;
    publish_links(workspace, kernel)
}

/// The kernel that was built last.
pub fn latest(workspace: &Workspace) -> Option<Kernel> {
    store::all(workspace).into_iter().next().map(|(kernel, _)| kernel)
}

fn find(workspace: &Workspace, request: &KernelRequest, plan: &Plan) -> anyhow::Result<Option<Kernel>> {
    let compiler = compiler::version(workspace);
    let identities = source::identities(workspace, request)?;
    Ok(identities
        .iter()
        .find_map(|identity| store::by_request(workspace, &plan.request_key(identity), compiler.as_deref())))
}

fn make(workspace: &Workspace, plan: &Plan, source: &Source) -> anyhow::Result<Kernel> {
    let scratch = workspace.kernel_builds();
    let compiler = compiler::version(workspace).context("`gcc` does not tell its version")?;
    let (tree, folder) = match &source.content {
        Content::Tarball(tarball) => {
            let short = &source.identity[..16];
            let tree = scratch.join(format!("source-{short}"));
            let folder = scratch.join(format!("build-{short}-{}", plan.name));
            remove_leftovers(&scratch, &[&tree, &folder])?;
            if !tree.is_dir() {
                tree::unpack(tarball, &tree)?;
            }
            (tree, folder)
        }
        Content::Tree(tree) => {
            let name = hex(&Sha256::digest(tree.as_str()))[..16].to_owned();
            let folder = scratch.join(format!("tree-{name}"));
            if is_plain(tree) {
                (tree.clone(), folder)
            } else {
                // At the same place each time, so that the next build goes on with this one.
                let links = scratch.join(format!("links-{name}"));
                tree::link(tree, &links).with_context(|| format!("failed to link to `{tree}`"))?;
                (links, folder)
            }
        }
    };
    create_folder(&folder)?;
    let build = Build { tree: &tree, folder: &folder };
    let config = build.configure(plan.base, &plan.settings)?;

    let config_sha256 = hex(&Sha256::digest(&config));
    let key =
        hex(&Sha256::digest(format!("{}\n{config_sha256}\n{compiler}", source.identity)))[..16].to_owned();
    let kernel = match store::by_key(workspace, &key) {
        // Another request came to the same config.
        Some(kernel) => kernel,
        None => {
            let version = tree::version(&read_text(&tree.join("Makefile"))?).unwrap_or_default();
            let description = format!("{version} {} ({})", plan.name, source.label);
            let (steps, time) = build.compile(&description, expected_steps(workspace, plan))?;
            note!("compiled {description} in {} s", time.as_secs());
            let manifest = store::Manifest {
                key: key.clone(),
                description,
                config_name: plan.name.clone(),
                source_sha256: source.identity.clone(),
                config_sha256,
                compiler,
                pvh: config::values(&config).get("CONFIG_PVH") == Some(&"y"),
                steps,
                compile_seconds: time.as_secs(),
                built_unix_seconds: SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs(),
            };
            store::publish(workspace, &folder, &manifest)?
        }
    };
    store::remember(workspace, &plan.request_key(&source.identity), &key)?;
    if let Content::Tarball(_) = source.content {
        remove_leftovers(&scratch, &[])?;
    }
    Ok(kernel)
}

/// Room for everything, asked for before a download starts; a tree that is unpacked already needs less.
fn require_room(workspace: &Workspace, request: &KernelRequest) -> anyhow::Result<()> {
    let scratch = workspace.kernel_builds();
    create_builds(&scratch)?;
    let is_tree = matches!(&request.source, SourceChoice::Path(path) if path.is_dir());
    let is_unpacked =
        scratch.read_dir_utf8()?.flatten().any(|entry| entry.file_name().starts_with("source-"));
    let unpacked = if is_tree || is_unpacked { 0 } else { tree::UNPACKED_BYTES };
    require_space(&scratch, unpacked + BUILD_BYTES, "building a kernel")
}

/// Removes unpacked trees and their builds, whole or half, but for those named. Folders of a user's tree stay.
fn remove_leftovers(scratch: &Utf8Path, keep: &[&Utf8Path]) -> anyhow::Result<()> {
    create_folder(scratch)?;
    let entries =
        scratch.read_dir_utf8().with_context(|| format!("failed to read the folder `{scratch}`"))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours = ["source-", "build-", ".source-"].iter().any(|prefix| name.starts_with(prefix));
        if is_ours && !keep.contains(&entry.path()) {
            remove_any(entry.path())?;
        }
    }
    Ok(())
}

/// As many as the last compile of a config of this name took, or of any.
fn expected_steps(workspace: &Workspace, plan: &Plan) -> u64 {
    let all = store::all(workspace);
    let same = all.iter().find(|(_, manifest)| manifest.config_name == plan.name);
    same.or(all.first()).map_or(USUAL_STEPS, |(_, manifest)| manifest.steps)
}

/// Names the kernel where `collect` and people look for it.
fn publish_links(workspace: &Workspace, kernel: Kernel) -> anyhow::Result<Kernel> {
    publish_link(&kernel.bz_image, &workspace.artifacts().join("kernel"))?;
    publish_link(&kernel.vmlinux, &workspace.artifacts().join("vmlinux"))?;
    Ok(kernel)
}
