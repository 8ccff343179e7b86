//! One process with its streams, as the host sees it: what may be sent under its credit, what it is owed, and when
//! nothing more is to come.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use init::protocol::{Failure, Message, Stream, WINDOW, WindowSize};
use rustix::io::{Errno, ioctl_fionread, read, write};
use rustix::process::Pid;
use rustix::termios::tcsetwinsize;

use crate::process::{Process, winsize};

/// After a process's end its descendants may hold its output open. What it wrote itself always arrives; theirs
/// does if it follows within this time of silence ...
const QUIET: Duration = Duration::from_millis(500);
/// ... and no longer than this, as docker has it for `exec`.
const LINGER: Duration = Duration::from_secs(2);

/// What a terminal's line discipline takes for the end of input (`VEOF`).
const END_OF_INPUT: u8 = 4;

/// A process with its streams.
#[derive(Debug)]
pub(crate) struct Channel {
    /// The process, which leads a session of its own.
    pub(crate) pid: Pid,
    /// Until the program runs: where it is told, and what was told so far.
    status: Option<(OwnedFd, Vec<u8>)>,
    stdin: Option<Inflow>,
    outputs: Vec<Outflow>,
    terminal: Option<OwnedFd>,
    end: Option<End>,
}

#[derive(Debug)]
struct Inflow {
    fd: OwnedFd,
    /// At most [`WINDOW`] bytes, if the host keeps to its credit.
    queue: VecDeque<u8>,
    ending: bool,
}

#[derive(Debug)]
struct Outflow {
    stream: Stream,
    fd: OwnedFd,
    /// Bytes that the host will take.
    credit: u32,
    /// Bytes that were in the pipe when the process ended: its own last words.
    owed: u64,
}

#[derive(Debug)]
struct End {
    code: u8,
    /// When the process ended, its last words were read or the host took more, whichever is latest.
    lingering_since: Instant,
    /// When anything last happened on the outputs.
    quiet_since: Instant,
}

impl Channel {
    /// The channel of a process that was just started.
    pub(crate) fn new(process: Process) -> Channel {
        let outflow = |(stream, fd)| Outflow { stream, fd, credit: WINDOW, owed: 0 };
        Channel {
            pid: process.pid,
            status: Some((process.status, Vec::new())),
            stdin: process.stdin.map(|fd| Inflow { fd, queue: VecDeque::new(), ending: false }),
            outputs: process.outputs.into_iter().map(outflow).collect(),
            terminal: process.terminal,
            end: None,
        }
    }

