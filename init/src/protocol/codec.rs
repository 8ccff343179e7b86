//! Frames as bytes. Decoding never fails on input that is merely short; it fails on frames that no version of the
//! protocol sends.

use serde::Serialize;

use super::{Frame, MAX_PAYLOAD, Message, Stream, WindowSize};

/// Bytes of a frame before its payload.
pub const HEADER: usize = 4 + 1 + 4;

/// A frame that no version of the protocol sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError(pub String);

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "agent protocol: {}", self.0)
    }
}

impl std::error::Error for ProtocolError {}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const START: u8 = 2;
    pub(super) const STARTED: u8 = 3;
    pub(super) const FAILED: u8 = 4;
    /// Plus the stream's number.
    pub(super) const DATA: u8 = 16;
    pub(super) const END: u8 = 24;
    pub(super) const CREDIT: u8 = 32;
    pub(super) const RESIZE: u8 = 5;
    pub(super) const SIGNAL: u8 = 6;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const EXITED: u8 = 8;
    pub(super) const SHUTDOWN: u8 = 9;
    pub(super) const HOSTS: u8 = 10;
    pub(super) const PING: u8 = 11;
    pub(super) const PONG: u8 = 12;
}

impl Stream {
    fn number(self) -> u8 {
        match self {
            Stream::Stdin => 0,
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        }
    }

    fn from_number(number: u8) -> Option<Stream> {
        [Stream::Stdin, Stream::Stdout, Stream::Stderr].into_iter().find(|s| s.number() == number)
    }
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        let kind = match &self.message {
            Message::Hello { version } => {
                out.extend_from_slice(&version.to_le_bytes());
                kind::HELLO
            }
            Message::Start(start) => {
                append_json(out, start);
                kind::START
            }
            Message::Started { pid } => {
                out.extend_from_slice(&pid.to_le_bytes());
                kind::STARTED
            }
            Message::Failed(failure) => {
                append_json(out, failure);
                kind::FAILED
            }
            Message::Data(stream, bytes) => {
                debug_assert!(bytes.len() <= MAX_PAYLOAD);
                out.extend_from_slice(bytes);
                kind::DATA + stream.number()
            }
            Message::End(stream) => kind::END + stream.number(),
            Message::Credit(stream, bytes) => {
                out.extend_from_slice(&bytes.to_le_bytes());
                kind::CREDIT + stream.number()
            }
            Message::Resize(size) => {
                out.extend_from_slice(&size.rows.to_le_bytes());
                out.extend_from_slice(&size.columns.to_le_bytes());
                kind::RESIZE
            }
            Message::Signal(number) => {
                out.extend_from_slice(&number.to_le_bytes());
                kind::SIGNAL
            }
            Message::Close => kind::CLOSE,
            Message::Exited { code } => {
                out.push(*code);
                kind::EXITED
            }
            Message::Shutdown { signal, grace_seconds } => {
                out.extend_from_slice(&signal.to_le_bytes());
                out.extend_from_slice(&grace_seconds.to_le_bytes());
                kind::SHUTDOWN
            }
            Message::Ping(number) => {
                out.extend_from_slice(&number.to_le_bytes());
                kind::PING
            }
            Message::Pong(number) => {
                out.extend_from_slice(&number.to_le_bytes());
                kind::PONG
            }
            Message::Hosts(lines) => {
                debug_assert!(lines.len() <= MAX_PAYLOAD);
                out.extend_from_slice(lines.as_bytes());
                kind::HOSTS
            }
        };
        let length = out.len() - start - HEADER;
        set_payload_length(&mut out[start..], length);
        out[start + 4] = kind;
        out[start + 5..start + 9].copy_from_slice(&self.channel.to_le_bytes());
    }
}

/// Makes the frame that these bytes begin with one of `length` bytes of payload.
pub fn set_payload_length(frame: &mut [u8], length: usize) {
    frame[..4].copy_from_slice(&(length as u32 + 5).to_le_bytes());
}

fn append_json<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    // The types hold strings and numbers only, which always have a JSON form.
    out.extend_from_slice(&serde_json::to_vec(value).unwrap_or_default());
}

/// Takes bytes as they arrive and gives frames as they become whole.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were given out already.
    taken: usize,
}

impl Decoder {
    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes arrive. After an error the stream cannot be followed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let bytes = &self.buffer[self.taken..];
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        // Checked before the rest arrives, so that a stray length cannot make the buffer grow without end.
        if !(5..=MAX_PAYLOAD + 5).contains(&length) {
            return Err(ProtocolError(format!("a frame of {length} bytes")));
        }
        let Some(payload) = rest.get(..length - 5) else { return Ok(None) };
        let channel = u32::from_le_bytes([header[5], header[6], header[7], header[8]]);
        let message = decode_message(header[4], payload)?;
        self.taken += 4 + length;
        Ok(Some(Frame { channel, message }))
    }
}

