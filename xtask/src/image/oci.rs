//! OCI layouts and manifests (OCI image spec, `image-layout.md`, `image-index.md`, `manifest.md`), and docker's
//! schema 2, which has the same shape under other media types.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use super::archive::{Image, Members, document, open, read_document};
use super::blob::{self, Unpacking};
use super::flatten::check_layers;
use super::layer::Layer;
use super::reference::{Reference, check_digest};
use crate::ui::human_bytes;

/// A blob that is said to be larger is refused: the largest images there are have some 100 GiB.
pub const LARGEST_BLOB: u64 = 1 << 40;

/// How many indexes may lead to one another: an index of names leads to one of machines; one more than any tool writes.
pub const MOST_INDEXES: u32 = 2;

/// Names one blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
    /// In an index: for which machine it is.
    pub platform: Option<Platform>,
    /// In an index: among others, the image's name.
    pub annotations: BTreeMap<String, String>,
}

/// For which machine an image is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// In Go's words.
    pub architecture: String,
    /// In Go's words.
    pub os: String,
}

/// A manifest or an index of manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image.
    Image {
        /// Its config file.
        config: Descriptor,
        /// Its layers, bottom first.
        layers: Vec<Descriptor>,
    },
    /// Images for several machines.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    #[serde(default)]
    schema_version: u32,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Manifest {
    /// Reads either kind. Errors where it is neither, or names a blob by something that is no digest.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Manifest> {
        let raw: RawManifest = document(bytes).context("failed to read a manifest")?;
        let manifest = match raw {
            RawManifest { manifests: Some(manifests), config: None, .. } => Manifest::Index(manifests),
            RawManifest { config: Some(config), layers: Some(layers), .. } => {
                check_layers(layers.len())?;
                Manifest::Image { config, layers }
            }
            RawManifest { schema_version: 1, .. } => {
                bail!("the manifest is of docker's schema 1, which is no longer in use; push the image again")
            }
            _ => bail!("the manifest is of an unknown kind"),
        };
        let blobs: Vec<&Descriptor> = match &manifest {
            Manifest::Image { config, layers } => std::iter::once(config).chain(layers).collect(),
            Manifest::Index(manifests) => manifests.iter().collect(),
        };
        for blob in blobs {
            check_digest(&blob.digest)?;
            ensure!(
                blob.size <= LARGEST_BLOB,
                "the blob `{}` is said to have {} bytes; more than {} are refused",
                blob.digest,
                blob.size,
                human_bytes(LARGEST_BLOB)
            );
        }
        Ok(manifest)
    }
}

/// The manifest for this machine. Errors name what there is instead.
pub fn choose_platform(manifests: &[Descriptor]) -> anyhow::Result<&Descriptor> {
    let is_ours = |descriptor: &&Descriptor| {
        descriptor
            .platform
            .as_ref()
            .is_some_and(|platform| platform.architecture == "amd64" && platform.os == "linux")
    };
    if let Some(ours) = manifests.iter().find(is_ours) {
        return Ok(ours);
    }
    if let [only @ Descriptor { platform: None, .. }] = manifests {
        return Ok(only);
    }
    let others: Vec<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .filter(|name| name != "unknown/unknown")
        .collect();
    bail!("the image is not made for `linux/amd64`; it is for {}", others.join(", "))
}

/// An OCI layout: a folder, or an archive of one.
pub(super) enum Layout<'a> {
    Folder(Utf8PathBuf),
    Archive(&'a Members<'a>),
}

impl Layout<'_> {
    fn file(&self, path: &str) -> anyhow::Result<Layer> {
        match self {
            Layout::Folder(folder) => Layer::whole(open(&folder.join(path))?, format!("`{path}`")),
            Layout::Archive(members) => members.find(path),
        }
    }

    fn blob(&self, descriptor: &Descriptor) -> anyhow::Result<Layer> {
        check_digest(&descriptor.digest)?;
        let hex = descriptor.digest.trim_start_matches("sha256:");
        let blob = self.file(&format!("blobs/sha256/{hex}"))?;
        ensure!(
            blob.length == descriptor.size,
            "the blob `{}` has {} bytes, and the manifest says {}",
            descriptor.digest,
            blob.length,
            descriptor.size
        );
        let actual = blob::digest(&blob)?;
        ensure!(actual == descriptor.digest, "the blob `{}` has the digest `{actual}`", descriptor.digest);
        Ok(blob)
    }
}

/// An image in an OCI layout's folder.
pub fn open_folder(folder: &Utf8Path, name: Option<&str>, unpacking: &Unpacking) -> anyhow::Result<Image> {
    from_layout(&Layout::Folder(folder.to_owned()), name, unpacking)
        .with_context(|| format!("failed to read the image in `{folder}`"))
}

pub(super) fn from_layout(
    layout: &Layout<'_>,
    name: Option<&str>,
    unpacking: &Unpacking,
) -> anyhow::Result<Image> {
    let index = Manifest::parse(&read_document(&layout.file("index.json")?)?)?;
    let Manifest::Index(entries) = index else { bail!("`index.json` is not an index") };
    let mut descriptor = choose_name(&entries, name)?.clone();
    for _ in 0..=MOST_INDEXES {
        match Manifest::parse(&read_document(&layout.blob(&descriptor)?)?)? {
            Manifest::Index(manifests) => descriptor = choose_platform(&manifests)?.clone(),
            Manifest::Image { config, layers } => {
                let config = read_document(&layout.blob(&config)?)?;
                let mut known: HashMap<&str, Layer> = HashMap::new();
                let mut blobs = Vec::new();
                for layer in &layers {
                    let blob = match known.get(layer.digest.as_str()) {
                        Some(blob) => blob.clone(),
                        None => layout.blob(layer)?,
                    };
                    known.insert(&layer.digest, blob.clone());
                    blobs.push(blob);
                }
                return Image::assemble(&config, blobs, unpacking);
            }
        }
    }
    bail!("the index leads to more indexes")
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

fn choose_name<'a>(entries: &'a [Descriptor], name: Option<&str>) -> anyhow::Result<&'a Descriptor> {
    let names = |entry: &Descriptor| -> Vec<String> {
        [REF_NAME, IMAGE_NAME].iter().filter_map(|key| entry.annotations.get(*key).cloned()).collect()
    };
    let Some(wanted) = name else {
        return match entries {
            [] => bail!("the layout holds no image"),
            [only] => Ok(only),
            several => choose_platform(several).with_context(|| {
                let names: Vec<_> = several.iter().flat_map(names).map(|name| format!("`{name}`")).collect();
                format!("the layout holds several images, name one: {}", names.join(", "))
            }),
        };
    };
    let reference: Option<Reference> = wanted.parse().ok();
    let is_wanted =
        |name: &String| name == wanted || reference.is_some() && name.parse::<Reference>().ok() == reference;
    entries.iter().find(|entry| names(entry).iter().any(is_wanted)).with_context(|| {
        let names: Vec<_> = entries.iter().flat_map(names).map(|name| format!("`{name}`")).collect();
        format!("the layout does not hold `{wanted}`; it holds {}", names.join(", "))
    })
}
