//! `boot -d`: a machine whose supervisor is a process of its own, in a session of its own.
//!
//! The new process is this program again, with the machine's name for an argument. It is handed the machine's lock as
//! its standard input, so that the machine counts as running without a gap, and says on its standard output when the
//! main process runs. What else there is to know is in the machine's folder.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::run::{self, Order};
use crate::artifact::{Lock, inherit, read_text};
use crate::host::private;
use crate::interrupt;
use crate::vm::record::Ended;
use crate::vm::record::run_dir::{RunDir, RunLock};

/// The hidden task that supervises.
pub const TASK: &str = "supervise";

/// How long a supervisor may take beyond its machine's limit for the start: somebody has stopped it.
const SUPERVISORS_PATIENCE: Duration = Duration::from_secs(60);

/// The word for a main process that runs.
const STARTED: &str = "started";

/// Starts a supervisor in the background for a machine whose plan is written down, and waits until the machine's main
/// process runs; how the machine ended if it does not come to that. A signal that arrives meanwhile ends the machine. The
/// locks on its disks are `held` by the supervisor from then on.
pub fn start(run_dir: &RunDir, lock: RunLock, held: &[Lock]) -> anyhow::Result<Option<Ended>> {
    let log = run_dir.supervisor_log();
    let stderr = private::create(&log).with_context(|| format!("failed to create `{log}`"))?;
    let program = std::env::current_exe().context("failed to find this program")?;
    inherit(held, true)?;
    let mut supervisor = Command::new(program)
        .args([TASK, run_dir.name()])
        .stdin(lock.into_file())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .context("failed to start a supervisor")?;
    inherit(held, false)?;

    let pid = Pid::from_child(&supervisor);
    let _signals = interrupt::take_over(move |signal| {
        let _ = Signal::from_named_raw(signal).map(|signal| kill_process(pid, signal));
    });
    let mut word = String::new();
    if let Some(stdout) = supervisor.stdout.take() {
        let patience = run_dir.read_plan::<Order>()?.limits.start + SUPERVISORS_PATIENCE;
        if !is_readable(&stdout, patience) {
            supervisor.kill().and_then(|()| supervisor.wait()).context("failed to end the supervisor")?;
            let (name, seconds) = (run_dir.name(), patience.as_secs());
            bail!("the supervisor of `{name}` said nothing for {seconds} s, and was killed");
        }
        BufReader::new(stdout).read_line(&mut word).context("failed to listen to the supervisor")?;
    }
    if word.trim_end() == STARTED {
        return Ok(None);
    }
    let status = supervisor.wait().context("failed to wait for the supervisor")?;
    match run_dir.state().ended {
        Some(ended) => Ok(Some(ended)),
        None => {
            bail!("the supervisor of `{}` failed ({status}):\n{}", run_dir.name(), read_text(&log)?.trim())
        }
    }
}

/// Whether there is something to read, or an end, within this time. A signal that arrives meanwhile is no answer.
fn is_readable(stdout: &ChildStdout, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        match poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            result => return result.is_ok_and(|count| count > 0),
        }
    }
}

/// The supervisor's own side: runs the machine to its end.
pub fn supervise(run_dir: &RunDir) -> anyhow::Result<Ended> {
    // Signals of the terminal that we were started from are not for us.
    rustix::process::setsid().context("failed to make a session")?;
    std::env::set_current_dir("/").context("failed to leave the current folder")?;
    let order: Order = run_dir.read_plan()?;
    run::in_background(&order, run_dir, report_start)
}

/// Says that the main process runs, and lets go of standard output.
fn report_start() {
    // Whoever started us may be gone; the machine goes on.
    let _ = writeln!(std::io::stdout(), "{STARTED}");
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null.as_fd());
    }
}