fn decode_message(kind: u8, payload: &[u8]) -> Result<Message, ProtocolError> {
    let wrong = || ProtocolError(format!("a frame of kind {kind} with {} bytes", payload.len()));
    let u32_at = |at: usize| -> Result<u32, ProtocolError> {
        payload
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_le_bytes)
            .ok_or_else(wrong)
    };
    let sized = |length: usize| if payload.len() == length { Ok(()) } else { Err(wrong()) };
    let json_error = |e: serde_json::Error| ProtocolError(format!("a frame of kind {kind}: {e}"));
    let stream = |base: u8| kind.checked_sub(base).and_then(Stream::from_number);

    Ok(match kind {
        kind::HELLO => {
            // A later version may say more after its number.
            Message::Hello { version: u32_at(0)? }
        }
        kind::START => Message::Start(serde_json::from_slice(payload).map_err(json_error)?),
        kind::STARTED => {
            sized(4)?;
            Message::Started { pid: u32_at(0)? }
        }
        kind::FAILED => Message::Failed(serde_json::from_slice(payload).map_err(json_error)?),
        kind::RESIZE => {
            sized(4)?;
            let both = u32_at(0)?;
            Message::Resize(WindowSize { rows: both as u16, columns: (both >> 16) as u16 })
        }
        kind::SIGNAL => {
            sized(4)?;
            Message::Signal(u32_at(0)? as i32)
        }
        kind::CLOSE => {
            sized(0)?;
            Message::Close
        }
        kind::EXITED => {
            sized(1)?;
            Message::Exited { code: payload[0] }
        }
        kind::SHUTDOWN => {
            sized(8)?;
            Message::Shutdown { signal: u32_at(0)? as i32, grace_seconds: u32_at(4)? }
        }
        kind::PING => {
            sized(4)?;
            Message::Ping(u32_at(0)?)
        }
        kind::PONG => {
            sized(4)?;
            Message::Pong(u32_at(0)?)
        }
        kind::HOSTS => Message::Hosts(String::from_utf8(payload.to_vec()).map_err(|_| wrong())?),
        _ => {
            if let Some(stream) = stream(kind::DATA) {
                Message::Data(stream, payload.to_vec())
            } else if let Some(stream) = stream(kind::END) {
                sized(0)?;
                Message::End(stream)
            } else if let Some(stream) = stream(kind::CREDIT) {
                sized(4)?;
                Message::Credit(stream, u32_at(0)?)
            } else {
                return Err(wrong());
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Failure, Program, Start, VERSION};
    use super::*;
    use crate::boot_config::Command;

    fn every_message() -> Vec<Message> {
        let command = Command {
            argv: vec!["sh".into(), "-c".into(), "echo ü".into()],
            env: vec!["A=b".into()],
            cwd: "/".into(),
            user: String::new(),
        };
        vec![
            Message::Hello { version: VERSION },
            Message::Start(Start {
                program: Program::Command(command.clone()),
                tty: Some(WindowSize { rows: 24, columns: 80 }),
                stdin: true,
            }),
            Message::Start(Start { program: Program::Shell(command), tty: None, stdin: false }),
            Message::Start(Start {
                program: Program::TarOut { path: vec![b'/', 0xff], name: b".".to_vec(), follow: true },
                tty: None,
                stdin: false,
            }),
            Message::Start(Start {
                program: Program::TarIn { path: b"/tmp".to_vec() },
                tty: None,
                stdin: true,
            }),
            Message::Started { pid: 7 },
            Message::Failed(Failure { code: 127, message: "`x` was not found".into() }),
            Message::Data(Stream::Stdin, vec![0; MAX_PAYLOAD]),
            Message::Data(Stream::Stdout, vec![]),
            Message::End(Stream::Stderr),
            Message::Credit(Stream::Stdout, u32::MAX),
            Message::Resize(WindowSize { rows: 50, columns: 300 }),
            Message::Signal(15),
            Message::Close,
            Message::Exited { code: 255 },
            Message::Shutdown { signal: 3, grace_seconds: 10 },
            Message::Ping(u32::MAX),
            Message::Pong(7),
            Message::Hosts("10.0.3.2\tweb\n".into()),
        ]
    }

    #[test]
    fn every_message_survives_the_wire_in_pieces_of_any_size() {
        let frames: Vec<Frame> =
            (0..).zip(every_message()).map(|(channel, message)| Frame::new(channel, message)).collect();
        let mut wire = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut wire));

        for piece in [1, 2, 7, 4096, wire.len()] {
            let mut decoder = Decoder::default();
            let mut received = Vec::new();
            for bytes in wire.chunks(piece) {
                decoder.push(bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    received.push(frame);
                }
            }
            assert_eq!(received, frames, "in pieces of {piece} bytes");
        }
    }

    #[test]
    fn frames_that_nobody_sends_are_refused() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            decoder.next_frame().unwrap_err().to_string()
        };
        assert_eq!(refused(&[0, 0, 0, 0, 1, 0, 0, 0, 0]), "agent protocol: a frame of 0 bytes");
        assert_eq!(refused(&[0xff; 9]), "agent protocol: a frame of 4294967295 bytes");
        assert_eq!(refused(&[5, 0, 0, 0, 99, 0, 0, 0, 0]), "agent protocol: a frame of kind 99 with 0 bytes");
        assert_eq!(refused(&[5, 0, 0, 0, 1, 0, 0, 0, 0]), "agent protocol: a frame of kind 1 with 0 bytes");
        assert_eq!(
            refused(&[6, 0, 0, 0, kind::START, 0, 0, 0, 0, b'{']),
            "agent protocol: a frame of kind 2: EOF while parsing an object at line 1 column 1"
        );
    }
}
