//! `setup`: installs every tool that tasks use.

use super::Context;
use crate::host::setup::install;
use crate::host::tools::{self, Purpose};
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
        let missing = tools::missing(&purposes);
        if missing.is_empty() {
            note!("everything is there");
        } else {
            install(&missing, context.consent)?;
            note!("installed; `cargo xtask doctor` shows what this host can do");
        }
        Ok(0)
    }
}
