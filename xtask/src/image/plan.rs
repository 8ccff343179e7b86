//! From a source to an opened image: what will be read, and how one sees without reading that it has not changed.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};

use super::archive::{self, ArchiveKind, Image};
use super::bases;
use super::blob::Unpacking;
use super::builder::{self, Build, Builder};
use super::dockerfile::{self, BuildContext};
use super::reference::Reference;
use super::store::{Held, Store};
use super::{ImageRequest, Source, oci, registry, way};
use crate::artifact::{Staged, create_folder};
use crate::host::tools::Purpose;
use crate::tasks::Context;
use crate::workspace::Workspace;

/// What will be read, and how one sees that it has changed.
pub(super) struct Plan {
    /// Changes whenever a file that is read does; empty where only reading can tell.
    stamp: String,
    input: Input,
}

/// More than people write. The builder is asked for each of them.
const BASES_LIMIT: usize = 128;

enum Input {
    /// And the images that it builds on.
    Build(Builder, BuildContext, BTreeSet<String>),
    File(Utf8PathBuf),
    Folder(Utf8PathBuf),
    Stdin,
    Stored(Builder, String),
    Registry(Reference, registry::client::Options),
}

impl Plan {
    pub(super) fn new(
        context: &Context,
        request: &ImageRequest,
        init_binary: &Utf8Path,
    ) -> anyhow::Result<Plan> {
        match &request.source {
            Source::Dockerfile(path) => {
                context.require(&[Purpose::Build])?;
                let path = in_checkout(&context.workspace, path);
                let build = BuildContext::discover(&path, init_binary)?;
                let builder = Builder::choose(request.builder)?;
                let stamp =
                    format!("build\0{}\0{}\0{:?}", builder.program(), build.hash()?, request.build_args);
                let bases = bases::of(&super::context::read_text(&build.dockerfile)?, &request.build_args);
                ensure!(
                    bases.len() <= BASES_LIMIT,
                    "`{}` builds on more than {BASES_LIMIT} images",
                    build.dockerfile
                );
                Ok(Plan { stamp, input: Input::Build(builder, build, bases) })
            }
            Source::DockerArchive(path, _) | Source::OciArchive(path, _) | Source::Rootfs(path) => {
                let path = camino::absolute_utf8(path)?;
                Ok(Plan { stamp: stamp(&request.source, &path)?, input: Input::File(path) })
            }
            Source::Oci(path, _) => {
                let path = camino::absolute_utf8(path)?;
                Ok(Plan {
                    stamp: stamp(&request.source, &path.join("index.json"))?,
                    input: Input::Folder(path),
                })
            }
            Source::ContainersStorage(name) => {
                let builder = Builder::choose(request.builder.or(Some(Builder::Podman)))?;
                Ok(Plan { stamp: String::new(), input: Input::Stored(builder, name.clone()) })
            }
            Source::DockerDaemon(name) => {
                let builder = Builder::choose(Some(Builder::Docker))?;
                Ok(Plan { stamp: String::new(), input: Input::Stored(builder, name.clone()) })
            }
            Source::Stdin => Ok(Plan { stamp: String::new(), input: Input::Stdin }),
            Source::Registry(reference) => {
                let options =
                    registry::client::Options { tls_verify: request.tls_verify, ..Default::default() };
                Ok(Plan {
                    stamp: format!("registry\0{reference}"),
                    input: Input::Registry(reference.clone(), options),
                })
            }
        }
    }

    /// Changes whenever the source does; empty where only reading it can tell. Asks the builder for the images that
    /// it has, which takes some 40 ms, where any of them matter.
    pub(super) fn identity(&self) -> String {
        match &self.input {
            Input::Build(builder, _, bases) => {
                let ids: Vec<String> =
                    bases.iter().map(|base| builder.image_id(base).unwrap_or_default()).collect();
                format!("{}\0{}", self.stamp, ids.join("\0"))
            }
            Input::Stored(builder, name) => match builder.image_id(name) {
                Some(id) => format!("stored\0{}\0{id}", builder.program()),
                None => String::new(),
            },
            _ => self.stamp.clone(),
        }
    }

