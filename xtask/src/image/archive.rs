//! Images in files: `docker save`'s archive, an OCI layout in an archive or a folder, and a bare root file system.
//!
//! Plain layers are used where they lie in the archive, compressed ones are unpacked once. Digests of plain layers
//! are left for [`Image::verify`], which runs beside the conversion.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, bail, ensure};
use camino::Utf8Path;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::blob::{self, Unpacking};
use super::config::ImageConfig;
use super::flatten::{Whiteouts, check_layers};
use super::layer::{EntryKind, Layer};
use super::oci;
use super::reference::Reference;
use crate::workspace::hex;

/// Manifests and configs larger than this are refused: they are held in memory. Registries refuse the same
/// (distribution's `MaxManifestBodySize`).
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// An image that can be flattened.
#[derive(Debug)]
pub struct Image {
    /// How it runs.
    pub config: ImageConfig,
    /// The config's digest, which names the image whatever way it came; `None` where only [`Image::verify`] can tell.
    pub digest: Option<String>,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// Whether layers hide what is below them.
    pub whiteouts: Whiteouts,
    /// The digest that a layer must have and that nobody has checked yet, for each layer.
    unverified: Vec<Option<String>>,
}

impl Image {
    /// Puts an image together from its config file and its layers as they are stored.
    ///
    /// Errors where the layers are not the config's: another number of them, or another digest.
    pub fn assemble(config: &[u8], blobs: Vec<Layer>, unpacking: &Unpacking) -> anyhow::Result<Image> {
        let digest = Some(format!("sha256:{}", hex(&Sha256::digest(config))));
        let config = Image::check_config(config)?;
        let diff_ids = &config.rootfs.diff_ids;
        ensure!(
            diff_ids.len() == blobs.len(),
            "the image's config speaks of {} layers, and there are {}",
            diff_ids.len(),
            blobs.len()
        );
        let mut layers: Vec<Layer> = Vec::new();
        let mut unverified = Vec::new();
        // Where each was first: one that comes again is neither unpacked nor digested again.
        let mut first: HashMap<&str, usize> = HashMap::new();
        // Bytes of compressed layers, before and after.
        let (mut stored, mut unpacked) = (0_u64, 0_u64);
        for (blob, diff_id) in blobs.into_iter().zip(diff_ids) {
            if let Some(&at) = first.get(diff_id.as_str()) {
                layers.push(layers[at].clone());
                unverified.push(None);
                continue;
            }
            first.insert(diff_id, layers.len());
            let length = blob.length;
            let opened = blob::open(blob, unpacking)?;
            if let Some(actual) = &opened.diff_id {
                check(&opened.layer, actual, diff_id)?;
                stored = stored.saturating_add(length);
                unpacked = unpacked.saturating_add(opened.layer.length);
                unpacking.check_sum(stored, unpacked)?;
            }
            unverified.push(opened.diff_id.is_none().then(|| diff_id.clone()));
            layers.push(opened.layer);
        }
        Ok(Image { config, digest, layers, whiteouts: Whiteouts::Apply, unverified })
    }

    /// Reads an image's config. Errors where the image is not for this machine.
    pub fn check_config(config: &[u8]) -> anyhow::Result<ImageConfig> {
        let config: ImageConfig = document(config).context("failed to read the image's config")?;
        config.check_platform()?;
        check_layers(config.rootfs.diff_ids.len())?;
        Ok(config)
    }

    /// Checks the digests that are not checked yet, reading those layers whole. Gives the image's digest.
    pub fn verify(&self) -> anyhow::Result<String> {
        let mut last = None;
        for (layer, expected) in self.layers.iter().zip(&self.unverified) {
            if expected.is_some() || self.digest.is_none() {
                let actual = blob::digest(layer)?;
                if let Some(expected) = expected {
                    check(layer, &actual, expected)?;
                }
                last = Some(actual);
            }
        }
        self.digest.clone().or(last).context("an image without layers and without a config")
    }
}

fn check(layer: &Layer, actual: &str, expected: &str) -> anyhow::Result<()> {
    ensure!(actual == expected, "{} has the digest `{actual}`, and the config says `{expected}`", layer.name);
    Ok(())
}

/// A root file system without a config.
pub fn open_rootfs(path: &Utf8Path, unpacking: &Unpacking) -> anyhow::Result<Image> {
    from_rootfs(Layer::whole(open(path)?, format!("`{path}`"))?, unpacking)
}

fn from_rootfs(file: Layer, unpacking: &Unpacking) -> anyhow::Result<Image> {
    let opened = blob::open(file, unpacking)?;
    Ok(Image {
        config: ImageConfig::default(),
        digest: opened.diff_id,
        layers: vec![opened.layer],
        whiteouts: Whiteouts::Ignore,
        unverified: vec![None],
    })
}

