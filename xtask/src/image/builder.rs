//! Builds a staged context with podman, buildah or docker, and exports the image as a docker archive.
//!
//! What the builders say is shown as it passes, and its last lines when they fail.

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use clap::ValueEnum as _;
use rustix::process::{Resource, getrlimit};

use super::dockerfile::BuildContext;
use crate::artifact::read_text;
use crate::error::Hint as _;
use crate::host::process::run_watched;
use crate::host::tools;
use crate::ui;

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

/// Builds the context and writes the image to a docker archive in `scratch`, whose path it gives. `tag` names the
/// image for the builder, so that a rebuild replaces it.
pub fn build(
    builder: Builder,
    context: &BuildContext,
    build_args: &[String],
    tag: &str,
    scratch: &Utf8Path,
) -> anyhow::Result<Utf8PathBuf> {
    let (dockerfile, folder) = context.stage(scratch)?;
    let id_file = scratch.join("image-id");
    let archive = scratch.join("image.tar");
    let program = builder.program();

    let mut arguments: Vec<String> = vec!["build".into(), "--file".into(), dockerfile.into()];
    if builder.is_daemonless() {
        arguments.extend(["--format".into(), "docker".into()]);
        let is_chosen = std::env::var_os("BUILDAH_ISOLATION").is_some();
        if has_hybrid_cgroups() && !is_chosen {
            arguments.push("--isolation=chroot".into());
        }
        arguments.extend(own_limits());
    }
    arguments.extend(["--iidfile".into(), id_file.to_string(), "--tag".into(), tag.into()]);
    for build_arg in build_args {
        arguments.extend(["--build-arg".into(), build_arg.clone()]);
    }
    arguments.push(folder.into());
    run(builder, &format!("building `{}` with {program}", context.dockerfile), arguments)
        .with_context(|| format!("failed to build `{}`", context.dockerfile))?;

    let id = read_text(&id_file)?;
    let id = id.trim();
    ensure!(!id.is_empty(), "{program} has built an image and gave no id");
    export(builder, id, &archive)?;
    Ok(archive)
}

/// Writes an image of a builder's own storage to a docker archive.
pub fn export(builder: Builder, image: &str, archive: &Utf8Path) -> anyhow::Result<()> {
    let words: Vec<String> = match builder {
        Builder::Podman => {
            ["save", "--quiet", "--format", "docker-archive", "--output", archive.as_str(), image]
                .map(str::to_owned)
                .into()
        }
        Builder::Buildah => {
            ["push", "--quiet", image, &format!("docker-archive:{archive}")].map(str::to_owned).into()
        }
        Builder::Docker => ["save", "--output", archive.as_str(), image].map(str::to_owned).into(),
    };
    run(builder, &format!("exporting the image from {}", builder.program()), words)
        .with_context(|| format!("failed to export the image `{image}` from {}", builder.program()))
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

fn run(builder: Builder, what: &str, arguments: Vec<String>) -> anyhow::Result<()> {
    let spinner = ui::spinner(what);
    let name = format!("`{} {}`", builder.program(), arguments[0]);
    let result = run_watched(&name, &duct::cmd(builder.program(), arguments), |line| {
        if !line.is_empty() {
            spinner.set_message(format!("{what}: {}", ui::visible_word(line)));
        }
    });
    spinner.finish_and_clear();
    result
}
