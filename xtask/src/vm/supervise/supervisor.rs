//! Runs one machine from launch to end: starts QEMU, listens to its console, connects the agent with its clients, and
//! follows the machine's [lifecycle](super::lifecycle). QEMU never outlives this process.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use camino::Utf8PathBuf;
use init::protocol::{Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message, Stream, VERSION};
use rustix::process::Signal;

use super::console::Console;
use super::lifecycle::{Action, Lifecycle, Limits};
use super::outcome::Outcome;
use super::router::{Delivery, Router};
use super::wires::{
    Event, MAIN_CLIENT, accept_clients, listen_to_agent, read_console, type_on_console, write_frames,
};
use crate::disk::volume;
use crate::host::process::die_with;
use crate::host::tools;
use crate::note;
use crate::vm::machine::Machine;
use crate::vm::net::{self, Attached};
use crate::vm::qemu;

/// How long clients are given to hear of the machine's end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a supervised machine is given beside its devices.
#[derive(Debug)]
pub struct Supervision {
    /// How long each part of its life may take.
    pub limits: Limits,
    /// Every byte of the console is written here.
    pub console_log: Utf8PathBuf,
    /// Clients of the agent connect here; `None` serves the main process only.
    pub clients: Option<UnixListener>,
    /// Who gets the main process's frames; the other end may go away at any time.
    pub main: Sender<Frame>,
    /// The console is what the main process says, and this process's standard input is typed on it: a machine without
    /// an agent.
    pub console_is_main: bool,
}

/// Says something to the machine on behalf of the main process's holder.
#[derive(Debug, Clone)]
pub struct MainClient(Sender<Event>);

impl MainClient {
    /// A message about the main process.
    pub fn say(&self, message: Message) {
        // The machine has ended: nothing is left to be told.
        let _ = self.0.send(Event::Client(MAIN_CLIENT, Frame::new(MAIN_CHANNEL, message)));
    }

    /// Ends the machine at once.
    pub fn give_up(&self) {
        let _ = self.0.send(Event::Signal(signal_hook::consts::SIGINT));
        let _ = self.0.send(Event::Signal(signal_hook::consts::SIGINT));
    }
}

/// A machine that was launched.
#[derive(Debug)]
pub struct Supervisor {
    qemu: Child,
    events: Receiver<Event>,
    sender: Sender<Event>,
    agent: Option<Sender<Frame>>,
    complaint: std::thread::JoinHandle<String>,
    supervision: Supervision,
    log: File,
    agent_socket: Option<Utf8PathBuf>,
    /// Locks on the disks that it writes to.
    _disks: Vec<File>,
    _network: Attached,
}

/// How a machine ended, with what its console said last.
#[derive(Debug)]
pub struct Ending {
    /// How it ended.
    pub outcome: Outcome,
    /// The console's last lines.
    pub last_lines: Vec<String>,
    /// Closed when all clients have been told everything.
    farewell: Receiver<Infallible>,
}

impl Ending {
    /// Waits until the clients have heard of it, those that listen.
    pub fn wait_for_clients(&self) {
        // Nothing is ever said: it is over when nobody is left who could.
        let _ = self.farewell.recv_timeout(FAREWELL);
    }
}