/// An archive, compressed or not, of the kind that is asked for.
pub fn open_archive(
    path: &Utf8Path,
    kind: ArchiveKind,
    name: Option<&str>,
    unpacking: &Unpacking,
) -> anyhow::Result<Image> {
    from_archive(Layer::whole(open(path)?, format!("`{path}`"))?, kind, name, unpacking)
        .with_context(|| format!("failed to read the image in `{path}`"))
}

/// An archive of any kind, from a stream that can be read once.
pub fn open_stream(mut stream: impl std::io::Read, unpacking: &Unpacking) -> anyhow::Result<Image> {
    let mut file = blob::scratch_file(&unpacking.folder)?;
    std::io::copy(&mut stream, &mut file).context("failed to read standard input")?;
    from_archive(Layer::whole(file, "standard input")?, ArchiveKind::Any, None, unpacking)
        .context("failed to read the image on standard input")
}

/// What an archive is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// `docker save`.
    Docker,
    /// An OCI layout.
    Oci,
    /// Whatever it turns out to be; a root file system if nothing else.
    Any,
}

fn from_archive(
    file: Layer,
    kind: ArchiveKind,
    name: Option<&str>,
    unpacking: &Unpacking,
) -> anyhow::Result<Image> {
    let archive = blob::open(file, unpacking)?.layer;
    let members = Members::read(&archive)?;
    let is_docker = members.contains("manifest.json");
    let is_oci = members.contains("index.json");
    match kind {
        // `docker save` of today writes both; its own manifest knows the tags.
        ArchiveKind::Docker | ArchiveKind::Any if is_docker => from_docker(&members, name, unpacking),
        ArchiveKind::Oci | ArchiveKind::Any if is_oci => {
            oci::from_layout(&oci::Layout::Archive(&members), name, unpacking)
        }
        ArchiveKind::Any => from_rootfs(archive, unpacking),
        ArchiveKind::Docker if is_oci => bail!("it is an OCI layout; use `oci-archive:`"),
        ArchiveKind::Oci if is_docker => bail!("it is `docker save`'s archive; use `docker-archive:`"),
        ArchiveKind::Docker => bail!("it has no `manifest.json`: it is not `docker save`'s archive"),
        ArchiveKind::Oci => bail!("it has no `index.json`: it is not an OCI layout"),
    }
}

/// `manifest.json` of `docker save`: one for each image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn from_docker(members: &Members<'_>, name: Option<&str>, unpacking: &Unpacking) -> anyhow::Result<Image> {
    let manifests: Vec<DockerManifest> = members.document("manifest.json")?;
    let manifest = choose(&manifests, name)?;
    check_layers(manifest.layers.len())?;
    let config = members.bytes(&manifest.config)?;
    let blobs = manifest.layers.iter().map(|layer| members.find(layer)).collect::<anyhow::Result<_>>()?;
    Image::assemble(&config, blobs, unpacking)
}

fn choose<'a>(manifests: &'a [DockerManifest], name: Option<&str>) -> anyhow::Result<&'a DockerManifest> {
    let tags = |manifest: &DockerManifest| manifest.repo_tags.clone().unwrap_or_default();
    let all = || manifests.iter().flat_map(tags).map(|tag| format!("`{tag}`")).collect::<Vec<_>>().join(", ");
    let Some(name) = name else {
        ensure!(!manifests.is_empty(), "the archive holds no image");
        ensure!(manifests.len() == 1, "the archive holds {} images, name one: {}", manifests.len(), all());
        return Ok(&manifests[0]);
    };
    if let Some(index) = name.strip_prefix('@') {
        let index: usize = index.parse().with_context(|| format!("`@{index}` is not an image's number"))?;
        return manifests.get(index).with_context(|| format!("the archive holds {} images", manifests.len()));
    }
    let wanted: Reference = name.parse()?;
    let is_wanted = |tag: &String| tag.parse::<Reference>().is_ok_and(|tag| tag == wanted);
    manifests
        .iter()
        .find(|manifest| tags(manifest).iter().any(is_wanted))
        .with_context(|| format!("the archive does not hold `{name}`; it holds {}", all()))
}

/// At most so many files of an archive are known by name: a bound on memory. An image has a few for each layer; a root file
/// system may have millions, and only whether it is one is asked of it.
const MAX_MEMBERS: usize = 200_000;

/// The files by which an archive of an image is told.
const TELLING: [&str; 2] = ["manifest.json", "index.json"];

/// The files in an archive.
#[derive(Debug)]
pub(super) struct Members<'a> {
    archive: &'a Layer,
    files: HashMap<String, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    File { offset: u64, length: u64 },
    Link(String),
}

