//! Builds a staged context with podman, buildah or docker, and exports the image as a docker archive.
//!
//! What the builders say is shown as it passes, and its last lines when they fail.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use clap::ValueEnum as _;
use rustix::process::{Resource, getrlimit};

use super::confined::Confined;
use super::dockerfile::{BuildContext, Sharing};
use super::reference::Reference;
use super::sandbox::{self, Order};
use crate::artifact::{self, create_folder};
use crate::error::Hint as _;
use crate::host::process::run_watched;
use crate::host::tools;
use crate::{note, ui};

/// A program that builds Dockerfiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Builder {
    /// podman, which needs no daemon
    Podman,
    /// buildah, which needs no daemon
    Buildah,
    /// docker, through its daemon
    Docker,
}

impl Builder {
    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Builder::Podman => "podman",
            Builder::Buildah => "buildah",
            Builder::Docker => "docker",
        }
    }

    /// The builder that was asked for, or the first that is there and can be reached.
    pub fn choose(wanted: Option<Builder>) -> anyhow::Result<Builder> {
        if let Some(builder) = wanted {
            let found = tools::find(builder.program());
            ensure_found(found.is_some(), builder.program())?;
            return Ok(builder);
        }
        tools::find_builder()
            .and_then(|found| Builder::value_variants().iter().find(|builder| builder.program() == found))
            .copied()
            .context("no program that builds Dockerfiles works here: podman, buildah or docker")
            .hint("`cargo xtask setup` installs podman")
    }

    /// The id of an image in this program's own storage; `None` where it is not there.
    pub fn image_id(self, image: &str) -> Option<String> {
        let words: &[&str] = match self {
            Builder::Buildah => &["inspect", "--type", "image", "--format", "{{.FromImageID}}", "--", image],
            Builder::Podman | Builder::Docker => &["image", "inspect", "--format", "{{.Id}}", "--", image],
        };
        let id = duct::cmd(self.program(), words).stdin_null().stderr_null().read().ok()?;
        Some(id.trim().to_owned()).filter(|id| !id.is_empty())
    }

    fn is_daemonless(self) -> bool {
        self != Builder::Docker
    }
}

fn ensure_found(is_found: bool, program: &str) -> anyhow::Result<()> {
    let found = if is_found { Ok(()) } else { Err(anyhow::anyhow!("`{program}` was not found on PATH")) };
    found.hint("leave `--builder` out to use the one that is there, or run `cargo xtask setup`")
}

/// The kernel mounts cgroup v1 with an empty v2 beside it: containers' runtimes refuse that (`hybrid` in systemd's
/// words), and RUN has to do with a plain `chroot`.
pub fn has_hybrid_cgroups() -> bool {
    // linux/magic.h
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    let is_cgroup2 =
        |path: &str| rustix::fs::statfs(path).is_ok_and(|statfs| statfs.f_type as u64 == CGROUP2_SUPER_MAGIC);
    !is_cgroup2("/sys/fs/cgroup") && is_cgroup2("/sys/fs/cgroup/unified")
}

/// What is built, and where.
#[derive(Debug)]
pub struct Build<'a> {
    /// The Dockerfile and its files.
    pub context: &'a BuildContext,
    /// The images that it builds on.
    pub bases: &'a BTreeSet<String>,
    /// `NAME=value` for its ARGs.
    pub build_args: &'a [String],
    /// Names the image for the builder, so that a rebuild replaces it.
    pub tag: &'a str,
    /// An empty folder for what goes in and out.
    pub work: &'a Utf8Path,
    /// The folder of the [confined](super::confined) builders' storage.
    pub storage: &'a Utf8Path,
}

/// Builds the context and writes the image to a docker archive in the work folder, whose path it gives.
pub fn build(builder: Builder, build: &Build<'_>) -> anyhow::Result<Utf8PathBuf> {
    let obstacle = if builder.is_daemonless() { sandbox::obstacle() } else { None };
    let confined = match obstacle {
        None if builder.is_daemonless() => Some(Confined::new(builder, build.storage)?),
        _ => None,
    };
    if let Some(obstacle) = obstacle.filter(|_| has_hybrid_cgroups()) {
        note!(
            "RUN is no container here: it may end processes of this user, and reach what listens on 127.0.0.1 \
             (this host's cgroups are hybrid, and of namespaces around the builder, {obstacle})"
        );
    }
    let bases = confined.as_ref().map_or(Ok(()), |confined| bring_bases(builder, build, confined));
    let built = bases.and_then(|()| build_with(builder, build, confined.as_ref()));
    confined.map_or(Ok(()), Confined::finish)?;
    built.with_context(|| format!("failed to build `{}`", build.context.dockerfile))
}

