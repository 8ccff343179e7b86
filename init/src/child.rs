//! The child's side of starting a process: PID 1 re-executed, on its way to become the image's program.
//!
//! Everything that depends on the image's files is done here and not in PID 1: who the user is, which file the
//! command names, the working directory. It ends by becoming the program, or by reporting a [`Failure`].

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use init::archive;
use init::boot_config::Command;
use init::protocol::{DIRECTORY, Failure, NOT_A_DIRECTORY, Program};
use rustix::fs::{FileType, fchown, fstat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, ioctl_tiocsctty, setrlimit, setsid};
use rustix::termios::isatty;
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::program::{AGENT_FAILED, CANNOT_RUN, NOT_FOUND, exec_failure, failure, find, first_runnable};
use crate::user::{self, Identity};
use crate::{environment, process::Task};

/// Open files that a process may have before it asks for more: docker's present default, soft and hard.
const OPEN_FILES: Rlimit = Rlimit { current: Some(1024), maximum: Some(524_288) };

/// Where a shell may be, best first, after the user's own.
const SHELLS: [&str; 6] = ["/bin/bash", "/usr/bin/bash", "/bin/zsh", "/bin/ash", "/bin/sh", "/busybox/sh"];

/// Entries of `/etc/passwd` that are there to keep users out.
const NO_SHELLS: [&str; 4] = ["nologin", "false", "true", "sync"];

/// Runs the task that PID 1 left in the file descriptors that the arguments number.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [spec, status] = arguments else { return ExitCode::from(AGENT_FAILED) };
    let (Some(spec), Some(status)) = (inherited(spec), inherited(status)) else {
        return ExitCode::from(AGENT_FAILED);
    };
    let become_program = match prepare(File::from(spec)) {
        Ok(Task { program: Program::Command(command), terminal }) => become_command(command, terminal),
        Ok(Task { program: Program::Shell(command), terminal }) => become_shell(command, terminal),
        Ok(Task { program: Program::TarOut { path, name, follow }, .. }) => {
            drop(status);
            return write_archive(Path::new(OsStr::from_bytes(&path)), &name, follow);
        }
        Ok(Task { program: Program::TarIn { path }, .. }) => {
            drop(status);
            return read_archive(Path::new(OsStr::from_bytes(&path)));
        }
        Ok(Task { program: Program::Stat { path }, .. }) => {
            drop(status);
            return tell_kind(Path::new(OsStr::from_bytes(&path)));
        }
        Err(failure) => Err(failure),
    };
    let Err(failure) = become_program;
    // PID 1 reads it; if it is gone, so is everything.
    let _ = File::from(status).write_all(&serde_json::to_vec(&failure).unwrap_or_default());
    ExitCode::from(failure.code)
}

#[expect(unsafe_code, reason = "an inherited file descriptor is known by its number only")]
fn inherited(number: &str) -> Option<OwnedFd> {
    let number: RawFd = number.parse().ok().filter(|number| *number > 2)?;
    // SAFETY: PID 1 opened it for this process, which names each number once and opened nothing before.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

/// Reads the task, and makes the session that it runs in.
fn prepare(mut spec: File) -> Result<Task, Failure> {
    let agent_failed = |what: &str, e: &dyn Display| failure(AGENT_FAILED, format!("{what}: {e}"));
    let mut json = Vec::new();
    let read = spec.rewind().and_then(|()| spec.read_to_end(&mut json));
    read.map_err(|e| agent_failed("cannot read the task", &e))?;
    let task: Task = serde_json::from_slice(&json).map_err(|e| agent_failed("cannot read the task", &e))?;

    setsid().map_err(|e| agent_failed("cannot make a session", &e))?;
    if task.terminal {
        ioctl_tiocsctty(io::stdin()).map_err(|e| agent_failed("cannot take the terminal", &e))?;
    }
    setrlimit(Resource::Nofile, OPEN_FILES).map_err(|e| agent_failed("cannot limit open files", &e))?;
    Ok(task)
}

fn write_archive(path: &Path, name: &[u8], follow: bool) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let mut complain = |complaint: String| {
        code = ExitCode::FAILURE;
        let _ = writeln!(io::stderr(), "{complaint}");
    };
    // Standard output itself, past the line buffer of the library's.
    let written = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(Into::into)
        .and_then(|stdout| archive::write_tree(File::from(stdout), path, name, follow, &mut complain));
    match written {
        Ok(()) => code,
        Err(e) => archive_failed(&e),
    }
}

