//! What the supervisor hears, and the threads that hear it: each turns bytes of one connection into [`Event`]s, or frames
//! into bytes, and shares nothing.

use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ChildStdin;
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::Context as _;
use camino::Utf8Path;
use init::protocol::{Decoder, Frame, MACHINE_CHANNEL, Message, VERSION};

use super::router::ClientId;

/// The client that holds the main process's streams; connections count up from it.
pub(super) const MAIN_CLIENT: ClientId = 0;

/// What can happen while a machine runs.
#[derive(Debug)]
pub enum Event {
    /// Bytes from the console.
    Console(Vec<u8>),
    /// QEMU closed the console: it has ended.
    ConsoleClosed,
    /// The agent says something.
    Agent(Frame),
    /// The agent's connection has ended; the cause, where it could not be understood.
    AgentClosed(Option<String>),
    /// A client connected.
    Connected(ClientId, UnixStream),
    /// A client says something.
    Client(ClientId, Frame),
    /// A client is gone.
    Gone(ClientId),
    /// This process was sent a signal that asks it to end.
    Signal(i32),
    /// The lines for `/etc/hosts` of the private network's machines.
    Names(String),
}

/// Accepts QEMU's connection at `path` and carries frames both ways.
pub(super) fn listen_to_agent(path: &Utf8Path, sender: &Sender<Event>) -> anyhow::Result<Sender<Frame>> {
    let listener = UnixListener::bind(path).with_context(|| format!("failed to listen at `{path}`"))?;
    let (outgoing, frames) = mpsc::channel::<Frame>();
    // The first word, sent as soon as anybody listens.
    let _ = outgoing.send(Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION }));
    let sender = sender.clone();
    std::thread::spawn(move || {
        let result = listener.accept().map_err(anyhow::Error::from).and_then(|(stream, _)| {
            let writer = stream.try_clone()?;
            std::thread::spawn(move || write_frames(writer, &frames));
            read_frames(&stream, |frame| sender.send(Event::Agent(frame)).is_ok())
        });
        let _ = sender.send(Event::AgentClosed(result.err().map(|error| error.to_string())));
    });
    Ok(outgoing)
}

/// Accepts clients for as long as there is a supervisor.
pub(super) fn accept_clients(listener: &UnixListener, sender: &Sender<Event>) {
    for (client, stream) in (MAIN_CLIENT + 1..).zip(listener.incoming()) {
        let Ok(stream) = stream else { return };
        let Ok(writer) = stream.try_clone() else { continue };
        if sender.send(Event::Connected(client, writer)).is_err() {
            return;
        }
        let sender = sender.clone();
        std::thread::spawn(move || {
            // A client that talks nonsense is treated as one that has gone.
            let _ = read_frames(&stream, |frame| sender.send(Event::Client(client, frame)).is_ok());
            let _ = sender.send(Event::Gone(client));
        });
    }
}

/// Reads frames until the stream ends or `on_frame` has had enough.
pub(in crate::vm) fn read_frames(
    mut stream: &UnixStream,
    mut on_frame: impl FnMut(Frame) -> bool,
) -> anyhow::Result<()> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Ok(()),
        };
        decoder.push(&buffer[..length]);
        while let Some(frame) = decoder.next_frame()? {
            if !on_frame(frame) {
                return Ok(());
            }
        }
    }
}

/// Writes frames until there are none or nobody reads; then nobody is left to be told.
pub(super) fn write_frames(mut stream: UnixStream, frames: &Receiver<Frame>) {
    let mut bytes = Vec::new();
    while let Ok(frame) = frames.recv() {
        bytes.clear();
        frame.encode(&mut bytes);
        // What else is waiting goes along, up to a decent write.
        while bytes.len() < 256 * 1024
            && let Ok(frame) = frames.try_recv()
        {
            frame.encode(&mut bytes);
        }
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// Reads the console to its end.
pub(super) fn read_console(mut stdout: impl Read, sender: &Sender<Event>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length) = stdout.read(&mut buffer) {
        if length == 0 || sender.send(Event::Console(buffer[..length].to_vec())).is_err() {
            break;
        }
    }
    let _ = sender.send(Event::ConsoleClosed);
}

/// Passes this process's standard input to the console of a machine that has no agent.
pub(super) fn type_on_console(mut console: ChildStdin) {
    let _ = io::copy(&mut BufReader::new(io::stdin()), &mut console);
}
