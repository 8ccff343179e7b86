//! `setup`: installs every tool that tasks use.

use super::Context;
use crate::host::setup::require;
use crate::host::tools::Purpose;
use crate::note;

/// Install every tool that the tasks use and this host lacks
#[derive(Debug, clap::Args)]
pub struct SetupArgs {
    /// Also what the tests need
    #[arg(long)]
    pub tests: bool,
}

impl SetupArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let mut purposes = Purpose::FIRST_BOOT.to_vec();
        purposes.push(Purpose::Collect);
        if self.tests {
            purposes.push(Purpose::Test);
        }
        if require(&purposes, context.consent)? {
            note!("installed; `cargo xtask doctor` shows what this host can do");
        } else {
            note!("everything is there");
        }
        Ok(0)
    }
}
