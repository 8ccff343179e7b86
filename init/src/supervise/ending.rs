//! How the machine comes to its end: the main process ends and its last words are delivered, then everything else is
//! ended, then what that leaves to say is delivered. Each part has its deadline.

use std::time::{Duration, Instant};

use init::protocol::{EXIT_MARKER, Failure, MAIN_CHANNEL, Message};
use rustix::process::Signal;

use super::Supervisor;
use crate::{log, session};

/// How long the main process's last words wait for a host that takes none of them.
const PATIENCE_WITH_HOST: Duration = Duration::from_secs(60);
/// The same, when no host listens or it has asked for the end.
const PATIENCE_WITHOUT_HOST: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL for what is left when the main process has ended.
const TERM_GRACE: Duration = Duration::from_secs(1);
/// From SIGKILL to giving up on a process that the kernel does not let go of.
const KILL_GRACE: Duration = Duration::from_secs(3);
/// For what the ends of the other channels leave to say.
const FLUSH_GRACE: Duration = Duration::from_secs(2);

/// How far the machine is on its way to its end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    /// The main process runs.
    Running {
        /// It was asked to end.
        stop: Option<Stop>,
    },
    /// It has ended; what it said last, and its code, are on the way to the host.
    Delivering { code: u8, since: Instant },
    /// Everything else was asked to end, then made to.
    Ending { code: u8, deadline: Instant, killed: bool },
    /// Nothing runs; the last words of all are on the way.
    Flushing { code: u8, deadline: Instant },
}

/// A main process that was asked to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    deadline: Instant,
    killed: bool,
}

impl Supervisor {
    pub(super) fn shut_down(&mut self, signal: i32, grace: Duration, now: Instant) {
        self.hurried = true;
        self.signal_main(signal);
        if let (Phase::Running { .. }, Some(deadline)) = (self.phase, now.checked_add(grace)) {
            self.phase = Phase::Running { stop: Some(Stop { deadline, killed: false }) };
        }
    }

    pub(super) fn main_failed(&mut self, failure: Failure) {
        log::say(format_args!("cannot start the main process: {}", failure.message));
        let code = failure.code;
        self.send(MAIN_CHANNEL, Message::Failed(failure));
        self.main_ended(code);
    }

    pub(super) fn main_ended(&mut self, code: u8) {
        if let Phase::Running { .. } = self.phase {
            self.phase = Phase::Delivering { code, since: Instant::now() };
        }
    }

    pub(super) fn phase_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running { stop } => stop.map(|stop| stop.deadline),
            Phase::Delivering { since, .. } => Some(self.patience_ends(since)),
            Phase::Ending { deadline, .. } | Phase::Flushing { deadline, .. } => Some(deadline),
        }
    }

    fn patience_ends(&self, since: Instant) -> Instant {
        match &self.agent {
            Some(agent) if agent.has_host() => {
                let patience = if self.hurried { PATIENCE_WITHOUT_HOST } else { PATIENCE_WITH_HOST };
                since.max(agent.last_progress()) + patience
            }
            Some(_) if self.through_agent => since + PATIENCE_WITHOUT_HOST,
            _ => since,
        }
    }

    /// Goes on to the next phase where it is time to. Yields the exit code at the end of the last.
    pub(super) fn advance(&mut self, now: Instant) -> Option<u8> {
        match self.phase {
            Phase::Running { stop: Some(stop) } if now >= stop.deadline => {
                if stop.killed {
                    log::say("the main process does not end, and is left behind");
                    self.main_ended(session::killed_code());
                } else {
                    self.kill_main();
                    let stop = Stop { deadline: now + KILL_GRACE, killed: true };
                    self.phase = Phase::Running { stop: Some(stop) };
                }
            }
            Phase::Delivering { code, since } if self.is_delivered() || now >= self.patience_ends(since) => {
                log::raw(format!("{EXIT_MARKER}{code}\n"));
                self.channels.remove(&MAIN_CHANNEL);
                session::signal_everything(Signal::TERM);
                // A shell with a user at it ignores SIGTERM.
                session::signal_everything(Signal::HUP);
                self.phase = Phase::Ending { code, deadline: now + TERM_GRACE, killed: false };
                return self.advance(now);
            }
            Phase::Ending { code, deadline, killed } => {
                let any_left = self.reap(now);
                if !any_left || (killed && now >= deadline) {
                    self.phase = Phase::Flushing { code, deadline: now + FLUSH_GRACE };
                    return self.advance(now);
                }
                if now >= deadline {
                    session::signal_everything(Signal::KILL);
                    self.phase = Phase::Ending { code, deadline: now + KILL_GRACE, killed: true };
                }
            }
            Phase::Flushing { code, deadline } => {
                self.settle(now);
                let listener = self.agent.as_mut().filter(|agent| agent.has_host());
                let nothing_to_say = listener.is_none_or(|agent| {
                    agent.flush();
                    self.channels.is_empty() && !agent.has_queued(None)
                });
                if nothing_to_say || now >= deadline {
                    return Some(code);
                }
            }
            Phase::Running { .. } | Phase::Delivering { .. } => {}
        }
        None
    }

    fn is_delivered(&self) -> bool {
        let queued = self.agent.as_ref().is_some_and(|agent| agent.has_queued(Some(MAIN_CHANNEL)));
        !queued && !self.channels.contains_key(&MAIN_CHANNEL)
    }
}
