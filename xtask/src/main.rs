//! `cargo xtask`: parses, dispatches, prints the error and its hint, returns the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use xtask::{cli::Cli, error, interrupt, ui};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = interrupt::install().map_err(Into::into).and_then(|()| cli.run());
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ui::say(error::render(&error).trim_end());
            ExitCode::from(error::exit_code(&error))
        }
    }
}
