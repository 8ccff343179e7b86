//! The agent's port: frames in and out over virtio-serial, and when a host begins and stops to listen.
//!
//! [`Session`] is the pure half: it knows what was heard and what is still to be said. [`Agent`] moves its bytes.
//! A host that disconnects and comes back starts over with [`Message::Hello`]; what the main process said in between
//! is kept for it, everything else belonged to the host that left.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use init::protocol::{
    Decoder, Frame, HEADER, MACHINE_CHANNEL, MAIN_CHANNEL, MAX_PAYLOAD, Message, PORT_NAME, VERSION,
};
use rustix::event::{Timespec, epoll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};

use crate::log;

/// The kernel's driver takes up to this many bytes in one write, whole or not at all
/// (`port_fops_write` in drivers/char/virtio_console.c), so whole frames are never torn by a host that leaves.
const PORT_WRITE: usize = 32 * 1024;

/// Output of a process that fits one write to the port.
pub(crate) const PIECE: usize =
    if PORT_WRITE - HEADER < MAX_PAYLOAD { PORT_WRITE - HEADER } else { MAX_PAYLOAD };

/// Bytes waiting for the port beyond which no more output is read.
const HIGH_WATER: usize = 8 * PORT_WRITE;

/// What a session's turn of events means to the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A host said hello, in our version: it knows nothing yet of what runs.
    Begun,
    /// The host left, or said hello anew: nobody listens to the channels it opened.
    Ended,
    /// A message.
    Frame(Frame),
}

/// What was heard and what is to be said.
#[derive(Debug, Default)]
pub(crate) struct Session {
    decoder: Decoder,
    connected: bool,
    greeted: bool,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
}

impl Session {
    /// A host is there; it is greeted once.
    fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.put_first(Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION }));
        }
    }

    /// The host is gone.
    fn disconnect(&mut self) -> Option<Heard> {
        let greeted = std::mem::take(&mut self.greeted);
        self.connected = false;
        self.decoder = Decoder::default();
        self.queue.retain(outlives_host);
        self.queued_bytes = self.queue.iter().map(size).sum();
        greeted.then_some(Heard::Ended)
    }

    /// Bytes arrived.
    fn receive(&mut self, bytes: &[u8]) -> Vec<Heard> {
        let mut heard = Vec::new();
        self.decoder.push(bytes);
        loop {
            match self.decoder.next_frame() {
                Ok(None) => return heard,
                Ok(Some(Frame { message: Message::Hello { version }, .. })) => {
                    if self.greeted {
                        // The port showed nothing of it, but this is another host.
                        let rest = std::mem::take(&mut self.decoder);
                        heard.extend(self.disconnect());
                        self.decoder = rest;
                    }
                    self.connect();
                    if version == VERSION {
                        self.greeted = true;
                        heard.push(Heard::Begun);
                    } else {
                        log::say(format_args!("the host speaks version {version}, this agent {VERSION}"));
                    }
                }
                Ok(Some(frame)) if self.greeted => heard.push(Heard::Frame(frame)),
                Ok(Some(_)) => {}
                Err(e) => {
                    // Nothing after this can be understood, until a host says hello again.
                    log::say(e);
                    heard.extend(self.disconnect());
                    self.connect();
                    return heard;
                }
            }
        }
    }

    /// Says something before all else but the hello.
    fn put_first(&mut self, frame: Frame) {
        self.queued_bytes += size(&frame);
        let hello = self.queue.front().is_some_and(|first| matches!(first.message, Message::Hello { .. }));
        self.queue.insert(usize::from(hello), frame);
    }

    /// Says something, in its turn.
    fn send(&mut self, frame: Frame) {
        if self.greeted || outlives_host(&frame) {
            self.queued_bytes += size(&frame);
            self.queue.push_back(frame);
        }
    }

    /// Fills `out` with whole frames for one write; yields how many. Before the host's hello it hears ours only.
    fn next_write(&self, out: &mut Vec<u8>) -> usize {
        out.clear();
        let mut count = 0;
        for frame in &self.queue {
            let hello = matches!(frame.message, Message::Hello { .. });
            let fits = count == 0 || out.len() + size(frame) <= PORT_WRITE;
            if !self.connected || !(self.greeted || hello) || !fits {
                break;
            }
            frame.encode(out);
            count += 1;
        }
        count
    }

    /// The first `count` frames are on their way.
    fn sent(&mut self, count: usize) {
        for frame in self.queue.drain(..count) {
            self.queued_bytes -= size(&frame);
        }
    }
}

/// Whether the next host is to hear it too: what the main process said, and how it ended.
fn outlives_host(frame: &Frame) -> bool {
    frame.channel == MAIN_CHANNEL && !matches!(frame.message, Message::Started { .. } | Message::Credit(..))
}

