//! `torture`: trials by force, and a table of those that were lost.

use std::time::Duration;

use clap::Args;

use super::Context;
use crate::host::tools::Purpose;
use crate::torture::{self, rows};

/// Kill, stall and starve tasks and machines at random moments, and count what is lost
#[derive(Debug, Args)]
pub struct TortureArgs {
    /// How long to go on; the rows share the time
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u64,

    /// This row only, or so many trials of it (`boots=1000`); may be given several times
    #[arg(long, value_name = "ROW[=COUNT]")]
    only: Vec<rows::Wish>,

    /// Of the first trial of each row, to repeat one [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
}

impl TortureArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let time = Duration::from_secs(self.minutes.saturating_mul(60));
        let seed = self.seed.unwrap_or_else(torture::any_seed);
        context.require(&Purpose::FIRST_BOOT)?;
        context.require(&[Purpose::Test])?;
        let plan = torture::Plan { rows: rows::divide(&self.only, time), seed };
        Ok(u8::from(!torture::run(context, &plan)?))
    }
}
