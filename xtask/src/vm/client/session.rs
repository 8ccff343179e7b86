//! One process in the guest with its streams carried to and from the host: what `boot` in the foreground, `exec`, `shell`
//! and `cp` have in common. Frames come and go by channels, so it does not matter whether the supervisor is in this
//! process or behind a socket.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use init::protocol::{Failure, Frame, MAX_PAYLOAD, Message, Stream, WINDOW};

use super::terminal;
use crate::ui;

/// The key that, pressed three times within a second, ends a session whose guest does not react (Ctrl-]), as
/// systemd-nspawn(1) has it.
pub const ESCAPE_KEY: u8 = 0x1d;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEnd {
    /// The process ended with this code.
    Exited(u8),
    /// The process could not be started.
    Failed(Failure),
    /// The other side is gone.
    Lost,
}

/// One process, seen from the host.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    /// The channel of the process.
    pub channel: u32,
    /// It has a terminal, whose size and keys are those of ours.
    pub tty: bool,
}

/// What the process reads; nothing where there is none.
pub type Input = Box<dyn io::Read + Send>;

/// Bytes of standard input that may still be sent.
#[derive(Debug, Default)]
struct Credit {
    bytes: Mutex<u64>,
    more: Condvar,
}

impl Credit {
    fn grant(&self, bytes: u32) {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) += u64::from(bytes);
        self.more.notify_one();
    }

    /// Waits until something may be sent and says how much.
    fn available(&self) -> usize {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *bytes == 0 {
            bytes = self.more.wait(bytes).unwrap_or_else(PoisonError::into_inner);
        }
        usize::try_from(*bytes).unwrap_or(usize::MAX).min(MAX_PAYLOAD)
    }

    fn spend(&self, bytes: usize) {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) -= bytes as u64;
    }
}

impl Session {
    /// Carries the streams until the process ends. `output` takes what the process says; where it fails, what follows
    /// on that stream is dropped. `escape` is called when the user gives up on the guest.
    pub fn run(
        self,
        incoming: impl Iterator<Item = Frame>,
        outgoing: impl Fn(Message) + Send + Clone + 'static,
        escape: impl Fn() + Send + 'static,
        input: Option<Input>,
        output: impl FnMut(Stream, &[u8]) -> io::Result<()>,
    ) -> SessionEnd {
        let credit = Arc::new(Credit::default());
        if let Some(input) = input {
            let (credit, outgoing) = (Arc::clone(&credit), outgoing.clone());
            credit.grant(WINDOW);
            // Blocked in read(2) it ends with the process; nothing waits for it.
            std::thread::spawn(move || carry_input(input, self.tty, &credit, &outgoing, &escape));
        }
        if self.tty {
            outgoing(Message::Resize(terminal::window_size()));
            let outgoing = outgoing.clone();
            std::thread::spawn(move || carry_window_size(&outgoing));
        }
        let ours = incoming.filter(|frame| frame.channel == self.channel);
        carry_output(ours, &outgoing, &credit, output)
    }
}

fn carry_output(
    incoming: impl Iterator<Item = Frame>,
    outgoing: &impl Fn(Message),
    credit: &Credit,
    mut output: impl FnMut(Stream, &[u8]) -> io::Result<()>,
) -> SessionEnd {
    // Nobody reads any more (`| head`): the guest's writer is not to hang for it, so its bytes are dropped.
    let mut is_broken: HashMap<Stream, bool> = HashMap::new();
    for frame in incoming {
        match frame.message {
            Message::Data(stream, bytes) => {
                let broken = is_broken.entry(stream).or_default();
                if !*broken {
                    *broken = output(stream, &bytes).is_err();
                }
                outgoing(Message::Credit(stream, bytes.len() as u32));
            }
            Message::Credit(Stream::Stdin, bytes) => credit.grant(bytes),
            Message::Exited { code } => return SessionEnd::Exited(code),
            Message::Failed(failure) => return SessionEnd::Failed(failure),
            _ => {}
        }
    }
    SessionEnd::Lost
}

/// Our own standard output and standard error as a process's.
pub fn to_our_own(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Stderr => ui::write_to_stderr(bytes),
        Stream::Stdin | Stream::Stdout => ui::write_to_stdout(bytes),
    }
}

fn carry_input(
    mut input: Input,
    tty: bool,
    credit: &Credit,
    outgoing: &impl Fn(Message),
    escape: &impl Fn(),
) {
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut presses = Vec::new();
    loop {
        let limit = credit.available();
        match input.read(&mut buffer[..limit]) {
            Ok(0) => return outgoing(Message::End(Stream::Stdin)),
            Ok(length) => {
                let bytes = &buffer[..length];
                if tty && is_escape(bytes, &mut presses, Instant::now()) {
                    return escape();
                }
                credit.spend(length);
                outgoing(Message::Data(Stream::Stdin, bytes.to_vec()));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return outgoing(Message::End(Stream::Stdin)),
        }
    }
}

/// True when these keys complete three presses of [`ESCAPE_KEY`] within a second.
fn is_escape(keys: &[u8], presses: &mut Vec<Instant>, now: Instant) -> bool {
    for &key in keys {
        if key == ESCAPE_KEY { presses.push(now) } else { presses.clear() }
    }
    presses.retain(|press| now.duration_since(*press) <= Duration::from_secs(1));
    presses.len() >= 3
}

fn carry_window_size(outgoing: &impl Fn(Message)) {
    let Ok(mut signals) = signal_hook::iterator::Signals::new([signal_hook::consts::SIGWINCH]) else {
        return;
    };
    for _ in signals.forever() {
        outgoing(Message::Resize(terminal::window_size()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_presses_within_a_second_escape_and_other_keys_do_not() {
        let start = Instant::now();
        let mut presses = Vec::new();
        assert!(!is_escape(&[ESCAPE_KEY, ESCAPE_KEY], &mut presses, start));
        assert!(!is_escape(b"x", &mut presses, start));
        assert!(!is_escape(&[ESCAPE_KEY, ESCAPE_KEY], &mut presses, start));
        assert!(!is_escape(&[ESCAPE_KEY], &mut presses, start + Duration::from_secs(2)));
        assert!(is_escape(&[ESCAPE_KEY, ESCAPE_KEY], &mut presses, start + Duration::from_millis(2500)));
    }
}
