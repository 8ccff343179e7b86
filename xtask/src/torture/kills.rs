//! Kills at random moments: of a task, its supervisor, its QEMU, or any other process that works for it. After each the
//! same task has to work again, and nothing may be left that runs, is locked, or is half done.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fastrand::Rng;
use rustix::process::Signal;

use super::stage::Stage;
use super::tasks::TASKS;
use super::{Row, processes};

/// The row.
#[derive(Debug, Default)]
pub struct Kills {
    /// How long each task takes where nobody disturbs it.
    times: HashMap<&'static str, Duration>,
}

/// How long a task is expected to take before it has been seen to its end.
const FIRST_GUESS: Duration = Duration::from_secs(2);

const SIGNALS: [(&str, Signal); 3] =
    [("SIGKILL", Signal::KILL), ("SIGTERM", Signal::TERM), ("SIGINT", Signal::INT)];

impl Row for Kills {
    fn round(&mut self, stage: &Stage, dice: &mut Rng) -> anyhow::Result<u64> {
        let task = &TASKS[dice.usize(0..TASKS.len())];
        let (signal_name, signal) = SIGNALS[dice.usize(0..SIGNALS.len())];
        let time = *self.times.get(task.name).unwrap_or(&FIRST_GUESS);
        // A little beyond its end, too.
        let moment = time.mul_f64(dice.f64() * 1.2);
        let of_the_task_itself = dice.bool();

        (task.before)(stage, dice).with_context(|| format!("before `{}`", task.name))?;
        let running = stage.start(&task.words(stage))?;
        std::thread::sleep(moment);
        let mut victims = processes::of_cache(stage.workspace.cache());
        if of_the_task_itself {
            victims.retain(|process| process.pid == running.pid());
        }
        let mut victim = "nobody".to_owned();
        let mut was_the_task = true;
        if !victims.is_empty() {
            let chosen = &victims[dice.usize(0..victims.len())];
            victim = format!("{} ({})", chosen.name(), chosen.pid);
            was_the_task = chosen.pid == running.pid();
            chosen.signal(signal);
        }
        let told =
            format!("{signal_name} after {} ms to {victim} during `{}`", moment.as_millis(), task.name);
        let ended = running.wait().with_context(|| told.clone())?;

        let check = || -> anyhow::Result<Duration> {
            if !was_the_task {
                // Asked to end it may take its time; what is looked at next is to be one thing or the other.
                for (name, _) in stage.machines()? {
                    stage.succeed(&["stop", &name])?;
                }
            }
            let start = Instant::now();
            (task.again)(stage)?;
            let took = start.elapsed();
            stage.clear()?;
            Ok(took)
        };
        let took = check().with_context(|| {
            format!("{told}, which ended with {:?} and said:\n{}{}", ended.code, ended.stdout, ended.stderr)
        })?;
        self.times.insert(task.name, took);
        Ok(1)
    }
}
