//! Ends a machine whose supervisor is another process. A supervisor that does not do what it is asked to is killed with
//! its machine, so that each end comes in time.

use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use init::protocol::{MACHINE_CHANNEL, MAIN_CHANNEL, Message};
use jiff::Timestamp;
use rustix::process::Signal;

use super::Client;
use crate::error::Hint as _;
use crate::note;
use crate::vm::record::Ended;
use crate::vm::record::holder::Holder;
use crate::vm::record::run_dir::RunDir;
use crate::vm::signal::KILL;
use crate::vm::supervise::outcome::Outcome;

/// How long a supervisor may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a supervisor may take to end a machine beyond the grace: longer than its own limits
/// (`limits` in boot/run.rs), which are for what a guest writes at its end.
const SUPERVISORS_LIMIT: Duration = Duration::from_secs(100);

/// The same where QEMU is to be killed, or somebody has stopped the supervisor.
const PLUG_LIMIT: Duration = Duration::from_secs(10);

/// Between looks at a supervisor that is being waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Asks a machine to end by this signal (0 for its image's own) and waits until it has. Fine where it has ended already.
pub fn stop(run_dir: &RunDir, signal: i32, grace_seconds: u32) -> anyhow::Result<()> {
    if !run_dir.is_running() {
        return Ok(());
    }
    let supervisor = run_dir.supervisor();
    let begun = Instant::now();
    let grace = Duration::from_secs(grace_seconds.into());
    let ask_by = begun + grace + PLUG_LIMIT;
    let end_by = if signal == KILL { ask_by } else { begun + grace + SUPERVISORS_LIMIT };
    if let Some(supervisor) = &supervisor {
        // One that was stopped can end the machine in good order, once it goes on.
        supervisor.signal(Signal::CONT);
    }
    // Held until the end: it is told so before it goes.
    let _client = ask(run_dir, supervisor.as_ref(), signal, grace_seconds);
    loop {
        if run_dir.wait_for_end(Some(end_by.min(Instant::now() + LOOK_AGAIN))) {
            return Ok(());
        }
        let now = Instant::now();
        let is_stopped = || supervisor.as_ref().is_some_and(Holder::is_stopped);
        if now >= end_by || (now >= ask_by && is_stopped()) {
            return match supervisor {
                Some(supervisor) => force(run_dir, &supervisor),
                None => bail!("the supervisor of `{}` does not end, and cannot be seen", run_dir.name()),
            };
        }
    }
}

/// Ends a machine at once.
pub fn pull_the_plug(run_dir: &RunDir) -> anyhow::Result<()> {
    stop(run_dir, KILL, 0)
}

/// Sends a machine's main process a signal.
pub fn signal(run_dir: &RunDir, signal: i32) -> anyhow::Result<()> {
    if run_dir.clients_socket().exists() {
        Client::connect(run_dir)?.speaker().say(MAIN_CHANNEL, Message::Signal(signal));
        return Ok(());
    }
    let name = run_dir.name();
    if signal != KILL {
        return Err(anyhow!("the machine `{name}` has an init of its own, which cannot be sent signals"))
            .hint(format!("`cargo xtask stop {name}` ends it"));
    }
    let Some(supervisor) = run_dir.supervisor() else { bail!("the supervisor of `{name}` cannot be seen") };
    supervisor.signal(Signal::TERM);
    Ok(())
}

/// Asks over the machine's socket, or by a signal where there is none or it is not answered.
fn ask(run_dir: &RunDir, supervisor: Option<&Holder>, signal: i32, grace_seconds: u32) -> Option<Client> {
    match Client::connect_within(run_dir, CONNECT) {
        Ok(client) => {
            client.speaker().say(MACHINE_CHANNEL, Message::Shutdown { signal, grace_seconds });
            Some(client)
        }
        Err(_) => {
            if let Some(supervisor) = supervisor {
                supervisor.signal(Signal::TERM);
            }
            None
        }
    }
}

/// Kills a supervisor, and what it has started, and writes down what became of the machine.
fn force(run_dir: &RunDir, supervisor: &Holder) -> anyhow::Result<()> {
    let name = run_dir.name();
    note!("warning: the supervisor of `{name}` did not react, and is killed with its machine");
    let machine = supervisor.children();
    // First, so that whoever waits for the end finds how it came.
    let mut state = run_dir.state();
    if state.ended.is_none() {
        let outcome = Outcome::Killed(KILL);
        state.ended = Some(Ended { at: Timestamp::now(), outcome, last_lines: Vec::new() });
        run_dir.write_state(&state)?;
    }
    for process in std::iter::once(supervisor).chain(&machine) {
        process.signal(Signal::KILL);
    }
    for process in std::iter::once(supervisor).chain(&machine) {
        if !process.wait(PLUG_LIMIT) {
            bail!("process {} of `{name}` was killed and does not end", process.id());
        }
    }
    // What its supervisor would have done last.
    if run_dir.description()?.kept { run_dir.retire() } else { run_dir.remove() }
}