fn build_with(
    builder: Builder,
    build: &Build<'_>,
    confined: Option<&Confined>,
) -> anyhow::Result<Utf8PathBuf> {
    let (input, output) = (build.work.join("in"), build.work.join("out"));
    // A builder that could write its context would write the user's files.
    let sharing = if confined.is_some() { Sharing::Links } else { Sharing::Copies };
    let (dockerfile, folder) = build.context.stage(&input, sharing)?;
    create_folder(&output)?;
    let (id_file, archive) = (output.join("image-id"), output.join("image.tar"));
    let program = builder.program();

    let mut words: Vec<String> = vec!["build".into(), "--file".into(), dockerfile.into()];
    if builder.is_daemonless() {
        words.extend(["--format".into(), "docker".into()]);
        words.extend(own_limits());
    }
    if let Some(confined) = confined {
        words.extend(confined.build_words());
    } else if builder.is_daemonless()
        && has_hybrid_cgroups()
        && std::env::var_os("BUILDAH_ISOLATION").is_none()
    {
        words.push("--isolation=chroot".into());
    }
    words.extend(["--iidfile".into(), id_file.to_string(), "--tag".into(), build.tag.into()]);
    for build_arg in build.build_args {
        words.extend(["--build-arg".into(), build_arg.clone()]);
    }
    words.push(folder.into());
    let what = format!("building `{}` with {program}", build.context.dockerfile);
    let run = |what: &str, words: Vec<String>, with_network: bool| match confined {
        Some(confined) => run_confined(builder, what, &confined.order(build.work, &words)?, with_network),
        None => run(builder, what, words),
    };
    run(&what, words, true)?;

    let id = artifact::read_text(regular(&id_file)?)?;
    let id = id.trim();
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':');
    ensure!(is_id, "{program} has built an image and gave no id");
    run(&format!("exporting the image from {program}"), export_words(builder, id, &archive), false)?;
    regular(&archive)?;
    Ok(archive)
}

/// A file that a builder has written, for us to read: whatever it has met, we follow no link and wait for no pipe.
fn regular(path: &Utf8Path) -> anyhow::Result<&Utf8Path> {
    let metadata = path.symlink_metadata().with_context(|| format!("the builder did not write `{path}`"))?;
    ensure!(metadata.is_file(), "the builder wrote `{path}`, which is no file");
    Ok(path)
}

/// Copies the user's images that the Dockerfile builds on to a confined builder. Those that are missing are fetched
/// first, with the user's own log-ins and network, which the builder has not. Where that fails, the build says so in its own words.
fn bring_bases(builder: Builder, build: &Build<'_>, confined: &Confined) -> anyhow::Result<()> {
    let program = builder.program();
    for base in build.bases {
        // Of a registry, and not of a file or of another program's storage.
        if base.parse::<Reference>().is_err() {
            continue;
        }
        if builder.image_id(base).is_none() {
            let words = vec!["pull".into(), "--".into(), base.clone()];
            let _ = run(builder, &format!("fetching `{base}` with {program}"), words);
        }
        let Some(id) = builder.image_id(base) else { continue };
        if confined.has_base(base, &id) {
            continue;
        }
        let archive = build.work.join("in/base.tar");
        create_folder(&build.work.join("in"))?;
        export(builder, base, &archive)?;
        let order = confined.order(build.work, &confined.load_words(&archive))?;
        run_confined(builder, &format!("copying `{base}`"), &order, false)?;
        artifact::remove_any(&archive)?;
        confined.remember_base(base, &id)?;
    }
    Ok(())
}

/// Writes an image of a builder's own storage to a docker archive.
pub fn export(builder: Builder, image: &str, archive: &Utf8Path) -> anyhow::Result<()> {
    let program = builder.program();
    run(builder, &format!("exporting the image from {program}"), export_words(builder, image, archive))
        .with_context(|| format!("failed to export the image `{image}` from {program}"))
}

fn export_words(builder: Builder, image: &str, archive: &Utf8Path) -> Vec<String> {
    match builder {
        Builder::Podman => {
            ["save", "--quiet", "--format", "docker-archive", "--output", archive.as_str(), image]
                .map(str::to_owned)
                .into()
        }
        Builder::Buildah => {
            ["push", "--quiet", image, &format!("docker-archive:{archive}")].map(str::to_owned).into()
        }
        Builder::Docker => ["save", "--output", archive.as_str(), image].map(str::to_owned).into(),
    }
}

/// Podman 5 raises the limits of what it builds, and fails where the host lets nobody raise them: say our own.
///
/// Podman 4 lowers its own limit of processes to `pid_max` first, and then cannot go back above it.
fn own_limits() -> Vec<String> {
    let pid_max = std::fs::read_to_string("/proc/sys/kernel/pid_max");
    let pid_max = pid_max.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
    [("nofile", Resource::Nofile, u64::MAX), ("nproc", Resource::Nproc, pid_max)]
        .into_iter()
        .filter_map(|(name, resource, bound)| {
            let most = getrlimit(resource).maximum?.min(bound);
            Some(format!("--ulimit={name}={most}:{most}"))
        })
        .collect()
}

fn run(builder: Builder, what: &str, words: Vec<String>) -> anyhow::Result<()> {
    let name = format!("`{} {}`", builder.program(), words[0]);
    with_spinner(what, |on_line| run_watched(&name, &duct::cmd(builder.program(), words), on_line))
}

fn run_confined(builder: Builder, what: &str, order: &Order, with_network: bool) -> anyhow::Result<()> {
    let name = format!("`{}`", builder.program());
    with_spinner(what, |on_line| sandbox::run(order, with_network, &name, on_line))
}

fn with_spinner(
    what: &str,
    work: impl FnOnce(&mut dyn FnMut(&str)) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let spinner = ui::spinner(what);
    let result = work(&mut |line| {
        if !line.is_empty() {
            spinner.set_message(format!("{what}: {}", ui::visible_word(line)));
        }
    });
    spinner.finish_and_clear();
    result
}
