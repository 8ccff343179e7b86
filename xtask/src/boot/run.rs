//! Runs a planned machine: its settings into an initramfs, its streams to ours or to a log, its end to an exit code.

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;
use init::boot_config::{BOOT_CONFIG_PATH, BootConfig, Stdio};
use init::protocol::{MAIN_CHANNEL, Message};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::artifact::{Lock, Staged};
use crate::host::ports;
use crate::init::cpio;
use crate::vm::client::health::{self, Check};
use crate::vm::client::session::{Input, Session, to_our_own};
use crate::vm::client::terminal::{self, RawTerminal};
use crate::vm::machine::{Accelerator, Machine, Network};
use crate::vm::queue;
use crate::vm::record::output_log::{LogBounds, OutputLog};
use crate::vm::record::recorder::Recorder;
use crate::vm::record::run_dir::RunDir;
use crate::vm::record::{Ended, Record, State};
use crate::vm::supervise::lifecycle::Limits;
use crate::vm::supervise::outcome::Outcome;
use crate::vm::supervise::supervisor::{MAIN_QUEUE, Supervision, Supervisor};
use crate::{interrupt, note};

/// What a supervisor is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The machine.
    pub plan: Plan,
    /// How long it may take for what.
    pub limits: Limits,
    /// How much is kept of what it says.
    pub log: LogBounds,
}

/// Consoles of machines that failed which are kept.
const KEPT_CONSOLES: usize = 32;

/// How long a machine may take for each part of its life under this accelerator. A busy machine without KVM needs
/// several seconds to boot; the limits are for guests that never will.
pub fn limits(accelerator: Accelerator, timeout: Option<Duration>) -> Limits {
    let (start, answer) = match accelerator {
        Accelerator::Kvm => (60, 5),
        Accelerator::Tcg => (180, 10),
    };
    let [start, answer, grace, end] = [start, answer, 10, 60].map(Duration::from_secs);
    Limits { start, run: timeout, grace, answer, end }
}

/// PID 1's initramfs with this boot's settings behind it: two archives end to end unpack as one
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
pub fn initramfs(init: &[u8], settings: &BootConfig) -> anyhow::Result<Vec<u8>> {
    let path = BOOT_CONFIG_PATH.trim_start_matches('/');
    let contents = &serde_json::to_vec(settings)?;
    Ok([init, &cpio::archive(&[cpio::Entry::File { path, mode: 0o400, contents }])].concat())
}

/// A machine that was launched, and what is written down about it.
struct Running {
    supervisor: Supervisor,
    recorder: JoinHandle<()>,
    record: Arc<Record>,
    signals: interrupt::Taken,
}

