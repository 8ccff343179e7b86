//! `rm`: removes what is known of machines.

use super::{Context, each};
use crate::vm::client::control;
use crate::vm::record::run_dir::RunDir;

/// Remove machines that have ended: their logs, and what is known of them
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// The machines' names
    #[arg(required = true)]
    names: Vec<String>,

    /// End those that run, at once
    #[arg(short, long)]
    force: bool,
}

impl RmArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        Ok(each(&self.names, |name| {
            let run_dir = RunDir::find(&context.workspace, name)?;
            if self.force && run_dir.is_running() {
                control::pull_the_plug(&run_dir)?;
            }
            run_dir.remove_ended()
        }))
    }
}
