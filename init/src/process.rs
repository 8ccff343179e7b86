//! Starts a process with its streams, from PID 1's side.
//!
//! PID 1 never touches the image's files on a process's behalf: it re-executes itself, and that child (see
//! [`crate::child`]) finds the user, the directory and the program, so that an image whose files are slow, huge or
//! broken delays nobody else. What went wrong comes back over a pipe that closes when the program takes over.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use init::protocol::{Program, Stream, WindowSize};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe, pipe_with};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

/// The first argument with which PID 1 re-executes itself.
pub(crate) const CHILD_ARGUMENT: &str = "--child";

/// What the re-executed child is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// What to run; its environment lacks only what the image's files say.
    pub(crate) program: Program,
    /// Standard input is a terminal, to become the session's own.
    pub(crate) terminal: bool,
}

/// What a process's standard streams are to be.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Pipes; standard input is `/dev/null` unless asked for.
    Pipes {
        /// Keep standard input open.
        stdin: bool,
    },
    /// A pseudo-terminal of this size.
    Terminal {
        /// Characters and lines at the start.
        size: WindowSize,
        /// What is typed is passed on.
        stdin: bool,
    },
    /// This terminal, of which PID 1 sees nothing.
    Console(OwnedFd),
}

/// A process that was started, with PID 1's ends of its streams, none of which block.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its process id, which is its session's id too.
    pub(crate) pid: Pid,
    /// Closes when the program runs; yields a [`init::protocol::Failure`] when it cannot.
    pub(crate) status: OwnedFd,
    /// Where its standard input goes.
    pub(crate) stdin: Option<OwnedFd>,
    /// Where its output comes from.
    pub(crate) outputs: Vec<(Stream, OwnedFd)>,
    /// The pseudo-terminal, for its size.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Starts `program`. That it runs, or why not, is told by [`Process::status`].
///
/// # Errors
/// The kernel's, when it is out of processes, memory or pseudo-terminals.
pub(crate) fn start(program: &Program, streams: Streams) -> Result<Process> {
    let task = Task { program: program.clone(), terminal: !matches!(streams, Streams::Pipes { .. }) };
    let spec = memfd_create("task", MemfdFlags::empty()).context("cannot create a memory file")?;
    let mut spec = File::from(spec);
    spec.write_all(&serde_json::to_vec(&task)?).context("cannot write the task")?;

    // Inherited by the child, unlike everything else that PID 1 has open.
    let (status, status_of_child) = pipe().context("cannot create a pipe")?;
    fcntl_setfd(&status, FdFlags::CLOEXEC)?;
    ioctl_fionbio(&status, true)?;

    let mut command = Command::new("/proc/self/exe");
    command.arg0("init").arg(CHILD_ARGUMENT).env_clear();
    command.arg(spec.as_raw_fd().to_string()).arg(status_of_child.as_raw_fd().to_string());
    // It is this group's already. Asking keeps the library from `posix_spawn`, which leaves two signals ignored.
    command.gid(0);
    let ends = attach(&mut command, streams)?;
    let child = command.spawn().context("cannot start a process")?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id of 0")?;
    Ok(Process { pid, status, stdin: ends.stdin, outputs: ends.outputs, terminal: ends.terminal })
}

#[derive(Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    outputs: Vec<(Stream, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

fn attach(command: &mut Command, streams: Streams) -> Result<Ends> {
    let mut ends = Ends::default();
    match streams {
        Streams::Pipes { stdin } => {
            let mut output = |stream| -> Result<Stdio> {
                let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).context("cannot create a pipe")?;
                ioctl_fionbio(&ours, true)?;
                ends.outputs.push((stream, ours));
                Ok(Stdio::from(theirs))
            };
            command.stdout(output(Stream::Stdout)?).stderr(output(Stream::Stderr)?);
            if stdin {
                let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).context("cannot create a pipe")?;
                ioctl_fionbio(&ours, true)?;
                ends.stdin = Some(ours);
                command.stdin(Stdio::from(theirs));
            } else {
                command.stdin(Stdio::null());
            }
        }
        Streams::Terminal { size, stdin } => {
            let (ours, theirs) = open_terminal().context("cannot open a pseudo-terminal")?;
            tcsetwinsize(&ours, winsize(size))?;
            attach_terminal(command, theirs)?;
            let copy = || fcntl_dupfd_cloexec(&ours, 0).context("cannot open a pseudo-terminal");
            ends.outputs.push((Stream::Stdout, copy()?));
            ends.stdin = if stdin { Some(copy()?) } else { None };
            ends.terminal = Some(ours);
        }
        Streams::Console(console) => attach_terminal(command, console)?,
    }
    Ok(ends)
}

fn open_terminal() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    // Opened through the master, so that it is found whatever the guest has done to its `/dev/pts`.
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    rustix::fs::fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK)?;
    Ok((ours, theirs))
}

fn attach_terminal(command: &mut Command, terminal: OwnedFd) -> Result<()> {
    let copy = || terminal.as_fd().try_clone_to_owned().context("cannot share a terminal");
    command.stdin(copy()?).stdout(copy()?).stderr(terminal);
    Ok(())
}

/// Opens the machine's console as a terminal that can become a session's own, which `/dev/console` cannot.
///
/// # Errors
/// The device is missing or cannot be opened.
pub(crate) fn open_console() -> Result<OwnedFd> {
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let path = format!("/dev/{}", active.split_whitespace().next_back().unwrap_or("console"));
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(&path, flags, Mode::empty()).with_context(|| format!("cannot open the console `{path}`"))
}

/// The protocol's window size in the kernel's form.
pub(crate) fn winsize(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}