impl Running {
    /// Launches the machine. Its main process's frames go to `listener`; `on_started` is called when the process runs.
    fn launch(
        order: &Order,
        run_dir: &RunDir,
        listener: Option<queue::Sender>,
        on_started: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Running> {
        let description = run_dir.description()?;
        let has_agent = order.plan.machine.agent_socket.is_some();
        let (main, frames) = queue::bounded(MAIN_QUEUE);
        let clients = if has_agent {
            let path = run_dir.clients_socket();
            Some(UnixListener::bind(&path).with_context(|| format!("failed to listen at `{path}`"))?)
        } else {
            None
        };
        let supervision = Supervision {
            limits: order.limits,
            console_log: run_dir.console_log(),
            clients,
            main,
            console_is_main: !has_agent,
        };
        let supervisor = Supervisor::launch(&order.plan.machine, supervision)?;
        let signals = interrupt::take_over(supervisor.signals());
        // Nothing tells when an init of the image's own has started its command.
        let started = (!has_agent).then(Timestamp::now);
        let state = State {
            supervisor: Some(std::process::id()),
            qemu: Some(supervisor.qemu()),
            started,
            ..State::default()
        };
        let record = Arc::new(Record::new(run_dir.clone(), state));
        // What goes to a terminal alone is on nobody's record.
        let log = if description.kept || listener.is_none() {
            let path = run_dir.output_log();
            Some(OutputLog::create(&path, order.log).with_context(|| format!("failed to create `{path}`"))?)
        } else {
            None
        };
        let check = description.healthcheck.as_ref().and_then(Check::of);
        let (health_record, health_dir) = (Arc::clone(&record), run_dir.clone());
        let recorder = Recorder {
            record: Arc::clone(&record),
            log,
            listener,
            client: supervisor.main_client(),
            on_started: Box::new(move || {
                if let Some(check) = check {
                    health::watch(check, health_dir, health_record);
                }
                on_started();
            }),
        };
        let recorder = std::thread::spawn(move || recorder.run(frames));
        Ok(Running { supervisor, recorder, record, signals })
    }

    /// Follows the machine to its end, and writes down how it came.
    fn run(self) -> anyhow::Result<Ended> {
        let ending = self.supervisor.run()?;
        drop(self.signals);
        // All output is in the log before the end is.
        let _ = self.recorder.join();
        let ended = Ended {
            at: Timestamp::now(),
            outcome: ending.outcome.clone(),
            last_lines: ending.last_lines.clone(),
        };
        self.record.end(ended.clone());
        ending.wait_for_clients();
        Ok(ended)
    }
}

/// How often one looks whether QEMU has its ports, which takes it some 30 ms; nothing tells.
const LOOK: Duration = Duration::from_millis(5);

/// Calls `then` when QEMU has its ports; never where it ends without.
fn when_held(qemu: u32, machine: &Machine, then: impl FnOnce() + Send + 'static) {
    let ports = match &machine.network {
        Network::User { ports, .. } => ports.clone(),
        Network::None => Vec::new(),
    };
    std::thread::spawn(move || {
        loop {
            match ports::are_held_by(qemu, &ports) {
                Some(true) => return then(),
                Some(false) => std::thread::sleep(LOOK),
                None => return,
            }
        }
    });
}

/// Runs the machine with its streams joined to ours, and says how it ended. The `set` that it boots from may be replaced
/// once it has begun. `on_ports` is called when QEMU has its ports.
pub fn in_foreground(
    order: &Order,
    run_dir: &RunDir,
    set: Option<Lock>,
    on_ports: impl FnOnce() + Send + 'static,
) -> anyhow::Result<Ended> {
    let (to_session, frames) = queue::bounded(MAIN_QUEUE);
    let has_agent = order.plan.machine.agent_socket.is_some();
    let (tty, stdin) = match order.plan.boot_config.stdio {
        Stdio::Agent { tty, stdin } => (tty, stdin),
        Stdio::Console => (terminal::is_terminal(), true),
    };
    let running = Running::launch(order, run_dir, Some(to_session), || {})?;
    // All of its files are open.
    drop(set);
    when_held(running.supervisor.qemu(), &order.plan.machine, on_ports);

    // From here on every key is the guest's, until this is dropped.
    let raw_terminal =
        if tty { Some(RawTerminal::enter().context("failed to make the terminal raw")?) } else { None };
    let client = running.supervisor.main_client();
    let session = std::thread::spawn(move || {
        if !has_agent {
            return print_console(frames);
        }
        let session = Session { channel: MAIN_CHANNEL, tty };
        let input = stdin.then(|| Box::new(std::io::stdin()) as Input);
        let (say, escape) = (client.clone(), client);
        session.run(frames, move |message| say.say(message), move || escape.give_up(), input, to_our_own);
    });
    let ended = running.run();
    // From here on Ctrl-C ends this task, and not a machine that is no more. All output is written before we say how it ended.
    let _ = session.join();
    drop(raw_terminal);
    ended
}

/// A console takes no part in the conversation.
fn print_console(frames: queue::Receiver) {
    for frame in frames {
        if let Message::Data(stream, bytes) = frame.message
            && to_our_own(stream, &bytes).is_err()
        {
            return;
        }
    }
}

/// Runs the machine with nobody at its streams. `on_started` is called when its main process runs.
pub fn in_background(
    order: &Order,
    run_dir: &RunDir,
    on_started: impl FnOnce() + Send + 'static,
) -> anyhow::Result<Ended> {
    Running::launch(order, run_dir, None, on_started)?.run()
}

fn keep(log: &Utf8Path, kept: &Utf8Path) -> anyhow::Result<()> {
    let staged = Staged::new(kept)?;
    fs::copy(log, staged.path()).with_context(|| format!("failed to keep the console's log as `{kept}`"))?;
    staged.publish_unsynced()
}

/// Removes the oldest files of a folder beyond so many.
fn remove_oldest(folder: &Utf8Path, keep: usize) {
    let files = folder.read_dir_utf8().into_iter().flatten().flatten();
    let mut files: Vec<_> =
        files.filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.into_path()))).collect();
    files.sort_unstable();
    for (_, path) in files.iter().rev().skip(keep) {
        // Another task may have removed it.
        let _ = fs::remove_file(path);
    }
}

/// Tells how the machine ended, where its exit code alone does not. The console's log of a failure outlives its
/// machine in `logs`.
pub fn report(logs: &Utf8Path, run_dir: &RunDir, ended: &Ended) -> anyhow::Result<u8> {
    if let Some(sentence) = ended.outcome.sentence() {
        note!("error: {sentence}");
    }
    if matches!(ended.outcome, Outcome::Failed { .. } | Outcome::TimedOut { .. }) {
        let kept = logs.join(format!("{}.log", run_dir.name()));
        remove_oldest(logs, KEPT_CONSOLES - 1);
        // Without room for it, how the machine ended is still to be told.
        if let Err(error) = keep(&run_dir.console_log(), &kept) {
            note!("warning: {error:#}");
        }
        if ended.last_lines.is_empty() {
            note!("\nthe guest's console said nothing");
        } else {
            note!("\nthe console's last lines (all of it is in {kept}):");
            ended.last_lines.iter().for_each(|line| note!("    {line}"));
        }
    }
    Ok(ended.outcome.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_consoles_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let start = std::time::SystemTime::now();
        for age in 0..5 {
            let file = fs::File::create(folder.join(format!("{age}.log"))).unwrap();
            file.set_modified(start - Duration::from_secs(age)).unwrap();
        }
        remove_oldest(folder, 7);
        assert_eq!(folder.read_dir_utf8().unwrap().count(), 5);
        remove_oldest(folder, 2);
        let mut left: Vec<String> =
            folder.read_dir_utf8().unwrap().map(|file| file.unwrap().file_name().to_owned()).collect();
        left.sort();
        assert_eq!(left, ["0.log", "1.log"]);
        remove_oldest(&folder.join("none"), 2);
    }
}
