//! A cache with next to no room: a task works all the same, or says that there is no room; a machine's end is on record;
//! and once there is room again, everything works.

use std::fs::File;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use fastrand::Rng;
use rustix::fs::{FallocateFlags, fallocate};

use super::Row;
use super::mount::{Mount, obstacle};
use super::stage::{Grounds, Stage};
use super::tasks::{BOX, BOX_CODE, TASKS, start_box};
use crate::artifact::remove_any;

/// The row.
#[derive(Debug)]
pub struct FullDisks;

/// What the cache's file system holds, in bytes.
const SIZE: u64 = 256 << 20;

/// How a lack of room is told: by the host, by the workbench, and by a guest whose disk cannot grow.
const NAMED: [&str; 5] =
    ["No space left on device", "are free", "disk full", "Input/output error", "Read-only file system"];

impl Row for FullDisks {
    fn left_out(&self) -> Option<String> {
        obstacle(false)
    }

    fn stage(&mut self, grounds: &Grounds) -> anyhow::Result<Stage> {
        grounds.stage_on(|folder| Mount::in_memory(folder, SIZE))
    }

    fn round(&mut self, stage: &Stage, dice: &mut Rng) -> anyhow::Result<u64> {
        // From nothing at all to 16 MiB, small numbers as often as large ones.
        let free = (1 << dice.u32(0..25)) - 1;
        if dice.u32(0..4) == 0 {
            end_is_on_record(stage, free)
                .with_context(|| format!("a machine ended with {free} bytes free"))?;
        } else {
            let task = loop {
                let task = &TASKS[dice.usize(0..TASKS.len())];
                // One that goes on for ever meets no end by itself.
                if task.name != "logs -f" {
                    break task;
                }
            };
            (task.before)(stage, dice).with_context(|| format!("before `{}`", task.name))?;
            let filler = Filler::leaving(stage.workspace.cache(), free)?;
            let done = stage.run(&task.words(stage))?;
            drop(filler);
            let told = format!("`{}` with {free} bytes free ended with {:?}", task.name, done.code);
            let said = format!("{}{}", done.stdout, done.stderr);
            ensure!(
                done.code == Some(0) || NAMED.iter().any(|words| said.contains(words)),
                "{told} and does not say that there is no room:\n{said}"
            );
            (task.again)(stage).with_context(|| format!("{told}, and then there was room"))?;
        }
        stage.clear()?;
        Ok(1)
    }
}

fn end_is_on_record(stage: &Stage, free: u64) -> anyhow::Result<()> {
    start_box(stage)?;
    let filler = Filler::leaving(stage.workspace.cache(), free)?;
    stage.succeed(&["stop", BOX])?;
    drop(filler);
    let text = stage.succeed(&["inspect", BOX])?;
    let machine: serde_json::Value = serde_json::from_str(&text).context("failed to understand `inspect`")?;
    let code = &machine[0]["state"]["ended"]["outcome"]["exited"];
    ensure!(code.as_u64() == Some(BOX_CODE), "its end is not on record, but {}", machine[0]["state"]);
    Ok(())
}

/// A file that takes the room of a file system; removed with this value.
struct Filler(Utf8PathBuf);

impl Filler {
    /// Leaves about so many bytes, or what is free where that is less.
    fn leaving(folder: &Utf8Path, bytes: u64) -> anyhow::Result<Filler> {
        let filler = Filler(folder.join("filler"));
        let file = File::create(&filler.0).context("failed to create a file that takes room")?;
        let mut length = 0;
        for step in [1 << 20, 4096] {
            // The machines beside it take room, too: how much there is shows when there is no more.
            while fallocate(&file, FallocateFlags::empty(), length, step).is_ok() {
                length += step;
            }
        }
        file.set_len(length.saturating_sub(bytes)).context("failed to leave room")?;
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // Its file system's end removes it otherwise.
        let _ = remove_any(&self.0);
    }
}
