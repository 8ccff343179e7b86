//! One machine for a while, with health checks ten times a second, commands, copies, and clients that vanish. At the
//! end of each round its supervisor holds what it held at first: descriptors, threads and memory.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use camino::Utf8PathBuf;
use fastrand::Rng;
use rustix::process::{Pid, Signal};

use super::processes::{Holdings, Process, holdings};
use super::stage::{Grounds, Stage, write};
use super::{Row, stage};
use crate::artifact::create_folder;
use crate::ui::human_bytes;
use crate::vm::record::run_dir::RunDir;

/// The row.
#[derive(Debug, Default)]
pub struct Soak {
    machine: Option<Machine>,
    remark: Option<String>,
}

/// The machine of all rounds.
#[derive(Debug)]
struct Machine {
    supervisor: Pid,
    /// Held by the supervisor after the first round.
    first: Holdings,
    checks: u64,
}

/// Its name.
const NAME: &str = "soak";

/// What the supervisor's memory may grow by from round to round without a leak: its allocator keeps what it had.
const TOLERANCE: u64 = 16 << 20;

/// How long the supervisor may take to forget clients that have gone.
const SETTLING: Duration = Duration::from_secs(60);

/// Health checks in one round.
const CHECKS: u64 = 50;

impl Row for Soak {
    fn stage(&mut self, grounds: &Grounds) -> anyhow::Result<Stage> {
        self.machine = None;
        grounds.stage()
    }

    fn round(&mut self, stage: &Stage, dice: &mut Rng) -> anyhow::Result<u64> {
        let mut machine = match self.machine.take() {
            Some(machine) => machine,
            None => start(stage)?,
        };
        let before = machine.checks;
        let goal = before + CHECKS;
        while machine.checks < goal {
            work(stage, dice)?;
            machine.checks = checks(stage)?;
        }
        let now = at_rest(stage, &machine)?;
        ensure!(
            now.memory <= machine.first.memory + TOLERANCE,
            "the supervisor's memory grew from {} to {} in {} health checks",
            human_bytes(machine.first.memory),
            human_bytes(now.memory),
            machine.checks
        );
        self.remark = Some(format!(
            "health checks; {} descriptors, {} threads, {} at first; {}, {}, {} in the end",
            machine.first.descriptors,
            machine.first.threads,
            human_bytes(machine.first.memory),
            now.descriptors,
            now.threads,
            human_bytes(now.memory)
        ));
        let done = machine.checks - before;
        self.machine = Some(machine);
        Ok(done)
    }

    fn remark(&self) -> Option<String> {
        self.remark.clone()
    }
}

/// Boots the machine and lets it do everything once.
fn start(stage: &Stage) -> anyhow::Result<Machine> {
    let context = stage.folder.join("checked");
    create_folder(&context)?;
    let check = "HEALTHCHECK --interval=100ms --timeout=60s CMD [\"/bin/sh\", \"-c\", \"echo >> /checks\"]\n";
    write(&context.join("Dockerfile"), format!("{}{check}", stage::DOCKERFILE))?;
    stage.succeed(&["boot", "-d", "--name", NAME, context.as_str(), "--", "sleep", "1000000"])?;
    let state = RunDir::named(&stage.workspace, NAME).state();
    let pid = state.supervisor.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let supervisor = pid.context("the machine has no supervisor")?;
    work(stage, &mut Rng::with_seed(0))?;
    // A moment without a client, as each one at rest is.
    let mut first = holdings(supervisor).context("the supervisor has ended")?;
    for _ in 0..200 {
        let now = holdings(supervisor).context("the supervisor has ended")?;
        first.descriptors = first.descriptors.min(now.descriptors);
        first.threads = first.threads.min(now.threads);
        first.memory = first.memory.max(now.memory);
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Machine { supervisor, first, checks: checks(stage)? })
}

/// How many health checks there have been.
fn checks(stage: &Stage) -> anyhow::Result<u64> {
    let text = stage.succeed(&["exec", NAME, "sh", "-c", "wc -l < /checks"])?;
    text.trim().parse().with_context(|| format!("`{text}` is no number of checks"))
}

/// What clients do to a machine.
fn work(stage: &Stage, dice: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..4 {
        stage.succeed(&["exec", NAME, "true"])?;
    }
    let (there, back): (_, Utf8PathBuf) = (stage.folder.join("there"), stage.folder.join("back"));
    let mut bytes = vec![0; dice.usize(0..2 << 20)];
    dice.fill(&mut bytes);
    write(&there, &bytes)?;
    stage.succeed(&["cp", there.as_str(), "soak:/there"])?;
    stage.succeed(&["cp", "soak:/there", back.as_str()])?;
    let copied = std::fs::read(&back).context("failed to read what was copied")?;
    ensure!(copied == bytes, "what came back is not what was copied");

    // Clients that vanish: before they said anything, in the middle of a word, and in the middle of their work.
    let socket = RunDir::named(&stage.workspace, NAME).clients_socket();
    for word in [&b""[..], b"\x09\0\0", b"\xff\xff\xff\xff rubbish"] {
        let mut stream = UnixStream::connect(&socket).context("failed to connect to the machine")?;
        // The supervisor may have hung up on the rubbish before it was all said.
        let _ = std::io::Write::write_all(&mut stream, word);
    }
    let mut task = stage.start(&["exec", NAME, "sh", "-c", "echo runs; while :; do echo more; done"])?;
    stage.wait_until("a command runs", || Ok(task.said().starts_with("runs") || task.has_ended()?))?;
    if let Some(process) = Process::open(task.pid()) {
        process.signal(Signal::KILL);
    }
    task.wait().map(drop)
}

/// Waits until the supervisor holds no more than at first.
fn at_rest(stage: &Stage, machine: &Machine) -> anyhow::Result<Holdings> {
    let deadline = Instant::now() + SETTLING;
    loop {
        let now = holdings(machine.supervisor).context("the supervisor has ended")?;
        if now.descriptors <= machine.first.descriptors && now.threads <= machine.first.threads {
            return Ok(now);
        }
        ensure!(
            Instant::now() < deadline,
            "after {} health checks the supervisor holds more than at first: {now:?}, not {:?}",
            machine.checks,
            machine.first
        );
        // Looks for an end that the user asks for, too.
        stage.wait_until("a moment has passed", || Ok(true))?;
        std::thread::sleep(Duration::from_millis(3));
    }
}
