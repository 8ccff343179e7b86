//! PID 1's one loop: it serves the agent's channels, reaps what dies, and ends when the main process has ended.
//!
//! One thread and one `poll`; every descriptor is non-blocking and every queue bounded, by the protocol's credit or
//! by not reading on. What the host says is in [`host`], how the machine comes to its end in [`ending`].

mod ending;
mod host;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use init::boot_config::{BootConfig, Command, Stdio};
use init::protocol::{Failure, MAIN_CHANNEL, Message, Program, Stream, WindowSize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::agent::{Agent, PIECE};
use crate::channel::Channel;
use crate::log;
use crate::process::{self, Streams};
use crate::program::{AGENT_FAILED, failure};
use crate::session::{self, Sweep};
use ending::Phase;

/// A main terminal's size until the host tells it.
const FIRST_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// Runs the main process and serves the agent until all is over. Yields the exit code of the machine.
///
/// # Errors
/// Only what PID 1 cannot work without: its signals.
pub(crate) fn supervise(
    config: &BootConfig,
    main: Result<Command, Failure>,
    agent: Option<Agent>,
) -> Result<u8> {
    let (ours, theirs) = UnixStream::pair().context("cannot create a socket pair for signals")?;
    let signals = SignalDelivery::with_pipe(ours, theirs, SignalOnly, [SIGCHLD, SIGINT, SIGTERM])
        .context("cannot receive signals")?;
    let mut supervisor = Supervisor {
        signals,
        agent,
        channels: BTreeMap::new(),
        sweeps: Vec::new(),
        phase: Phase::Running { stop: None },
        main_command: main.clone().ok(),
        stop_signal: config.stop_signal,
        through_agent: config.stdio != Stdio::Console,
        hurried: false,
        turn: 0,
        buffer: vec![0; PIECE],
    };
    if let Err(failure) = main.and_then(|command| supervisor.start_main(command, config.stdio)) {
        supervisor.main_failed(failure);
    }
    Ok(supervisor.run())
}

struct Supervisor {
    signals: SignalDelivery<UnixStream, SignalOnly>,
    agent: Option<Agent>,
    channels: BTreeMap<u32, Channel>,
    /// Sessions whose host side has gone, until nothing of them is left.
    sweeps: Vec<Sweep>,
    phase: Phase,
    /// What other commands inherit environment, directory and user from.
    main_command: Option<Command>,
    /// Number of the signal that asks the main process to end.
    stop_signal: i32,
    /// The main process's streams go to the host.
    through_agent: bool,
    /// The host has asked for the end.
    hurried: bool,
    /// Turns of the loop, for fairness.
    turn: usize,
    buffer: Vec<u8>,
}

/// What `poll` found ready.
#[derive(Clone, Copy)]
enum Ready {
    Signals,
    Agent,
    Status(u32),
    Input(u32),
    Output(u32, Stream),
}

impl Supervisor {
    fn run(&mut self) -> u8 {
        loop {
            if let Some(agent) = &mut self.agent {
                agent.flush();
            }
            if let Some(code) = self.advance(Instant::now()) {
                return code;
            }
            let mut ready = self.wait();
            // Each turn begins with another channel, so that none is served first for ever.
            self.turn = self.turn.wrapping_add(1);
            let first = self.turn.checked_rem(ready.len()).unwrap_or(0);
            ready.rotate_left(first);
            for ready in ready {
                self.serve(ready, Instant::now());
            }
            self.settle(Instant::now());
        }
    }

    /// Waits until something is ready or a deadline has come.
    fn wait(&self) -> Vec<Ready> {
        let mut watched: Vec<(Ready, BorrowedFd<'_>, PollFlags)> = Vec::new();
        watched.push((Ready::Signals, self.signals.get_read().as_fd(), PollFlags::IN));
        if let Some(agent) = &self.agent {
            watched.push((Ready::Agent, agent.watch(), PollFlags::IN));
        }
        for (&id, channel) in &self.channels {
            if let Some(fd) = channel.status_fd() {
                watched.push((Ready::Status(id), fd.as_fd(), PollFlags::IN));
            }
            if let Some(fd) = channel.input_fd() {
                watched.push((Ready::Input(id), fd.as_fd(), PollFlags::OUT));
            }
            for (stream, fd) in channel.output_fds().filter(|_| self.takes_output()) {
                watched.push((Ready::Output(id, stream), fd.as_fd(), PollFlags::IN));
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let timeout = self.next_deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {
                let ready = fds.iter().zip(&watched).filter(|(fd, _)| !fd.revents().is_empty());
                ready.map(|(_, (what, ..))| *what).collect()
            }
            Err(Errno::INTR) => Vec::new(),
            Err(e) => {
                // Out of memory: there may be some again in a moment.
                log::say(format_args!("cannot wait for events: {e}"));
                std::thread::sleep(Duration::from_millis(100));
                Vec::new()
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let lingering = self.channels.values().filter_map(Channel::gives_up_at);
        let sweeps = self.sweeps.iter().map(|sweep| sweep.due);
        self.phase_deadline().into_iter().chain(lingering).chain(sweeps).min()
    }

    fn takes_output(&self) -> bool {
        self.agent.as_ref().is_some_and(Agent::takes_output)
    }

    fn serve(&mut self, ready: Ready, now: Instant) {
        match ready {
            Ready::Signals => {
                for signal in self.signals.pending() {
                    match signal {
                        SIGCHLD => {
                            self.reap(now);
                        }
                        other => self.signal_main(other),
                    }
                }
            }
            Ready::Agent => {
                for heard in self.agent.as_mut().map(Agent::hear).unwrap_or_default() {
                    self.heard(heard, now);
                }
            }
            Ready::Status(id) => self.read_status(id),
            Ready::Input(id) => {
                let credit = self.channels.get_mut(&id).map_or(0, Channel::write_input);
                self.grant_input(id, credit);
            }
            Ready::Output(id, stream) => {
                if self.takes_output()
                    && let Some(channel) = self.channels.get_mut(&id)
                    && let Some(message) = channel.read_output(stream, &mut self.buffer, now)
                {
                    self.send(id, message);
                }
            }
        }
    }

    fn send(&mut self, channel: u32, message: Message) {
        if let Some(agent) = &mut self.agent {
            agent.send(channel, message);
        }
    }

    fn grant_input(&mut self, id: u32, bytes: u32) {
        if bytes > 0 {
            self.send(id, Message::Credit(Stream::Stdin, bytes));
        }
    }

    fn start_main(&mut self, command: Command, stdio: Stdio) -> Result<(), Failure> {
        let streams = match stdio {
            Stdio::Agent { tty: true, stdin } => Streams::Terminal { size: FIRST_SIZE, stdin },
            Stdio::Agent { tty: false, stdin } => Streams::Pipes { stdin },
            Stdio::Console => Streams::Console(
                process::open_console().map_err(|e| failure(AGENT_FAILED, format!("{e:#}")))?,
            ),
        };
        self.start_channel(MAIN_CHANNEL, &Program::Command(command), streams)
    }

    fn start_channel(&mut self, id: u32, program: &Program, streams: Streams) -> Result<(), Failure> {
        let process =
            process::start(program, streams).map_err(|e| failure(AGENT_FAILED, format!("{e:#}")))?;
        self.channels.insert(id, Channel::new(process));
        Ok(())
    }

    /// Hears from a child that its program runs, or why not.
    fn read_status(&mut self, id: u32) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        match channel.read_status() {
            None => {}
            Some(Ok(())) => {
                let pid = channel.pid_number();
                self.send(id, Message::Started { pid });
            }
            Some(Err(failure)) => {
                // Its process is about to end by itself, and is reaped as any orphan.
                self.channels.remove(&id);
                if id == MAIN_CHANNEL {
                    self.main_failed(failure);
                } else {
                    self.send(id, Message::Failed(failure));
                }
            }
        }
    }

    /// Takes in every process that has died; yields whether any is left.
    fn reap(&mut self, now: Instant) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let channel = self.channels.iter_mut().find(|(_, channel)| channel.pid == pid);
                    if let (Some((&id, channel)), Some(code)) = (channel, session::exit_code(status)) {
                        channel.ended(code, now);
                        if id == MAIN_CHANNEL {
                            self.main_ended(code);
                        }
                    }
                }
                Ok(None) | Err(Errno::INTR) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Closes channels whose process has ended and whose output was read; ends what is left of closed ones.
    fn settle(&mut self, now: Instant) {
        let over: Vec<(u32, u8)> =
            self.channels.iter().filter_map(|(&id, channel)| Some((id, channel.exit_code(now)?))).collect();
        for (id, code) in over {
            self.channels.remove(&id);
            self.send(id, Message::Exited { code });
        }
        self.sweeps = session::sweep(std::mem::take(&mut self.sweeps), now);
    }

    fn signal_main(&self, number: i32) {
        // The process alone, as docker does it: what its children are told is its own business.
        if let (Some(main), Some(signal)) = (self.channels.get(&MAIN_CHANNEL), session::signal(number)) {
            let _ = kill_process(main.pid, signal);
        }
    }

    fn kill_main(&self) {
        self.signal_main(Signal::KILL.as_raw());
    }
}
