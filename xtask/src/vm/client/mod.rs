//! Talks to a machine whose supervisor is another process: the same frames as in it, over a socket in its folder.

pub mod attach;
pub mod control;
pub mod copy;
pub mod health;
pub mod session;
pub mod terminal;

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use init::protocol::{Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message, Start};

use crate::error::Hint as _;
use crate::vm::record::run_dir::RunDir;
use crate::vm::supervise::console::Console;
use crate::vm::supervise::wires::read_frames;

/// The channel that a client starts its process on. Each client's numbers are its own.
pub const CHANNEL: u32 = MAIN_CHANNEL + 1;

/// How long the agent may take to start a process: it answers within milliseconds, or a few seconds where a hundred
/// others start at the same time without KVM.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A connection to a machine.
#[derive(Debug)]
pub struct Client {
    run_dir: RunDir,
    frames: Receiver<Frame>,
    speaker: Speaker,
}

/// The half that speaks.
#[derive(Debug, Clone)]
pub struct Speaker(Arc<Mutex<UnixStream>>);

impl Speaker {
    /// Says something; nobody is told where the machine has just ended.
    pub fn say(&self, channel: u32, message: Message) {
        let mut bytes = Vec::new();
        Frame::new(channel, message).encode(&mut bytes);
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = std::io::Write::write_all(&mut *stream, &bytes);
    }

    /// Leaves: what was started over this connection is ended.
    pub fn leave(&self) {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl Client {
    /// Connects to a machine that runs.
    pub fn connect(run_dir: &RunDir) -> anyhow::Result<Client> {
        let path = run_dir.clients_socket();
        let stream = UnixStream::connect(&path)
            .with_context(|| format!("failed to reach the machine `{}` at `{path}`", run_dir.name()))
            .hint("a machine with an init of its own cannot be talked to; one that has just ended is gone")?;
        let reader = stream.try_clone().context("failed to share a socket")?;
        let (sender, frames) = mpsc::channel();
        std::thread::spawn(move || {
            // What is under way is bounded by the credit that this side gives.
            let _ = read_frames(&reader, |frame| sender.send(frame).is_ok());
        });
        let speaker = Speaker(Arc::new(Mutex::new(stream)));
        Ok(Client { run_dir: run_dir.clone(), frames, speaker })
    }

    /// The half that speaks.
    pub fn speaker(&self) -> Speaker {
        self.speaker.clone()
    }

    /// What the machine says; ends with it.
    pub fn into_frames(self) -> Receiver<Frame> {
        self.frames
    }

    /// Asks for a process on [`CHANNEL`] and waits for the word that it runs; `Err` within is why it does not. Errors
    /// where the agent says nothing, with the console's last lines.
    pub fn start(&self, start: Start) -> anyhow::Result<Result<(), init::protocol::Failure>> {
        let name = self.run_dir.name();
        self.speaker.say(CHANNEL, Message::Start(start));
        loop {
            match self.frames.recv_timeout(START_LIMIT) {
                Ok(Frame { channel: CHANNEL, message: Message::Started { .. } }) => return Ok(Ok(())),
                Ok(Frame { channel: CHANNEL, message: Message::Failed(failure) }) => return Ok(Err(failure)),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(anyhow::anyhow!("the machine `{name}` has just ended"))
                        .hint("`cargo xtask ps -a` says how");
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = START_LIMIT.as_secs();
                    let mut console = Console::default();
                    console.push(&std::fs::read(self.run_dir.console_log()).unwrap_or_default());
                    return Err(anyhow::anyhow!("{}", console.last_lines().join("\n")))
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

    /// Waits for the machine's end and says its exit code; `None` where it left without a word.
    pub fn wait_for_end(self) -> Option<u8> {
        self.frames.into_iter().find_map(|frame| match frame {
            Frame { channel: MACHINE_CHANNEL, message: Message::Exited { code } } => Some(code),
            _ => None,
        })
    }
}
