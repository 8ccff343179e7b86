//! Runs one machine from launch to end: starts QEMU, listens to its console, connects the agent with its clients, and
//! follows the machine's [lifecycle](super::lifecycle). QEMU never outlives this process.

use std::io::{self, Read as _};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use init::protocol::{Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message, VERSION};
use rustix::process::Signal;

use super::console::Console;
use super::lifecycle::{Action, Lifecycle, Limits};
use super::outcome::Outcome;
use super::switchboard::{MainNews, Switchboard};
use super::wires::{
    EVENTS, Event, MAIN_CLIENT, Places, accept_clients, carry_agent, read_console, type_on_console,
    watch_process,
};
use crate::host::confine::{Files, Rights, confine, is_low};
use crate::host::process::die_with;
use crate::host::tools;
use crate::note;
use crate::vm::inherited::Inherited;
use crate::vm::machine::{Accelerator, Machine, Network};
use crate::vm::net::{self, Attached};
use crate::vm::record::console_log::ConsoleLog;
use crate::vm::{qemu, queue};

/// How long clients are given to hear of the machine's end.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long what QEMU said last may take to arrive once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Bytes that wait for whoever holds the main process's streams; credit keeps them below.
pub const MAIN_QUEUE: usize = 16 << 20;

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
    pub main: queue::Sender,
    /// The console is what the main process says, and this process's standard input is typed on it: a machine without
    /// an agent.
    pub console_is_main: bool,
}

/// Says something to the machine on behalf of the main process's holder.
#[derive(Debug, Clone)]
pub struct MainClient(SyncSender<Event>);

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
    sender: SyncSender<Event>,
    switchboard: Switchboard,
    places: Arc<Places>,
    complaint: Receiver<String>,
    limits: Limits,
    console_is_main: bool,
    log: ConsoleLog,
    _network: Attached,
}

/// How a machine ended, with what its console said last.
#[derive(Debug)]
pub struct Ending {
    /// How it ended.
    pub outcome: Outcome,
    /// The console's last lines.
    pub last_lines: Vec<String>,
    places: Arc<Places>,
}

impl Ending {
    /// Waits until the clients have heard of it, those that listen.
    pub fn wait_for_clients(&self) {
        self.places.wait_for_all(FAREWELL);
    }
}

