//! `stop`: ends machines in good order.

use super::{Context, each};
use crate::vm::client::control;
use crate::vm::record::run_dir::RunDir;

/// End machines: send the image's STOPSIGNAL, wait, then kill
///
/// The guest syncs and unmounts in every case, so that a kept disk is clean.
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// The machines' names
    #[arg(required = true)]
    names: Vec<String>,

    /// Seconds between the signal and SIGKILL
    #[arg(short = 't', long = "time", value_name = "SECONDS", default_value_t = 10)]
    seconds: u32,
}

impl StopArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        Ok(each(&self.names, |name| {
            let run_dir = RunDir::find(&context.workspace, name)?;
            control::stop(&run_dir, 0, self.seconds)
        }))
    }
}
