//! A machine's life as a state machine: what happened goes in, what to do comes out. Pure; time is a parameter.

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
    /// From the main process's end until QEMU's.
    pub end: Duration,
}

/// What the supervisor is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Say this to the agent.
    Tell(Frame),
    /// End QEMU now.
    Kill,
}

/// Where in its life a machine is, and how it will be said to have ended.
#[derive(Debug)]
pub struct Lifecycle {
    limits: Limits,
    has_agent: bool,
    phase: Phase,
    /// The first thing that decided the end stays.
    outcome: Option<Outcome>,
    /// When the current phase has taken too long.
    phase_deadline: Option<Instant>,
    run_deadline: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The kernel boots, PID 1 prepares.
    Booting,
    /// The main process runs.
    Running,
    /// The end was asked for, or has come; QEMU still runs.
    Ending,
}

impl Lifecycle {
    /// A machine that was launched now. Without an agent, nothing but the console tells when its command starts.
    pub fn launched(now: Instant, limits: Limits, has_agent: bool) -> Lifecycle {
        Lifecycle {
            limits,
            has_agent,
            phase: Phase::Booting,
            outcome: None,
            phase_deadline: has_agent.then(|| now + limits.start),
            run_deadline: limits.run.map(|limit| now + limit),
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        [self.phase_deadline, self.run_deadline].into_iter().flatten().min()
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
        self.end(now, self.limits.end);
    }

    /// The console said something about the machine's fate.
    pub fn verdict(&mut self, now: Instant, verdict: Verdict) {
        match verdict {
            Verdict::Failed(cause) => {
                self.decide(Outcome::Failed { cause });
                self.end(now, self.limits.end);
            }
            Verdict::Exited(code) if !self.has_agent => {
                self.decide(Outcome::Exited(code));
                self.end(now, self.limits.end);
            }
            Verdict::Exited(_) | Verdict::Alive => {}
        }
    }

    /// The agent cannot be understood or talked to.
    pub fn agent_failed(&mut self, cause: String) -> Vec<Action> {
        self.decide(Outcome::Failed { cause });
        vec![Action::Kill]
    }

    /// Somebody asks the machine to end by this signal: the main process gets it, and the grace to act on it. Asked
    /// again, or where nobody in the guest could hear it, QEMU ends at once.
    pub fn signal(&mut self, now: Instant, signal: i32) -> Vec<Action> {
        if self.phase != Phase::Running || !self.has_agent {
            self.decide(Outcome::Killed(signal));
            return vec![Action::Kill];
        }
        self.stop(now, signal, self.limits.grace)
    }

    /// The same with a grace of the asker's; signal 0 is the image's own stop signal. SIGKILL pulls the plug: PID 1 of
    /// a machine, unlike a container's, can hang.
    pub fn stop(&mut self, now: Instant, signal: i32, grace: Duration) -> Vec<Action> {
        if signal == SIGKILL || self.phase == Phase::Booting {
            self.decide(Outcome::Killed(if signal == 0 { SIGTERM } else { signal }));
            return vec![Action::Kill];
        }
        self.end(now, grace + self.limits.end);
        let grace_seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        vec![Action::Tell(Frame::new(MACHINE_CHANNEL, Message::Shutdown { signal, grace_seconds }))]
    }

    /// Time passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.run_deadline.is_some_and(|deadline| deadline <= now) {
            self.run_deadline = None;
            if self.phase != Phase::Ending {
                self.decide(Outcome::TimedOut { limit: self.limits.run.unwrap_or_default() });
                return if self.phase == Phase::Running && self.has_agent {
                    self.stop(now, 0, self.limits.grace)
                } else {
                    vec![Action::Kill]
                };
            }
        }
        if self.phase_deadline.is_some_and(|deadline| deadline <= now) {
            self.phase_deadline = None;
            let cause = match self.phase {
                Phase::Booting => {
                    format!("the guest did not reach its command within {} s", self.limits.start.as_secs())
                }
                Phase::Running | Phase::Ending => "the guest did not end when it was asked to".to_owned(),
            };
            self.decide(Outcome::Failed { cause });
            return vec![Action::Kill];
        }
        Vec::new()
    }

    /// QEMU has ended; `complaint` is what it said where it failed. This is how the machine ended.
    pub fn qemu_ended(self, complaint: Option<String>) -> Outcome {
        if let Some(outcome) = self.outcome {
            return outcome;
        }
        match complaint {
            Some(complaint) => Outcome::Failed { cause: complaint },
            // An init of the image's own says nothing but its end.
            None if !self.has_agent => Outcome::Exited(0),
            None if self.phase == Phase::Booting => {
                Outcome::Failed { cause: "the guest ended before it reached its command".into() }
            }
            None => {
                Outcome::Failed { cause: "the guest ended the machine before its command had ended".into() }
            }
        }
    }

    fn decide(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    fn end(&mut self, now: Instant, limit: Duration) {
        self.phase = Phase::Ending;
        self.phase_deadline = Some(now + limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        start: Duration::from_secs(60),
        run: Some(Duration::from_secs(100)),
        grace: Duration::from_secs(10),
        end: Duration::from_secs(15),
    };

    fn shutdown(signal: i32, grace_seconds: u32) -> Vec<Action> {
        vec![Action::Tell(Frame::new(MACHINE_CHANNEL, Message::Shutdown { signal, grace_seconds }))]
    }

    #[test]
    fn a_guest_that_never_reaches_its_command_is_killed_and_named() {
        let now = Instant::now();
        let mut life = Lifecycle::launched(now, LIMITS, true);
        assert_eq!(life.deadline(), Some(now + LIMITS.start));
        assert_eq!(life.tick(now + Duration::from_secs(59)), []);
        assert_eq!(life.tick(now + LIMITS.start), [Action::Kill]);
        let cause = "the guest did not reach its command within 60 s".to_owned();
        assert_eq!(life.qemu_ended(Some("killed".into())), Outcome::Failed { cause });
    }

    #[test]
    fn the_first_signal_asks_and_the_second_kills() {
        let now = Instant::now();
        let mut life = Lifecycle::launched(now, LIMITS, true);
        life.main_started();
        assert_eq!(life.signal(now, 2), shutdown(2, 10));
        assert_eq!(life.signal(now, 2), [Action::Kill]);
        assert_eq!(life.qemu_ended(None), Outcome::Killed(2));
    }

    #[test]
    fn a_stopped_process_keeps_its_own_exit_code() {
        let now = Instant::now();
        let mut life = Lifecycle::launched(now, LIMITS, true);
        life.main_started();
        life.signal(now, 15);
        life.main_ended(now, Outcome::Exited(3));
        assert_eq!(life.qemu_ended(None), Outcome::Exited(3));
    }

    #[test]
    fn a_signal_during_the_boot_kills_at_once() {
        let now = Instant::now();
        let mut life = Lifecycle::launched(now, LIMITS, true);
        assert_eq!(life.signal(now, 2), [Action::Kill]);
        assert_eq!(life.qemu_ended(None), Outcome::Killed(2));
    }

    #[test]
    fn a_timeout_stops_politely_then_hard() {
        let now = Instant::now();
        let mut life = Lifecycle::launched(now, LIMITS, true);
        life.main_started();
        let late = now + Duration::from_secs(100);
        assert_eq!(life.tick(late), shutdown(0, 10));
        assert_eq!(life.tick(late + Duration::from_secs(25)), [Action::Kill]);
        assert_eq!(life.qemu_ended(None), Outcome::TimedOut { limit: Duration::from_secs(100) });
    }

    #[test]
    fn a_panic_explains_an_end_that_exit_status_does_not() {
        let now = Instant::now();
        let mut life = Lifecycle::launched(now, LIMITS, true);
        life.verdict(now, Verdict::Failed("the kernel found no root file system".into()));
        assert_eq!(
            life.qemu_ended(None),
            Outcome::Failed { cause: "the kernel found no root file system".into() }
        );
    }

    #[test]
    fn a_foreign_init_ends_with_the_code_it_prints_or_zero() {
        let now = Instant::now();
        assert_eq!(Lifecycle::launched(now, LIMITS, false).qemu_ended(None), Outcome::Exited(0));
        let mut life = Lifecycle::launched(now, LIMITS, false);
        life.verdict(now, Verdict::Exited(9));
        assert_eq!(life.qemu_ended(None), Outcome::Exited(9));
    }
}
