//! What there is to boot: kernel, PID 1 and disk of a source, built where they are missing, or of a set from elsewhere.

use anyhow::{Context as _, bail};
use camino::{Utf8Path, Utf8PathBuf};

use super::request::existing;
use crate::artifact::{self, Lock};
use crate::artifacts::Set;
use crate::disk::kept::{Origin, Wanted};
use crate::disk::opened;
use crate::host::tools::Purpose;
use crate::image::config::ImageConfig;
use crate::image::{self, ImageRequest, Source};
use crate::kernel::{self, KernelRequest, file_hash};
use crate::name;
use crate::tasks::Context;
use crate::vm::machine::{Base, DiskFormat};
use crate::workspace::Workspace;

/// What there is to boot.
#[derive(Debug)]
pub struct Bootable {
    /// For people.
    pub image: String,
    /// A word for names.
    pub short_name: String,
    /// Kernel image.
    pub kernel: Utf8PathBuf,
    /// PID 1's own initramfs; `None` boots the disk's own init.
    pub initramfs: Option<Vec<u8>>,
    /// The root disk, which is left as it is.
    pub disk: Utf8PathBuf,
    /// Format of its file.
    pub disk_format: DiskFormat,
    /// The image's config; empty where there is none.
    pub config: ImageConfig,
    /// The image's digest; `None` where the disk came from elsewhere.
    pub digest: Option<String>,
    /// Keeps the root disk from being removed while the machine lives.
    pub in_use: Option<Lock>,
    /// Keeps a set from being replaced until the machine has opened its files.
    pub set: Option<Lock>,
}

impl Bootable {
    /// The root disk as what a kept disk lies on. Reads all of one that came from elsewhere.
    pub fn origin(&self, workspace: &Workspace) -> anyhow::Result<Wanted> {
        let digest = match &self.digest {
            Some(digest) => digest.clone(),
            None => format!("sha256:{}", file_hash::sha256(workspace, &self.disk)?),
        };
        let size = opened::size(&self.disk, self.disk_format)?;
        let base = Base { path: self.disk.clone(), format: self.disk_format };
        Ok(Wanted { origin: Origin { image: self.image.clone(), digest, size }, base })
    }
}

/// What it takes to make what is missing of a machine for an image, and to run it: asked for at once, before anything
/// slow starts.
pub fn purposes(workspace: &Workspace, request: &ImageRequest) -> anyhow::Result<Vec<Purpose>> {
    let is_built = matches!(request.source, Source::Dockerfile(_));
    let all = [
        (Purpose::Kernel, kernel::ready(workspace, &KernelRequest::default())?.is_none()),
        (Purpose::Init, crate::init::ready(workspace)?.is_none()),
        (Purpose::Build, is_built),
        (Purpose::Image, true),
        (Purpose::Boot, true),
    ];
    Ok(all.into_iter().filter(|(_, is_needed)| *is_needed).map(|(purpose, _)| purpose).collect())
}

/// Makes what is missing of a machine for an image.
pub fn from_image(context: &Context, request: &ImageRequest) -> anyhow::Result<Bootable> {
    let kernel = kernel::ensure(context, &KernelRequest::default())?;
    let init = crate::init::ensure(context)?;
    let image = image::ensure(context, request, &init.binary)?;
    Ok(Bootable {
        image: image.name.clone(),
        short_name: image.name,
        kernel: kernel.boot_image().to_owned(),
        initramfs: Some(read(&init.initramfs)?),
        disk: image.disk,
        disk_format: DiskFormat::Raw,
        config: image.config,
        digest: Some(image.digest),
        in_use: Some(image.in_use),
        set: None,
    })
}

/// A set from elsewhere: with an image's config its `init` boots it as we boot our own; without one the disk carries
/// its own `/sbin/init`, as the recipe has it.
pub fn from_set(workspace: &Workspace, folder: &Utf8Path) -> anyhow::Result<Bootable> {
    let folder = existing(folder, "folder")?;
    let (lock, what) = (Set::lock(workspace, &folder)?, format!("`{folder}`"));
    if Set::is_half(&folder) {
        let _turn = Lock::hold(&lock, &what)?;
        Set::settle(&folder)?;
    }
    let lock = Lock::hold_beside_others(&lock, &what)?;
    let set = Set::load(&folder)?;
    opened::check_alone(&set.disk, &set.disk)?;
    let (initramfs, config) = match (&set.init, &set.image_config) {
        (Some(init), Some(config)) => {
            let text = artifact::read_text(config)?;
            let config =
                serde_json::from_str(&text).with_context(|| format!("failed to understand `{config}`"))?;
            (Some(crate::init::initramfs(&read(init)?)), config)
        }
        _ => (None, ImageConfig::default()),
    };
    let Some(short_name) = folder.file_name() else { bail!("`{folder}` has no name") };
    Ok(Bootable {
        image: folder.to_string(),
        short_name: name::like(short_name, "set"),
        kernel: set.kernel,
        initramfs,
        disk: set.disk,
        disk_format: DiskFormat::Qcow2,
        config,
        digest: None,
        in_use: None,
        set: Some(lock),
    })
}

fn read(path: &Utf8Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("failed to read `{path}`"))
}
