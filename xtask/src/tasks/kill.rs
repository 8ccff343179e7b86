//! `kill`: a signal for machines' main processes.

use super::{Context, each};
use crate::vm::client::control;
use crate::vm::record::run_dir::RunDir;
use crate::vm::signal;

/// Send a signal to machines' main processes
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// The machines' names
    #[arg(required = true)]
    names: Vec<String>,

    /// Which signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal::parse)]
    signal: i32,
}

impl KillArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        Ok(each(&self.names, |name| {
            let run_dir = RunDir::find_running(&context.workspace, name)?;
            control::signal(&run_dir, self.signal)
        }))
    }
}