    /// The process's id as the protocol carries it.
    pub(crate) fn pid_number(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable when [`Channel::read_status`] is due.
    pub(crate) fn status_fd(&self) -> Option<&OwnedFd> {
        self.status.as_ref().map(|(fd, _)| fd)
    }

    /// Writable when [`Channel::write_input`] is due.
    pub(crate) fn input_fd(&self) -> Option<&OwnedFd> {
        self.stdin.as_ref().filter(|stdin| stdin.ending || !stdin.queue.is_empty()).map(|stdin| &stdin.fd)
    }

    /// Readable when [`Channel::read_output`] is due: outputs for which there is credit.
    pub(crate) fn output_fds(&self) -> impl Iterator<Item = (Stream, &OwnedFd)> {
        // What the program says comes after the word that it runs.
        let ready = self.status.is_none();
        self.outputs.iter().filter(move |out| ready && out.credit > 0).map(|out| (out.stream, &out.fd))
    }

    /// Whether the program has taken over.
    pub(crate) fn is_running(&self) -> bool {
        self.status.is_none()
    }

    /// Reads how the start went; `None` while it is under way.
    pub(crate) fn read_status(&mut self) -> Option<Result<(), Failure>> {
        let (fd, told) = self.status.as_mut()?;
        let mut buffer = [0; 4096];
        loop {
            match read(&*fd, &mut buffer) {
                Ok(0) => break,
                Ok(count) => told.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => break,
            }
        }
        let told = self.status.take().map(|(_, told)| told).unwrap_or_default();
        Some(if told.is_empty() {
            Ok(())
        } else {
            let unread = |e| Failure { code: 125, message: format!("the process could not be started: {e}") };
            Err(serde_json::from_slice(&told).unwrap_or_else(unread))
        })
    }

    /// Reads one piece of an output into `buffer`.
    pub(crate) fn read_output(&mut self, stream: Stream, buffer: &mut [u8], now: Instant) -> Option<Message> {
        let index = self.outputs.iter().position(|out| out.stream == stream)?;
        let output = &mut self.outputs[index];
        let most = buffer.len().min(output.credit as usize);
        match read(&output.fd, &mut buffer[..most]) {
            Ok(count) if count > 0 => {
                output.credit -= count as u32;
                let was_owed = output.owed > 0;
                output.owed = output.owed.saturating_sub(count as u64);
                if let Some(end) = &mut self.end {
                    end.quiet_since = now;
                    if was_owed {
                        end.lingering_since = now;
                    }
                }
                Some(Message::Data(stream, buffer[..count].to_vec()))
            }
            Err(Errno::AGAIN | Errno::INTR) => None,
            // End of file; a terminal says EIO when the last process has let go of it.
            _ => {
                self.outputs.remove(index);
                Some(Message::End(stream))
            }
        }
    }

    /// The host takes `bytes` more of an output.
    pub(crate) fn grant(&mut self, stream: Stream, bytes: u32, now: Instant) {
        if let Some(output) = self.outputs.iter_mut().find(|out| out.stream == stream) {
            if let (0, Some(end)) = (output.credit, &mut self.end) {
                end.quiet_since = now;
                end.lingering_since = now;
            }
            output.credit = output.credit.saturating_add(bytes);
        }
    }

    /// Another host listens, which grants what a new channel has.
    pub(crate) fn start_over(&mut self, now: Instant) {
        for output in &mut self.outputs {
            output.credit = WINDOW;
        }
        if let Some(end) = &mut self.end {
            end.quiet_since = now;
            end.lingering_since = now;
        }
    }

    /// Takes input; yields the credit for what nobody will read.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> u32 {
        match &mut self.stdin {
            Some(stdin) if !stdin.ending => {
                stdin.queue.extend(bytes);
                0
            }
            _ => bytes.len() as u32,
        }
    }

    /// No more input follows what was fed.
    pub(crate) fn end_input(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.ending = true;
            self.close_fed_input();
        }
    }

    /// Writes what the process takes of its input; yields the credit for it.
    pub(crate) fn write_input(&mut self) -> u32 {
        let Some(stdin) = &mut self.stdin else { return 0 };
        let mut credit = 0;
        while !stdin.queue.is_empty() {
            match write(&stdin.fd, stdin.queue.as_slices().0) {
                Ok(count) => {
                    stdin.queue.drain(..count);
                    credit += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    // Nobody reads any more. The rest is taken and dropped, so that the host is not held up.
                    credit += stdin.queue.len();
                    self.stdin = None;
                    return credit as u32;
                }
            }
        }
        self.close_fed_input();
        credit as u32
    }

    fn close_fed_input(&mut self) {
        if let Some(stdin) = self.stdin.take_if(|stdin| stdin.ending && stdin.queue.is_empty())
            && self.terminal.is_some()
        {
            // A terminal stays open; its line discipline ends the input. A full one has its reader busy anyway.
            let _ = write(&stdin.fd, &[END_OF_INPUT]);
        }
    }

    /// Sets the terminal's size, if there is one.
    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            let _ = tcsetwinsize(terminal, winsize(size));
        }
    }

    /// The process ended.
    pub(crate) fn ended(&mut self, code: u8, now: Instant) {
        for output in &mut self.outputs {
            output.owed = ioctl_fionread(&output.fd).unwrap_or(0);
        }
        self.stdin = None;
        self.end = Some(End { code, lingering_since: now, quiet_since: now });
    }

    /// The exit code, once the process has ended and everything it said was read.
    pub(crate) fn exit_code(&self, now: Instant) -> Option<u8> {
        let end = self.end.as_ref()?;
        let over = self.outputs.is_empty() || self.gives_up_at().is_some_and(|time| now >= time);
        (over && self.status.is_none()).then_some(end.code)
    }

    /// When to stop waiting for descendants that hold the output open; `None` while the host has to act first.
    pub(crate) fn gives_up_at(&self) -> Option<Instant> {
        let end = self.end.as_ref()?;
        let waits_for_host = self.outputs.iter().any(|out| out.owed > 0 || out.credit == 0);
        (!waits_for_host).then(|| (end.quiet_since + QUIET).min(end.lingering_since + LINGER))
    }
}
