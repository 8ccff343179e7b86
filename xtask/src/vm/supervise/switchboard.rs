//! Carries frames between the agent and its clients as the [router](super::router) says. It waits for nobody: a client
//! that does not take what it is sent, or sends what it may not, is dropped.

use std::collections::HashMap;

use init::protocol::{Failure, Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message, Stream};

use super::outcome::Outcome;
use super::router::{ClientId, Delivery, Router};
use super::wires::{MAIN_CLIENT, Wire};
use crate::vm::queue::{Refusal, Sender};

/// The connections of one machine.
#[derive(Debug)]
pub(super) struct Switchboard {
    router: Router,
    agent: Option<Sender>,
    main: Sender,
    clients: HashMap<ClientId, Wire>,
}

/// What became of the main process.
#[derive(Debug)]
pub(super) enum MainNews {
    /// It runs.
    Started,
    /// It has ended, or could not be started.
    Ended(Outcome),
}

impl MainNews {
    fn of(message: &Message) -> Option<MainNews> {
        match message {
            Message::Started { .. } => Some(MainNews::Started),
            Message::Exited { code } => Some(MainNews::Ended(Outcome::Exited(*code))),
            Message::Failed(Failure { code, message: cause }) => {
                Some(MainNews::Ended(Outcome::NotStarted { code: *code, cause: cause.clone() }))
            }
            _ => None,
        }
    }
}

impl Switchboard {
    /// Of a machine whose main process's frames go to `main`.
    pub(super) fn new(agent: Option<Sender>, main: Sender) -> Switchboard {
        Switchboard { router: Router::new(MAIN_CLIENT), agent, main, clients: HashMap::new() }
    }

    /// Whether there is an agent to talk to.
    pub(super) fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Says something to the agent on behalf of the supervisor itself.
    pub(super) fn tell(&self, frame: Frame) {
        if let Some(agent) = &self.agent {
            // The writer ends with the connection, whose loss is QEMU's end.
            let _ = agent.push_beyond(frame);
        }
    }

    /// The agent says something. Errors where it does not keep to the protocol.
    pub(super) fn agent_says(&mut self, frame: Frame) -> Result<Option<MainNews>, String> {
        let delivery = self.router.from_agent(frame).map_err(|breach| breach.to_string())?;
        let news = match &delivery {
            Some(Delivery::Client(MAIN_CLIENT, frame)) => MainNews::of(&frame.message),
            _ => None,
        };
        if let Some(delivery) = delivery {
            self.deliver(delivery)?;
        }
        Ok(news)
    }

    /// A machine without an agent says something on its console.
    pub(super) fn console_says(&mut self, bytes: Vec<u8>) {
        // Its reader waits for room. Where nobody listens any more nothing is lost.
        let _ = self.main.push_beyond(Frame::new(MAIN_CHANNEL, Message::Data(Stream::Stdout, bytes)));
    }

    /// A client connected.
    pub(super) fn connected(&mut self, client: ClientId, wire: Wire) {
        self.clients.insert(client, wire);
    }

    /// A client says something.
    pub(super) fn client_says(&mut self, client: ClientId, frame: Frame) {
        let is_known = client == MAIN_CLIENT || self.clients.contains_key(&client);
        if !is_known {
            // What was under way when it was dropped.
            return;
        }
        match self.router.from_client(client, frame) {
            Ok(None) => {}
            Ok(Some(Delivery::Agent(frame))) => {
                let refused =
                    self.agent.as_ref().is_some_and(|agent| agent.push(frame) == Err(Refusal::Full));
                if refused {
                    self.drop_client(client);
                }
            }
            Ok(Some(delivery)) => drop(self.deliver(delivery)),
            Err(_) => self.drop_client(client),
        }
    }

    /// A client is gone, or is to go: what it has started ends.
    pub(super) fn drop_client(&mut self, client: ClientId) {
        if let Some(wire) = self.clients.remove(&client) {
            wire.cut();
        }
        for delivery in self.router.client_gone(client) {
            if let Delivery::Agent(frame) = delivery {
                self.tell(frame);
            }
        }
    }

    /// The machine has ended with this code: its own channel ends as that of a process does, and then all connections.
    pub(super) fn say_farewell(self, code: u8) {
        for wire in self.clients.values() {
            let _ = wire.send(Frame::new(MACHINE_CHANNEL, Message::Exited { code }));
        }
    }

    /// Errors where the main process's listener is sent more than any credit allows.
    fn deliver(&mut self, delivery: Delivery) -> Result<(), String> {
        match delivery {
            Delivery::Agent(frame) => self.tell(frame),
            Delivery::Client(MAIN_CLIENT, frame) => {
                if self.main.push(frame) == Err(Refusal::Full) {
                    return Err("agent protocol: more of the main process than anybody takes".into());
                }
            }
            Delivery::Client(client, frame) => {
                let refusal = self.clients.get(&client).and_then(|wire| wire.send(frame).err());
                // One that has just gone is reported by its reader.
                if refusal == Some(Refusal::Full) {
                    self.drop_client(client);
                }
            }
        }
        Ok(())
    }
}
