//! What host and guest say to each other over one virtio-serial port.
//!
//! A byte stream of frames, each `length: u32 LE` (of what follows), `kind: u8`, `channel: u32 LE`, payload.
//! A channel is one process with its streams; channel 0 is the machine itself and channel 1 the main process,
//! which the boot's settings open. Other channels are opened by the host with [`Message::Start`].
//!
//! Flow is bounded per stream and direction by credit: a sender may have [`WINDOW`] bytes under way and gets more
//! with [`Message::Credit`], so a process whose output nobody reads stalls itself and nobody else.

mod codec;

use serde::{Deserialize, Serialize};

use crate::boot_config::Command;

pub use codec::{Decoder, HEADER, ProtocolError, set_payload_length};

/// Raised whenever a message changes its form or meaning. Both sides open with [`Message::Hello`].
pub const VERSION: u32 = 3;

/// Name of the virtio-serial port, as `/sys/class/virtio-ports/*/name` shows it.
pub const PORT_NAME: &str = "microvm.agent";

/// The channel of the machine itself.
pub const MACHINE_CHANNEL: u32 = 0;

/// The channel of the main process.
pub const MAIN_CHANNEL: u32 = 1;

/// Bytes of one stream that may be under way before the receiver grants more.
pub const WINDOW: u32 = 256 * 1024;

/// The largest payload of a frame, in bytes. Keeps one channel from holding the port for long.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// What PID 1 prints on the console before the number when the main process has ended and no agent listens.
pub const EXIT_MARKER: &str = "init: main process ended with exit code ";

/// What PID 1 prints on the console before the cause when it cannot go on.
pub const FATAL_MARKER: &str = "init: fatal: ";

/// What [`Program::Stat`] says of a directory.
pub const DIRECTORY: &str = "directory";

/// What it says of anything else.
pub const NOT_A_DIRECTORY: &str = "other";

/// What PID 1 prints on the console before the time and the name of each step that it traces.
pub const STEP_MARKER: &str = "init: +";

/// One message on one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which process it is about.
    pub channel: u32,
    /// What is said.
    pub message: Message,
}

/// The streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Standard input, host to guest; with a terminal, what is typed.
    Stdin,
    /// Standard output, guest to host; with a terminal, everything that is shown.
    Stdout,
    /// Standard error, guest to host; unused with a terminal.
    Stderr,
}

/// Everything that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Both ways on channel 0, first of all: [`VERSION`] of the sender.
    Hello {
        /// The sender's [`VERSION`].
        version: u32,
    },
    /// Host to guest: open this channel with a process.
    Start(Start),
    /// Guest to host: the process runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// Guest to host: the process could not be started; the channel is closed.
    Failed(Failure),
    /// Bytes of a stream, at most [`MAX_PAYLOAD`].
    Data(Stream, Vec<u8>),
    /// No more bytes of this stream.
    End(Stream),
    /// The receiver of a stream has taken this many bytes of it; the sender may send as many more.
    Credit(Stream, u32),
    /// Host to guest: the terminal's size changed.
    Resize(WindowSize),
    /// Host to guest: send this signal (number): to the main process itself, to another's whole process group.
    Signal(i32),
    /// Host to guest: nobody listens any more; end the process, its descendants and their sessions. The channel is
    /// closed and hears nothing more. The main process goes on regardless.
    Close,
    /// Guest to host: the process ended and all its output was sent; the channel is closed.
    Exited {
        /// Exit code, or 128 + the signal's number.
        code: u8,
    },
    /// Host to guest on channel 0: send the main process this signal, kill it after the grace, end the machine.
    Shutdown {
        /// Signal number; 0 means the image's own.
        signal: i32,
        /// Seconds between the signal and SIGKILL.
        grace_seconds: u32,
    },
    /// Host to guest on channel 0: answer with [`Message::Pong`] and this number.
    Ping(u32),
    /// Guest to host on channel 0: PID 1 still serves its port.
    Pong(u32),
    /// Host to guest on channel 0: the lines for `/etc/hosts` of the private network's machines, in place of earlier ones.
    Hosts(String),
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A process that the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// What to run.
    pub program: Program,
    /// A pseudo-terminal of this size in place of three pipes.
    pub tty: Option<WindowSize>,
    /// Keep standard input open; otherwise it is `/dev/null`.
    pub stdin: bool,
}

/// What a started process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Program {
    /// A program of the image. Its `env` is laid over the main process's; an empty `cwd` or `user` is the main one's.
    Command(Command),
    /// The image's best shell, as a login user would get it; an error names what was looked for.
    Shell(Command),
    /// Writes a tar stream of this guest path to standard output; needs no program in the image. Ends with code 127
    /// if there is no such path, with 1 and the cause on standard error for any other failure.
    TarOut {
        /// Guest path, as bytes.
        path: Vec<u8>,
        /// What the path is called in the stream; `.` for a directory whose contents are meant.
        name: Vec<u8>,
        /// Follow a symbolic link at the path itself.
        follow: bool,
    },
    /// Reads a tar stream from standard input into this guest directory, which exists; needs no program in the
    /// image. Nothing is written outside of it. Ends with the same codes.
    TarIn {
        /// Guest path, as bytes.
        path: Vec<u8>,
    },
    /// Writes [`DIRECTORY`] or [`NOT_A_DIRECTORY`] to standard output, symbolic links followed. Ends with the same
    /// codes.
    Stat {
        /// Guest path, as bytes.
        path: Vec<u8>,
    },
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// docker's code: 125 the agent failed, 126 cannot be run, 127 was not found.
    pub code: u8,
    /// One sentence that names the thing and the cause.
    pub message: String,
}

impl Frame {
    /// A message on a channel.
    pub fn new(channel: u32, message: Message) -> Frame {
        Frame { channel, message }
    }
}
