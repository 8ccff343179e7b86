//! A builder of Dockerfiles in namespaces of its own, so that neither RUN nor a fault of the builder's reaches this host.
//!
//! The builder is process 1 of a PID namespace: whatever it has started ends with it, and it ends with this process.
//! Its [root](view) holds the host's programs and the folders that it is given, and nothing else of the host. Its
//! [network](network) reaches other hosts, and of this one what any other host reaches. Inside of all that, the
//! builder confines each RUN once more, as a container.
//!
//! Making namespaces needs root. [`obstacle`] says by trying whether this process may.

mod network;
pub mod view;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::Utf8PathBuf;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde::{Deserialize, Serialize};

use self::network::Network;
use crate::host::process::{Watched, run_watched_as};

/// The hidden task that goes on inside.
pub const TASK: &str = "build-inside";

/// The namespaces, for `unshare`: that of users alone stays the host's, since storage holds its numbers.
const NAMESPACES: [&str; 7] =
    ["--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--propagation=private"];

/// How long the other side takes for a step at most: it does no more than mount and answer.
const STEP_LIMIT: Duration = Duration::from_secs(60);

const UP: &str = "up";

/// Inside, the container runtime that the builder is to use. It needs `crun`.
pub const RUNTIME: &str = "/etc/container-runtime";

/// Powers over the host as a whole, which no builder needs.
const DROPPED: CapabilitySet = CapabilitySet::SYS_MODULE
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON);

/// A program, and all that it may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// An empty folder, on which the root is made.
    pub root: Utf8PathBuf,
    /// A folder that is read: what is written to it is gone with the program.
    pub input: Utf8PathBuf,
    /// Folders that are written.
    pub writable: Vec<Utf8PathBuf>,
    /// The folder for temporary files.
    pub temporary: Utf8PathBuf,
    /// All of the program's environment.
    pub environment: Vec<(String, String)>,
    /// The program and its arguments.
    pub words: Vec<String>,
}

/// Why this process cannot make such namespaces; `None` where it can.
pub fn obstacle() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may make them");
    }
    let tried = duct::cmd("unshare", NAMESPACES.iter().chain(&["--fork", "true"]));
    let is_possible = tried.stdin_null().stdout_null().stderr_null().run().is_ok();
    if !is_possible {
        return Some("this host does not let root make them");
    }
    let has_overlay = || {
        let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        kinds.lines().any(|line| line.trim() == "nodev\toverlay")
    };
    if !has_overlay() {
        // Modules are loaded when they are first used.
        let _ = duct::cmd!("modprobe", "overlay").stdin_null().stdout_null().stderr_null().unchecked().run();
    }
    (!has_overlay()).then_some("this host's kernel has no overlay file system")
}

/// Runs a program to its end inside, with the network or without; `what` names it, and `on_line` is given each line that it says.
pub fn run(
    order: &Order,
    with_network: bool,
    what: &str,
    on_line: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    let (ours, theirs) = UnixStream::pair().context("failed to make a socket")?;
    let program = std::env::current_exe().context("failed to find this program")?;
    let mut words: Vec<&str> = NAMESPACES.to_vec();
    words.extend([
        "--fork",
        "--kill-child=KILL",
        "--",
        program.to_str().context("a path of odd bytes")?,
        TASK,
    ]);
    let builder = duct::cmd("unshare", words).stdin_file(std::os::fd::OwnedFd::from(theirs));
    let mut network = None;
    let watched = Watched { what, expression: &builder, signal: Signal::KILL };
    run_watched_as(
        &watched,
        |pid| {
            network = admit(order, with_network, pid, &ours)?;
            Ok(())
        },
        on_line,
    )
}

/// Tells the other side its order once it is there, and connects it. The network ends with the value.
fn admit(
    order: &Order,
    with_network: bool,
    pid: u32,
    socket: &UnixStream,
) -> anyhow::Result<Option<Network>> {
    wait_for_word(pid, socket)?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).context("nobody answered in the builder's namespaces")?;
    ensure!(line.trim_end() == UP, "the builder's namespaces could not be made");
    let network = if with_network { Network::connect(pid)? } else { None };
    let mut order = serde_json::to_vec(order).context("failed to write the builder's order")?;
    order.push(b'\n');
    (&*socket).write_all(&order).context("failed to send the builder its order")?;
    Ok(network)
}

/// Waits until the other side has said something. Errors where it ends before.
fn wait_for_word(pid: u32, socket: &UnixStream) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process without a number")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).context("failed to watch the builder")?;
    let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
    let limit = Timespec::try_from(STEP_LIMIT).context("a time limit that is none")?;
    let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)));
    ensure!(
        ready.context("failed to wait for the builder")? > 0,
        "the builder's namespaces were not made in time"
    );
    ensure!(fds[0].revents().contains(PollFlags::IN), "the builder's namespaces could not be made");
    Ok(())
}

/// The inside: makes the root that was ordered, and becomes the program. It returns only where that fails.
pub fn enter() -> anyhow::Error {
    match enter_or_fail() {
        Ok(never) => match never {},
        Err(error) => error.context("failed to confine the builder"),
    }
}

fn enter_or_fail() -> anyhow::Result<std::convert::Infallible> {
    use std::os::unix::process::CommandExt as _;
    let stdin = rustix::io::dup(std::io::stdin()).context("failed to keep the socket")?;
    let socket = UnixStream::from(stdin);
    writeln!(&socket, "{UP}").context("failed to report")?;
    let mut line = String::new();
    BufReader::new(&socket).read_line(&mut line).context("failed to read the order")?;
    let order: Order = serde_json::from_str(&line).context("failed to understand the order")?;
    // Of all that runs here, a build that takes all memory is the one to end. Nobody may forbid that.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    view::make(&order)?;
    for capability in DROPPED.iter() {
        // A kernel that does not know one does not give it either.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let (program, arguments) = order.words.split_first().context("no program was ordered")?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).env_clear().envs(order.environment).stdin(std::process::Stdio::null());
    Err(command.exec()).with_context(|| format!("failed to start `{program}`"))
}
