//! Between the one agent in a guest and its many clients. Pure: frames in, addressed frames out.
//!
//! Clients number their channels as they like; the router gives each a number of its own on the agent's port, passes
//! frames both ways, and closes what a vanished client leaves behind. It keeps no bytes, and holds both sides to the
//! protocol's credit, which bounds what is under way: a frame beyond it is a [`Breach`].

use std::collections::HashMap;
use std::fmt;

use init::protocol::{Failure, Frame, MAIN_CHANNEL, Message, Stream, WINDOW};

use crate::error::{EXIT_NOT_FOUND, EXIT_WORKBENCH};

/// One connection to the router.
pub type ClientId = u64;

/// Channels that one client may have open.
const MOST_CHANNELS: usize = 16;

/// Characters of a failure's cause that are passed on.
const LONGEST_CAUSE: usize = 2000;

/// Where a frame goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// To the agent in the guest.
    Agent(Frame),
    /// To one client.
    Client(ClientId, Frame),
}

/// What a side said against the rules: the connection to it is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach(String);

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agent protocol: {}", self.0)
    }
}

fn breach<T>(what: impl Into<String>) -> Result<T, Breach> {
    Err(Breach(what.into()))
}

/// Who holds which channel.
#[derive(Debug)]
pub struct Router {
    /// The client that holds the main process's streams.
    main: ClientId,
    /// By the agent's channel number.
    channels: HashMap<u32, Channel>,
    next_channel: u32,
}

/// One process as both sides see it.
#[derive(Debug)]
struct Channel {
    holder: ClientId,
    /// Its number with its holder.
    local: u32,
    is_started: bool,
    stdout: Flow,
    stderr: Flow,
    stdin: Flow,
}

/// One stream.
#[derive(Debug, Default)]
struct Flow {
    /// Bytes that were sent and for which no credit has come back.
    under_way: u32,
    has_ended: bool,
}

