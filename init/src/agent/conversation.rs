//! What host and guest have said: the pure half of the agent.
//!
//! A host that disconnects and comes back starts over with [`Message::Hello`]. What the main process said in between is
//! kept for it; everything else belonged to the host that left.

use std::collections::VecDeque;

use init::protocol::{Decoder, Frame, HEADER, MACHINE_CHANNEL, MAIN_CHANNEL, MAX_PAYLOAD, Message, VERSION};

use crate::log;

/// The kernel's driver takes up to this many bytes in one write, whole or not at all
/// (`port_fops_write` in drivers/char/virtio_console.c), so whole frames are never torn by a host that leaves.
pub(super) const PORT_WRITE: usize = 32 * 1024;

/// Output of a process that fits one write to the port.
pub(crate) const PIECE: usize =
    if PORT_WRITE - HEADER < MAX_PAYLOAD { PORT_WRITE - HEADER } else { MAX_PAYLOAD };

/// Bytes waiting for the port beyond which no more output is read.
const HIGH_WATER: usize = 8 * PORT_WRITE;

/// Characters of a failure's cause, few enough for a frame however they are escaped.
const LONGEST_CAUSE: usize = 2000;

/// What happened, as the supervisor has to know it.
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
pub(super) struct Conversation {
    decoder: Decoder,
    connected: bool,
    greeted: bool,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
}

impl Conversation {
    /// Whether a host has said hello, in our version.
    pub(super) fn has_host(&self) -> bool {
        self.greeted
    }

    /// Whether a process's output may be read for the host: somebody listens, and not too much is waiting.
    pub(super) fn takes_output(&self) -> bool {
        self.greeted && self.queued_bytes < HIGH_WATER
    }

    /// Whether something on this channel, or on any, has not left yet.
    pub(super) fn has_queued(&self, channel: Option<u32>) -> bool {
        self.queue.iter().any(|frame| channel.is_none_or(|channel| frame.channel == channel))
    }

