//! Talks to a machine whose supervisor is another process: the same frames as in it, over a socket in its folder.

pub mod attach;
pub mod control;
pub mod copy;
pub mod health;
pub mod session;
pub mod terminal;

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use camino::Utf8Path;
use init::protocol::{Decoder, Failure, Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message, Start};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::Hint as _;
use crate::host::peer;
use crate::vm::record::console_log;
use crate::vm::record::holder::Holder;
use crate::vm::record::run_dir::RunDir;
use crate::vm::supervise::console::Console;

/// The channel that a client starts its process on. Each client's numbers are its own.
pub const CHANNEL: u32 = MAIN_CHANNEL + 1;

/// How long the agent may take to start a process: it answers within milliseconds, or a few seconds where a hundred
/// others start at the same time without KVM.
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a supervisor may take to accept a connection, and to take in what it is sent. It waits for nobody, so one
/// that takes longer is stopped, or has as many clients as it can serve.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(10);

/// A connection to a machine, which ends with this value.
#[derive(Debug)]
pub struct Client {
    run_dir: RunDir,
    speaker: Speaker,
    decoder: Decoder,
    buffer: Vec<u8>,
}

/// The half that speaks.
#[derive(Debug, Clone)]
pub struct Speaker(Arc<Wire>);

#[derive(Debug)]
struct Wire {
    stream: UnixStream,
    /// Held while a frame is written.
    turn: Mutex<()>,
}

/// Why there is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// None came in time.
    Timeout,
    /// The machine has ended, or its supervisor has hung up.
    Ended,
}

impl Speaker {
    /// Says something. The connection ends where its supervisor does not take it in time; nobody is told where the
    /// machine has just ended.
    pub fn say(&self, channel: u32, message: Message) {
        let mut bytes = Vec::new();
        Frame::new(channel, message).encode(&mut bytes);
        let _turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if (&self.0.stream).write_all(&bytes).is_err() {
            // Half a frame may be on its way: nothing can follow it.
            self.leave();
        }
    }

    /// Leaves, at once: what was started over this connection is ended.
    pub fn leave(&self) {
        let _ = self.0.stream.shutdown(Shutdown::Both);
    }
}

impl Client {
    /// Connects to a machine that runs. Errors where its supervisor is in no state to serve anybody.
    pub fn connect(run_dir: &RunDir) -> anyhow::Result<Client> {
        if let Some(stopped) = run_dir.supervisor().filter(Holder::is_stopped) {
            let (name, id) = (run_dir.name(), stopped.id());
            return Err(anyhow!("the supervisor of `{name}` is stopped"))
                .hint(format!("`kill -CONT {id}` lets it go on; `cargo xtask rm -f {name}` ends it"));
        }
        Client::connect_within(run_dir, SUPERVISOR_LIMIT)
    }

    /// The same, where the supervisor accepts within this time.
    pub fn connect_within(run_dir: &RunDir, limit: Duration) -> anyhow::Result<Client> {
        run_dir.check_sockets()?;
        let (path, name) = (run_dir.clients_socket(), run_dir.name());
        let stream = match connect_socket(&path, limit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(anyhow!("the supervisor of `{name}` does not answer"))
                    .hint(format!("`cargo xtask rm -f {name}` ends it"));
            }
            result => {
                result.with_context(|| format!("failed to reach the machine `{name}` at `{path}`")).hint(
                    "a machine with an init of its own cannot be talked to; one that has just ended is gone",
                )?
            }
        };
        peer::check(&stream).with_context(|| format!("failed to reach the machine `{name}` at `{path}`"))?;
        stream.set_write_timeout(Some(SUPERVISOR_LIMIT)).context("failed to limit a socket's patience")?;
        let speaker = Speaker(Arc::new(Wire { stream, turn: Mutex::new(()) }));
        Ok(Client {
            run_dir: run_dir.clone(),
            speaker,
            decoder: Decoder::default(),
            buffer: vec![0; 64 * 1024],
        })
    }

    /// The half that speaks.
    pub fn speaker(&self) -> Speaker {
        self.speaker.clone()
    }

    /// The next frame, for which it waits until then, or without end.
    pub fn next_frame(&mut self, deadline: Option<Instant>) -> Result<Frame, Silence> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(_) => return Err(Silence::Ended),
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Silence::Timeout);
            }
            let stream = &self.speaker.0.stream;
            // Fails for no time that is not zero.
            let _ = stream.set_read_timeout(left);
            match (&*stream).read(&mut self.buffer) {
                Ok(0) => return Err(Silence::Ended),
                Ok(length) => self.decoder.push(&self.buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Silence::Ended),
            }
        }
    }

    /// What the machine says; ends with it.
    pub fn frames(&mut self) -> impl Iterator<Item = Frame> {
        std::iter::from_fn(|| self.next_frame(None).ok())
    }

    /// Asks for a process on [`CHANNEL`] and waits for the word that it runs; `Err` within is why it does not. Errors
    /// where the agent says nothing within `limit`, with the console's last lines.
    pub fn start(&mut self, start: Start, limit: Duration) -> anyhow::Result<Result<(), Failure>> {
        self.speaker.say(CHANNEL, Message::Start(start));
        let deadline = Instant::now().checked_add(limit);
        let name = self.run_dir.name().to_owned();
        loop {
            match self.next_frame(deadline) {
                Ok(Frame { channel: CHANNEL, message: Message::Started { .. } }) => return Ok(Ok(())),
                Ok(Frame { channel: CHANNEL, message: Message::Failed(failure) }) => return Ok(Err(failure)),
                Ok(_) => {}
                Err(Silence::Ended) if self.run_dir.is_running() => {
                    return Err(anyhow!("the supervisor of `{name}` has hung up"))
                        .hint("it serves as many clients as its limit on open files allows");
                }
                Err(Silence::Ended) => {
                    return Err(anyhow!("the machine `{name}` has just ended"))
                        .hint("`cargo xtask ps -a` says how");
                }
                Err(Silence::Timeout) => {
                    let lines = last_lines(&self.run_dir.console_log()).join("\n");
                    let seconds = limit.as_secs();
                    return Err(anyhow!("{lines}"))
                        .with_context(|| {
                            format!(
                                "the agent in `{name}` did not answer within {seconds} s; the console's last lines:"
                            )
                        })
                        .hint(format!("`cargo xtask rm -f {name}` ends it at once"));
                }
            }
        }
    }

    /// Waits for the machine's end until then, and says its exit code.
    pub fn wait_for_end(&mut self, deadline: Option<Instant>) -> Result<u8, Silence> {
        loop {
            if let Frame { channel: MACHINE_CHANNEL, message: Message::Exited { code } } =
                self.next_frame(deadline)?
            {
                return Ok(code);
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A speaker that somebody still has does not keep the connection.
        self.speaker.leave();
    }
}

/// A connection to a Unix socket whose listener accepts within this time; else the error is `WouldBlock`.
fn connect_socket(path: &Utf8Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The time for which connect(2) waits on a full backlog (unix(7), socket(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    connect(&socket, &SocketAddrUnix::new(path.as_std_path())?)?;
    Ok(UnixStream::from(socket))
}

/// The last lines of a console's log, which is of bounded size.
fn last_lines(log: &Utf8Path) -> Vec<String> {
    let mut console = Console::default();
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(log) {
        // Whatever could be read.
        let _ = file.take(console_log::LARGEST).read_to_end(&mut text);
    }
    console.push(&text);
    console.last_lines()
}
