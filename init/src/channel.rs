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

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    /// The process's own ends of a channel's pipes.
    struct Ends {
        status: PipeWriter,
        stdin: PipeReader,
        stdout: PipeWriter,
    }

    fn channel() -> (Channel, Ends) {
        let [(status, told), (stdin, fed), (stdout, said)] = [(); 3].map(|()| std::io::pipe().unwrap());
        for fd in [status.as_fd(), fed.as_fd(), stdout.as_fd()] {
            rustix::io::ioctl_fionbio(fd, true).unwrap();
        }
        let process = Process {
            pid: rustix::process::getpid(),
            status: status.into(),
            stdin: Some(fed.into()),
            outputs: vec![(Stream::Stdout, stdout.into())],
            terminal: None,
        };
        (Channel::new(process), Ends { status: told, stdin, stdout: said })
    }

    #[test]
    fn output_is_read_once_the_program_runs_and_while_there_is_credit() {
        let (mut channel, mut ends) = channel();
        assert!(channel.read_status().is_none() && channel.output_fds().next().is_none());
        drop(ends.status);
        assert_eq!(channel.read_status(), Some(Ok(())));
        assert_eq!(channel.output_fds().count(), 1);

        let now = Instant::now();
        let mut buffer = vec![0; WINDOW as usize];
        channel.outputs[0].credit = 3;
        ends.stdout.write_all(b"said").unwrap();
        let piece = channel.read_output(Stream::Stdout, &mut buffer, now);
        assert_eq!(piece, Some(Message::Data(Stream::Stdout, b"sai".to_vec())));
        assert_eq!(channel.output_fds().count(), 0);
        channel.grant(Stream::Stdout, 1, now);
        let piece = channel.read_output(Stream::Stdout, &mut buffer, now);
        assert_eq!(piece, Some(Message::Data(Stream::Stdout, b"d".to_vec())));
    }

    #[test]
    fn the_end_of_input_follows_what_was_fed() {
        let (mut channel, mut ends) = channel();
        assert_eq!(channel.feed(b"fed"), 0);
        channel.end_input();
        assert_eq!(channel.feed(b"late"), 4, "what nobody will read is credited at once");
        assert_eq!(channel.write_input(), 3);
        let mut fed = Vec::new();
        ends.stdin.read_to_end(&mut fed).unwrap();
        assert_eq!(fed, b"fed");
    }

    #[test]
    fn an_end_waits_for_the_last_words_and_not_for_who_holds_the_pipe() {
        let (mut channel, mut ends) = channel();
        ends.stdout.write_all(b"bye").unwrap();
        let now = Instant::now();
        channel.ended(7, now);
        let late = now + LINGER;
        assert_eq!(channel.exit_code(late), None, "its last words were not read");
        let mut buffer = [0; 2];
        channel.read_output(Stream::Stdout, &mut buffer, late);
        channel.read_output(Stream::Stdout, &mut buffer, late);
        assert_eq!(channel.exit_code(late), None, "there may be more");
        assert_eq!(channel.exit_code(late + QUIET), None, "nobody knows yet whether it ran");
        drop(ends.status);
        assert_eq!(channel.read_status(), Some(Ok(())));
        assert_eq!(channel.exit_code(late + QUIET), Some(7));

        // A descendant that goes on and on is listened to for so long from the last words on.
        ends.stdout.write_all(b"more").unwrap();
        for _ in 0..2 {
            channel.read_output(Stream::Stdout, &mut buffer, late + LINGER);
        }
        assert_eq!(channel.exit_code(late + LINGER), Some(7));

        drop(ends.stdout);
        assert_eq!(
            channel.read_output(Stream::Stdout, &mut buffer, late),
            Some(Message::End(Stream::Stdout))
        );
        assert_eq!(channel.exit_code(now), Some(7), "nobody is left who could say anything");
    }
}
