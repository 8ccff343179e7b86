//! Side-by-side measurements: every side of a comparison in one run, in turns, so that a noisy machine is noisy for
//! all of them, and the median of each.

pub mod hard_tar;
pub mod image;

use std::time::{Duration, Instant};

use camino::Utf8PathBuf;

use crate::artifact::remove_any;

/// One way to do the work.
pub struct Side<'a> {
    /// What it is called in the table.
    pub name: &'static str,
    /// What its last turn left; removed before the clock starts.
    pub leaves: Vec<Utf8PathBuf>,
    /// Does the work once. What it returns is its peak of memory in bytes, where it knows that.
    pub work: Box<dyn FnMut() -> anyhow::Result<Option<u64>> + 'a>,
}

/// What a side took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Its name.
    pub name: &'static str,
    /// The median of all runs.
    pub median: Duration,
    /// The quickest run.
    pub least: Duration,
    /// The highest peak of memory in bytes.
    pub memory: Option<u64>,
}

/// Lets the sides take turns, `runs` times each.
pub fn measure(sides: &mut [Side<'_>], runs: usize) -> anyhow::Result<Vec<Figures>> {
    let mut times = vec![Vec::with_capacity(runs); sides.len()];
    let mut memory = vec![None; sides.len()];
    for _ in 0..runs {
        for (number, side) in sides.iter_mut().enumerate() {
            side.leaves.iter().try_for_each(|path| remove_any(path))?;
            let start = Instant::now();
            let peak = (side.work)()?;
            times[number].push(start.elapsed());
            memory[number] = memory[number].max(peak);
        }
    }
    let figures = sides.iter().zip(times).zip(memory).map(|((side, mut times), memory)| {
        times.sort();
        let (least, median) = (times.first().copied(), times.get(times.len() / 2).copied());
        Figures {
            name: side.name,
            median: median.unwrap_or_default(),
            least: least.unwrap_or_default(),
            memory,
        }
    });
    Ok(figures.collect())
}

/// The figures as a table; ratios are to the first side.
pub fn table(title: &str, figures: &[Figures]) -> String {
    let ours = figures.first().map_or(1.0, |first| first.median.as_secs_f64());
    let mut text =
        format!("{title}\n  {:32} {:>10} {:>10} {:>9} {:>10}\n", "", "median", "least", "ratio", "memory");
    for Figures { name, median, least, memory } in figures {
        let memory = memory.map_or_else(|| "-".to_owned(), crate::ui::human_bytes);
        text.push_str(&format!(
            "  {name:32} {:>8.3} s {:>8.3} s {:>8.2}x {memory:>10}\n",
            median.as_secs_f64(),
            least.as_secs_f64(),
            median.as_secs_f64() / ours,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_and_the_highest_peak_counts() {
        let order = std::cell::RefCell::new(String::new());
        let mut sides = ["a", "b"].map(|name| Side {
            name,
            leaves: Vec::new(),
            work: Box::new(|| {
                let mut order = order.borrow_mut();
                order.push_str(name);
                Ok(Some(order.len() as u64))
            }),
        });
        let figures = measure(&mut sides, 3).unwrap();
        drop(sides);
        assert_eq!(*order.borrow(), "ababab");
        assert_eq!(figures.iter().map(|side| side.memory).collect::<Vec<_>>(), [Some(5), Some(6)]);
    }

    #[test]
    fn the_table_has_ratios_to_the_first() {
        let side = |name, millis| Figures {
            name,
            median: Duration::from_millis(millis),
            least: Duration::from_millis(millis / 2),
            memory: None,
        };
        let text = table("title", &[side("ours", 100), side("theirs", 250)]);
        assert!(text.contains("1.00x") && text.contains("2.50x") && text.contains("0.125 s"), "{text}");
    }
}
