//! A machine's life as a state machine: what happened goes in, what to do comes out. Pure; time is a parameter.
//!
//! The guest is not believed where it would harm: words on the console that tell of its end are a claim, which counts
//! once QEMU has ended or the agent leaves a question unanswered. Every phase has a deadline that no guest moves.

use std::time::{Duration, Instant};

use init::protocol::{Frame, MACHINE_CHANNEL, Message};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGKILL, SIGTERM};

use super::console::Verdict;
use super::outcome::Outcome;

/// How long each part of a machine's life may take.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// From launch until the main process has started.
    pub start: Duration,
    /// From launch until the main process has ended; `--timeout`.
    pub run: Option<Duration>,
    /// Between the request to end and SIGKILL inside the guest.
    pub grace: Duration,
    /// For the agent to answer, and from the end of the grace until it has said that the main process has ended.
    pub answer: Duration,
    /// From the main process's end until QEMU's.
    pub end: Duration,
}

/// From SIGKILL until QEMU is given up, which then hangs in the host's kernel.
const KILLED: Duration = Duration::from_secs(10);

/// What the supervisor is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Say this to the agent.
    Tell(Frame),
    /// End QEMU now.
    Kill,
    /// Wait for QEMU no longer.
    Abandon,
}

/// Where in its life a machine is, and how it will be said to have ended.
#[derive(Debug)]
pub struct Lifecycle {
    limits: Limits,
    has_agent: bool,
    phase: Phase,
    /// The first thing that decided the end stays.
    outcome: Option<Outcome>,
    claim: Option<Claim>,
    /// Questions that were put to the agent.
    pings: u32,
    /// When the current phase has taken too long.
    phase_deadline: Option<Instant>,
    run_deadline: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The kernel boots, PID 1 prepares. Without an agent nothing tells of the phases in between.
    Booting,
    /// The main process runs.
    Running,
    /// It was asked to end by this signal, and is killed at that time.
    Stopping { signal: i32, grace_ends: Instant },
    /// It has ended; QEMU still runs.
    Ending,
    /// QEMU was killed.
    Killed,
}

/// What the console says of the machine's end.
#[derive(Debug)]
struct Claim {
    cause: String,
    /// The guest's processors stand still, and the console with them.
    is_halt: bool,
    until: Instant,
}

