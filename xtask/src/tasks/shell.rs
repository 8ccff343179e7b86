//! `shell`: the image's best shell, in a machine that runs.

use init::boot_config::Command;
use init::protocol::Program;

use super::Context;
use crate::error::{EXIT_NOT_FOUND, Hint as _, exit_code};
use crate::vm::client::attach::attach;
use crate::vm::client::terminal;
use crate::vm::record::run_dir::RunDir;

/// Open a shell in a running machine: the user's own, or the best one that the image has
///
/// On a terminal the shell has one too; otherwise it reads its commands from standard input. Ctrl-] three times within
/// a second leaves a shell that does not listen.
#[derive(Debug, clap::Args)]
pub struct ShellArgs {
    /// The machine's name
    name: String,

    /// User (and group) of the shell
    #[arg(short, long, value_name = "USER[:GROUP]", default_value = "", hide_default_value = true)]
    user: String,
}

impl ShellArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let tty = terminal::is_terminal();
        let program = Program::Shell(Command {
            argv: vec![],
            env: vec![],
            cwd: String::new(),
            user: self.user.clone(),
        });
        let run_dir = RunDir::find_running(&context.workspace, &self.name)?;
        let shell = attach(&run_dir, program, tty, true);
        if shell.as_ref().is_err_and(|error| exit_code(error) == EXIT_NOT_FOUND) {
            let name = &self.name;
            return shell.hint(format!(
                "`cargo xtask exec {name} PROGRAM` runs any program that the image has, and `cargo xtask cp FILE {name}:/` brings one in"
            ));
        }
        shell
    }
}