impl Supervisor {
    /// Starts QEMU. The machine's agent socket is created here. Errors where QEMU cannot be started at all.
    pub fn launch(machine: &Machine, mut supervision: Supervision) -> anyhow::Result<Supervisor> {
        let written = machine.disks.iter().filter(|disk| !disk.read_only && !disk.snapshot);
        let disks = written.map(|disk| volume::lock(&disk.path)).collect::<anyhow::Result<Vec<_>>>()?;
        let (sender, events) = mpsc::channel();
        let network = net::attach(machine, &sender, Event::Names)?;
        let log = File::create(&supervision.console_log)
            .with_context(|| format!("failed to create `{}`", supervision.console_log))?;
        let agent = machine.agent_socket.as_deref().map(|path| listen_to_agent(path, &sender)).transpose()?;

        let program = tools::find(qemu::PROGRAM).unwrap_or_else(|| qemu::PROGRAM.into());
        let mut command = Command::new(&program);
        command
            .args(qemu::arguments(machine))
            .stdin(if supervision.console_is_main { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A group of its own: Ctrl-C on the terminal is for us to pass on, not for QEMU to die of.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        die_with(&mut command, rustix::process::getpid(), Signal::KILL);
        let mut qemu = command.spawn().with_context(|| format!("failed to start `{program}`"))?;

        if let Some(stdout) = qemu.stdout.take() {
            let sender = sender.clone();
            std::thread::spawn(move || read_console(stdout, &sender));
        }
        let mut stderr = qemu.stderr.take();
        let complaint = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(stderr) = &mut stderr {
                // Bounded: a QEMU that complains for ever is not to fill our memory.
                let _ = stderr.take(64 * 1024).read_to_end(&mut text);
                let _ = io::copy(stderr, &mut io::sink());
            }
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        if let Some(stdin) = qemu.stdin.take() {
            std::thread::spawn(move || type_on_console(stdin));
        }
        if let Some(listener) = supervision.clients.take() {
            let sender = sender.clone();
            std::thread::spawn(move || accept_clients(&listener, &sender));
        }
        let agent_socket = machine.agent_socket.clone();
        Ok(Supervisor {
            qemu,
            events,
            sender,
            agent,
            complaint,
            supervision,
            log,
            agent_socket,
            _disks: disks,
            _network: network,
        })
    }

    /// The main process's end of the conversation.
    pub fn main_client(&self) -> MainClient {
        MainClient(self.sender.clone())
    }

    /// QEMU's process.
    pub fn qemu(&self) -> u32 {
        self.qemu.id()
    }

    /// Where signals to this process are reported.
    pub fn signals(&self) -> impl Fn(i32) + Send + 'static {
        let sender = self.sender.clone();
        move |signal| {
            let _ = sender.send(Event::Signal(signal));
        }
    }

    /// Follows the machine to its end.
    pub fn run(mut self) -> anyhow::Result<Ending> {
        let mut life = Lifecycle::launched(Instant::now(), self.supervision.limits, self.agent.is_some());
        let mut router = Router::new(MAIN_CLIENT);
        let mut console = Console::default();
        let mut clients = std::collections::HashMap::from([(MAIN_CLIENT, self.supervision.main.clone())]);
        let (told, farewell) = mpsc::channel();
        let (mut console_closed, mut agent_closed) = (false, self.agent_socket.is_none());
        loop {
            let patience = life.deadline().map_or(Duration::from_secs(3600), |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            let event = self.events.recv_timeout(patience);
            let now = Instant::now();
            let mut deliveries = Vec::new();
            let mut actions = Vec::new();
            match event {
                Ok(Event::Console(bytes)) => {
                    // A full disk must not end the machine; the log is for looking back.
                    let _ = self.log.write_all(&bytes);
                    console.push(&bytes).into_iter().for_each(|verdict| life.verdict(now, verdict));
                    let notes = console.take_notes();
                    if self.supervision.console_is_main {
                        let said = Message::Data(Stream::Stdout, bytes);
                        deliveries.push(Delivery::Client(MAIN_CLIENT, Frame::new(MAIN_CHANNEL, said)));
                    } else {
                        notes.iter().for_each(|line| note!("{line}"));
                    }
                }
                Ok(Event::ConsoleClosed) => {
                    console_closed = true;
                    // A QEMU that failed early never connected: nobody is to wait for it any more.
                    if let Some(socket) = &self.agent_socket {
                        let _ = UnixStream::connect(socket);
                    }
                }
                Ok(Event::AgentClosed(cause)) => {
                    agent_closed = true;
                    if let Some(cause) = cause {
                        actions.extend(life.agent_failed(cause));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Ok(Event::Agent(frame)) => {
                    match (&frame.message, frame.channel) {
                        (Message::Hello { version }, MACHINE_CHANNEL) if *version != VERSION => {
                            let cause = format!(
                                "the guest's init speaks version {version} of the agent protocol, this workbench {VERSION}"
                            );
                            actions.extend(life.agent_failed(cause));
                        }
                        (Message::Started { .. }, MAIN_CHANNEL) => {
                            life.main_started();
                        }
                        (Message::Failed(failure), MAIN_CHANNEL) => {
                            let (code, cause) = (failure.code, failure.message.clone());
                            life.main_ended(now, Outcome::NotStarted { code, cause });
                        }
                        (Message::Exited { code }, MAIN_CHANNEL) => {
                            life.main_ended(now, Outcome::Exited(*code));
                        }
                        _ => {}
                    }
                    deliveries.extend(router.from_agent(frame));
                }
                Ok(Event::Connected(client, stream)) => {
                    let (frames, to_write) = mpsc::channel();
                    clients.insert(client, frames);
                    let told = told.clone();
                    std::thread::spawn(move || {
                        write_frames(stream, &to_write);
                        drop(told);
                    });
                }
                Ok(Event::Client(_, Frame { message: Message::Shutdown { signal, grace_seconds }, .. })) => {
                    actions.extend(life.stop(now, signal, Duration::from_secs(grace_seconds.into())));
                }
                Ok(Event::Client(client, frame)) => deliveries.extend(router.from_client(client, frame)),
                Ok(Event::Gone(client)) => {
                    clients.remove(&client);
                    deliveries.extend(router.client_gone(client));
                }
                Ok(Event::Names(lines)) => self.tell(Frame::new(MACHINE_CHANNEL, Message::Hosts(lines))),
                Ok(Event::Signal(signal)) => actions.extend(life.signal(now, signal)),
                Err(RecvTimeoutError::Timeout) => {}
            }
            actions.extend(life.tick(now));

            for delivery in deliveries {
                match delivery {
                    Delivery::Agent(frame) => self.tell(frame),
                    Delivery::Client(client, frame) => {
                        // A client that has just gone is reported by its reader.
                        let _ = clients.get(&client).map(|frames| frames.send(frame));
                    }
                }
            }
            for action in actions {
                match action {
                    Action::Tell(frame) => self.tell(frame),
                    Action::Kill => {
                        // It has ended by itself in this moment.
                        let _ = self.qemu.kill();
                    }
                }
            }
            // What the agent said last may arrive after the console's end.
            if console_closed && agent_closed {
                break;
            }
        }
        let status = self.qemu.wait().context("failed to wait for QEMU")?;
        let complaint = self.complaint.join().unwrap_or_default();
        let complaint = (!status.success()).then(|| match complaint.lines().last() {
            Some(line) => format!("QEMU failed: {}", line.trim_start_matches("qemu-system-x86_64: ")),
            None => format!("QEMU ended with {status}"),
        });
        let outcome = life.qemu_ended(complaint);
        for frames in clients.values() {
            // The machine's own channel ends as that of a process does.
            let _ = frames.send(Frame::new(MACHINE_CHANNEL, Message::Exited { code: outcome.exit_code() }));
        }
        drop((clients, told));
        Ok(Ending { outcome, last_lines: console.last_lines(), farewell })
    }

    fn tell(&self, frame: Frame) {
        if let Some(agent) = &self.agent {
            // The writer ends with the connection, whose loss is QEMU's end.
            let _ = agent.send(frame);
        }
    }
}
