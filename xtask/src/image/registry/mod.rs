//! Pulls images from registries over HTTP, with no daemon and no other program (OCI distribution spec).
//!
//! Blobs are kept under their digest and shared by all images; one is in that cache only once its digest has been
//! checked. Layers are fetched a few at a time, and a connection that breaks is taken up again where it broke.

pub mod auth;
pub mod client;
mod trust;

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::Read as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use camino::Utf8PathBuf;
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use ureq::http::{StatusCode, header};

use self::client::{Client, Options};
use super::archive::{Image, MAX_DOCUMENT};
use super::blob::Unpacking;
use super::layer::Layer;
use super::oci::{Descriptor, MOST_INDEXES, Manifest, choose_platform};
use super::reference::Reference;
use crate::artifact::{Staged, create_folder, require_space};
use crate::pace::{Pace, read_all};
use crate::ui;
use crate::workspace::hex;

/// Docker's own number of layers at a time.
const AT_ONCE: usize = 3;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// The blobs that are on this machine.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: Utf8PathBuf,
}

impl Blobs {
    /// Kept below this folder.
    pub fn new(folder: Utf8PathBuf) -> Blobs {
        Blobs { folder }
    }

    /// Where a blob is, or will be.
    pub fn path(&self, digest: &str) -> Utf8PathBuf {
        self.folder.join("sha256").join(digest.trim_start_matches("sha256:"))
    }

    fn open(&self, descriptor: &Descriptor) -> anyhow::Result<Option<Layer>> {
        let path = self.path(&descriptor.digest);
        let Ok(file) = File::open(&path) else { return Ok(None) };
        let layer = Layer::whole(file, format!("the layer `{}`", descriptor.digest))?;
        // Written whole and checked; a disk may still lose what was not yet on it when the power went.
        if layer.length == descriptor.size { Ok(Some(layer)) } else { Ok(None) }
    }
}

/// Pulls an image for this machine. `unpacking` is for its layers.
pub fn pull(
    reference: &Reference,
    options: Options,
    blobs: &Blobs,
    unpacking: &Unpacking,
) -> anyhow::Result<Image> {
    let client = Client::new(reference, options)?;
    pull_with(&client, blobs, unpacking).with_context(|| format!("failed to pull `{reference}`"))
}

fn pull_with(client: &Client, blobs: &Blobs, unpacking: &Unpacking) -> anyhow::Result<Image> {
    let mut manifest = Manifest::parse(&fetch_manifest(client, client.reference().manifest_key())?)?;
    for _ in 0..MOST_INDEXES {
        if let Manifest::Index(entries) = &manifest {
            manifest = Manifest::parse(&fetch_manifest(client, &choose_platform(entries)?.digest)?)?;
        }
    }
    let Manifest::Image { config, layers } = manifest else { bail!("the index leads to more indexes") };
    let config = fetch_config(client, &config)?;
    // Before anything large is fetched.
    Image::check_config(&config)?;
    let layers = fetch_all(client, &layers, blobs)?;
    Image::assemble(&config, layers, unpacking)
}

/// Gets a manifest and checks its digest: the one it was asked for by, or the one that the registry names.
fn fetch_manifest(client: &Client, key: &str) -> anyhow::Result<Vec<u8>> {
    let mut response = client.get(
        &format!("manifests/{key}"),
        &[(header::ACCEPT.as_str(), MANIFEST_TYPES)],
        "the image's manifest",
    )?;
    let named = response
        .headers()
        .get("docker-content-digest")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let bytes = read_all(response.body_mut().as_reader(), MAX_DOCUMENT, client.slowest())
        .context("failed to read the image's manifest")?;
    let expected = if key.starts_with("sha256:") { Some(key.to_owned()) } else { named };
    if let Some(expected) = expected.filter(|digest| digest.starts_with("sha256:")) {
        check_digest("the manifest", &Sha256::digest(&bytes), &expected)?;
    }
    Ok(bytes)
}

fn fetch_config(client: &Client, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
    ensure!(descriptor.size <= MAX_DOCUMENT, "the image's config is too large: {} bytes", descriptor.size);
    let mut bytes = Vec::new();
    download(client, descriptor, &mut bytes, &ProgressBar::hidden())?;
    Ok(bytes)
}

fn check_digest(what: &str, actual: &[u8], expected: &str) -> anyhow::Result<()> {
    let actual = format!("sha256:{}", hex(actual));
    ensure!(actual == expected, "{what} has the digest `{actual}` in place of `{expected}`");
    Ok(())
}