/// The most that a frame takes in memory and on the wire; exact for data, which is what counts.
fn size(frame: &Frame) -> usize {
    match &frame.message {
        Message::Data(_, bytes) => HEADER + bytes.len(),
        Message::Failed(failure) => HEADER + 64 + failure.message.len(),
        _ => HEADER + 8,
    }
}

/// The port with its session.
#[derive(Debug)]
pub(crate) struct Agent {
    port: OwnedFd,
    /// Watches the port edge-triggered. While no host listens the port's level is POLLHUP for ever, which `poll`
    /// would spin on; its edges still tell when a host comes.
    watch: OwnedFd,
    session: Session,
    /// The kernel has said that a host is connected.
    open: bool,
    writable: bool,
    last_progress: Instant,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Agent {
    /// Opens the port of the agent's name, waiting up to `patience` for the driver to name it.
    ///
    /// # Errors
    /// No port has that name, or it cannot be opened.
    pub(crate) fn open(patience: Duration) -> Result<Agent> {
        let deadline = Instant::now() + patience;
        let path = loop {
            if let Some(path) = find_port() {
                break path;
            }
            if Instant::now() >= deadline {
                bail!("the machine has no virtio port named `{PORT_NAME}`");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let port =
            open(&path, flags, Mode::empty()).with_context(|| format!("cannot open `{}`", path.display()))?;
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot watch the agent's port")?;
        let edges =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::HUP | epoll::EventFlags::ET;
        epoll::add(&watch, &port, epoll::EventData::new_u64(0), edges)
            .context("cannot watch the agent's port")?;
        Ok(Agent {
            port,
            watch,
            session: Session::default(),
            open: false,
            writable: true,
            last_progress: Instant::now(),
            incoming: vec![0; PORT_WRITE],
            outgoing: Vec::with_capacity(PORT_WRITE),
        })
    }

    /// Readable when [`Agent::hear`] is due.
    pub(crate) fn watch(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.watch.as_fd()
    }

    /// Whether a host listens.
    pub(crate) fn has_host(&self) -> bool {
        self.session.greeted
    }

    /// Whether more output may be read for the host.
    pub(crate) fn takes_output(&self) -> bool {
        self.session.greeted && self.session.queued_bytes < HIGH_WATER
    }

    /// Whether something on this channel, or on any, has not left yet.
    pub(crate) fn has_queued(&self, channel: Option<u32>) -> bool {
        self.session.queue.iter().any(|frame| channel.is_none_or(|channel| frame.channel == channel))
    }

    /// When the port last took something.
    pub(crate) fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// Says something, in its turn. Before a host listens only the main process's words are kept.
    pub(crate) fn send(&mut self, channel: u32, message: Message) {
        self.session.send(Frame::new(channel, message));
    }

    /// Says something before what waits from an earlier host's time.
    pub(crate) fn send_first(&mut self, channel: u32, message: Message) {
        self.session.put_first(Frame::new(channel, message));
    }

    /// Takes in what the port has.
    pub(crate) fn hear(&mut self) -> Vec<Heard> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 1];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(&self.watch, &mut events, Some(&no_wait));
        self.writable = true;
        let flags = events[0].flags;
        if self.open && flags == epoll::EventFlags::OUT {
            return Vec::new();
        }

        let mut heard = Vec::new();
        loop {
            match read(&self.port, &mut self.incoming[..]) {
                Ok(0) => {
                    // The kernel says that no host is connected. It can be late: a new host's hello may arrive
                    // before the word that there is one.
                    let was_open = std::mem::take(&mut self.open);
                    if was_open && !heard.contains(&Heard::Begun) {
                        heard.extend(self.session.disconnect());
                    }
                    return heard;
                }
                Ok(count) => heard.extend(self.session.receive(&self.incoming[..count])),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.open = true;
                    self.session.connect();
                    return heard;
                }
                Err(e) => {
                    log::say(format_args!("cannot read from the agent's port: {e}"));
                    return heard;
                }
            }
        }
    }

    /// Writes as much of what is to be said as the port takes.
    pub(crate) fn flush(&mut self) {
        while self.writable {
            let frames = self.session.next_write(&mut self.outgoing);
            if frames == 0 {
                break;
            }
            match write(&self.port, &self.outgoing) {
                Ok(_) => {
                    self.session.sent(frames);
                    self.last_progress = Instant::now();
                }
                Err(Errno::INTR) => {}
                // Full, or the host has just gone: an edge will tell.
                Err(_) => self.writable = false,
            }
        }
    }
}

/// The device node of the port with the agent's name.
fn find_port() -> Option<PathBuf> {
    let ports = std::fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| {
        std::fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    })?;
    Some(PathBuf::from("/dev").join(port.file_name()))
}

