//! `supervise`: the process behind `boot -d`. Not for people.

use super::Context;
use crate::boot::background;
use crate::vm::record::run_dir::{RunDir, parse_name};

/// Supervise a machine that `boot -d` has made
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct SuperviseArgs {
    #[arg(value_parser = parse_name)]
    name: String,
}

impl SuperviseArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let run_dir = RunDir::named(&context.workspace, &self.name);
        let ended = background::supervise(&run_dir)?;
        // Whoever waits for the start clears away what did not come to it.
        if run_dir.state().started.is_some() {
            if run_dir.description()?.kept { run_dir.retire()? } else { run_dir.remove()? }
        }
        Ok(ended.outcome.exit_code())
    }
}
