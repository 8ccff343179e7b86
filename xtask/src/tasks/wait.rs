//! `wait`: until machines end.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::Context;
use crate::vm::client::{Client, Silence};
use crate::vm::record::run_dir::RunDir;
use crate::{note, out};

/// Between looks at whether there is anything to wait for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

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
            let told = wait_for(&run_dir);
            let code = told.or_else(|| Some(run_dir.state().ended?.outcome.exit_code()));
            out!(
                "{}",
                code.with_context(|| format!("the machine `{name}` was killed, and left no exit code"))?
            );
        }
        Ok(0)
    }
}

/// Waits for a machine's end, and says its code where it was told.
fn wait_for(run_dir: &RunDir) -> Option<u8> {
    // Over a connection the code arrives even where all that is known goes with the machine.
    let mut client = Client::connect(run_dir).ok();
    let mut told = None;
    let mut has_warned = false;
    loop {
        let next_look = Some(Instant::now() + LOOK_AGAIN);
        if let Some(connected) = &mut client {
            match connected.wait_for_end(next_look) {
                Ok(code) => (told, client) = (Some(code), None),
                Err(Silence::Ended) => client = None,
                Err(Silence::Timeout) => {}
            }
        } else if run_dir.wait_for_end(next_look) {
            return told;
        }
        if !has_warned && let Some(stopped) = run_dir.supervisor().filter(|process| process.is_stopped()) {
            let (name, id) = (run_dir.name(), stopped.id());
            note!("warning: the supervisor of `{name}` is stopped; `kill -CONT {id}` lets it go on");
            has_warned = true;
        }
    }
}
