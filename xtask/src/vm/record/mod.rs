//! What is known of a machine, as data in its folder: what it is, which never changes, and what became of it.

pub mod console_log;
pub mod holder;
pub mod output_log;
pub mod recorder;
pub mod run_dir;

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::config::Healthcheck;
use crate::vm::machine::{Accelerator, PublishedPort};
use crate::vm::supervise::outcome::Outcome;
use run_dir::RunDir;

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Where its disk came from, for people.
    pub image: String,
    /// When it was made.
    pub created: Timestamp,
    /// Program and arguments of its main process; empty where the image's own init decides.
    pub command: Vec<String>,
    /// Ports of the host that lead into it.
    pub ports: Vec<PublishedPort>,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// How instructions are run.
    pub accelerator: Accelerator,
    /// How to see whether it is well.
    pub healthcheck: Option<Healthcheck>,
    /// What is known of it stays after its end.
    pub kept: bool,
}

/// What became of a machine so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its supervisor's process on the host.
    pub supervisor: Option<u32>,
    /// QEMU's process on the host.
    pub qemu: Option<u32>,
    /// When its main process started.
    pub started: Option<Timestamp>,
    /// What its health check found; `None` where it has none.
    pub health: Option<Health>,
    /// How it ended.
    pub ended: Option<Ended>,
}

/// What a health check found, in docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No check has succeeded yet, and few enough have failed.
    Starting,
    /// The latest check succeeded.
    Healthy,
    /// Too many checks in a row have failed.
    Unhealthy,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// How.
    pub outcome: Outcome,
    /// The console's last lines.
    pub last_lines: Vec<String>,
}

/// Where in its life a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its kernel and PID 1 are on the way to the command.
    Booting,
    /// Its main process runs.
    Running,
    /// It has ended, and its supervisor said how.
    Ended,
    /// Its supervisor was killed before it could say anything.
    Killed,
}

impl State {
    /// Where in its life the machine is, given whether its supervisor lives.
    pub fn phase(&self, is_running: bool) -> Phase {
        match (is_running, &self.ended, self.started) {
            (_, Some(_), _) => Phase::Ended,
            (false, None, _) => Phase::Killed,
            (true, None, Some(_)) => Phase::Running,
            (true, None, None) => Phase::Booting,
        }
    }
}

impl Health {
    /// docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        }
    }
}

/// The state of a machine as its supervisor keeps it: every change is written down.
#[derive(Debug)]
pub struct Record {
    run_dir: RunDir,
    state: Mutex<State>,
}

impl Record {
    /// The record of a machine that was just launched.
    pub fn new(run_dir: RunDir, state: State) -> Record {
        let record = Record { run_dir, state: Mutex::new(State::default()) };
        record.update(|known| *known = state);
        record
    }

    /// Changes the state and writes it down.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        self.change(change, RunDir::write_state);
    }

    /// Writes down how the machine ended, also where the disk is full; for good.
    pub fn end(&self, ended: Ended) {
        self.change(|state| state.ended = Some(ended), RunDir::write_end);
    }

    fn change(
        &self,
        change: impl FnOnce(&mut State),
        write: impl FnOnce(&RunDir, &State) -> anyhow::Result<()>,
    ) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        if let Err(error) = write(&self.run_dir, &state) {
            // The machine itself is not to suffer for it.
            crate::note!("warning: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_nobody_holds_tells_a_killed_supervisor_from_a_living_one() {
        let now = Timestamp::UNIX_EPOCH;
        let mut state = State::default();
        assert_eq!(state.phase(true), Phase::Booting);
        state.started = Some(now);
        assert_eq!(state.phase(true), Phase::Running);
        assert_eq!(state.phase(false), Phase::Killed);
        state.ended = Some(Ended { at: now, outcome: Outcome::Exited(3), last_lines: vec![] });
        assert_eq!(state.phase(false), Phase::Ended);
    }
}
