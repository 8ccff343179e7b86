//! Between the one agent in a guest and its many clients. Pure: frames in, addressed frames out.
//!
//! Clients number their channels as they like; the router gives each a number of its own on the agent's port, passes
//! frames both ways, and closes what a vanished client leaves behind. It keeps no bytes: credit between the two ends
//! bounds what is under way.

use std::collections::HashMap;

use init::protocol::{Failure, Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message};

/// One connection to the router.
pub type ClientId = u64;

/// Where a frame goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// To the agent in the guest.
    Agent(Frame),
    /// To one client.
    Client(ClientId, Frame),
}

/// Who holds which channel.
#[derive(Debug)]
pub struct Router {
    /// The client that holds the main process's streams.
    main: ClientId,
    /// By the agent's channel number.
    channels: HashMap<u32, (ClientId, u32)>,
    next_channel: u32,
}

impl Router {
    /// A router whose client `main` holds the main process's streams.
    pub fn new(main: ClientId) -> Router {
        Router { main, channels: HashMap::new(), next_channel: MAIN_CHANNEL + 1 }
    }

    /// A client says something.
    pub fn from_client(&mut self, client: ClientId, frame: Frame) -> Option<Delivery> {
        let Frame { channel, message } = frame;
        // Signals and shutdown are anybody's; the main process's streams are for the one who holds them.
        let is_for_machine = channel == MACHINE_CHANNEL && matches!(message, Message::Shutdown { .. });
        let is_for_main =
            channel == MAIN_CHANNEL && (client == self.main || matches!(message, Message::Signal(_)));
        if is_for_machine || is_for_main {
            return Some(Delivery::Agent(Frame { channel, message }));
        }
        if channel <= MAIN_CHANNEL {
            return None;
        }
        let known = self.channels.iter().find(|(_, holder)| **holder == (client, channel)).map(|(n, _)| *n);
        match (known, &message) {
            (Some(_), Message::Start(_)) => {
                let failure = Failure { code: 125, message: format!("channel {channel} is in use") };
                Some(Delivery::Client(client, Frame::new(channel, Message::Failed(failure))))
            }
            (Some(number), _) => Some(Delivery::Agent(Frame::new(number, message))),
            (None, Message::Start(_)) => {
                let number = self.free_channel();
                self.channels.insert(number, (client, channel));
                Some(Delivery::Agent(Frame::new(number, message)))
            }
            // What was under way when the channel closed.
            (None, _) => None,
        }
    }

    /// The agent says something.
    pub fn from_agent(&mut self, frame: Frame) -> Option<Delivery> {
        let Frame { channel, message } = frame;
        if channel == MAIN_CHANNEL {
            return Some(Delivery::Client(self.main, Frame { channel, message }));
        }
        let (client, local) = *self.channels.get(&channel)?;
        if matches!(message, Message::Exited { .. } | Message::Failed(_)) {
            self.channels.remove(&channel);
        }
        Some(Delivery::Client(client, Frame::new(local, message)))
    }

    /// A client is gone: its channels are closed, the processes behind them ended.
    pub fn client_gone(&mut self, client: ClientId) -> Vec<Delivery> {
        let mut closed: Vec<u32> = self
            .channels
            .iter()
            .filter(|(_, holder)| holder.0 == client)
            .map(|(number, _)| *number)
            .collect();
        closed.sort_unstable();
        closed
            .into_iter()
            .map(|number| {
                self.channels.remove(&number);
                Delivery::Agent(Frame::new(number, Message::Close))
            })
            .collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use init::boot_config::Command;
    use init::protocol::{Program, Start, Stream};

    fn start() -> Message {
        let command =
            Command { argv: vec!["true".into()], env: vec![], cwd: String::new(), user: String::new() };
        Message::Start(Start { program: Program::Command(command), tty: None, stdin: false })
    }

    fn data() -> Message {
        Message::Data(Stream::Stdout, b"x".to_vec())
    }

    #[test]
    fn two_clients_with_the_same_number_get_channels_of_their_own() {
        let mut router = Router::new(1);
        assert_eq!(
            router.from_client(7, Frame::new(2, start())),
            Some(Delivery::Agent(Frame::new(2, start())))
        );
        assert_eq!(
            router.from_client(8, Frame::new(2, start())),
            Some(Delivery::Agent(Frame::new(3, start())))
        );
        assert_eq!(
            router.from_agent(Frame::new(3, data())),
            Some(Delivery::Client(8, Frame::new(2, data())))
        );
        assert_eq!(
            router.from_agent(Frame::new(2, data())),
            Some(Delivery::Client(7, Frame::new(2, data())))
        );
        let exited = Message::Exited { code: 0 };
        router.from_agent(Frame::new(2, exited));
        assert_eq!(router.from_agent(Frame::new(2, data())), None, "the channel is closed");
        assert_eq!(router.from_client(7, Frame::new(2, Message::Signal(15))), None);
    }

    #[test]
    fn a_vanished_client_leaves_no_process() {
        let mut router = Router::new(1);
        router.from_client(7, Frame::new(2, start()));
        router.from_client(7, Frame::new(3, start()));
        router.from_client(8, Frame::new(2, start()));
        let close = |channel| Delivery::Agent(Frame::new(channel, Message::Close));
        assert_eq!(router.client_gone(7), [close(2), close(3)]);
        assert_eq!(router.client_gone(7), []);
    }

    #[test]
    fn only_its_holder_reads_and_writes_the_main_process() {
        let mut router = Router::new(1);
        let typed = Frame::new(MAIN_CHANNEL, Message::Data(Stream::Stdin, b"x".to_vec()));
        assert_eq!(router.from_client(7, typed.clone()), None);
        assert_eq!(router.from_client(1, typed.clone()), Some(Delivery::Agent(typed)));
        let signal = Frame::new(MAIN_CHANNEL, Message::Signal(15));
        assert_eq!(router.from_client(7, signal.clone()), Some(Delivery::Agent(signal)));
        let forged = Frame::new(MACHINE_CHANNEL, Message::Hello { version: 9 });
        assert_eq!(router.from_client(7, forged), None);
    }
}
