//! What the supervisor hears, and the threads that hear it: each turns bytes of one connection into [`Event`]s, or frames
//! into bytes. They share nothing but queues, all of which are bounded, and end with their connection.

use std::io::{self, BufReader, Read, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdin};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use anyhow::Context as _;
use init::protocol::{Decoder, Frame, MACHINE_CHANNEL, Message, VERSION};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};

use super::router::ClientId;
use crate::host::peer;
use crate::note;
use crate::vm::queue::{self, Receiver, Refusal, Room, Sender};

/// The client that holds the main process's streams; connections count up from it.
pub(super) const MAIN_CLIENT: ClientId = 0;

/// Events that wait to be taken. Each holds a frame at most.
pub(super) const EVENTS: usize = 64;

/// Bytes that wait for the agent; a client that adds to them beyond is dropped. A guest that stands still has up to a
/// window of each process's input waiting.
const AGENT_QUEUE: usize = 64 << 20;

/// Bytes that wait for a client; one that does not take them is dropped. Credit keeps a process's output under a
/// window for each stream, or ten times that where it comes in single bytes.
const CLIENT_QUEUE: usize = 16 << 20;

/// Descriptors that are left for everything but clients.
const OTHER_DESCRIPTORS: u64 = 64;

/// The most clients at a time, whatever the limit on descriptors.
const MOST_CLIENTS: u64 = 512;

/// How long nobody is accepted where this host has not enough of something.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What can happen while a machine runs.
#[derive(Debug)]
pub enum Event {
    /// Bytes from the console.
    Console(Vec<u8>),
    /// QEMU closed the console.
    ConsoleClosed,
    /// QEMU's process has ended.
    QemuEnded,
    /// The agent says something.
    Agent(Frame),
    /// The agent's connection has ended; the cause, where it could not be understood.
    AgentClosed(Option<String>),
    /// A client connected.
    Connected(ClientId, Wire),
    /// A client says something.
    Client(ClientId, Frame),
    /// A client is gone.
    Gone(ClientId),
    /// This process was sent a signal that asks it to end.
    Signal(i32),
    /// The lines for `/etc/hosts` of the private network's machines.
    Names(String),
}

/// The supervisor's end of a connection to a client, which ends with it.
#[derive(Debug)]
pub struct Wire {
    frames: Sender,
    connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// Given back when the descriptor is closed.
    _place: Place,
}

impl Wire {
    /// Sends a client something, without waiting for it.
    pub(super) fn send(&self, frame: Frame) -> Result<(), Refusal> {
        self.frames.push(frame)
    }

    /// Ends the connection, whatever waits for the client.
    pub(super) fn cut(&self) {
        // It may be gone already.
        let _ = self.connection.stream.shutdown(Shutdown::Both);
    }
}

/// How many clients there may be, and are.
#[derive(Debug)]
pub(super) struct Places {
    most: u64,
    free: Mutex<u64>,
    changed: Condvar,
}

#[derive(Debug)]
struct Place(Arc<Places>);

impl Places {
    /// As many as the limit on descriptors allows.
    pub(super) fn of_this_process() -> Arc<Places> {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = descriptors.saturating_sub(OTHER_DESCRIPTORS).clamp(4, MOST_CLIENTS);
        Arc::new(Places { most, free: Mutex::new(most), changed: Condvar::new() })
    }

    /// A place, as soon as there is one.
    fn take(self: &Arc<Places>) -> Place {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.changed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Place(Arc::clone(self))
    }

    /// Waits until all connections have ended, at most for this long.
    pub(super) fn wait_for_all(&self, patience: Duration) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // One place is held for whoever is accepted next.
        drop(self.changed.wait_timeout_while(free, patience, |free| *free + 1 < self.most));
    }

    /// Waits until a place is given back, but not for long.
    fn wait_for_change(&self) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout(free, ACCEPT_AGAIN));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_all();
    }
}

