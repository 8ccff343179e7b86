//! Trials by force: tasks and machines are killed, stalled, starved and cut off at random moments, and each time the
//! next run has to find everything in order. A [`Row`] is one kind of trial; the rows run in turn, each in a cache of
//! its own ([`stage`]), and a [`table`] says at the end how many trials were lost.
//!
//! Chance comes from a seed: trial number `n` of a run with seed `s` is the first one of a run with seed `s + n`.

pub mod boots;
pub mod full_disks;
pub mod guest_power;
pub mod host_power;
pub mod kills;
pub mod mount;
pub mod processes;
pub mod rows;
pub mod soak;
pub mod stage;
pub mod table;
mod tasks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fastrand::Rng;

use crate::error::render;
use crate::tasks::Context;
use crate::{init, interrupt, kernel, note, ui};
use rows::{Amount, Kind};
use stage::{Grounds, Interrupted, Stage};
use table::Tally;

/// One kind of trial.
pub trait Row {
    /// Why it cannot be done on this host, in plain words; `None` where it can.
    fn left_out(&self) -> Option<String> {
        None
    }

    /// A fresh cache to do it in.
    fn stage(&mut self, grounds: &Grounds) -> anyhow::Result<Stage> {
        grounds.stage()
    }

    /// One round, and how many trials it was. An error is a trial that was lost; the next round has a fresh stage then.
    fn round(&mut self, stage: &Stage, dice: &mut Rng) -> anyhow::Result<u64>;

    /// What the table is to say beside the counts.
    fn remark(&self) -> Option<String> {
        None
    }
}

/// What to try, how much of it, and from which seed on.
#[derive(Debug)]
pub struct Plan {
    /// The rows.
    pub rows: Vec<(Kind, Amount)>,
    /// Of the first trial of each row.
    pub seed: u64,
}

/// A seed for trials that nobody has seen yet; short, for it is to be typed.
pub fn any_seed() -> u64 {
    fastrand::u64(0..1_000_000_000)
}

/// Runs the rows, prints the table to standard output, and says whether nothing was lost. Ctrl-C ends the trials and
/// prints the table so far.
pub fn run(context: &Context, plan: &Plan) -> anyhow::Result<bool> {
    kernel::ensure(context, &kernel::KernelRequest::default())?;
    init::ensure(context)?;
    let is_interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_interrupted);
    let _signals = interrupt::take_over(move |_| flag.store(true, Ordering::Relaxed));

    let grounds = Grounds::new(&context.workspace, is_interrupted)?;
    let mut tallies = Vec::new();
    for (kind, amount) in &plan.rows {
        if grounds.is_interrupted() {
            break;
        }
        let tally = try_row(&grounds, *kind, *amount, plan.seed);
        note!("{}", tally.sentence());
        tallies.push(tally);
    }
    ui::print(&table::table(&tallies));
    Ok(tallies.iter().all(|tally| tally.lost == 0) && !grounds.is_interrupted())
}

fn try_row(grounds: &Grounds, kind: Kind, amount: Amount, seed: u64) -> Tally {
    let mut row = kind.row();
    let mut tally = Tally::new(kind.name());
    if let Some(reason) = row.left_out() {
        tally.left_out = Some(reason);
        return tally;
    }
    let bar = ui::spinner(&format!("{}: starting", tally.row));
    let began = Instant::now();
    let mut stage = None;
    while !grounds.is_interrupted() && amount.wants_more(tally.tried, began.elapsed()) {
        let trial_seed = seed.wrapping_add(tally.tried);
        let start = Instant::now();
        let result = match stage.take().map_or_else(|| row.stage(grounds), Ok) {
            Ok(ready) => {
                row.round(stage.insert(ready), &mut Rng::with_seed(trial_seed)).map(|tries| (tries, start))
            }
            Err(error) => Err(error),
        };
        match result {
            Ok((tries, start)) => tally.won(tries, start.elapsed()),
            Err(error) if error.is::<Interrupted>() => break,
            Err(error) => {
                tally.lost(start.elapsed());
                // Its ruins are not to fail the next trial.
                stage = None;
                bar.suspend(|| {
                    note!(
                        "{name}: lost a trial; `cargo xtask torture --only {name}=1 --seed {trial_seed}` repeats it\n{}",
                        render(&error).trim_end(),
                        name = tally.row,
                    );
                });
            }
        }
        bar.set_message(tally.sentence());
    }
    tally.remark = row.remark();
    tally.took = began.elapsed();
    bar.finish_and_clear();
    tally
}
