//! The command line. Doc comments here and in the tasks are the help.

use clap::{Parser, Subcommand};

use crate::host::setup::Consent;
use crate::tasks::{
    Context, bench, boot, build_inside, check, collect, cp, doctor, exec, image, init, inspect, kernel, kill,
    logs, ps, rm, setup, shell, status, stop, supervise, test, torture, volume, wait,
};
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
    Ps(ps::PsArgs),
    Logs(logs::LogsArgs),
    Exec(exec::ExecArgs),
    Shell(shell::ShellArgs),
    Cp(cp::CpArgs),
    Stop(stop::StopArgs),
    Kill(kill::KillArgs),
    Wait(wait::WaitArgs),
    Rm(rm::RmArgs),
    Inspect(inspect::InspectArgs),
    Supervise(supervise::SuperviseArgs),
    Image(image::ImageArgs),
    BuildInside(build_inside::BuildInsideArgs),
    Volume(volume::VolumeArgs),
    Kernel(kernel::KernelArgs),
    Init(init::InitArgs),
    Collect(collect::CollectArgs),
    Setup(setup::SetupArgs),
    Status(status::StatusArgs),
    Doctor(doctor::DoctorArgs),
    Check(check::CheckArgs),
    Test(test::TestArgs),
    Bench(bench::BenchArgs),
    Torture(torture::TortureArgs),
}

impl Cli {
    /// Runs the task and returns the process's exit code.
    pub fn run(self) -> anyhow::Result<u8> {
        let context = Context {
            workspace: Workspace::discover()?,
            consent: if self.yes { Consent::Given } else { Consent::Ask },
        };
        let task = self.task.unwrap_or(Task::Status(status::StatusArgs::default()));
        match task {
            Task::Boot(_)
            | Task::Image(_)
            | Task::Kernel(_)
            | Task::Init(_)
            | Task::Collect(_)
            | Task::Test(_)
            | Task::Bench(_)
            | Task::Torture(_) => context.workspace.create_private()?,
            _ => context.workspace.make_private()?,
        }
        match task {
            Task::Boot(args) => args.run(&context),
            Task::Ps(args) => args.run(&context),
            Task::Logs(args) => args.run(&context),
            Task::Exec(args) => args.run(&context),
            Task::Shell(args) => args.run(&context),
            Task::Cp(args) => args.run(&context),
            Task::Stop(args) => args.run(&context),
            Task::Kill(args) => args.run(&context),
            Task::Wait(args) => args.run(&context),
            Task::Rm(args) => args.run(&context),
            Task::Inspect(args) => args.run(&context),
            Task::Supervise(args) => args.run(&context),
            Task::Image(args) => args.run(&context),
            Task::BuildInside(args) => args.run(),
            Task::Volume(args) => args.run(&context),
            Task::Kernel(args) => args.run(&context),
            Task::Init(args) => args.run(&context),
            Task::Collect(args) => args.run(&context),
            Task::Status(args) => args.run(&context),
            Task::Setup(args) => args.run(&context),
            Task::Doctor(args) => args.run(&context),
            Task::Check(args) => args.run(&context),
            Task::Test(args) => args.run(&context),
            Task::Bench(args) => args.run(&context),
            Task::Torture(args) => args.run(&context),
        }
    }
}