/// Gets the layers that are not here yet, a few at a time.
fn fetch_all(client: &Client, descriptors: &[Descriptor], blobs: &Blobs) -> anyhow::Result<Vec<Layer>> {
    let (mut missing, mut seen) = (VecDeque::new(), HashSet::new());
    for descriptor in descriptors {
        // One layer may stand in an image twice.
        if seen.insert(&descriptor.digest) && blobs.open(descriptor)?.is_none() {
            missing.push_back(descriptor);
        }
    }
    if !missing.is_empty() {
        let bytes = missing.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size));
        create_folder(&blobs.folder)?;
        require_space(&blobs.folder, bytes, &format!("`{}`", client.reference()))?;
        let bars = ui::byte_bars(&format!("pulling {} layers of `{}`", missing.len(), client.reference()));
        let queue = Mutex::new(missing);
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    // A function, so that the queue is not locked for as long as a layer takes.
                    let next = || lock(&queue).pop_front();
                    while let Some(descriptor) = next() {
                        if let Err(error) = fetch_blob(client, descriptor, blobs, &bars) {
                            // The others need not go on.
                            lock(&queue).clear();
                            lock(&failed).get_or_insert(error);
                        }
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
    }
    let opened = |descriptor: &Descriptor| {
        blobs
            .open(descriptor)?
            .with_context(|| format!("the layer `{}` has gone from the cache", descriptor.digest))
    };
    descriptors.iter().map(opened).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fetch_blob(
    client: &Client,
    descriptor: &Descriptor,
    blobs: &Blobs,
    bars: &ui::ByteBars,
) -> anyhow::Result<()> {
    let short = descriptor.digest.get(7..19).unwrap_or(&descriptor.digest);
    let bar = bars.add(short, descriptor.size);
    let staged = Staged::new(&blobs.path(&descriptor.digest))?;
    let folder = staged.path().parent().context("a blob without a folder")?;
    require_space(folder, descriptor.size, "a layer")?;
    let mut file =
        File::create(staged.path()).with_context(|| format!("failed to create `{}`", staged.path()))?;
    let downloaded = download(client, descriptor, &mut file, &bar);
    bars.remove(&bar);
    downloaded?;
    staged.publish()
}

/// Writes a blob to `to`, taking it up again where a connection breaks, and checks its size and digest.
fn download(
    client: &Client,
    descriptor: &Descriptor,
    to: &mut dyn std::io::Write,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let what = format!("the blob `{}`", descriptor.digest);
    let mut hash = Sha256::new();
    let mut received = 0;
    let mut tries_without_progress = 0;
    let mut buffer = vec![0; 128 * 1024];
    let mut pace = Pace::new(client.slowest(), Instant::now());
    while received < descriptor.size || descriptor.size == 0 {
        let before = received;
        let range = format!("bytes={received}-");
        let headers: &[(&str, &str)] = if received > 0 { &[(header::RANGE.as_str(), &range)] } else { &[] };
        let mut response = client.get(&format!("blobs/{}", descriptor.digest), headers, &what)?;
        // A registry that knows no ranges begins anew: what is here already is passed over.
        let mut to_skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
            ensure!(
                received > 0 && range.is_none_or(|range| range.starts_with(&format!("bytes {received}-"))),
                "the registry sent another part of {what} than was asked for"
            );
            0
        } else {
            received
        };
        let mut body = response.body_mut().as_reader();
        let broken = loop {
            match body.read(&mut buffer) {
                Ok(0) => break None,
                Ok(read) => {
                    pace.add(Instant::now(), read as u64).with_context(|| format!("failed to get {what}"))?;
                    let skipped = to_skip.min(read as u64);
                    to_skip -= skipped;
                    let fresh = &buffer[skipped as usize..read];
                    received += fresh.len() as u64;
                    ensure!(
                        received <= descriptor.size,
                        "{what} is longer than the {} bytes that the manifest says",
                        descriptor.size
                    );
                    hash.update(fresh);
                    to.write_all(fresh).with_context(|| format!("failed to write {what}"))?;
                    bar.inc(fresh.len() as u64);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        if received == descriptor.size {
            break;
        }
        tries_without_progress = if received > before { 0 } else { tries_without_progress + 1 };
        if tries_without_progress >= client.attempts() {
            let error = anyhow::anyhow!(
                "{what} ends after {received} bytes, and the manifest says {}",
                descriptor.size
            );
            return Err(match broken {
                Some(cause) => anyhow::Error::new(cause).context(error.to_string()),
                None => error,
            });
        }
        client.wait(tries_without_progress, None);
    }
    check_digest(&what, &hash.finalize(), &descriptor.digest)
}
