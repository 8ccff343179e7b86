//! What ends a task: an error chain, and beside it one step to take and the exit code.
//!
//! Tasks use `anyhow` throughout; [`Hint`] and [`ExitWith`] add what `main` prints last and returns.

use std::{fmt, io};

use anyhow::Error;
use rustix::io::Errno;

use crate::workspace::CACHE_VARIABLE;

/// The workbench itself failed; docker's code for "the daemon failed".
pub const EXIT_WORKBENCH: u8 = 125;
/// The command in the guest cannot be run.
pub const EXIT_CANNOT_RUN: u8 = 126;
/// The command in the guest was not found.
pub const EXIT_NOT_FOUND: u8 = 127;
/// `--timeout` ran out; `timeout(1)`'s code.
pub const EXIT_TIMEOUT: u8 = 124;
/// The command line is wrong; clap's code.
pub const EXIT_USAGE: u8 = 2;

/// Adds one step to take to an error.
pub trait Hint<T> {
    /// The user should do this next, for example "`cargo xtask setup` installs it".
    fn hint(self, step: impl fmt::Display) -> anyhow::Result<T>;
}

/// Gives an error its exit code, where it is not [`EXIT_WORKBENCH`].
pub trait ExitWith<T> {
    /// The task ends with this code.
    fn exit_with(self, code: u8) -> anyhow::Result<T>;
}

#[derive(Debug)]
struct Hinted {
    source: Error,
    step: String,
}

#[derive(Debug)]
struct Coded {
    source: Error,
    code: u8,
}

impl<T, E: Into<Error>> Hint<T> for Result<T, E> {
    fn hint(self, step: impl fmt::Display) -> anyhow::Result<T> {
        self.map_err(|error| hinted(error.into(), step))
    }
}

impl<T, E: Into<Error>> ExitWith<T> for Result<T, E> {
    fn exit_with(self, code: u8) -> anyhow::Result<T> {
        self.map_err(|error| Error::new(Coded { source: error.into(), code }))
    }
}

/// An error with one step to take.
pub fn hinted(error: Error, step: impl fmt::Display) -> Error {
    Error::new(Hinted { source: error, step: step.to_string() })
}

macro_rules! transparent {
    ($($wrapper:ident),*) => {$(
        impl fmt::Display for $wrapper {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.source, f)
            }
        }
        impl std::error::Error for $wrapper {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(self.source.as_ref())
            }
        }
    )*};
}
transparent!(Hinted, Coded);

/// An error that is the user's own: bad words on the command line. Exit code [`EXIT_USAGE`].
pub fn usage(message: impl fmt::Display) -> Error {
    Error::new(Coded { source: anyhow::anyhow!("{message}"), code: EXIT_USAGE })
}

/// The exit code that an error chain asks for.
pub fn exit_code(error: &Error) -> u8 {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Coded>().map(|coded| coded.code))
        .unwrap_or(EXIT_WORKBENCH)
}

/// The whole story for a person: what was attempted, why it failed, what to do.
pub fn render(error: &Error) -> String {
    let mut messages: Vec<String> = Vec::new();
    let mut step = None;
    for cause in error.chain() {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            step.get_or_insert_with(|| hinted.step.clone());
        }
        // A wrapper speaks with its source's words: say them once.
        let message = cause.to_string();
        if messages.last() != Some(&message) {
            messages.push(message);
        }
        if is_full_disk(cause) {
            // Whatever was being written.
            step.get_or_insert_with(|| {
                format!("free some space, or set {CACHE_VARIABLE} to a folder on a larger disk")
            });
        }
    }
    let mut text = format!("error: {}\n", messages.remove(0));
    if !messages.is_empty() {
        text.push_str("\nCaused by:\n");
        for message in messages {
            for line in message.lines() {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }
    if let Some(step) = step {
        text.push_str(&format!("\nhint: {step}\n"));
    }
    text
}

fn is_full_disk(cause: &(dyn std::error::Error + 'static)) -> bool {
    let errno = cause.downcast_ref::<Errno>().copied();
    let errno = errno.or_else(|| Errno::from_io_error(cause.downcast_ref::<io::Error>()?));
    matches!(errno, Some(Errno::NOSPC | Errno::DQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_rendered_error_names_the_attempt_the_cause_and_the_step() {
        let error = Err::<(), _>(anyhow::anyhow!("`qemu-img` was not found on PATH"))
            .hint("`cargo xtask setup` installs it (Debian package qemu-utils)")
            .context("failed to convert `hello.ext4` to qcow2")
            .unwrap_err();
        insta::assert_snapshot!(render(&error), @r"
        error: failed to convert `hello.ext4` to qcow2

        Caused by:
            `qemu-img` was not found on PATH

        hint: `cargo xtask setup` installs it (Debian package qemu-utils)
        ");
        assert_eq!(exit_code(&error), EXIT_WORKBENCH);
    }

    #[test]
    fn a_full_disk_has_a_step_to_take() {
        let full = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        let error = Err::<(), _>(full).context("failed to write `disk`").unwrap_err();
        assert!(
            render(&error)
                .ends_with("\nhint: free some space, or set MICROVM_CACHE to a folder on a larger disk\n")
        );
    }

    #[test]
    fn a_code_survives_context_and_hints() {
        let error =
            Err::<(), _>(usage("port 0 is out of range")).hint("use 1 to 65535").context("x").unwrap_err();
        assert_eq!(exit_code(&error), EXIT_USAGE);
        let error = Err::<(), _>(anyhow::anyhow!("late")).exit_with(EXIT_TIMEOUT).unwrap_err();
        assert_eq!(exit_code(&error), EXIT_TIMEOUT);
    }
}