impl Lifecycle {
    /// A machine that was launched now. Without an agent, nothing but the console tells when its command starts.
    pub fn launched(now: Instant, limits: Limits, has_agent: bool) -> Lifecycle {
        Lifecycle {
            limits,
            has_agent,
            phase: Phase::Booting,
            outcome: None,
            claim: None,
            pings: 0,
            phase_deadline: if has_agent { now.checked_add(limits.start) } else { None },
            // A limit beyond all time is none.
            run_deadline: limits.run.and_then(|limit| now.checked_add(limit)),
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let claim = self.claim.as_ref().map(|claim| claim.until);
        [self.phase_deadline, self.run_deadline, claim].into_iter().flatten().min()
    }

    /// The main process runs.
    pub fn main_started(&mut self) {
        if self.phase == Phase::Booting {
            self.phase = Phase::Running;
            self.phase_deadline = None;
        }
    }

    /// The main process ended, or could not be started; PID 1 is about to end the machine.
    pub fn main_ended(&mut self, now: Instant, outcome: Outcome) {
        self.decide(outcome);
        self.claim = None;
        if self.phase != Phase::Killed {
            self.phase = Phase::Ending;
            self.phase_deadline = now.checked_add(self.limits.end);
        }
    }

    /// The console said something about the machine's fate.
    pub fn verdict(&mut self, now: Instant, verdict: Verdict) -> Vec<Action> {
        let (cause, is_halt) = match verdict {
            Verdict::Failed(cause) => (cause, false),
            Verdict::Halted(cause) => (cause, true),
            Verdict::Exited(code) if !self.has_agent => {
                self.main_ended(now, Outcome::Exited(code));
                return Vec::new();
            }
            Verdict::Exited(_) | Verdict::Alive => return Vec::new(),
        };
        // PID 1 answers nothing while it ends the machine, and has said how the main process ended.
        if matches!(self.phase, Phase::Ending | Phase::Killed) || self.claim.is_some() {
            return Vec::new();
        }
        self.claim = Some(Claim { cause, is_halt, until: now + self.limits.answer });
        if !self.has_agent {
            return Vec::new();
        }
        self.pings += 1;
        vec![Action::Tell(Frame::new(MACHINE_CHANNEL, Message::Ping(self.pings)))]
    }

    /// The console goes on.
    pub fn console_spoke(&mut self) {
        if !self.has_agent {
            self.claim.take_if(|claim| claim.is_halt);
        }
    }

    /// The agent answers a question: the machine lives, whatever its console says.
    pub fn answered(&mut self, number: u32) {
        if number == self.pings {
            self.claim = None;
        }
    }

    /// The agent cannot be understood or talked to.
    pub fn agent_failed(&mut self, now: Instant, cause: String) -> Vec<Action> {
        self.kill(now, Outcome::Failed { cause })
    }

    /// Somebody asks the machine to end by this signal: the main process gets it, and the grace to act on it. Asked
    /// again, or where nobody in the guest could hear it, QEMU ends at once.
    pub fn signal(&mut self, now: Instant, signal: i32) -> Vec<Action> {
        if self.phase == Phase::Running {
            self.stop(now, signal, self.limits.grace)
        } else {
            self.kill(now, Outcome::Killed(signal))
        }
    }

    /// The same with a grace of the asker's; signal 0 is the image's own stop signal. Of several requests the one that
    /// ends first counts. SIGKILL pulls the plug: PID 1 of a machine, unlike a container's, can hang.
    pub fn stop(&mut self, now: Instant, signal: i32, grace: Duration) -> Vec<Action> {
        let named = if signal == 0 { SIGTERM } else { signal };
        if signal == SIGKILL || self.phase == Phase::Booting {
            return self.kill(now, Outcome::Killed(named));
        }
        let asked = now + grace;
        let (signal_first, grace_ends) = match self.phase {
            Phase::Stopping { signal, grace_ends } => (signal, grace_ends.min(asked)),
            _ => (named, asked),
        };
        if matches!(self.phase, Phase::Running | Phase::Stopping { .. }) {
            self.phase = Phase::Stopping { signal: signal_first, grace_ends };
            self.phase_deadline = Some(grace_ends + self.limits.answer);
        }
        let left = grace_ends.saturating_duration_since(now);
        let grace_seconds = u32::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        vec![Action::Tell(Frame::new(MACHINE_CHANNEL, Message::Shutdown { signal, grace_seconds }))]
    }

    /// Time passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.run_deadline.take_if(|deadline| *deadline <= now).is_some() {
            let outcome = Outcome::TimedOut { limit: self.limits.run.unwrap_or_default() };
            match self.phase {
                Phase::Booting => return self.kill(now, outcome),
                Phase::Running | Phase::Stopping { .. } => {
                    self.decide(outcome);
                    return self.stop(now, 0, self.limits.grace);
                }
                // It has ended in time.
                Phase::Ending | Phase::Killed => {}
            }
        }
        // A kernel that has panicked ends the machine at once: without an agent to ask, this was somebody else's word.
        if let Some(claim) = self.claim.take_if(|claim| claim.until <= now)
            && (self.has_agent || claim.is_halt)
        {
            let outcome = self.outcome_of(claim);
            return self.kill(now, outcome);
        }
        if self.phase_deadline.take_if(|deadline| *deadline <= now).is_none() {
            return Vec::new();
        }
        let cause = match self.phase {
            Phase::Killed => return vec![Action::Abandon],
            Phase::Booting => {
                format!("the guest did not reach its command within {} s", self.limits.start.as_secs())
            }
            _ => "the guest did not end when it was asked to".to_owned(),
        };
        self.kill(now, Outcome::Failed { cause })
    }

    /// QEMU has ended; `complaint` is what it said where it failed. This is how the machine ended.
    pub fn qemu_ended(mut self, complaint: Option<String>) -> Outcome {
        if let Some(outcome) = self.outcome {
            return outcome;
        }
        if let Some(cause) = complaint {
            return Outcome::Failed { cause };
        }
        if let Some(claim) = self.claim.take() {
            return self.outcome_of(claim);
        }
        match self.phase {
            // An init of the image's own says nothing but its end.
            _ if !self.has_agent => Outcome::Exited(0),
            Phase::Booting => {
                Outcome::Failed { cause: "the guest ended before it reached its command".into() }
            }
            // The command of an image that is a whole system ends the machine when it is asked to end.
            Phase::Stopping { signal, .. } => Outcome::Killed(signal),
            _ => Outcome::Failed { cause: "the guest ended the machine before its command had ended".into() },
        }
    }

    fn outcome_of(&self, claim: Claim) -> Outcome {
        match self.phase {
            _ if claim.is_halt && !self.has_agent => Outcome::Exited(0),
            Phase::Stopping { signal, .. } if claim.is_halt => Outcome::Killed(signal),
            _ => Outcome::Failed { cause: claim.cause },
        }
    }

    fn decide(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    fn kill(&mut self, now: Instant, outcome: Outcome) -> Vec<Action> {
        self.decide(outcome);
        if self.phase != Phase::Killed {
            self.phase = Phase::Killed;
            self.phase_deadline = Some(now + KILLED);
        }
        (self.claim, self.run_deadline) = (None, None);
        vec![Action::Kill]
    }
}

#[cfg(test)]
mod tests;