fn read_archive(path: &Path) -> ExitCode {
    match archive::extract(io::stdin().lock(), path, &archive::Rules::Own, &mut |_| {}) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => archive_failed(&e),
    }
}

fn tell_kind(path: &Path) -> ExitCode {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot look at `{}`", path.display()));
    let told = metadata.and_then(|metadata| {
        let kind = if metadata.is_dir() { DIRECTORY } else { NOT_A_DIRECTORY };
        Ok(write!(io::stdout(), "{kind}")?)
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => archive_failed(&e),
    }
}

/// Says why on standard error. The host tells a path that is not there by its code.
fn archive_failed(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "{error:#}");
    let missing =
        error.root_cause().downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::NotFound)
            || error.root_cause().downcast_ref() == Some(&Errno::NOENT);
    if missing { ExitCode::from(NOT_FOUND) } else { ExitCode::FAILURE }
}

fn become_command(command: Command, terminal: bool) -> Result<Infallible, Failure> {
    let identity = identify(&command.user)?;
    let environment = enter(&command, &identity, terminal)?;
    let (name, arguments) =
        command.argv.split_first().ok_or_else(|| failure(NOT_FOUND, "no command was given"))?;
    let file = find(name, environment::value(&environment, "PATH").unwrap_or_default())?;
    Err(execute(&file, name, arguments, &environment))
}

fn become_shell(command: Command, terminal: bool) -> Result<Infallible, Failure> {
    let identity = identify(&command.user)?;
    let environment = enter(&command, &identity, terminal)?;
    let own = identity.shell.as_deref().filter(|shell| {
        let name = shell.rsplit('/').next().unwrap_or_default();
        !NO_SHELLS.contains(&name)
    });
    let candidates = || own.into_iter().chain(SHELLS.into_iter().filter(|shell| Some(*shell) != own));
    let shell = first_runnable(candidates()).ok_or_else(|| {
        let looked_for: Vec<String> = candidates().map(|shell| format!("`{shell}`")).collect();
        failure(NOT_FOUND, format!("the image has no shell: looked for {}", looked_for.join(", ")))
    })?;
    Err(execute(Path::new(shell), shell, &command.argv, &environment))
}

fn identify(user: &str) -> Result<Identity, Failure> {
    // An image may have neither file; then there is root, and there are numbers.
    let read = |path: &str| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    user::resolve(user, &read("/etc/passwd"), &read("/etc/group")).map_err(|e| failure(AGENT_FAILED, e))
}

/// Goes to the working directory and takes on the identity. Yields the whole environment.
fn enter(command: &Command, identity: &Identity, terminal: bool) -> Result<Vec<String>, Failure> {
    let cwd = if command.cwd.is_empty() { "/" } else { command.cwd.as_str() };
    let no_directory =
        |e: io::Error| failure(CANNOT_RUN, format!("cannot use working directory `{cwd}`: {e}"));
    if !Path::new(cwd).is_dir() {
        std::fs::create_dir_all(cwd).map_err(no_directory)?;
    }
    std::env::set_current_dir(cwd).map_err(no_directory)?;

    give_streams_to(identity.uid);
    take_identity(identity)
        .map_err(|e| failure(AGENT_FAILED, format!("cannot become user {}: {e}", identity.uid)))?;

    let mut environment = command.env.clone();
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    environment::complete(&mut environment, &identity.home, &hostname, terminal);
    Ok(environment)
}

/// Lets the user open `/dev/stdout` and its like anew, as servers do that log there. What fails here shows when
/// it is used, if it ever is.
fn give_streams_to(uid: u32) {
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let is_pipe = fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if is_pipe || isatty(stream) {
            let _ = fchown(stream, owner, None);
        }
    }
}

fn take_identity(identity: &Identity) -> rustix::io::Result<()> {
    let groups: Vec<_> = identity.groups.iter().map(|gid| rustix::fs::Gid::from_raw(*gid)).collect();
    // This process has one thread, so the thread's identity is the process's.
    set_thread_groups(&groups)?;
    set_thread_gid(rustix::fs::Gid::from_raw(identity.gid))?;
    set_thread_uid(rustix::fs::Uid::from_raw(identity.uid))
}

/// Becomes the program; comes back only with the reason why not. The standard library resets the signal mask and
/// SIGPIPE on the way.
fn execute(file: &Path, name: &str, arguments: &[String], environment: &[String]) -> Failure {
    let pairs = environment.iter().filter_map(|pair| pair.split_once('='));
    let error = std::process::Command::new(file).arg0(name).args(arguments).env_clear().envs(pairs).exec();
    exec_failure(file, &error)
}
