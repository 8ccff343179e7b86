//! The agent's port: frames in and out over virtio-serial, and when a host begins and stops to listen.
//!
//! What is said and understood is the [`conversation`]'s business; here its bytes are moved.

mod conversation;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use init::protocol::{Frame, Message, PORT_NAME};
use rustix::event::{Timespec, epoll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};

use crate::log;
use conversation::{Conversation, PORT_WRITE};
pub(crate) use conversation::{Heard, PIECE};

/// The port with its conversation.
#[derive(Debug)]
pub(crate) struct Agent {
    port: OwnedFd,
    /// Watches the port edge-triggered. While no host listens the port's level is POLLHUP for ever, which `poll`
    /// would spin on; its edges still tell when a host comes.
    watch: OwnedFd,
    conversation: Conversation,
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
            conversation: Conversation::default(),
            open: false,
            writable: true,
            last_progress: Instant::now(),
            incoming: vec![0; PORT_WRITE],
            outgoing: Vec::with_capacity(PORT_WRITE),
        })
    }

    /// Readable when [`Agent::hear`] is due.
    pub(crate) fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Whether a host listens.
    pub(crate) fn has_host(&self) -> bool {
        self.conversation.has_host()
    }

    /// Whether more output may be read for the host.
    pub(crate) fn takes_output(&self) -> bool {
        self.conversation.takes_output()
    }

    /// Whether something on this channel, or on any, has not left yet.
    pub(crate) fn has_queued(&self, channel: Option<u32>) -> bool {
        self.conversation.has_queued(channel)
    }

    /// When the port last took something.
    pub(crate) fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// Says something, in its turn. Before a host listens only the main process's words are kept.
    pub(crate) fn send(&mut self, channel: u32, message: Message) {
        self.conversation.send(Frame::new(channel, message));
    }

    /// Says something before what waits from an earlier host's time.
    pub(crate) fn send_first(&mut self, channel: u32, message: Message) {
        self.conversation.put_first(Frame::new(channel, message));
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
                        heard.extend(self.conversation.disconnect());
                    }
                    return heard;
                }
                Ok(count) => heard.extend(self.conversation.receive(&self.incoming[..count])),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.open = true;
                    self.conversation.connect();
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
            let frames = self.conversation.next_write(&mut self.outgoing);
            if frames == 0 {
                break;
            }
            match write(&self.port, &self.outgoing) {
                Ok(_) => {
                    self.conversation.sent(frames);
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
