//! `cargo xtask`: parses, dispatches, prints the error and its hint, returns the exit code.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use xtask::{artifact, cli::Cli, error, interrupt, ui};

fn main() -> ExitCode {
    let code = match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(answer) => tell(&answer),
    };
    artifact::later::finish();
    // Whatever else came of it: what was asked for did not arrive.
    ExitCode::from(if ui::has_failed() { error::EXIT_WORKBENCH } else { code })
}

fn run(cli: Cli) -> u8 {
    interrupt::install().map_err(Into::into).and_then(|()| cli.run()).unwrap_or_else(|error| {
        ui::say(error::render(&error).trim_end());
        error::exit_code(&error)
    })
}

/// Help and the version, which are data, or what is wrong with the words.
fn tell(answer: &clap::Error) -> u8 {
    let text = answer.render().to_string();
    let is_talk = answer.use_stderr();
    let is_watched = if is_talk { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
    if is_watched && ui::visible(&text) == text {
        // In colour. Nobody to talk to is no reason for another exit code.
        let _ = answer.print();
    } else if is_talk {
        ui::ask(&text);
    } else {
        ui::print(&text);
    }
    u8::try_from(answer.exit_code()).unwrap_or(error::EXIT_USAGE)
}