impl Supervisor {
    /// Starts QEMU, as a user of its own where this one is root. Errors where QEMU cannot be started at all.
    pub fn launch(machine: &Machine, mut supervision: Supervision) -> anyhow::Result<Supervisor> {
        let (sender, events) = mpsc::sync_channel(EVENTS);
        let mut inherited = Inherited::of(machine)?;
        let network = net::attach(machine, &mut inherited, &sender, Event::Names)?;
        let log = ConsoleLog::create(&supervision.console_log)
            .with_context(|| format!("failed to create `{}`", supervision.console_log))?;
        let agent = machine.agent_socket.as_deref().map(|path| inherited.connect(path)).transpose()?;
        let agent = agent.map(|stream| carry_agent(stream, &sender)).transpose()?;
        if let Some(path) = &machine.gdb_socket {
            let gdb = UnixListener::bind(path).with_context(|| format!("failed to listen at `{path}`"))?;
            inherited.socket(path, gdb.into());
        }

        // The console and the early one speak on one stream, which ends with QEMU.
        let (stdout, console) = io::pipe().context("failed to make a pipe")?;
        let early = console.try_clone().context("failed to make a pipe")?;
        inherited.opened(Utf8Path::new(qemu::STDOUT), early.into());

        let program = tools::find(qemu::PROGRAM).unwrap_or_else(|| qemu::PROGRAM.into());
        let mut command = Command::new(&program);
        command
            .args(qemu::arguments(machine, &inherited))
            .stdin(if supervision.console_is_main { Stdio::piped() } else { Stdio::null() })
            .stdout(console)
            .stderr(Stdio::piped());
        // A group of its own: Ctrl-C on the terminal is for us to pass on, not for QEMU to die of.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        confine(&mut command, rights(machine, &program), inherited.descriptors());
        // After that: who becomes another user is no longer sent the signal (prctl(2)).
        die_with(&mut command, rustix::process::getpid(), Signal::KILL);
        let mut qemu = command.spawn().with_context(|| format!("failed to start `{program}`"))?;
        // Its ends of the sockets are QEMU's alone, so that they close with it.
        drop((inherited, command));

        watch_process(&qemu, &sender)?;
        let room = supervision.console_is_main.then(|| supervision.main.room());
        let console_events = sender.clone();
        std::thread::spawn(move || read_console(stdout, &console_events, room.as_ref()));
        let mut stderr = qemu.stderr.take();
        let (complain, complaint) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(stderr) = &mut stderr {
                // Bounded: a QEMU that complains for ever is not to fill our memory.
                let _ = stderr.take(64 * 1024).read_to_end(&mut text);
                let _ = io::copy(stderr, &mut io::sink());
            }
            let _ = complain.send(String::from_utf8_lossy(&text).trim().to_owned());
        });
        if let Some(stdin) = qemu.stdin.take() {
            std::thread::spawn(move || type_on_console(stdin));
        }
        let places = Places::of_this_process();
        if let Some(listener) = supervision.clients.take() {
            let (sender, places) = (sender.clone(), Arc::clone(&places));
            std::thread::spawn(move || accept_clients(&listener, &places, &sender));
        }
        Ok(Supervisor {
            qemu,
            events,
            sender,
            switchboard: Switchboard::new(agent, supervision.main),
            places,
            complaint,
            limits: supervision.limits,
            console_is_main: supervision.console_is_main,
            log,
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
        let mut life = Lifecycle::launched(Instant::now(), self.limits, self.switchboard.has_agent());
        let mut console = Console::default();
        let agent = self.switchboard.has_agent();
        let mut open = Open { qemu: true, console: true, agent, last_words_until: None };
        let mut abandoned = false;
        while !abandoned && open.any() {
            let deadline = life.deadline().into_iter().chain(open.last_words_until).min();
            let event = match deadline {
                Some(deadline) => {
                    self.events.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                }
                None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let now = Instant::now();
            let mut actions = match event {
                Ok(event) => self.take(event, now, &mut life, &mut console, &mut open),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            actions.extend(life.tick(now));
            for action in actions {
                match action {
                    Action::Tell(frame) => self.switchboard.tell(frame),
                    // It may have ended by itself in this moment.
                    Action::Kill => drop(self.qemu.kill()),
                    Action::Abandon => abandoned = true,
                }
            }
            if open.last_words_until.is_some_and(|until| until <= now) {
                break;
            }
        }
        let complaint = if abandoned {
            note!("warning: QEMU (process {}) was killed and does not end", self.qemu.id());
            None
        } else {
            self.complaint()?
        };
        let outcome = life.qemu_ended(complaint);
        self.switchboard.say_farewell(outcome.exit_code());
        Ok(Ending { outcome, last_lines: console.last_lines(), places: self.places })
    }

    /// One thing that happened.
    fn take(
        &mut self,
        event: Event,
        now: Instant,
        life: &mut Lifecycle,
        console: &mut Console,
        open: &mut Open,
    ) -> Vec<Action> {
        match event {
            Event::Console(bytes) => return self.hear_console(bytes, now, life, console),
            Event::ConsoleClosed => open.console = false,
            Event::QemuEnded => {
                open.qemu = false;
                open.last_words_until = now.checked_add(LAST_WORDS);
            }
            Event::AgentClosed(cause) => {
                open.agent = false;
                return cause.map_or_else(Vec::new, |cause| life.agent_failed(now, cause));
            }
            Event::Agent(frame) => return self.hear_agent(frame, now, life),
            Event::Connected(client, wire) => self.switchboard.connected(client, wire),
            Event::Client(_, Frame { message: Message::Shutdown { signal, grace_seconds }, .. }) => {
                return life.stop(now, signal, Duration::from_secs(grace_seconds.into()));
            }
            Event::Client(client, frame) => self.switchboard.client_says(client, frame),
            Event::Gone(client) => self.switchboard.drop_client(client),
            Event::Names(lines) => {
                self.switchboard.tell(Frame::new(MACHINE_CHANNEL, Message::Hosts(lines)));
            }
            Event::Signal(signal) => return life.signal(now, signal),
        }
        Vec::new()
    }

    fn hear_console(
        &mut self,
        bytes: Vec<u8>,
        now: Instant,
        life: &mut Lifecycle,
        console: &mut Console,
    ) -> Vec<Action> {
        self.log.write(&bytes);
        life.console_spoke();
        let verdicts = console.push(&bytes);
        let actions = verdicts.into_iter().flat_map(|verdict| life.verdict(now, verdict)).collect();
        let notes = console.take_notes();
        if self.console_is_main {
            self.switchboard.console_says(bytes);
        } else {
            notes.iter().for_each(|line| note!("{line}"));
        }
        actions
    }

    fn hear_agent(&mut self, frame: Frame, now: Instant, life: &mut Lifecycle) -> Vec<Action> {
        match (frame.channel, &frame.message) {
            (MACHINE_CHANNEL, Message::Hello { version }) if *version != VERSION => {
                let cause = format!(
                    "the guest's init speaks version {version} of the agent protocol, this workbench {VERSION}"
                );
                return life.agent_failed(now, cause);
            }
            (MACHINE_CHANNEL, Message::Pong(number)) => life.answered(*number),
            _ => match self.switchboard.agent_says(frame) {
                Err(cause) => return life.agent_failed(now, cause),
                Ok(None) => {}
                Ok(Some(MainNews::Started)) => life.main_started(),
                Ok(Some(MainNews::Ended(outcome))) => life.main_ended(now, outcome),
            },
        }
        Vec::new()
    }

    /// Waits for QEMU, which has ended, and says what it complained of where it failed.
    fn complaint(&mut self) -> anyhow::Result<Option<String>> {
        let status = self.qemu.wait().context("failed to wait for QEMU")?;
        if status.success() {
            return Ok(None);
        }
        let said = self.complaint.recv_timeout(LAST_WORDS).unwrap_or_default();
        Ok(Some(match said.lines().last() {
            Some(line) => format!("QEMU failed: {}", line.trim_start_matches("qemu-system-x86_64: ")),
            None => format!("QEMU ended with {status}"),
        }))
    }
}

/// What has not ended yet.
#[derive(Debug)]
struct Open {
    qemu: bool,
    console: bool,
    agent: bool,
    /// QEMU has ended; somebody else may hold its streams open.
    last_words_until: Option<Instant>,
}

impl Open {
    fn any(&self) -> bool {
        self.qemu || self.console || self.agent
    }
}

/// The least that QEMU needs for a machine's devices.
fn rights(machine: &Machine, program: &Utf8Path) -> Rights {
    let files = match machine.shares.iter().map(|share| share.read_only).reduce(|all, one| all && one) {
        None => Files::None,
        Some(true) => Files::Read,
        Some(false) => Files::Write,
    };
    let low_port = match &machine.network {
        Network::User { ports, .. } => ports.iter().any(|port| is_low(port.host)),
        Network::None => false,
    };
    let kvm = machine.accelerator == Accelerator::Kvm;
    Rights::least(std::process::id(), program, files, low_port, kvm)
}
