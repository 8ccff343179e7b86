//! Container images, wherever they are, turned into base disks once.
//!
//! A [`source`] is opened as an [`archive::Image`]: a config and layers. The layers are [flattened](flatten) to a
//! [`tree`] of metadata, and [`crate::disk::ext4`] writes that with the layers' contents. [`ensure`] is the whole
//! way, and does none of it when the [`store`] has the disk already.

pub mod acl;
pub mod archive;
pub mod bases;
pub mod blob;
pub mod builder;
pub mod cleanup;
pub mod config;
mod confined;
mod context;
pub mod dockerfile;
pub mod dockerignore;
pub mod export;
pub mod flatten;
pub mod fuzz;
pub mod layer;
pub mod oci;
mod plan;
pub mod reference;
pub mod registry;
pub mod rootfs_tar;
pub mod sandbox;
pub mod source;
pub mod store;
pub mod tree;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use crate::artifact::{Lock, Staged, create_folder, later, require_space, sync_names, sync_tree};
use crate::error::usage;
use crate::host::tools::Purpose;
use crate::name;
use crate::tasks::Context;
use crate::workspace::Workspace;
use crate::{disk, ui};

pub use self::config::ImageConfig;
pub use self::plan::copies_init;
pub use self::source::Source;

use self::archive::Image;
use self::builder::Builder;
use self::plan::Plan;
use self::store::{CachedDisk, DiskRecord, Held, Store};

/// How the file system is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mkfs {
    /// Straight from the layers, without root
    #[default]
    Ext4,
    /// The recipe's way, with guestfs, for comparison
    VirtMakeFs,
}

/// A disk that somebody asks for.
#[derive(Debug, Clone)]
pub struct ImageRequest {
    /// Where the image comes from.
    pub source: Source,
    /// What to call it; a word of the source where nothing is said.
    pub name: Option<String>,
    /// The disk's size in bytes.
    pub size: Option<u64>,
    /// `NAME=value` for the Dockerfile's ARGs.
    pub build_args: Vec<String>,
    /// Which program builds Dockerfiles; whichever is there where nothing is said.
    pub builder: Option<Builder>,
    /// What one layer or archive may unpack to, in bytes; a multiple of its size where nothing is said.
    pub unpack_limit: Option<u64>,
    /// How the file system is made.
    pub mkfs: Mkfs,
    /// Look at the source again even where it seems not to have changed.
    pub refresh: bool,
    /// Check registries' certificates, and speak HTTPS alone.
    pub tls_verify: bool,
}

impl ImageRequest {
    /// The usual way for a source.
    pub fn new(source: Source) -> ImageRequest {
        ImageRequest {
            source,
            name: None,
            size: None,
            build_args: Vec::new(),
            builder: None,
            unpack_limit: None,
            mkfs: Mkfs::default(),
            refresh: false,
            tls_verify: true,
        }
    }
}

/// A base disk and how its image runs.
#[derive(Debug)]
pub struct BootImage {
    /// A short name.
    pub name: String,
    /// The image's digest.
    pub digest: String,
    /// The raw ext4 file system. It is shared: boot from an [overlay](crate::disk::overlay).
    pub disk: Utf8PathBuf,
    /// How the image runs.
    pub config: ImageConfig,
    /// Keeps the disk from being removed.
    pub in_use: Lock,
}

/// Looks whether a source that is a file is there, before anything slow is done for it. Errors name the nearest file.
pub fn check(workspace: &Workspace, source: &Source) -> anyhow::Result<()> {
    match source {
        Source::Dockerfile(path) => {
            dockerfile::find_dockerfile(&plan::in_checkout(workspace, path)).map(drop)
        }
        Source::DockerArchive(path, _)
        | Source::OciArchive(path, _)
        | Source::Oci(path, _)
        | Source::Rootfs(path) => {
            std::fs::metadata(path).map(drop).with_context(|| crate::nearest::describe(path))
        }
        Source::Registry(_) | Source::ContainersStorage(_) | Source::DockerDaemon(_) | Source::Stdin => {
            Ok(())
        }
    }
}

/// The disk of an image, made now or found in the cache. `init_binary` is PID 1, for Dockerfiles that copy it.
pub fn ensure(
    context: &Context,
    request: &ImageRequest,
    init_binary: &Utf8Path,
) -> anyhow::Result<BootImage> {
    let store = Store::new(&context.workspace);
    if request.mkfs == Mkfs::VirtMakeFs {
        context.require(&[Purpose::Guestfs])?;
    }
    let name = request.name.clone().unwrap_or_else(|| request.source.short_name());
    let name = name::parse(&name).map_err(usage)?;
    let plan = Plan::new(context, request, init_binary)?;
    let identity = plan.identity();
    if let Some(cached) = plan.cached(&identity, &store, request)? {
        return boot_image(&store, cached, name);
    }
    let turn =
        Lock::hold(&store.lock_path(&store::fingerprint(&identity)[..16]), &format!("`{}`", request.source))?;
    // Whoever held the lock before may have made it.
    if let Some(cached) = plan.cached(&plan.identity(), &store, request)? {
        return boot_image(&store, cached, name);
    }
    let cached = make(&plan, &store, request, &name, turn)
        .with_context(|| format!("failed to make a disk of `{}`", request.source))?;
    boot_image(&store, cached, name)
}

