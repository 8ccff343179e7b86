//! `wait`: until machines end.

use anyhow::Context as _;

use super::Context;
use crate::out;
use crate::vm::client::Client;
use crate::vm::record::run_dir::RunDir;

/// Wait until machines end, and print their exit codes
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// The machines' names
    #[arg(required = true)]
    names: Vec<String>,
}

impl WaitArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        for name in &self.names {
            let run_dir = RunDir::find(&context.workspace, name)?;
            // Over a connection the code arrives even where all that is known goes with the machine.
            let told = match Client::connect(&run_dir) {
                Ok(client) => client.wait_for_end(),
                Err(_) => None,
            };
            run_dir.wait_for_end();
            let code = told.or_else(|| Some(run_dir.state().ended?.outcome.exit_code()));
            out!(
                "{}",
                code.with_context(|| format!("the machine `{name}` was killed, and left no exit code"))?
            );
        }
        Ok(0)
    }
}
