//! How a machine ended, as data: the exit code and, where something went wrong, one sentence.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{EXIT_TIMEOUT, EXIT_WORKBENCH};

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The main process ended with this code (128 + N for signal N).
    Exited(u8),
    /// The main process could not be started; docker's code and one sentence.
    NotStarted {
        /// 125, 126 or 127.
        code: u8,
        /// The cause.
        cause: String,
    },
    /// The guest failed: panic, no root, an init that gave up, QEMU's own end.
    Failed {
        /// The cause in one sentence.
        cause: String,
    },
    /// `--timeout` ran out.
    TimedOut {
        /// The limit that was given.
        limit: Duration,
    },
    /// The machine was ended from outside by this signal.
    Killed(i32),
}

/// How it ended, as in `it ended …`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Exited(code) => write!(f, "with exit code {code}"),
            Outcome::NotStarted { cause, .. } | Outcome::Failed { cause } => write!(f, "because {cause}"),
            Outcome::TimedOut { limit } => write!(f, "by its time limit of {} s", limit.as_secs_f64()),
            Outcome::Killed(number) => write!(f, "by signal {number}"),
        }
    }
}

impl Outcome {
    /// The exit code of `boot` (design: docker's).
    pub fn exit_code(&self) -> u8 {
        match self {
            Outcome::Exited(code) => *code,
            Outcome::NotStarted { code, .. } => *code,
            Outcome::Failed { .. } => EXIT_WORKBENCH,
            Outcome::TimedOut { .. } => EXIT_TIMEOUT,
            Outcome::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }

    /// One sentence for a person, where the exit code alone does not tell.
    pub fn sentence(&self) -> Option<String> {
        match self {
            Outcome::Exited(_) | Outcome::Killed(_) => None,
            Outcome::NotStarted { cause, .. } | Outcome::Failed { cause } => Some(cause.clone()),
            Outcome::TimedOut { limit } => {
                Some(format!("the machine ran longer than {} s", limit.as_secs_f64()))
            }
        }
    }
}