fn boot_image(store: &Store<'_>, held: Held, name: String) -> anyhow::Result<BootImage> {
    let Held { disk: mut cached, lock } = held;
    let config = cached.config()?;
    if cached.record.name != name {
        cached.record.name.clone_from(&name);
        store.save(&cached)?;
    }
    Ok(BootImage { name, digest: cached.record.digest.clone(), disk: cached.disk(), config, in_use: lock })
}

fn way(request: &ImageRequest) -> &'static str {
    match request.mkfs {
        Mkfs::Ext4 => "ext4",
        Mkfs::VirtMakeFs => "virt-make-fs",
    }
}

/// Makes the disk, or finds that another source has led to the same image. `turn` is held until the disk is safe.
fn make(
    plan: &Plan,
    store: &Store<'_>,
    request: &ImageRequest,
    name: &str,
    turn: Lock,
) -> anyhow::Result<Held> {
    let scratch = store.scratch();
    create_folder(&scratch)?;
    let image = plan.open(store, request, name)?;
    if let Some(digest) = &image.digest
        && !request.refresh
        && let Some(held) = store.take(&store.folder(digest, request.size, way(request)))?
    {
        remember(store, plan, digest)?;
        return Ok(held);
    }
    let staged = Staged::new(&scratch.join("disk"))?;
    create_folder(staged.path())?;
    let (size, digest) = convert(&image, &staged.path().join("disk.ext4"), request)?;
    store.save_config(staged.path(), &image.config)?;

    let folder = store.folder(&digest, request.size, way(request));
    let own_turn =
        Lock::hold(&store.lock_path(folder.file_name().unwrap_or_default()), &format!("`{name}`"))?;
    // One that is there is what kept overlays lie on, and is never replaced.
    if let Some(held) = store.take(&folder)? {
        remember(store, plan, &digest)?;
        return Ok(held);
    }
    let users = store::users_file(staged.path())?.context("the new disk is gone")?;
    let lock = Lock::share(&users)?.context("the new disk is gone")?;
    staged.aimed_at(&folder)?.publish_unsynced()?;
    let record = DiskRecord {
        name: name.to_owned(),
        source: request.source.to_string(),
        digest: digest.clone(),
        size,
        created: store::now(),
    };
    remember(store, plan, &digest)?;
    let disk = CachedDisk { folder, record };
    finish(store, disk.clone(), (turn, own_turn));
    Ok(Held { disk, lock })
}

/// Writes the record when all else is safe from a power cut: until then, other tasks wait. This one need not.
fn finish(store: &Store<'_>, disk: CachedDisk, turns: (Lock, Lock)) {
    let workspace = store.workspace().clone();
    later::begin(move || {
        sync_tree(&disk.disk())?;
        sync_tree(&disk.config_file())?;
        Store::new(&workspace).save(&disk)?;
        sync_names(&workspace.disks())?;
        drop(turns);
        Ok(())
    });
}

fn remember(store: &Store<'_>, plan: &Plan, digest: &str) -> anyhow::Result<()> {
    // A build may have pulled what it builds on.
    let identity = plan.identity();
    if identity.is_empty() { Ok(()) } else { store.remember(&identity, digest) }
}

/// Writes the disk, and checks the layers' digests meanwhile. Gives the disk's size and the image's digest.
fn convert(image: &Image, path: &Utf8Path, request: &ImageRequest) -> anyhow::Result<(u64, String)> {
    let folder = path.parent().context("a disk without a folder")?;
    std::thread::scope(|scope| {
        let verified = scope.spawn(|| image.verify());
        let tree = flatten::flatten(&image.layers, image.whiteouts)?;
        let plan = disk::ext4::Plan::new(tree)?;
        let size = request.size.unwrap_or_else(|| disk::size::default_for(plan.minimum_size()));
        require_space(folder, plan.data_bytes(), "the disk")?;
        match request.mkfs {
            Mkfs::Ext4 => {
                let file =
                    std::fs::File::create(path).with_context(|| format!("failed to create `{path}`"))?;
                let bar = ui::byte_bar("writing the disk", Some(plan.data_bytes()));
                let written = plan.write(&image.layers, &file, size, |bytes| bar.inc(bytes));
                bar.finish_and_clear();
                written?;
            }
            Mkfs::VirtMakeFs => {
                let tar = path.with_extension("tar");
                let file =
                    std::fs::File::create(&tar).with_context(|| format!("failed to create `{tar}`"))?;
                let mut buffered = std::io::BufWriter::with_capacity(128 * 1024, file);
                rootfs_tar::write(plan.tree(), &image.layers, &mut buffered)?;
                std::io::Write::flush(&mut buffered).with_context(|| format!("failed to write `{tar}`"))?;
                disk::guestfs::make(&tar, path, size)?;
                crate::artifact::remove_any(&tar)?;
            }
        }
        let digest =
            verified.join().map_err(|_| anyhow::anyhow!("the check of the layers' digests has failed"))??;
        Ok((size, digest))
    })
}