/// Carries frames both ways over the connection with QEMU.
pub(super) fn carry_agent(stream: UnixStream, sender: &SyncSender<Event>) -> anyhow::Result<Sender> {
    let (outgoing, frames) = queue::bounded(AGENT_QUEUE);
    // The first word, sent as soon as anybody listens.
    let _ = outgoing.push(Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION }));
    let sender = sender.clone();
    let writer = stream.try_clone().context("failed to share a socket")?;
    std::thread::spawn(move || write_frames(&writer, &frames));
    std::thread::spawn(move || {
        let result = read_frames(&stream, |frame| sender.send(Event::Agent(frame)).is_ok());
        let _ = sender.send(Event::AgentClosed(result.err().map(|error| error.to_string())));
    });
    Ok(outgoing)
}

/// Accepts clients for as long as there is a supervisor.
pub(super) fn accept_clients(listener: &UnixListener, places: &Arc<Places>, sender: &SyncSender<Event>) {
    let mut has_complained = false;
    for client in MAIN_CLIENT + 1.. {
        let served = loop {
            let place = places.take();
            let accepted = listener.accept().and_then(|(stream, _)| peer::check(&stream).map(|()| stream));
            match accepted.and_then(|stream| serve_client(client, stream, place, sender)) {
                Ok(served) => break served,
                Err(error) => {
                    if !std::mem::replace(&mut has_complained, true) {
                        note!("warning: a client was not served: {error}");
                    }
                    // Of descriptors, threads or memory there may be enough again when a client has left.
                    places.wait_for_change();
                }
            }
        };
        if !served {
            return;
        }
    }
}

/// Starts to carry a client's frames both ways. False where there is no supervisor any more.
fn serve_client(
    client: ClientId,
    stream: UnixStream,
    place: Place,
    sender: &SyncSender<Event>,
) -> io::Result<bool> {
    let connection = Arc::new(Connection { stream, _place: place });
    let (frames, to_write) = queue::bounded(CLIENT_QUEUE);
    let written = Arc::clone(&connection);
    Builder::new().spawn(move || write_frames(&written.stream, &to_write))?;
    let read = Arc::clone(&connection);
    if sender.send(Event::Connected(client, Wire { frames, connection })).is_err() {
        return Ok(false);
    }
    let to_loop = sender.clone();
    let reading = Builder::new().spawn(move || {
        // A client that talks nonsense is treated as one that has gone.
        let _ = read_frames(&read.stream, |frame| to_loop.send(Event::Client(client, frame)).is_ok());
        drop(read);
        let _ = to_loop.send(Event::Gone(client));
    });
    if let Err(error) = reading {
        let _ = sender.send(Event::Gone(client));
        return Err(error);
    }
    Ok(true)
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
fn write_frames(mut stream: &UnixStream, frames: &Receiver) {
    loop {
        let bytes = frames.take_bytes();
        if bytes.is_empty() || stream.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Tells when a process has ended; it is still to be waited for.
pub(super) fn watch_process(process: &Child, sender: &SyncSender<Event>) -> anyhow::Result<()> {
    let process =
        pidfd_open(Pid::from_child(process), PidfdFlags::empty()).context("failed to watch QEMU")?;
    let sender = sender.clone();
    std::thread::spawn(move || {
        while poll(&mut [PollFd::new(&process, PollFlags::IN)], None) == Err(Errno::INTR) {}
        let _ = sender.send(Event::QemuEnded);
    });
    Ok(())
}

/// Reads the console to its end, no faster than there is room for it.
pub(super) fn read_console(mut stdout: impl Read, sender: &SyncSender<Event>, room: Option<&Room>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length) = stdout.read(&mut buffer) {
        if length == 0 || sender.send(Event::Console(buffer[..length].to_vec())).is_err() {
            break;
        }
        if let Some(room) = room {
            room.wait();
        }
    }
    let _ = sender.send(Event::ConsoleClosed);
}

/// Passes this process's standard input to the console of a machine that has no agent.
pub(super) fn type_on_console(mut console: ChildStdin) {
    let _ = io::copy(&mut BufReader::new(io::stdin()), &mut console);
}
