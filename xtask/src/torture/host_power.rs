//! Power cuts of the host: the cache's disk stops taking writes while a task runs, the task and its machines are killed,
//! and the disk is mounted again with what had reached it. The same task has to work then, by what it finds or by making
//! it anew.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fastrand::Rng;

use super::Row;
use super::mount::{Mount, obstacle};
use super::stage::{Grounds, Stage};
use super::tasks::TASKS;

/// The row.
#[derive(Debug, Default)]
pub struct HostPower {
    /// How long each task takes where nobody disturbs it.
    times: HashMap<&'static str, Duration>,
}

/// How long a task is expected to take before it has been seen to its end.
const FIRST_GUESS: Duration = Duration::from_secs(2);

impl Row for HostPower {
    fn left_out(&self) -> Option<String> {
        obstacle(true)
    }

    fn stage(&mut self, grounds: &Grounds) -> anyhow::Result<Stage> {
        let stage = grounds.stage_on(Mount::of_disk)?;
        stage.mount()?.sync()?;
        Ok(stage)
    }

    fn round(&mut self, stage: &Stage, dice: &mut Rng) -> anyhow::Result<u64> {
        let task = &TASKS[dice.usize(0..TASKS.len())];
        let time = *self.times.get(task.name).unwrap_or(&FIRST_GUESS);
        let mut moment = time.mul_f64(dice.f64() * 1.2);
        if dice.bool() {
            // After some of what was written has reached the disk.
            moment += Duration::from_millis(dice.u64(0..3000));
        }
        (task.before)(stage, dice).with_context(|| format!("before `{}`", task.name))?;
        let running = stage.start(&task.words(stage))?;
        std::thread::sleep(moment);
        stage.mount()?.cut_power()?;
        stage.kill_all();
        let ended = running.wait()?;
        stage.mount()?.power_on()?;

        let check = || -> anyhow::Result<Duration> {
            let start = Instant::now();
            (task.again)(stage)?;
            let took = start.elapsed();
            stage.clear()?;
            Ok(took)
        };
        let took = check().with_context(|| {
            let ms = moment.as_millis();
            format!(
                "no power after {ms} ms of `{}`, which had said:\n{}{}",
                task.name, ended.stdout, ended.stderr
            )
        })?;
        self.times.insert(task.name, took);
        Ok(1)
    }
}