    pub(super) fn cached(
        &self,
        identity: &str,
        store: &Store<'_>,
        request: &ImageRequest,
    ) -> anyhow::Result<Option<Held>> {
        if request.refresh || identity.is_empty() {
            return Ok(None);
        }
        let Some(digest) = store.remembered(identity) else { return Ok(None) };
        store.take(&store.folder(&digest, request.size, way(request)))
    }

    pub(super) fn open(
        &self,
        store: &Store<'_>,
        request: &ImageRequest,
        name: &str,
    ) -> anyhow::Result<Image> {
        let unpacking = &Unpacking { folder: store.scratch(), limit: request.unpack_limit };
        match &self.input {
            Input::Build(builder, build, bases) => {
                let tag = format!("microvm-workbench/{name}").to_lowercase();
                let work = work_folder(&unpacking.folder)?;
                let build = Build {
                    context: build,
                    bases,
                    build_args: &request.build_args,
                    tag: &tag,
                    work: work.path(),
                    storage: &store.builder_storage(),
                };
                let archive = builder::build(*builder, &build)?;
                archive::open_archive(&archive, ArchiveKind::Docker, None, unpacking)
            }
            Input::Stored(builder, image) => {
                let work = work_folder(&unpacking.folder)?;
                let archive = work.path().join("image.tar");
                builder::export(*builder, image, &archive)?;
                archive::open_archive(&archive, ArchiveKind::Docker, None, unpacking)
            }
            Input::Registry(reference, options) => {
                registry::pull(reference, options.clone(), &store.blobs(), unpacking)
            }
            Input::File(path) => match &request.source {
                Source::DockerArchive(_, name) => {
                    archive::open_archive(path, ArchiveKind::Docker, name.as_deref(), unpacking)
                }
                Source::OciArchive(_, name) => {
                    archive::open_archive(path, ArchiveKind::Oci, name.as_deref(), unpacking)
                }
                _ => archive::open_rootfs(path, unpacking),
            },
            Input::Folder(path) => {
                let name = if let Source::Oci(_, name) = &request.source { name.as_deref() } else { None };
                oci::open_folder(path, name, unpacking)
            }
            Input::Stdin => archive::open_stream(std::io::stdin().lock(), unpacking),
        }
    }
}

/// A folder that goes when it is dropped. What was opened in it stays readable: only its name goes.
fn work_folder(scratch: &Utf8Path) -> anyhow::Result<Staged> {
    let work = Staged::new(&scratch.join("build"))?;
    create_folder(work.path())?;
    Ok(work)
}

/// True if the source is a Dockerfile that copies `init`. Errors where there is no such Dockerfile.
pub fn copies_init(context: &Context, source: &Source) -> anyhow::Result<bool> {
    match source {
        Source::Dockerfile(path) => dockerfile::copies_init(&in_checkout(&context.workspace, path)),
        _ => Ok(false),
    }
}

/// A path as the user typed it, or below the checkout: tasks work from any folder.
pub(super) fn in_checkout(workspace: &Workspace, path: &Utf8Path) -> Utf8PathBuf {
    let below = workspace.root().join(path);
    if path.is_relative() && !path.exists() && below.exists() { below } else { path.to_owned() }
}

/// Changes whenever a file is written again.
fn stamp(source: &Source, path: &Utf8Path) -> anyhow::Result<String> {
    let metadata = std::fs::metadata(path).with_context(|| crate::nearest::describe(path))?;
    let (size, inode, device) = (metadata.size(), metadata.ino(), metadata.dev());
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    Ok(format!("file\0{source}\0{path}\0{size}\0{device}:{inode}\0{seconds}.{nanoseconds}"))
}