impl Flow {
    /// The stream's sender says this many bytes more.
    fn carry(&mut self, bytes: usize) -> Result<(), Breach> {
        if self.has_ended {
            return breach("more of a stream that has ended");
        }
        let sum = u32::try_from(bytes).ok().and_then(|bytes| self.under_way.checked_add(bytes));
        match sum.filter(|sum| *sum <= WINDOW) {
            Some(sum) => self.under_way = sum,
            None => return breach(format!("more than {WINDOW} bytes of a stream without credit")),
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Breach> {
        if std::mem::replace(&mut self.has_ended, true) { breach("a stream's end, twice") } else { Ok(()) }
    }
}

impl Channel {
    fn new(holder: ClientId, local: u32) -> Channel {
        let (stdout, stderr, stdin) = Default::default();
        Channel { holder, local, is_started: false, stdout, stderr, stdin }
    }

    fn output(&mut self, stream: Stream) -> Result<&mut Flow, Breach> {
        match stream {
            Stream::Stdout => Ok(&mut self.stdout),
            Stream::Stderr => Ok(&mut self.stderr),
            Stream::Stdin => breach("standard input out of the guest"),
        }
    }

    /// Checks a message of the agent's.
    fn agent_says(&mut self, message: &mut Message) -> Result<(), Breach> {
        match message {
            Message::Started { .. } => match std::mem::replace(&mut self.is_started, true) {
                true => breach("a process's start, twice"),
                false => Ok(()),
            },
            Message::Failed(failure) => {
                // The code becomes ours, and is to say what docker's do.
                if !(EXIT_WORKBENCH..=EXIT_NOT_FOUND).contains(&failure.code) {
                    failure.code = EXIT_WORKBENCH;
                }
                if let Some((end, _)) = failure.message.char_indices().nth(LONGEST_CAUSE) {
                    failure.message.truncate(end);
                }
                Ok(())
            }
            Message::Data(_, bytes) if bytes.is_empty() => breach("a piece of no bytes"),
            Message::Data(stream, bytes) => self.output(*stream)?.carry(bytes.len()),
            Message::End(stream) => self.output(*stream)?.end(),
            Message::Credit(Stream::Stdin, bytes) => {
                let left = self.stdin.under_way.checked_sub(*bytes).filter(|_| *bytes > 0);
                let Some(left) = left else { return breach("credit for input that was not sent") };
                self.stdin.under_way = left;
                Ok(())
            }
            Message::Exited { .. } => Ok(()),
            _ => breach("what only a host says"),
        }
    }

    /// Checks a message of its holder's, and says whether it is passed on.
    fn holder_says(&mut self, message: &mut Message) -> Result<bool, Breach> {
        match message {
            Message::Data(Stream::Stdin, bytes) => {
                self.stdin.carry(bytes.len())?;
                Ok(!bytes.is_empty())
            }
            Message::End(Stream::Stdin) => self.stdin.end().map(|()| true),
            Message::Credit(stream, bytes) => {
                let flow = self.output(*stream)?;
                // What was not sent cannot be taken.
                *bytes = flow.under_way.min(*bytes);
                flow.under_way -= *bytes;
                Ok(*bytes > 0)
            }
            Message::Resize(_) | Message::Signal(_) | Message::Close => Ok(true),
            _ => breach("what only a guest says"),
        }
    }
}

impl Router {
    /// A router whose client `main` holds the main process's streams.
    pub fn new(main: ClientId) -> Router {
        let channels = HashMap::from([(MAIN_CHANNEL, Channel::new(main, MAIN_CHANNEL))]);
        Router { main, channels, next_channel: MAIN_CHANNEL + 1 }
    }

    /// A client says something. Errors where it does not keep to the protocol.
    pub fn from_client(&mut self, client: ClientId, frame: Frame) -> Result<Option<Delivery>, Breach> {
        let Frame { channel, mut message } = frame;
        // A signal is anybody's; the main process's streams are for the one who holds them.
        let is_for_main =
            channel == MAIN_CHANNEL && (client == self.main || matches!(message, Message::Signal(_)));
        if channel <= MAIN_CHANNEL && !is_for_main {
            return Ok(None);
        }
        let number = if is_for_main { Some(MAIN_CHANNEL) } else { self.number_of(client, channel) };
        match (number, &message) {
            (Some(_), Message::Start(_)) => Ok(refuse(client, channel, "it is in use")),
            (Some(number), _) => {
                let Some(open) = self.channels.get_mut(&number) else { return Ok(None) };
                let is_passed_on = open.holder_says(&mut message)?;
                if message == Message::Close {
                    self.channels.remove(&number);
                }
                Ok(is_passed_on.then_some(Delivery::Agent(Frame { channel: number, message })))
            }
            (None, Message::Start(_)) if self.held_by(client).count() >= MOST_CHANNELS => {
                Ok(refuse(client, channel, "too many are open"))
            }
            (None, Message::Start(_)) => {
                let number = self.free_channel();
                self.channels.insert(number, Channel::new(client, channel));
                Ok(Some(Delivery::Agent(Frame { channel: number, message })))
            }
            // What was under way when the channel closed.
            (None, _) => Ok(None),
        }
    }

    /// The agent says something. Errors where it does not keep to the protocol.
    pub fn from_agent(&mut self, frame: Frame) -> Result<Option<Delivery>, Breach> {
        let Frame { channel, mut message } = frame;
        // What was under way when the channel closed.
        let Some(open) = self.channels.get_mut(&channel) else { return Ok(None) };
        open.agent_says(&mut message)?;
        let (holder, local) = (open.holder, open.local);
        if matches!(message, Message::Exited { .. } | Message::Failed(_)) {
            self.channels.remove(&channel);
        }
        Ok(Some(Delivery::Client(holder, Frame { channel: local, message })))
    }

    /// A client is gone: its channels are closed, the processes behind them ended.
    pub fn client_gone(&mut self, client: ClientId) -> Vec<Delivery> {
        let mut closed: Vec<u32> = self.held_by(client).collect();
        closed.sort_unstable();
        self.channels.retain(|number, _| !closed.contains(number));
        closed.into_iter().map(|number| Delivery::Agent(Frame::new(number, Message::Close))).collect()
    }

    /// The agent's numbers of the channels that a client has opened.
    fn held_by(&self, client: ClientId) -> impl Iterator<Item = u32> {
        let opened = |number: &u32| *number != MAIN_CHANNEL;
        self.channels.iter().filter(move |(_, open)| open.holder == client).map(|(n, _)| *n).filter(opened)
    }

    fn number_of(&self, client: ClientId, local: u32) -> Option<u32> {
        self.channels
            .iter()
            .find(|(_, open)| (open.holder, open.local) == (client, local))
            .map(|(number, _)| *number)
    }

    fn free_channel(&mut self) -> u32 {
        loop {
            let number = self.next_channel;
            // Numbers come round after four thousand million; the reserved ones are passed over.
            self.next_channel = number.checked_add(1).unwrap_or(MAIN_CHANNEL + 1);
            if !self.channels.contains_key(&number) {
                return number;
            }
        }
    }
}

fn refuse(client: ClientId, channel: u32, cause: &str) -> Option<Delivery> {
    let message = format!("channel {channel} cannot be opened: {cause}");
    let failure = Message::Failed(Failure { code: EXIT_WORKBENCH, message });
    Some(Delivery::Client(client, Frame::new(channel, failure)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use init::boot_config::Command;
    use init::protocol::{MACHINE_CHANNEL, Program, Start, WindowSize};

    fn start() -> Message {
        let command =
            Command { argv: vec!["true".into()], env: vec![], cwd: String::new(), user: String::new() };
        Message::Start(Start { program: Program::Command(command), tty: None, stdin: false })
    }

    fn data(stream: Stream, bytes: u32) -> Message {
        Message::Data(stream, vec![b'x'; bytes as usize])
    }

    fn to_agent(channel: u32, message: Message) -> Result<Option<Delivery>, Breach> {
        Ok(Some(Delivery::Agent(Frame::new(channel, message))))
    }

    fn to_client(client: ClientId, channel: u32, message: Message) -> Result<Option<Delivery>, Breach> {
        Ok(Some(Delivery::Client(client, Frame::new(channel, message))))
    }

    /// Client 7 has a process on its channel 5, which is the agent's channel 2.
    fn with_a_process() -> Router {
        let mut router = Router::new(1);
        assert_eq!(router.from_client(7, Frame::new(5, start())), to_agent(2, start()));
        router
    }

    #[test]
    fn two_clients_with_the_same_number_get_channels_of_their_own() {
        let mut router = Router::new(1);
        assert_eq!(router.from_client(7, Frame::new(2, start())), to_agent(2, start()));
        assert_eq!(router.from_client(8, Frame::new(2, start())), to_agent(3, start()));
        let said = || data(Stream::Stdout, 1);
        assert_eq!(router.from_agent(Frame::new(3, said())), to_client(8, 2, said()));
        assert_eq!(router.from_agent(Frame::new(2, said())), to_client(7, 2, said()));
        for end in [Message::Exited { code: 0 }, Message::Failed(Failure { code: 126, message: "x".into() })]
        {
            let mut router = with_a_process();
            assert_eq!(router.from_agent(Frame::new(2, end.clone())), to_client(7, 5, end));
            assert_eq!(router.from_agent(Frame::new(2, said())), Ok(None), "the channel is closed");
            assert_eq!(router.from_client(7, Frame::new(5, Message::Signal(15))), Ok(None));
            assert_eq!(router.client_gone(7), []);
            assert_eq!(router.from_client(7, Frame::new(5, start())), to_agent(3, start()));
        }
    }

    #[test]
    fn a_vanished_client_leaves_no_process() {
        let mut router = Router::new(1);
        for (client, channel) in [(7, 2), (7, 3), (8, 2)] {
            router.from_client(client, Frame::new(channel, start())).unwrap();
        }
        let close = |channel| Delivery::Agent(Frame::new(channel, Message::Close));
        assert_eq!(router.client_gone(7), [close(2), close(3)]);
        assert_eq!(router.client_gone(7), []);
        assert_eq!(router.from_client(8, Frame::new(2, Message::Close)), to_agent(4, Message::Close));
        assert_eq!(router.client_gone(8), [], "it has closed its channel by itself");
        assert_eq!(router.from_agent(Frame::new(4, Message::Exited { code: 1 })), Ok(None));
    }

    #[test]
    fn only_its_holder_reads_and_writes_the_main_process() {
        let mut router = Router::new(1);
        let typed = || data(Stream::Stdin, 1);
        assert_eq!(router.from_client(7, Frame::new(MAIN_CHANNEL, typed())), Ok(None));
        assert_eq!(router.from_client(1, Frame::new(MAIN_CHANNEL, typed())), to_agent(MAIN_CHANNEL, typed()));
        let signal = || Frame::new(MAIN_CHANNEL, Message::Signal(15));
        assert_eq!(router.from_client(7, signal()), to_agent(MAIN_CHANNEL, Message::Signal(15)));
        assert_eq!(
            router.from_client(7, Frame::new(MACHINE_CHANNEL, Message::Hello { version: 9 })),
            Ok(None)
        );
        assert_eq!(router.from_client(1, Frame::new(MACHINE_CHANNEL, start())), Ok(None));
        assert_eq!(router.client_gone(1), [], "the main process goes on without listeners");
        let ended = Message::Exited { code: 3 };
        assert_eq!(
            router.from_agent(Frame::new(MAIN_CHANNEL, ended.clone())),
            to_client(1, 1, ended.clone())
        );
        assert_eq!(router.from_agent(Frame::new(MAIN_CHANNEL, ended)), Ok(None), "it ends once");
        assert_eq!(router.from_client(7, signal()), Ok(None));
    }

    #[test]
    fn a_channel_in_use_and_one_too_many_are_refused() {
        let mut router = with_a_process();
        let refused = |delivery| match delivery {
            Ok(Some(Delivery::Client(7, Frame { channel, message: Message::Failed(failure) }))) => {
                (channel, failure.code, failure.message)
            }
            other => panic!("{other:?}"),
        };
        let in_use = refused(router.from_client(7, Frame::new(5, start())));
        assert_eq!(in_use, (5, 125, "channel 5 cannot be opened: it is in use".into()));
        for channel in 6..21 {
            assert!(matches!(
                router.from_client(7, Frame::new(channel, start())),
                Ok(Some(Delivery::Agent(_)))
            ));
        }
        let many = refused(router.from_client(7, Frame::new(21, start())));
        assert_eq!(many, (21, 125, "channel 21 cannot be opened: too many are open".into()));
        assert!(matches!(router.from_client(8, Frame::new(21, start())), Ok(Some(Delivery::Agent(_)))));
        assert_eq!(router.client_gone(7).len(), 16);
    }

    #[test]
    fn an_agent_sends_no_more_than_it_was_granted() {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut router = with_a_process();
            let mut say = |bytes| router.from_agent(Frame::new(2, data(stream, bytes)));
            assert!(say(WINDOW - 1).is_ok());
            assert!(say(1).is_ok());
            let error = say(1).unwrap_err().to_string();
            assert_eq!(error, "agent protocol: more than 262144 bytes of a stream without credit");
            let credit = |bytes| Frame::new(5, Message::Credit(stream, bytes));
            assert_eq!(router.from_client(7, credit(10)), to_agent(2, Message::Credit(stream, 10)));
            assert!(router.from_agent(Frame::new(2, data(stream, 10))).is_ok());
            assert!(router.from_agent(Frame::new(2, data(stream, 1))).is_err());
            // Nobody can grant more than a window.
            let all = to_agent(2, Message::Credit(stream, WINDOW));
            assert_eq!(router.from_client(7, credit(u32::MAX)), all);
            assert_eq!(router.from_client(7, credit(5)), Ok(None));
            assert!(router.from_agent(Frame::new(2, data(stream, WINDOW))).is_ok());
            assert!(router.from_agent(Frame::new(2, data(stream, 1))).is_err());
        }
    }

    #[test]
    fn a_client_sends_no_more_than_it_was_granted() {
        let mut router = with_a_process();
        let input = |bytes| Frame::new(5, data(Stream::Stdin, bytes));
        assert_eq!(router.from_client(7, input(WINDOW)), to_agent(2, data(Stream::Stdin, WINDOW)));
        assert_eq!(router.from_client(7, input(0)), Ok(None));
        assert!(router.from_client(7, input(1)).is_err());
        let credit = |bytes| Frame::new(2, Message::Credit(Stream::Stdin, bytes));
        assert_eq!(router.from_agent(credit(3)), to_client(7, 5, Message::Credit(Stream::Stdin, 3)));
        assert!(router.from_client(7, input(4)).is_err());
        assert!(router.from_client(7, input(3)).is_ok());
        assert!(router.from_agent(credit(WINDOW + 1)).is_err(), "it was never sent");
        assert!(router.from_agent(credit(0)).is_err());
        assert!(router.from_agent(credit(WINDOW)).is_ok());
        let end = || Frame::new(5, Message::End(Stream::Stdin));
        assert_eq!(router.from_client(7, end()), to_agent(2, Message::End(Stream::Stdin)));
        assert!(router.from_client(7, end()).is_err());
        assert!(router.from_client(7, input(1)).is_err());
        let size = Message::Resize(WindowSize { rows: 1, columns: 2 });
        assert_eq!(router.from_client(7, Frame::new(5, size.clone())), to_agent(2, size));
    }

    #[test]
    fn each_thing_is_said_once_and_by_the_side_whose_it_is() {
        let mut router = with_a_process();
        let mut hear = |message| router.from_agent(Frame::new(2, message)).is_ok();
        assert!(hear(Message::Started { pid: 4 }));
        assert!(!hear(Message::Started { pid: 4 }));
        assert!(!hear(data(Stream::Stdin, 1)));
        assert!(!hear(data(Stream::Stdout, 0)), "nothing, without end");
        assert!(!hear(Message::End(Stream::Stdin)));
        assert!(!hear(Message::Credit(Stream::Stdout, 1)));
        assert!(hear(Message::End(Stream::Stderr)));
        assert!(!hear(Message::End(Stream::Stderr)));
        assert!(!hear(data(Stream::Stderr, 1)));
        assert!(hear(data(Stream::Stdout, 1)));
        for message in [start(), Message::Close, Message::Signal(9), Message::Hosts(String::new())] {
            assert!(!hear(message));
        }
        for message in [
            data(Stream::Stdout, 1),
            Message::End(Stream::Stdout),
            Message::Credit(Stream::Stdin, 1),
            Message::Started { pid: 1 },
            Message::Exited { code: 0 },
            Message::Ping(1),
        ] {
            assert!(router.from_client(7, Frame::new(5, message)).is_err());
        }
    }

    #[test]
    fn a_failure_has_a_code_of_dockers_and_a_sentence() {
        for (code, then) in [(0, 125), (1, 125), (124, 125), (125, 125), (126, 126), (127, 127), (128, 125)] {
            let mut router = with_a_process();
            let failed = |code, message| Message::Failed(Failure { code, message });
            let heard = router.from_agent(Frame::new(2, failed(code, "ü".repeat(2001))));
            assert_eq!(heard, to_client(7, 5, failed(then, "ü".repeat(2000))));
        }
    }
}
