//! `test`: sets up what the tests need and runs them.

use std::time::Duration;

use anyhow::Context as _;

use super::Context;
use crate::host::fuzz;
use crate::host::process::{dies_with_us, run_watched};
use crate::host::tools::Purpose;
use crate::kernel::{self, KernelRequest};
use crate::torture::{self, rows};
use crate::{init, note};

/// For each fuzz target.
const FUZZ_TIME: Duration = Duration::from_secs(20);

/// For all trials by force: each kind comes up a few times.
const TORTURE_TIME: Duration = Duration::from_secs(180);

/// Set up what the tests need and run every test, those that boot machines included
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// Leave out what boots a machine
    #[arg(long)]
    quick: bool,

    /// Run slow tests too, fuzz what reads images and the agent's port, and torture tasks and machines
    #[arg(long, conflicts_with = "quick")]
    all: bool,

    /// Words for `cargo test`, such as a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl TestArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        context.require(&Purpose::FIRST_BOOT)?;
        context.require(&[Purpose::Collect, Purpose::Test])?;
        if !self.quick {
            // Made here, where progress can be seen, and shared by all tests.
            let kernel = kernel::ensure(context, &KernelRequest::default())?;
            note!("testing with kernel {}", kernel.description);
            init::ensure(context)?;
            let script = context.workspace.scripts_folder().join("stand-in-base");
            let folder = context.workspace.cache().join("stand-in");
            run_watched(
                "the script `stand-in-base`",
                &duct::cmd!(script.as_std_path(), folder.as_str()),
                |_| {},
            )
            .context("failed to make the base image for the tests")?;
        }
        let mut words = vec!["test".to_owned(), "--workspace".to_owned()];
        if self.quick {
            words.extend(
                ["--lib", "--bins", "--test", "cli", "--test", "collect", "--test", "image"]
                    .map(str::to_owned),
            );
        }
        words.push("--".into());
        if self.all {
            words.push("--include-ignored".into());
        }
        words.extend(self.arguments.iter().cloned());
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let status = dies_with_us(&duct::cmd(cargo, words))
            .dir(context.workspace.root())
            .stdin_null()
            .unchecked()
            .run()
            .context("failed to start cargo")?
            .status;
        if !status.success() {
            return Ok(1);
        }
        if self.all {
            context.require(&[Purpose::Fuzz])?;
            fuzz::run(context.workspace.root(), FUZZ_TIME)?;
            let plan = torture::Plan { rows: rows::divide(&[], TORTURE_TIME), seed: torture::any_seed() };
            return Ok(u8::from(!torture::run(context, &plan)?));
        }
        Ok(0)
    }
}
