//! The command line. Doc comments here and in the tasks are the help.

use clap::{Parser, Subcommand};

use crate::host::setup::Consent;
use crate::tasks::{Context, bench, boot, collect, doctor, image, init, kernel, setup, status, test, volume};
use crate::workspace::Workspace;

/// Run a container image as a QEMU microVM
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version, max_term_width = 100)]
pub struct Cli {
    /// Install missing packages without asking
    #[arg(short, long, global = true)]
    pub yes: bool,

    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    Boot(Box<boot::BootArgs>),
    Image(image::ImageArgs),
    Volume(volume::VolumeArgs),
    Kernel(kernel::KernelArgs),
    Init(init::InitArgs),
    Collect(collect::CollectArgs),
    Setup(setup::SetupArgs),
    Status(status::StatusArgs),
    Doctor(doctor::DoctorArgs),
    Test(test::TestArgs),
    Bench(bench::BenchArgs),
}

impl Cli {
    /// Runs the task and returns the process's exit code.
    pub fn run(self) -> anyhow::Result<u8> {
        let context = Context {
            workspace: Workspace::discover()?,
            consent: if self.yes { Consent::Given } else { Consent::Ask },
        };
        match self.task.unwrap_or(Task::Status(status::StatusArgs::default())) {
            Task::Boot(args) => args.run(&context),
            Task::Image(args) => args.run(&context),
            Task::Volume(args) => args.run(&context),
            Task::Kernel(args) => args.run(&context),
            Task::Init(args) => args.run(&context),
            Task::Collect(args) => args.run(&context),
            Task::Status(args) => args.run(&context),
            Task::Setup(args) => args.run(&context),
            Task::Doctor(args) => args.run(&context),
            Task::Test(args) => args.run(&context),
            Task::Bench(args) => args.run(&context),
        }
    }
}
