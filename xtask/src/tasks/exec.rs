//! `exec`: a further command in a machine that runs.

use camino::Utf8PathBuf;
use init::boot_config::Command;
use init::protocol::Program;

use super::Context;
use crate::boot::request::gather_variables;
use crate::vm::client::attach::attach;
use crate::vm::record::run_dir::RunDir;

/// Run a command in a running machine
///
/// It starts with the main command's variables, folder and user. Without `-t` its standard output and standard error
/// are separate. Its exit code is that of `exec`: 127 where it was not found, 126 where it cannot be run.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// The machine's name
    name: String,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,

    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,

    /// Set a variable; NAME alone passes the host's value on
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,

    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<Utf8PathBuf>,

    /// Working directory of the command
    #[arg(short, long, value_name = "DIR", default_value = "", hide_default_value = true)]
    workdir: String,

    /// User (and group) of the command
    #[arg(short, long, value_name = "USER[:GROUP]", default_value = "", hide_default_value = true)]
    user: String,
}

impl ExecArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let program = Program::Command(Command {
            argv: self.command.clone(),
            env: gather_variables(&self.env_file, &self.env)?,
            cwd: self.workdir.clone(),
            user: self.user.clone(),
        });
        let run_dir = RunDir::find_running(&context.workspace, &self.name)?;
        attach(&run_dir, program, self.tty, self.interactive)
    }
}
