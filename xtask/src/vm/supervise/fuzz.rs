//! What must hold for any bytes on the agent's port or a client's socket: the body of the fuzz target `protocol`, which
//! the tests run too. It panics where something does not hold; bytes that are refused are fine.

use std::collections::HashSet;

use init::protocol::{Decoder, Frame, Message, ProtocolError};

use super::router::{Delivery, Router};

/// Bytes are understood the same however they arrive, what is understood survives being said again, and a router that
/// hears it from three clients and an agent is left with nothing once the clients are gone.
pub fn protocol(input: &[u8]) {
    let Some((&size, bytes)) = input.split_first() else { return };
    let whole = decoded(bytes, bytes.len().max(1));
    let pieces = decoded(bytes, usize::from(size).max(1));
    assert_eq!(whole, pieces, "it depends on how the bytes arrive");

    let frames = whole.0;
    let mut said = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut said));
    assert_eq!(decoded(&said, said.len().max(1)), (frames.clone(), None), "it changes when it is said again");

    let mut router = Router::new(0);
    let mut open = HashSet::new();
    for (index, frame) in frames.into_iter().enumerate() {
        let ends = matches!(frame.message, Message::Exited { .. } | Message::Failed(_));
        let client = index as u64 % 4;
        if client == 3 {
            let channel = frame.channel;
            // A breach ends the machine, or its client; here the others go on.
            if router.from_agent(frame).is_ok_and(|delivery| delivery.is_some()) && ends {
                open.remove(&channel);
            }
        } else if let Ok(Some(Delivery::Agent(frame))) = router.from_client(client, frame)
            && frame.channel > init::protocol::MAIN_CHANNEL
        {
            match frame.message {
                Message::Start(_) => {
                    assert!(open.insert(frame.channel), "channel {} was given twice", frame.channel);
                }
                Message::Close => {
                    assert!(open.remove(&frame.channel), "channel {} was not open", frame.channel);
                }
                _ => assert!(open.contains(&frame.channel), "channel {} is not open", frame.channel),
            }
        }
    }
    for client in 0..3 {
        for delivery in router.client_gone(client) {
            let Delivery::Agent(Frame { channel, message: Message::Close }) = delivery else {
                panic!("{delivery:?} at a client's end");
            };
            assert!(open.remove(&channel), "channel {channel} was closed and not open");
        }
    }
    assert_eq!(open, HashSet::new(), "channels that nobody holds");
}

/// The frames of some bytes that arrive so many at a time, and what ended them.
fn decoded(bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<ProtocolError>) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

#[cfg(test)]
mod tests {
    use init::boot_config::Command;
    use init::protocol::{Failure, Program, Start, Stream, WindowSize};
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let stream = prop::sample::select(vec![Stream::Stdin, Stream::Stdout, Stream::Stderr]);
        let program = ".{0,8}".prop_map(|word: String| {
            let command = Command { argv: vec![word], env: vec![], cwd: String::new(), user: String::new() };
            Message::Start(Start { program: Program::Command(command), tty: None, stdin: true })
        });
        prop_oneof![
            any::<u32>().prop_map(|version| Message::Hello { version }),
            program,
            any::<u32>().prop_map(|pid| Message::Started { pid }),
            (any::<u8>(), ".{0,8}").prop_map(|(code, message)| Message::Failed(Failure { code, message })),
            (stream.clone(), prop::collection::vec(any::<u8>(), 0..64))
                .prop_map(|(s, b)| Message::Data(s, b)),
            stream.clone().prop_map(Message::End),
            (stream, any::<u32>()).prop_map(|(s, n)| Message::Credit(s, n)),
            any::<(u16, u16)>().prop_map(|(rows, columns)| Message::Resize(WindowSize { rows, columns })),
            any::<i32>().prop_map(Message::Signal),
            Just(Message::Close),
            any::<u8>().prop_map(|code| Message::Exited { code }),
            any::<u32>().prop_map(Message::Ping),
            any::<u32>().prop_map(Message::Pong),
            any::<(i32, u32)>()
                .prop_map(|(signal, grace_seconds)| Message::Shutdown { signal, grace_seconds }),
        ]
    }

    /// The conversation that fuzzing begins with: a piece's size, and the frames of two processes.
    const SEED: &[u8] = include_bytes!("../../../../fuzz/seeds/protocol/conversation");

    #[test]
    fn the_seed_is_a_good_conversation() {
        let said = |channel, message| Frame::new(channel, message);
        let command = |word: &str| Command {
            argv: vec![word.into()],
            env: vec![],
            cwd: String::new(),
            user: String::new(),
        };
        let frames = [
            said(0, Message::Hello { version: 0 }),
            said(
                2,
                Message::Start(Start { program: Program::Command(command("cat")), tty: None, stdin: true }),
            ),
            said(
                3,
                Message::Start(Start {
                    program: Program::Shell(command("")),
                    tty: Some(WindowSize { rows: 24, columns: 80 }),
                    stdin: true,
                }),
            ),
            said(2, Message::Started { pid: 9 }),
            said(2, Message::Data(Stream::Stdin, b"text".to_vec())),
            said(2, Message::Credit(Stream::Stdin, 4)),
            said(2, Message::End(Stream::Stdin)),
            said(2, Message::Data(Stream::Stdout, b"text".to_vec())),
            said(3, Message::Resize(WindowSize { rows: 1, columns: 2 })),
            said(3, Message::Signal(2)),
            said(2, Message::Exited { code: 0 }),
            said(3, Message::Close),
            said(3, Message::Failed(Failure { code: 127, message: "not found".into() })),
            said(0, Message::Hosts("10.0.3.2\tweb\n".into())),
            said(0, Message::Shutdown { signal: 15, grace_seconds: 10 }),
        ];
        let mut bytes = vec![5];
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        assert!(SEED == bytes, "write these bytes to the seed:\n{}", bytes.escape_ascii());
        protocol(SEED);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_with_a_few_bytes_changed(
            frames in prop::collection::vec((0u32..6, message()), 0..24),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            piece in any::<u8>(),
        ) {
            let mut bytes = vec![piece];
            for (channel, message) in frames {
                Frame::new(channel, message).encode(&mut bytes);
            }
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            protocol(&bytes);
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            protocol(&bytes);
        }
    }
}
