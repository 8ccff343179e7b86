//! Frames on their way from one thread to another, within a bound: a queue never takes more memory than its limit,
//! whatever the other side of a socket sends. Neighbouring pieces of one stream become one piece, so that many small
//! ones cost no more than their bytes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use init::protocol::{Decoder, Frame, HEADER, MAX_PAYLOAD, Message, Stream, set_payload_length};

/// Why a queue did not take a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It holds as much as it may.
    Full,
    /// Nobody receives any more.
    Closed,
}

/// Where frames are put in. The queue ends, once it is empty, when this is dropped.
#[derive(Debug)]
pub struct Sender(Arc<Queue>);

/// Where frames are taken out.
#[derive(Debug)]
pub struct Receiver {
    queue: Arc<Queue>,
    decoder: Decoder,
}

/// Tells when a queue has room. It does not keep the queue open.
#[derive(Debug)]
pub struct Room(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole frames, as they go over a socket.
    bytes: Vec<u8>,
    /// The last of them, where it is a piece of a stream: more of the stream joins it.
    last: Option<LastPiece>,
    no_sender: bool,
    no_receiver: bool,
}

#[derive(Debug)]
struct LastPiece {
    channel: u32,
    stream: Stream,
    /// Where it begins in `bytes`.
    start: usize,
}

/// A queue that holds at most `limit` bytes.
pub fn bounded(limit: usize) -> (Sender, Receiver) {
    let queue = Arc::new(Queue { limit, state: Mutex::default(), changed: Condvar::new() });
    (Sender(Arc::clone(&queue)), Receiver { queue, decoder: Decoder::default() })
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.state(), condition).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Puts a frame in, or refuses it at once.
    pub fn push(&self, frame: Frame) -> Result<(), Refusal> {
        self.put(&frame, self.0.limit)
    }

    /// Puts a frame in even where the limit is reached. For the few that the caller itself bounds.
    pub fn push_beyond(&self, frame: Frame) -> Result<(), Refusal> {
        self.put(&frame, usize::MAX)
    }

    /// Puts a frame in as soon as there is room.
    pub fn send(&self, frame: Frame) -> Result<(), Refusal> {
        self.room().wait();
        self.push_beyond(frame)
    }

    /// Tells when there is room.
    pub fn room(&self) -> Room {
        Room(Arc::clone(&self.0))
    }

    fn put(&self, frame: &Frame, limit: usize) -> Result<(), Refusal> {
        let mut state = self.0.state();
        if state.no_receiver {
            return Err(Refusal::Closed);
        }
        let before = state.bytes.len();
        state.add(frame);
        if state.bytes.len() > limit {
            state.bytes.truncate(before);
            state.last = None;
            return Err(Refusal::Full);
        }
        drop(state);
        self.0.changed.notify_all();
        Ok(())
    }
}

impl State {
    fn add(&mut self, frame: &Frame) {
        let start = self.bytes.len();
        let Message::Data(stream, more) = &frame.message else {
            self.last = None;
            return frame.encode(&mut self.bytes);
        };
        let (channel, stream) = (frame.channel, *stream);
        if let Some(last) = self.last.as_ref().filter(|last| (last.channel, last.stream) == (channel, stream))
        {
            let length = start - last.start - HEADER + more.len();
            if length <= MAX_PAYLOAD {
                set_payload_length(&mut self.bytes[last.start..], length);
                self.bytes.extend_from_slice(more);
                return;
            }
        }
        frame.encode(&mut self.bytes);
        self.last = Some(LastPiece { channel, stream, start });
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.state().no_sender = true;
        self.0.changed.notify_all();
    }
}

impl Room {
    /// Waits until the queue is less than half full, or nobody receives.
    pub fn wait(&self) {
        let half = self.0.limit / 2;
        drop(self.0.wait_while(|state| state.bytes.len() >= half && !state.no_receiver));
    }
}

impl Receiver {
    /// The bytes of all frames that are there, as soon as there is one; none where no more will come.
    pub fn take_bytes(&self) -> Vec<u8> {
        let mut state = self.queue.wait_while(|state| state.bytes.is_empty() && !state.no_sender);
        state.last = None;
        let bytes = std::mem::take(&mut state.bytes);
        drop(state);
        self.queue.changed.notify_all();
        bytes
    }
}

