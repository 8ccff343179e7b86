//! Runs a planned machine in the foreground: its settings into an initramfs, its streams to ours, its end to an exit
//! code.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use init::boot_config::{BOOT_CONFIG_PATH, BootConfig, Stdio};
use init::protocol::MAIN_CHANNEL;

use super::plan::Plan;
use crate::init::cpio;
use crate::vm::lifecycle::Limits;
use crate::vm::machine::Accelerator;
use crate::vm::outcome::Outcome;
use crate::vm::run_dir::RunDir;
use crate::vm::session::Session;
use crate::vm::supervisor::{Ending, Supervision, Supervisor};
use crate::vm::terminal::{self, RawTerminal};
use crate::workspace::Workspace;
use crate::{interrupt, note};

/// How long a machine may take for each part of its life under this accelerator. A busy machine without KVM needs
/// several seconds to boot; the limits are for guests that never will.
pub fn limits(accelerator: Accelerator, timeout: Option<Duration>) -> Limits {
    let start = match accelerator {
        Accelerator::Kvm => Duration::from_secs(60),
        Accelerator::Tcg => Duration::from_secs(180),
    };
    Limits { start, run: timeout, grace: Duration::from_secs(10), end: Duration::from_secs(60) }
}

/// PID 1's initramfs with this boot's settings behind it: two archives end to end unpack as one
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
pub fn initramfs(init: &[u8], settings: &BootConfig) -> anyhow::Result<Vec<u8>> {
    let path = BOOT_CONFIG_PATH.trim_start_matches('/');
    let contents = &serde_json::to_vec(settings)?;
    Ok([init, &cpio::archive(&[cpio::Entry::File { path, mode: 0o400, contents }])].concat())
}

/// Runs the machine with its streams joined to ours, and says how it ended.
pub fn in_foreground(plan: &Plan, run_dir: &RunDir, limits: Limits) -> anyhow::Result<Ending> {
    let signals = interrupt::subscribe();
    let (to_session, frames) = mpsc::channel();
    let has_agent = plan.machine.agent_socket.is_some();
    let (tty, stdin) = match plan.boot_config.stdio {
        Stdio::Agent { tty, stdin } => (tty, stdin),
        Stdio::Console => (terminal::is_terminal(), true),
    };
    let supervision = Supervision {
        limits,
        console_log: run_dir.console_log(),
        clients: None,
        main: to_session,
        console_on_terminal: !has_agent,
    };
    let supervisor = Supervisor::launch(&plan.machine, supervision)?;
    let report = supervisor.signals();
    std::thread::spawn(move || signals.signals.iter().for_each(report));

    // From here on every key is the guest's, until this is dropped.
    let raw_terminal =
        if tty { Some(RawTerminal::enter().context("failed to make the terminal raw")?) } else { None };
    let session = has_agent.then(|| {
        let client = supervisor.main_client();
        let session = Session { channel: MAIN_CHANNEL, tty, stdin };
        std::thread::spawn(move || {
            let (say, escape) = (client.clone(), client);
            session.run(frames, move |message| say.say(message), move || escape.give_up())
        })
    });
    let ending = supervisor.run();
    if let Some(session) = session {
        // All output is written before we say how it ended.
        let _ = session.join();
    }
    drop(raw_terminal);
    ending
}

/// Tells how the machine ended, where its exit code alone does not, and keeps the console's log of a failure.
pub fn report(workspace: &Workspace, run_dir: &RunDir, ending: &Ending) -> anyhow::Result<u8> {
    if let Some(sentence) = ending.outcome.sentence() {
        note!("error: {sentence}");
    }
    if matches!(ending.outcome, Outcome::Failed { .. } | Outcome::TimedOut { .. }) {
        let kept = workspace.console_logs().join(format!("{}.log", run_dir.name()));
        crate::artifact::create_folder(&workspace.console_logs())?;
        fs::copy(run_dir.console_log(), &kept)
            .with_context(|| format!("failed to keep the console's log as `{kept}`"))?;
        if ending.last_lines.is_empty() {
            note!("\nthe guest's console said nothing");
        } else {
            note!("\nthe console's last lines (all of it is in {kept}):");
            ending.last_lines.iter().for_each(|line| note!("    {line}"));
        }
    }
    Ok(ending.outcome.exit_code())
}
