//! How long-lived programs are run: they die with us, and their last lines explain a failure.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};

use anyhow::{Context as _, bail};
use rustix::process::Signal;

/// How many lines of a failed program's output are shown.
const LAST_LINES: usize = 20;

/// A program that runs to its end while its words are read.
#[derive(Debug)]
pub struct Watched<'a> {
    /// Its name in errors.
    pub what: &'a str,
    /// The program.
    pub expression: &'a duct::Expression,
    /// It is sent this when this process ends, however it ends.
    pub signal: Signal,
}

/// Runs a pipeline or program to its end, giving each line of its output (both streams) to `on_line`.
///
/// Errors where it cannot be started or ends with a code other than 0; the error holds its last lines.
pub fn run_watched(
    what: &str,
    expression: &duct::Expression,
    on_line: impl FnMut(&str),
) -> anyhow::Result<()> {
    run_watched_as(&Watched { what, expression, signal: Signal::TERM }, |_| Ok(()), on_line)
}

/// Does the same, and gives the program's number to `on_start`. Where that fails, the program is killed.
pub fn run_watched_as(
    watched: &Watched<'_>,
    on_start: impl FnOnce(u32) -> anyhow::Result<()>,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<()> {
    let what = watched.what;
    let reader = ends_with_us(watched.expression, watched.signal)
        .stdin_null()
        .stderr_to_stdout()
        .unchecked()
        .reader()
        .with_context(|| format!("failed to start {what}"))?;
    let started = reader.pids().first().map_or(Ok(()), |pid| on_start(*pid));
    if started.is_err() {
        reader.kill().with_context(|| format!("failed to end {what}"))?;
    }
    let mut last_lines = VecDeque::new();
    let mut lines = BufReader::new(&reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines
            .read_until(b'\n', &mut line)
            .with_context(|| format!("failed to read the output of {what}"))?
            == 0
        {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        on_line(text);
        if last_lines.len() == LAST_LINES {
            last_lines.pop_front();
        }
        last_lines.push_back(text.to_owned());
    }
    let output = reader.try_wait().with_context(|| format!("failed to wait for {what}"))?;
    let status = output.map(|output| output.status);
    if status.is_some_and(|status| status.success()) {
        return started;
    }
    let how = status.map_or_else(|| "did not end".to_owned(), |status| status.to_string());
    let last_lines = Vec::from(last_lines).join("\n");
    started.with_context(|| format!("{what} was ended; its last lines:\n{last_lines}"))?;
    bail!("{what} failed ({how}); its last lines:\n{last_lines}")
}

/// The program is sent SIGTERM when this process ends, however it ends.
pub fn dies_with_us(expression: &duct::Expression) -> duct::Expression {
    ends_with_us(expression, Signal::TERM)
}

fn ends_with_us(expression: &duct::Expression, signal: Signal) -> duct::Expression {
    let parent = rustix::process::getpid();
    expression.before_spawn(move |command| {
        die_with(command, parent, signal);
        Ok(())
    })
}

/// The program is sent `signal` when the thread that starts it ends; `parent` is that thread's process.
pub fn die_with(command: &mut std::process::Command, parent: rustix::process::Pid, signal: Signal) {
    use std::os::unix::process::CommandExt as _;
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have ended before the request was made.
        if rustix::process::getppid() != Some(parent) {
            return Err(std::io::Error::other("the parent process has ended"));
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "a parent-death signal can only be asked for between fork and exec")]
    // SAFETY: the closure makes two system calls and allocates only on its error path, where exec is given up.
    unsafe {
        command.pre_exec(bind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_last_lines() {
        let mut seen = 0;
        let script =
            duct::cmd!("sh", "-c", "for i in $(seq 30); do echo line $i; done; echo wrong >&2; exit 3");
        let error = run_watched("the script", &script, |_| seen += 1).unwrap_err().to_string();
        assert_eq!(seen, 31);
        assert!(
            error.starts_with("the script failed (exit status: 3); its last lines:\nline 12\n"),
            "{error}"
        );
        assert!(error.ends_with("line 30\nwrong"), "{error}");
    }
}