impl Iterator for Receiver {
    type Item = Frame;

    /// The next frame, as soon as there is one.
    fn next(&mut self) -> Option<Frame> {
        loop {
            // They were frames when they were put in.
            if let Some(frame) = self.decoder.next_frame().ok()? {
                return Some(frame);
            }
            let bytes = self.take_bytes();
            if bytes.is_empty() {
                return None;
            }
            self.decoder.push(&bytes);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.no_receiver = true;
        state.bytes = Vec::new();
        drop(state);
        self.queue.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(channel: u32, bytes: &[u8]) -> Frame {
        Frame::new(channel, Message::Data(Stream::Stdout, bytes.to_vec()))
    }

    #[test]
    fn a_full_queue_refuses_and_has_room_again_once_it_is_read() {
        let (sender, receiver) = bounded(100);
        let mut count = 0;
        while sender.push(Frame::new(count, Message::Close)).is_ok() {
            count += 1;
        }
        assert_eq!(count, 11, "each takes 9 bytes");
        assert_eq!(sender.push(data(0, b"")), Err(Refusal::Full));
        assert_eq!(sender.push_beyond(data(99, b"x")), Ok(()));
        assert_eq!(receiver.take_bytes().len(), 109);
        assert_eq!(sender.push(data(0, &[0; 91])), Ok(()));
        assert_eq!(sender.push(data(0, b"y")), Err(Refusal::Full), "also where it would join another");
        assert_eq!(receiver.take_bytes().len(), 100);
    }

    #[test]
    fn small_pieces_become_large_ones_and_streams_stay_apart() {
        let (sender, mut receiver) = bounded(100 * 1024);
        for _ in 0..MAX_PAYLOAD + 1 {
            sender.push(data(2, b"x")).unwrap();
        }
        sender.push(data(3, b"y")).unwrap();
        let error = Frame::new(3, Message::Data(Stream::Stderr, b"z".to_vec()));
        sender.push(error.clone()).unwrap();
        sender.push(Frame::new(3, Message::End(Stream::Stderr))).unwrap();
        sender.push(data(3, b"1")).unwrap();
        sender.push(data(3, b"2")).unwrap();
        assert_eq!(receiver.next(), Some(data(2, &vec![b'x'; MAX_PAYLOAD])));
        assert_eq!(receiver.next(), Some(data(2, b"x")));
        assert_eq!(receiver.next(), Some(data(3, b"y")));
        assert_eq!(receiver.next(), Some(error));
        assert_eq!(receiver.next(), Some(Frame::new(3, Message::End(Stream::Stderr))));
        sender.push(data(3, b"3")).unwrap();
        assert_eq!(receiver.next(), Some(data(3, b"12")));
        assert_eq!(receiver.next(), Some(data(3, b"3")));
        drop(sender);
        assert_eq!(receiver.next(), None);
        assert_eq!(receiver.take_bytes(), b"");
    }

    #[test]
    fn nobody_waits_for_room_where_nobody_receives() {
        let (sender, receiver) = bounded(100);
        sender.push_beyond(data(2, &[0; 200])).unwrap();
        let room = sender.room();
        let waiting = std::thread::spawn(move || room.wait());
        drop(receiver);
        waiting.join().unwrap();
        assert_eq!(sender.push(data(2, b"x")), Err(Refusal::Closed));
        assert_eq!(sender.send(data(2, b"x")), Err(Refusal::Closed));
    }

    #[test]
    fn a_sender_that_may_wait_goes_on_when_there_is_room() {
        let (sender, receiver) = bounded(200);
        let sending = std::thread::spawn(move || {
            (0..100).for_each(|channel| sender.send(Frame::new(channel, Message::Close)).unwrap());
        });
        let channels: Vec<u32> = receiver.map(|frame| frame.channel).collect();
        sending.join().unwrap();
        assert_eq!(channels, (0..100).collect::<Vec<u32>>());
    }
}