#[cfg(test)]
mod tests {
    use init::protocol::{Failure, Stream};

    use super::*;

    fn hello(version: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        Frame::new(MACHINE_CHANNEL, Message::Hello { version }).encode(&mut bytes);
        bytes
    }

    /// Everything that the session would write now.
    fn said(session: &mut Session) -> Vec<Frame> {
        let (mut out, mut decoder, mut frames) = (Vec::new(), Decoder::default(), Vec::new());
        loop {
            let count = session.next_write(&mut out);
            if count == 0 {
                return frames;
            }
            assert!(out.len() <= PORT_WRITE);
            session.sent(count);
            decoder.push(&out);
            while let Some(frame) = decoder.next_frame().unwrap() {
                frames.push(frame);
            }
        }
    }

    fn data(bytes: usize) -> Message {
        Message::Data(Stream::Stdout, vec![0; bytes])
    }

    #[test]
    fn nothing_but_a_hello_goes_to_a_host_that_has_said_none() {
        let mut session = Session::default();
        session.send(Frame::new(MAIN_CHANNEL, Message::Exited { code: 3 }));
        session.send(Frame::new(7, Message::Exited { code: 4 }));
        assert_eq!(said(&mut session), []);
        session.connect();
        session.connect();
        let ours = Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION });
        assert_eq!(said(&mut session), [ours]);
        assert_eq!(session.receive(&hello(VERSION + 1)), []);
        assert_eq!(said(&mut session), []);
        assert_eq!(session.receive(&hello(VERSION)), [Heard::Begun]);
        assert_eq!(said(&mut session), [Frame::new(MAIN_CHANNEL, Message::Exited { code: 3 })]);
        assert_eq!(session.queued_bytes, 0);
    }

    #[test]
    fn the_next_host_hears_what_the_main_process_said() {
        let mut session = Session::default();
        session.connect();
        session.receive(&hello(VERSION));
        said(&mut session);
        for channel in [MAIN_CHANNEL, 5] {
            session.send(Frame::new(channel, Message::Started { pid: 1 }));
            session.send(Frame::new(channel, data(10)));
            session.send(Frame::new(channel, Message::Failed(Failure { code: 1, message: "x".into() })));
        }
        assert_eq!(session.disconnect(), Some(Heard::Ended));
        assert_eq!(session.disconnect(), None);
        // Its hello may come before the port shows it.
        assert_eq!(session.receive(&hello(VERSION)), [Heard::Begun]);
        session.put_first(Frame::new(MAIN_CHANNEL, Message::Started { pid: 1 }));
        session.connect();
        let kinds: Vec<_> =
            said(&mut session).into_iter().map(|frame| (frame.channel, frame.message)).collect();
        assert_eq!(kinds.len(), 4);
        assert_eq!(kinds[0], (MACHINE_CHANNEL, Message::Hello { version: VERSION }));
        assert_eq!(kinds[1], (MAIN_CHANNEL, Message::Started { pid: 1 }));
        assert_eq!(kinds[2], (MAIN_CHANNEL, data(10)));
        assert_eq!(session.queued_bytes, 0);
    }

    #[test]
    fn a_second_hello_is_another_host() {
        let mut session = Session::default();
        session.connect();
        let mut bytes = hello(VERSION);
        bytes.extend(hello(VERSION));
        Frame::new(9, Message::Close).encode(&mut bytes);
        let close = Heard::Frame(Frame::new(9, Message::Close));
        assert_eq!(session.receive(&bytes), [Heard::Begun, Heard::Ended, Heard::Begun, close]);
        let ours = Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION });
        assert_eq!(said(&mut session), [ours]);
    }

    #[test]
    fn a_host_that_talks_nonsense_has_to_say_hello_again() {
        let mut session = Session::default();
        session.connect();
        session.receive(&hello(VERSION));
        assert_eq!(session.receive(&[0xff; 20]), [Heard::Ended]);
        let mut bytes = Vec::new();
        Frame::new(9, Message::Close).encode(&mut bytes);
        assert_eq!(session.receive(&bytes), []);
        assert_eq!(session.receive(&hello(VERSION)), [Heard::Begun]);
    }

    #[test]
    fn writes_are_whole_frames_of_bounded_size() {
        let mut session = Session::default();
        session.connect();
        session.receive(&hello(VERSION));
        for size in [PIECE, 1, PIECE, 100, PIECE - 200, 0, PIECE] {
            session.send(Frame::new(4, data(size)));
        }
        let sizes: Vec<usize> = said(&mut session).iter().skip(1).map(|frame| size(frame) - HEADER).collect();
        assert_eq!(sizes, [PIECE, 1, PIECE, 100, PIECE - 200, 0, PIECE]);
    }
}
