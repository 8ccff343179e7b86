//! What this host has, what it lacks and what follows from it, as data. Nothing is changed and nothing is booted.

use std::thread;

use serde::Serialize;

use super::tools::{Probe, Purpose, TOOLS, Tool};
use super::{accelerator, tools};
use crate::image::{builder, sandbox};
use crate::workspace::Workspace;

/// All that `doctor` knows.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Every tool, in the table's order.
    pub tools: Vec<ToolState>,
    /// Every task, with what keeps it from running.
    pub tasks: Vec<TaskState>,
    /// What runs guests here.
    pub accelerator: AcceleratorState,
    /// How Dockerfiles are built here.
    pub builds: String,
    /// The cache folder.
    pub cache: String,
    /// Free space there, in bytes; `None` where it cannot be told.
    pub cache_free_bytes: Option<u64>,
    /// `boot` finds everything that it needs.
    pub ready: bool,
}

/// One tool.
#[derive(Debug, Serialize)]
pub struct ToolState {
    /// Program or file.
    pub name: String,
    /// Where it is; `None` where it is not there.
    pub path: Option<String>,
    /// Its version, where it tells one.
    pub version: Option<String>,
    /// The Debian package that brings it.
    pub package: &'static str,
    /// The tasks that use it.
    pub tasks: Vec<&'static str>,
    /// It is not there, and it is needed on this host.
    pub missing: bool,
}

/// One task.
#[derive(Debug, Serialize)]
pub struct TaskState {
    /// The task's name, or the part of it.
    pub task: &'static str,
    /// The tools that are missing for it.
    pub missing: Vec<String>,
}

/// What runs guests.
#[derive(Debug, Serialize)]
pub struct AcceleratorState {
    /// `kvm`, `tcg`, or `unknown` until a first boot has tried KVM.
    pub name: &'static str,
    /// Why it is not KVM.
    pub reason: Option<String>,
}

/// Looks at the host.
pub fn examine(workspace: &Workspace) -> Report {
    // Each program is asked for its version: side by side, since some take their time.
    let tools: Vec<ToolState> = thread::scope(|scope| {
        let asked: Vec<_> = TOOLS.iter().map(|tool| scope.spawn(|| state_of(tool))).collect();
        asked.into_iter().filter_map(|state| state.join().ok()).collect()
    });
    let tasks = Purpose::ALL.map(|purpose| TaskState {
        task: purpose.task(),
        missing: tools::missing(&[purpose]).iter().map(Tool::name).collect(),
    });
    let mut existing = workspace.cache();
    while !existing.exists() {
        existing = existing.parent().unwrap_or("/".into());
    }
    Report {
        tools,
        tasks: tasks.into(),
        accelerator: accelerator_state(workspace),
        builds: builds(),
        cache: workspace.cache().to_string(),
        cache_free_bytes: rustix::fs::statvfs(existing.as_std_path())
            .ok()
            .map(|space| space.f_bavail.saturating_mul(space.f_frsize)),
        ready: tools::missing(&Purpose::FIRST_BOOT).is_empty(),
    }
}

fn state_of(tool: &Tool) -> ToolState {
    let path = tool.locate();
    let version = match (tool.probe, &path) {
        (Probe::AnyFile(_), _) | (_, None) => None,
        (_, Some(path)) => ask_version(path.as_str()),
    };
    ToolState {
        name: tool.name(),
        version,
        path: path.map(Into::into),
        package: tool.package,
        tasks: tool.purposes.iter().map(|purpose| purpose.task()).collect(),
        missing: tool.is_missing(),
    }
}

/// Most programs know `--version`. OpenSSH's and e2fsprogs' know `-V`, and busybox says it when it is given nothing.
fn ask_version(program: &str) -> Option<String> {
    let words: &[&str] = match program.rsplit('/').next()? {
        "ssh" | "sshd" | "e2fsck" => &["-V"],
        "busybox" => &[],
        // It has no version of its own, and an unknown option makes it ask for a file.
        "ssh-keygen" => return None,
        _ => &["--version"],
    };
    let asked = duct::cmd(program, words).stdin_null().stderr_to_stdout().env("LC_ALL", "C").unchecked();
    first_version(&asked.read().ok()?)
}

/// The first word that looks like a version: `9.2p1` in `OpenSSH_9.2p1 Debian-2+deb12u3, …`.
fn first_version(text: &str) -> Option<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '~' | '-');
    text.lines().flat_map(|line| line.split(|c| !is_word(c))).find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        let (major, rest) = word.split_once('.')?;
        let is_number = !major.is_empty() && major.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && rest.starts_with(|c: char| c.is_ascii_digit()))
            .then(|| word.trim_end_matches('.').to_owned())
    })
}

fn accelerator_state(workspace: &Workspace) -> AcceleratorState {
    match accelerator::known_verdict(workspace) {
        None => AcceleratorState { name: "unknown", reason: None },
        Some(verdict) if verdict.reason.is_none() => AcceleratorState { name: "kvm", reason: None },
        Some(verdict) => AcceleratorState { name: "tcg", reason: verdict.reason },
    }
}

fn builds() -> String {
    match tools::find_builder() {
        None => "not possible: no podman, no buildah, and no docker whose daemon answers".into(),
        Some("docker") => "docker".into(),
        Some(name) => match sandbox::obstacle() {
            None => format!("{name}, in namespaces of its own"),
            Some(obstacle) if builder::has_hybrid_cgroups() => format!(
                "{name}; RUN is no container here: this host's cgroups are hybrid, and of namespaces around the builder, {obstacle}"
            ),
            Some(_) => name.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [
            ("GNU Make 4.3\nBuilt for x86_64", Some("4.3")),
            ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0", Some("12.2.0-14+deb12u1")),
            ("OpenSSH_9.2p1 Debian-2, OpenSSL 3.0.17", Some("9.2p1")),
            ("This is perl 5, version 36, subversion 0 (v5.36.0) built", Some("5.36.0")),
            ("e2fsck 1.47.0 (5-Feb-2023)", Some("1.47.0")),
            ("usage: no version here", None),
        ] {
            assert_eq!(first_version(text).as_deref(), version, "{text}");
        }
    }
}