impl<'a> Members<'a> {
    fn read(archive: &'a Layer) -> anyhow::Result<Members<'a>> {
        let mut files = HashMap::new();
        let mut entries = archive.entries(0);
        while let Some(entry) = entries.next_entry()? {
            let Ok(path) = String::from_utf8(entry.path) else { continue };
            let member = match entry.kind {
                EntryKind::File(content) if content.sparse.is_none() => {
                    Member::File { offset: content.offset, length: content.size }
                }
                // Layers that are the same are stored once; old docker links them with paths from their own folder.
                EntryKind::Symlink(target) => {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                    Member::Link(clean(&format!("{folder}/{}", String::from_utf8_lossy(&target))))
                }
                EntryKind::Hardlink(target) => Member::Link(clean(&String::from_utf8_lossy(&target))),
                _ => continue,
            };
            let path = clean(&path);
            if files.len() < MAX_MEMBERS || TELLING.contains(&&*path) {
                files.insert(path, member);
            }
        }
        Ok(Members { archive, files })
    }

    fn contains(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    pub(super) fn find(&self, path: &str) -> anyhow::Result<Layer> {
        let mut at = clean(path);
        for _ in 0..8 {
            match self.files.get(&at) {
                Some(&Member::File { offset, length }) => {
                    let name = format!("`{path}`");
                    return Ok(Layer { file: self.archive.file.clone(), start: offset, length, name });
                }
                Some(Member::Link(target)) => at.clone_from(target),
                None if self.files.len() >= MAX_MEMBERS => {
                    bail!("the archive lacks `{path}`, or has it behind {MAX_MEMBERS} other files")
                }
                None => bail!("the archive lacks `{path}`"),
            }
        }
        bail!("`{path}` is a link to itself")
    }

    pub(super) fn bytes(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        read_document(&self.find(path)?)
    }

    fn document<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        document(&self.bytes(path)?).with_context(|| format!("failed to read `{path}`"))
    }
}

/// `./a/../b` is `b`.
fn clean(path: &str) -> String {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    names.join("/")
}

/// Reads a manifest or config whole.
pub(super) fn read_document(from: &Layer) -> anyhow::Result<Vec<u8>> {
    ensure!(from.length <= MAX_DOCUMENT, "{} is too large for what it should be", from.name);
    let mut bytes = vec![0; from.length as usize];
    from.file
        .read_exact_at(&mut bytes, from.start)
        .with_context(|| format!("failed to read {}", from.name))?;
    Ok(bytes)
}

/// Parses a manifest or config.
pub(super) fn document<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(bytes).context("it is not the JSON that it should be")
}

/// Opens a file, with its path in the error and the nearest name where there is none.
pub(super) fn open(path: &Utf8Path) -> anyhow::Result<File> {
    let file = File::open(path).with_context(|| crate::nearest::describe(path))?;
    let metadata = file.metadata().with_context(|| format!("failed to read `{path}`"))?;
    ensure!(metadata.is_file(), "`{path}` is not a file");
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(tags: &[&str]) -> DockerManifest {
        DockerManifest {
            config: "c".into(),
            repo_tags: Some(tags.iter().map(|&tag| tag.into()).collect()),
            layers: Vec::new(),
        }
    }

    #[test]
    fn one_image_is_chosen() {
        let two = [manifest(&["localhost/a:1"]), manifest(&["b:2", "docker.io/library/nginx:1.21.0"])];
        assert_eq!(choose(&two, Some("nginx:1.21.0")).unwrap(), &two[1]);
        assert_eq!(choose(&two, Some("@0")).unwrap(), &two[0]);
        assert_eq!(choose(&two[..1], None).unwrap(), &two[0]);
        let error = choose(&two, None).unwrap_err().to_string();
        assert!(error.contains("`localhost/a:1`, `b:2`"), "{error}");
        assert!(choose(&two, Some("c")).is_err());
        assert!(choose(&two, Some("@2")).is_err());
        assert!(choose(&[], None).is_err());
    }

    #[test]
    fn an_archive_of_many_files_is_known_by_the_first_and_by_what_tells() {
        let mut tar: Vec<u8> = Vec::new();
        for number in 0..=MAX_MEMBERS {
            tar.extend(crate::hostile_tar::file(&format!("f/{number}"), b""));
        }
        tar.extend(crate::hostile_tar::file("./manifest.json", b"[]"));
        tar.extend(crate::hostile_tar::end());
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &tar).unwrap();
        let layer = Layer::whole(file, "`archive`").unwrap();
        let members = Members::read(&layer).unwrap();
        assert!(members.contains("manifest.json") && members.contains("f/0"));
        assert_eq!(members.files.len(), MAX_MEMBERS + 1);
        let said = members.find(&format!("f/{MAX_MEMBERS}")).unwrap_err().to_string();
        assert_eq!(said, "the archive lacks `f/200000`, or has it behind 200000 other files");
    }

    #[test]
    fn paths_in_an_archive_are_cleaned() {
        assert_eq!(clean("./abc/../def/layer.tar"), "def/layer.tar");
        assert_eq!(clean("../../manifest.json"), "manifest.json");
    }
}