    /// A host is there; it is greeted once.
    pub(super) fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.put_first(Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION }));
        }
    }

    /// The host is gone.
    pub(super) fn disconnect(&mut self) -> Option<Heard> {
        let greeted = std::mem::take(&mut self.greeted);
        self.connected = false;
        self.decoder = Decoder::default();
        self.queue.retain(outlives_host);
        self.queued_bytes = self.queue.iter().map(size).sum();
        greeted.then_some(Heard::Ended)
    }

    /// Bytes arrived.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Vec<Heard> {
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
    pub(super) fn put_first(&mut self, frame: Frame) {
        self.queued_bytes += size(&frame);
        let hello = self.queue.front().is_some_and(|first| matches!(first.message, Message::Hello { .. }));
        self.queue.insert(usize::from(hello), frame);
    }

    /// Says something, in its turn.
    pub(super) fn send(&mut self, mut frame: Frame) {
        if let Message::Failed(failure) = &mut frame.message {
            // A command may be as long as it likes; a frame may not.
            failure.message = failure.message.chars().take(LONGEST_CAUSE).collect();
        }
        if self.greeted || outlives_host(&frame) {
            self.queued_bytes += size(&frame);
            self.queue.push_back(frame);
        }
    }

    /// Fills `out` with whole frames for one write; yields how many. Before the host's hello it hears ours only.
    pub(super) fn next_write(&self, out: &mut Vec<u8>) -> usize {
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
    pub(super) fn sent(&mut self, count: usize) {
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
        // JSON writes some characters as six.
        Message::Failed(failure) => HEADER + 64 + 6 * failure.message.len(),
        _ => HEADER + 8,
    }
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

    /// Everything that the conversation would write now.
    fn said(conversation: &mut Conversation) -> Vec<Frame> {
        let (mut out, mut decoder, mut frames) = (Vec::new(), Decoder::default(), Vec::new());
        loop {
            let count = conversation.next_write(&mut out);
            if count == 0 {
                return frames;
            }
            assert!(out.len() <= PORT_WRITE);
            conversation.sent(count);
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
        let mut conversation = Conversation::default();
        conversation.send(Frame::new(MAIN_CHANNEL, Message::Exited { code: 3 }));
        conversation.send(Frame::new(7, Message::Exited { code: 4 }));
        assert_eq!(said(&mut conversation), []);
        conversation.connect();
        conversation.connect();
        let ours = Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION });
        assert_eq!(said(&mut conversation), [ours]);
        assert_eq!(conversation.receive(&hello(VERSION + 1)), []);
        assert_eq!(said(&mut conversation), []);
        assert_eq!(conversation.receive(&hello(VERSION)), [Heard::Begun]);
        assert_eq!(said(&mut conversation), [Frame::new(MAIN_CHANNEL, Message::Exited { code: 3 })]);
        assert_eq!(conversation.queued_bytes, 0);
    }

    #[test]
    fn what_is_queued_is_counted_and_no_write_is_too_large() {
        let mut conversation = Conversation::default();
        conversation.connect();
        conversation.receive(&hello(VERSION));
        said(&mut conversation);
        for _ in 0..3 {
            conversation.send(Frame::new(MAIN_CHANNEL, data(10)));
        }
        conversation.sent(1);
        assert_eq!(conversation.queued_bytes, 2 * (HEADER + 10));
        // Each of these characters is six on the wire.
        let message = "\u{1}".repeat(LONGEST_CAUSE);
        for _ in 0..2 * PORT_WRITE / LONGEST_CAUSE {
            let failure = Failure { code: 125, message: message.clone() };
            conversation.send(Frame::new(MAIN_CHANNEL, Message::Failed(failure)));
        }
        assert_eq!(said(&mut conversation).len(), 2 + 2 * PORT_WRITE / LONGEST_CAUSE);
        assert_eq!(conversation.queued_bytes, 0);
    }

    #[test]
    fn the_next_host_hears_what_the_main_process_said() {
        let mut conversation = Conversation::default();
        conversation.connect();
        conversation.receive(&hello(VERSION));
        said(&mut conversation);
        for channel in [MAIN_CHANNEL, 5] {
            conversation.send(Frame::new(channel, Message::Started { pid: 1 }));
            conversation.send(Frame::new(channel, data(10)));
            conversation.send(Frame::new(channel, Message::Failed(Failure { code: 1, message: "x".into() })));
        }
        assert_eq!(conversation.disconnect(), Some(Heard::Ended));
        assert_eq!(conversation.disconnect(), None);
        // Its hello may come before the port shows it.
        assert_eq!(conversation.receive(&hello(VERSION)), [Heard::Begun]);
        conversation.put_first(Frame::new(MAIN_CHANNEL, Message::Started { pid: 1 }));
        conversation.connect();
        let kinds: Vec<_> =
            said(&mut conversation).into_iter().map(|frame| (frame.channel, frame.message)).collect();
        assert_eq!(kinds.len(), 4);
        assert_eq!(kinds[0], (MACHINE_CHANNEL, Message::Hello { version: VERSION }));
        assert_eq!(kinds[1], (MAIN_CHANNEL, Message::Started { pid: 1 }));
        assert_eq!(kinds[2], (MAIN_CHANNEL, data(10)));
        assert_eq!(conversation.queued_bytes, 0);
    }

    #[test]
    fn a_second_hello_is_another_host() {
        let mut conversation = Conversation::default();
        conversation.connect();
        let mut bytes = hello(VERSION);
        bytes.extend(hello(VERSION));
        Frame::new(9, Message::Close).encode(&mut bytes);
        let close = Heard::Frame(Frame::new(9, Message::Close));
        assert_eq!(conversation.receive(&bytes), [Heard::Begun, Heard::Ended, Heard::Begun, close]);
        let ours = Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION });
        assert_eq!(said(&mut conversation), [ours]);
    }

    #[test]
    fn a_host_that_talks_nonsense_has_to_say_hello_again() {
        let mut conversation = Conversation::default();
        conversation.connect();
        conversation.receive(&hello(VERSION));
        assert_eq!(conversation.receive(&[0xff; 20]), [Heard::Ended]);
        let mut bytes = Vec::new();
        Frame::new(9, Message::Close).encode(&mut bytes);
        assert_eq!(conversation.receive(&bytes), []);
        assert_eq!(conversation.receive(&hello(VERSION)), [Heard::Begun]);
    }

    #[test]
    fn a_failure_fits_a_frame_whatever_its_cause() {
        let mut conversation = Conversation::default();
        conversation.connect();
        conversation.receive(&hello(VERSION));
        let message = "\u{1}".repeat(100_000);
        conversation.send(Frame::new(2, Message::Failed(Failure { code: 127, message })));
        assert_eq!(said(&mut conversation).len(), 2);
    }

    #[test]
    fn writes_are_whole_frames_of_bounded_size() {
        let mut conversation = Conversation::default();
        conversation.connect();
        conversation.receive(&hello(VERSION));
        for size in [PIECE, 1, PIECE, 100, PIECE - 200, 0, PIECE] {
            conversation.send(Frame::new(4, data(size)));
        }
        let sizes: Vec<usize> =
            said(&mut conversation).iter().skip(1).map(|frame| size(frame) - HEADER).collect();
        assert_eq!(sizes, [PIECE, 1, PIECE, 100, PIECE - 200, 0, PIECE]);
    }
}
