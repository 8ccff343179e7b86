//! Boots on a host that stalls: QEMU is stopped most of the time while its guest's kernel starts, or eight boot at once.
//! Each machine has to say its line and to end with its exit code.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use rustix::process::Signal;

use super::Row;
use super::processes::{self, Process};
use super::stage::{Running, Stage};

/// The row.
#[derive(Debug)]
pub struct Boots;

/// How many boot at once, in every tenth round.
const CROWD: u64 = 8;
/// QEMU runs for the second part of each turn only. Kernels that compare two clocks are misled by that.
const STOPPED: Duration = Duration::from_millis(60);
const RUNNING: Duration = Duration::from_millis(12);

impl Row for Boots {
    fn round(&mut self, stage: &Stage, dice: &mut Rng) -> anyhow::Result<u64> {
        let crowd = if dice.u32(0..10) == 0 { CROWD } else { 1 };
        let machines: Vec<(u32, u8)> = (0..crowd).map(|_| (dice.u32(..), dice.u8(0..100))).collect();
        let mut tasks = Vec::new();
        for (word, code) in &machines {
            let script = format!("echo {word}; exit {code}");
            tasks.push(stage.start(&["boot", stage.app.as_str(), "--", "sh", "-c", &script])?);
        }
        if crowd == 1 {
            // Through the kernel's start, and for some part of what follows.
            stall(stage, &mut tasks[0], Duration::from_millis(dice.u64(2000..5000)))?;
        }
        for ((word, code), task) in machines.iter().zip(tasks) {
            let said = task.wait()?.with_code((*code).into())?;
            ensure!(said == format!("{word}\n"), "a machine that was to say {word} said `{said}`");
        }
        Ok(crowd)
    }
}

/// Stops the task's QEMU most of the time for so long.
fn stall(stage: &Stage, task: &mut Running, time: Duration) -> anyhow::Result<()> {
    let mut qemu = None;
    stage.wait_until("QEMU runs", || {
        let mut processes = processes::of_cache(stage.workspace.cache()).into_iter();
        qemu = processes.find(Process::is_qemu);
        Ok(qemu.is_some() || task.has_ended()?)
    })?;
    let qemu = qemu.context("the task ended, and no QEMU was seen")?;
    let end = Instant::now() + time;
    while Instant::now() < end && !task.has_ended()? {
        qemu.signal(Signal::STOP);
        std::thread::sleep(STOPPED);
        qemu.signal(Signal::CONT);
        std::thread::sleep(RUNNING);
    }
    Ok(())
}
