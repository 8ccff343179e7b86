//! Ends a machine whose supervisor is another process.

use anyhow::{Context as _, anyhow};
use init::protocol::{MACHINE_CHANNEL, MAIN_CHANNEL, Message};
use rustix::process::{Pid, Signal, kill_process};

use super::Client;
use crate::error::Hint as _;
use crate::vm::record::run_dir::RunDir;
use crate::vm::signal::KILL;

/// Asks a machine to end by this signal (0 for its image's own) and waits until it has. Fine where it has ended already.
pub fn stop(run_dir: &RunDir, signal: i32, grace_seconds: u32) -> anyhow::Result<()> {
    if !run_dir.is_running() {
        return Ok(());
    }
    if run_dir.clients_socket().exists() {
        let client = Client::connect(run_dir)?;
        client.speaker().say(MACHINE_CHANNEL, Message::Shutdown { signal, grace_seconds });
        // The supervisor has limits of its own for every part of the end.
        client.wait_for_end();
    } else {
        ask_supervisor(run_dir)?;
    }
    run_dir.wait_for_end();
    Ok(())
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
    if signal != KILL {
        let name = run_dir.name();
        return Err(anyhow!("the machine `{name}` has an init of its own, which cannot be sent signals"))
            .hint(format!("`cargo xtask stop {name}` ends it"));
    }
    ask_supervisor(run_dir)
}

/// A machine without an agent is ended by its supervisor alone.
fn ask_supervisor(run_dir: &RunDir) -> anyhow::Result<()> {
    let supervisor = run_dir.state().supervisor.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let supervisor = supervisor.with_context(|| format!("`{}` has no supervisor yet", run_dir.name()))?;
    kill_process(supervisor, Signal::TERM).with_context(|| format!("failed to end `{}`", run_dir.name()))
}
