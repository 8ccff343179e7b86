//! Images made by hand: layers entry by entry, and an OCI layout around them.

use std::fs;
use std::io::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

/// A tar under construction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

/// What an entry has beside its name and type.
#[derive(Debug, Clone)]
pub(crate) struct With {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: &'static str,
    pub(crate) xattrs: Vec<(&'static str, Vec<u8>)>,
    pub(crate) target: Vec<u8>,
    pub(crate) device: (u32, u32),
}

impl Default for With {
    fn default() -> With {
        With {
            mode: 0o644,
            owner: (0, 0),
            mtime: "1700000000.000000000",
            xattrs: Vec::new(),
            target: Vec::new(),
            device: (0, 0),
        }
    }
}

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar::default()
    }

    pub(crate) fn entry(
        mut self,
        kind: EntryType,
        path: impl AsRef<[u8]>,
        content: &[u8],
        with: &With,
    ) -> Tar {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path).entry_type(kind).size(content.len() as u64).unwrap().mtime(0).unwrap();
        entry.mode(with.mode).unwrap();
        entry.uid(u64::from(with.owner.0)).unwrap().gid(u64::from(with.owner.1)).unwrap();
        entry.add_pax("mtime", with.mtime);
        if !with.target.is_empty() {
            entry.link_name(&with.target);
        }
        if with.device != (0, 0) {
            entry.device(with.device.0, with.device.1).unwrap();
        }
        for (name, value) in &with.xattrs {
            entry.add_pax(&format!("SCHILY.xattr.{name}"), value);
        }
        self.bytes.extend(entry.finish_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: impl AsRef<[u8]>, content: &str) -> Tar {
        self.entry(EntryType::Regular, path, content.as_bytes(), &With::default())
    }

    pub(crate) fn folder(self, path: impl AsRef<[u8]>) -> Tar {
        self.entry(EntryType::Directory, path, b"", &With { mode: 0o755, ..With::default() })
    }

    pub(crate) fn link(self, path: impl AsRef<[u8]>, target: &str) -> Tar {
        self.entry(
            EntryType::Symlink,
            path,
            b"",
            &With { target: target.into(), mode: 0o777, ..With::default() },
        )
    }

    pub(crate) fn hardlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        let with = With { target: target.as_ref().to_vec(), ..With::default() };
        self.entry(EntryType::Link, path, b"", &with)
    }

    /// Ends the archive.
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// The documents of an image of these layers, gzipped: config, manifest, and blobs by digest.
pub(crate) struct Documents {
    pub(crate) manifest: Vec<u8>,
    pub(crate) blobs: Vec<(String, Vec<u8>)>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn documents(layers: &[Vec<u8>]) -> Documents {
    documents_for("amd64", layers)
}

fn documents_for(architecture: &str, layers: &[Vec<u8>]) -> Documents {
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": { "Entrypoint": ["/bin/app"], "Env": ["A=1"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>() },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let mut blobs: Vec<(String, Vec<u8>)> =
        layers.iter().map(|layer| gzip(layer)).map(|b| (digest(&b), b)).collect();
    let layer = |(digest, blob): &(String, Vec<u8>)| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": blob.len() });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": digest(&config), "size": config.len() },
        "layers": blobs.iter().map(layer).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    blobs.push((digest(&config), config));
    Documents { manifest, blobs }
}

/// Writes an OCI layout of these layers; its image is called `v1`.
pub(crate) fn layout(folder: &Utf8Path, layers: &[Vec<u8>]) -> Utf8PathBuf {
    let image = store_image(folder, documents(layers));
    finish_layout(folder, image)
}

/// The same for two machines: an index leads to an image for another one, and to one of these layers for this one.
pub(crate) fn layout_for_two(folder: &Utf8Path, layers: &[Vec<u8>]) -> Utf8PathBuf {
    let images = ["arm64", "amd64"].map(|architecture| {
        let mut image = store_image(folder, documents_for(architecture, layers));
        image["platform"] = json!({ "architecture": architecture, "os": "linux" });
        image
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": images });
    let index = store(folder, INDEX, &serde_json::to_vec(&index).unwrap());
    finish_layout(folder, index)
}

/// Puts a blob into a layout; gives its descriptor.
fn store(folder: &Utf8Path, media_type: &str, blob: &[u8]) -> serde_json::Value {
    let digest = digest(blob);
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(&digest[7..]), blob).unwrap();
    json!({ "mediaType": media_type, "digest": digest, "size": blob.len() })
}

fn store_image(folder: &Utf8Path, Documents { manifest, blobs }: Documents) -> serde_json::Value {
    for (_, blob) in &blobs {
        store(folder, "", blob);
    }
    store(folder, MANIFEST, &manifest)
}

fn finish_layout(folder: &Utf8Path, mut image: serde_json::Value) -> Utf8PathBuf {
    image["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1" });
    let index = json!({ "schemaVersion": 2, "manifests": [image] });
    fs::write(folder.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    folder.to_owned()
}
