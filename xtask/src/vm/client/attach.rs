//! A further process in a machine, joined to our own streams: what `exec` and `shell` do.

use std::io::IsTerminal as _;

use anyhow::{Context as _, anyhow};
use init::protocol::{Message, Program, Start, Stream};

use super::session::{Input, Session, SessionEnd, to_our_own};
use super::terminal::{self, RawTerminal};
use super::{CHANNEL, Client, START_LIMIT};
use crate::error::ExitWith as _;
use crate::interrupt;
use crate::vm::record::run_dir::RunDir;

/// What a shell says of a command that died of SIGPIPE.
const EXIT_BROKEN_PIPE: u8 = 128 + 13;

/// Runs a program in a machine to its end and yields its exit code. `tty` gives it a terminal, `stdin` passes our
/// standard input on. It is ended if this process goes away.
pub fn attach(run_dir: &RunDir, program: Program, tty: bool, stdin: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect(run_dir)?;
    let size = tty.then(terminal::window_size);
    if let Err(failure) = client.start(Start { program, tty: size, stdin }, START_LIMIT)? {
        return Err(anyhow!("{}", failure.message)).exit_with(failure.code);
    }
    let speaker = client.speaker();
    let raw_terminal = if tty && stdin && std::io::stdin().is_terminal() {
        Some(RawTerminal::enter().context("failed to make the terminal raw")?)
    } else {
        None
    };
    let (asker, mut is_first) = (speaker.clone(), true);
    let signals = interrupt::take_over(move |signal| {
        // The first is the process's to act on; who asks again wants to leave.
        if is_first {
            let asker = asker.clone();
            // Aside, so that a supervisor that takes nothing in does not keep the second one waiting.
            std::thread::spawn(move || asker.say(CHANNEL, Message::Signal(signal)));
        } else {
            asker.leave()
        }
        is_first = false;
    });
    let (say, escape, stop) = (speaker.clone(), speaker.clone(), speaker);
    let mut is_read = true;
    let end = Session { channel: CHANNEL, tty }.run(
        client.frames(),
        move |message| say.say(CHANNEL, message),
        move || escape.leave(),
        stdin.then(|| Box::new(std::io::stdin()) as Input),
        |stream, bytes| {
            let written = to_our_own(stream, bytes);
            if written.is_err() && stream == Stream::Stdout {
                // As in a pipeline of one host: a command whose output nobody reads ends.
                is_read = false;
                stop.leave();
            }
            written
        },
    );
    drop((signals, raw_terminal));
    if !is_read {
        return Ok(EXIT_BROKEN_PIPE);
    }
    match end {
        SessionEnd::Exited(code) => Ok(code),
        SessionEnd::Failed(failure) => Err(anyhow!("{}", failure.message)).exit_with(failure.code),
        SessionEnd::Lost => {
            Err(anyhow!("the connection to the machine `{}` has ended before the command", run_dir.name()))
        }
    }
}
