//! What several tests need: the program with a cache of its own, and what the host lacks.

#![allow(dead_code, reason = "each test program uses its own part of this")]

pub(crate) mod enemy;
pub(crate) mod http;
pub(crate) mod power_cut;
pub(crate) mod registry;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

/// Waits end here: long enough for a machine that does other work as well.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A folder that is removed with this value, and a cache inside it.
pub(crate) struct Scratch {
    guard: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { guard: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.guard.path()).unwrap()
    }

    pub(crate) fn cache(&self) -> Utf8PathBuf {
        self.path().join("cache")
    }

    /// Writes a file, and the folders that it is in.
    pub(crate) fn write(&self, path: &str, text: &str) -> Utf8PathBuf {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `cargo xtask` in this folder, with this cache.
    pub(crate) fn xtask(&self, arguments: &[&str]) -> Command {
        let mut command = xtask(&self.cache(), arguments);
        command.current_dir(self.path());
        command
    }

    /// What a run said on both streams and how it ended, with this folder's path replaced.
    pub(crate) fn transcript(&self, command: &mut Command) -> String {
        transcript(command).replace(self.path().as_str(), "[SCRATCH]")
    }
}

/// `cargo xtask` with a cache of its own.
pub(crate) fn xtask(cache: &Utf8Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("xtask"));
    command.args(arguments).env("MICROVM_CACHE", cache).stdin(Stdio::null());
    // Help is as wide as the terminal, and errors name no backtrace.
    command.env("COLUMNS", "100").env_remove("RUST_BACKTRACE");
    command
}

/// What a run said on both streams and how it ended.
pub(crate) fn transcript(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    let code = output.status.code().map_or_else(|| output.status.to_string(), |code| code.to_string());
    format!("exit code: {code}\n----- stdout\n{stdout}----- stderr\n{stderr}")
}

/// Standard output and standard error.
pub(crate) fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// Waits until the condition holds; `what` names it where it does not come true in time.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a task whose cache has so little room (`8m`): what it said, its exit code, and the files that it left there.
///
/// The cache is a file system of its own, which root makes in a mount namespace and anybody else in a user namespace too.
pub(crate) fn in_small_cache(scratch: &Scratch, size: &str, task: &[&str]) -> (String, Option<i32>, String) {
    let script = "mount -t tmpfs -o size=$1 tmpfs \"$2\" || exit; export MICROVM_CACHE=\"$2\"; shift 2; \"$@\" >&2; \
         code=$?; find \"$MICROVM_CACHE\" -type f -size +0; exit $code";
    let namespaces = if rustix::process::geteuid().is_root() { "-m" } else { "-Urm" };
    std::fs::create_dir_all(scratch.cache()).unwrap();
    let program = assert_cmd::cargo::cargo_bin!("xtask");
    let mut command = Command::new("unshare");
    command
        .args([namespaces, "sh", "-c", script, "sh", size, scratch.cache().as_str()])
        .arg(program)
        .args(task);
    let output = command.stdin(Stdio::null()).env_remove("RUST_BACKTRACE").output().unwrap();
    let (left, talk) = texts(&output);
    (talk, output.status.code(), left)
}

/// Where a test needs root and has it not, it is run again through sudo, which is then all of it: its body returns.
/// `test` is its whole name.
pub(crate) fn again_as_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let mut again = Command::new("sudo");
    again.arg("--").arg(std::env::current_exe().unwrap()).args(["--exact", test]);
    let output = again.output().expect("sudo is here");
    let (said, talk) = texts(&output);
    // The count shows that the name is a test's.
    assert!(output.status.success() && said.contains("1 passed"), "{said}{talk}");
    true
}
