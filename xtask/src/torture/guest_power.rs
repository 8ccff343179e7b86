//! Power cuts of a guest: it writes numbered records and says each number when the record is synchronised; QEMU is killed
//! in the middle of that. Every record that was said is there at the next boot, and e2fsck finds nothing.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use fastrand::Rng;
use rustix::process::Signal;

use super::Row;
use super::processes::{self, Process};
use super::stage::{Stage, copy_tree};
use crate::artifact::remove_any;
use crate::disk::volume;
use crate::error::EXIT_WORKBENCH;

/// The row.
#[derive(Debug)]
pub struct GuestPower;

/// Goes on behind the records that are there, so that a disk goes through many cuts.
const WRITE: &str = "cd /records || mkdir /records && cd /records; touch log; i=$(wc -l < log); \
    while :; do i=$((i+1)); echo $i >> log; sync log; echo $i > next; mv next last; echo $i; done";

const READ: &str = "cat /records/log";

/// A disk that outlives its machine.
#[derive(Debug, Clone, Copy)]
enum Place {
    Volume,
    Root,
}

impl Row for GuestPower {
    fn round(&mut self, stage: &Stage, dice: &mut Rng) -> anyhow::Result<u64> {
        let place = if dice.bool() { Place::Volume } else { Place::Root };
        let time = Duration::from_millis(dice.u64(0..3000));
        let check_first = dice.bool();

        let mut task = stage.start(&place.words(stage, WRITE))?;
        stage
            .wait_until("the guest says a number", || Ok(task.said().contains('\n') || task.has_ended()?))?;
        std::thread::sleep(time);
        let mut processes = processes::of_cache(stage.workspace.cache()).into_iter();
        processes.find(Process::is_qemu).context("no QEMU runs")?.signal(Signal::KILL);
        let said = task.wait()?.with_code(EXIT_WORKBENCH.into())?;
        // A number in the making was not said.
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        let last: u64 =
            whole.lines().next_back().unwrap_or("0").parse().context("the guest says no numbers")?;

        if check_first {
            place
                .check(stage, true)
                .with_context(|| format!("{place:?} after a cut behind record {last}"))?;
        }
        let text = stage.succeed(&place.words(stage, READ))?;
        let mut found = 0;
        for line in text.lines() {
            found += 1;
            ensure!(line == found.to_string(), "{place:?}: record {found} is `{line}`");
        }
        ensure!(
            found >= last,
            "{place:?}: record {last} was synchronised, and {found} is the last that is there"
        );
        place.check(stage, false).with_context(|| format!("{place:?} at rest"))?;
        stage.clear()?;
        Ok(1)
    }
}

impl Place {
    fn words(self, stage: &Stage, script: &str) -> Vec<String> {
        let flags: &[&str] = match self {
            Place::Volume => &["-v", "records:/records"],
            Place::Root => &["--name", "records", "--persist"],
        };
        let words = [&["boot"], flags, &[stage.app.as_str(), "--", "sh", "-c", script]].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// Errors where e2fsck finds anything in a copy of the disk, after the journal's replay where that was to come.
    fn check(self, stage: &Stage, replay: bool) -> anyhow::Result<()> {
        let copy = stage.folder.join("records.raw");
        remove_any(&copy)?;
        match self {
            Place::Volume => copy_tree(&volume::disk(&stage.workspace, "records"), &copy)?,
            Place::Root => {
                let kept: Utf8PathBuf = stage.workspace.persistent_disks().join("records.qcow2");
                duct::cmd!("qemu-img", "convert", "-O", "raw", &kept, &copy)
                    .run()
                    .with_context(|| format!("failed to read `{kept}`"))?;
            }
        }
        if replay {
            e2fsck(&["-y", "-E", "journal_only"], &copy)?;
        }
        e2fsck(&["-fn"], &copy)?;
        remove_any(&copy)
    }
}

fn e2fsck(flags: &[&str], disk: &Utf8Path) -> anyhow::Result<()> {
    let output = Command::new("e2fsck").args(flags).arg(disk).output().context("failed to start e2fsck")?;
    ensure!(output.status.success(), "e2fsck finds faults:\n{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
