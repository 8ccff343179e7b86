//! What came of the trials, counted.

use std::time::Duration;

/// What came of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The row's name.
    pub row: &'static str,
    /// Trials.
    pub tried: u64,
    /// Those that failed.
    pub lost: u64,
    /// The longest round.
    pub worst: Duration,
    /// All of them.
    pub took: Duration,
    /// What the row has to say beside that.
    pub remark: Option<String>,
    /// Why nothing was tried.
    pub left_out: Option<String>,
}

impl Tally {
    /// Nothing yet.
    pub fn new(row: &'static str) -> Tally {
        Tally {
            row,
            tried: 0,
            lost: 0,
            worst: Duration::ZERO,
            took: Duration::ZERO,
            remark: None,
            left_out: None,
        }
    }

    /// A round of so many trials went well.
    pub fn won(&mut self, tries: u64, took: Duration) {
        self.tried += tries;
        self.worst = self.worst.max(took);
    }

    /// A trial failed.
    pub fn lost(&mut self, took: Duration) {
        self.tried += 1;
        self.lost += 1;
        self.worst = self.worst.max(took);
    }

    /// The counts, or why there are none.
    pub fn sentence(&self) -> String {
        match &self.left_out {
            Some(reason) => format!("{}: left out, because {reason}", self.row),
            None => format!("{}: {} tried, {} lost", self.row, self.tried, self.lost),
        }
    }
}

/// All rows, below each other.
pub fn table(tallies: &[Tally]) -> String {
    let mut text = format!("{:12} {:>7} {:>6} {:>9} {:>9}\n", "", "tried", "lost", "worst", "all");
    for tally in tallies {
        let Tally { row, tried, lost, worst, took, .. } = tally;
        if let Some(reason) = &tally.left_out {
            text.push_str(&format!("{row:12} left out, because {reason}\n"));
            continue;
        }
        let (worst, took) = (worst.as_secs_f64(), took.as_secs_f64());
        let remark = tally.remark.as_ref().map_or_else(String::new, |remark| format!("  {remark}"));
        text.push_str(&format!("{row:12} {tried:>7} {lost:>6} {worst:>7.1} s {took:>7.0} s{remark}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_the_longest_round_are_in_the_table() {
        let mut boots = Tally::new("boots");
        boots.won(8, Duration::from_millis(1500));
        boots.lost(Duration::from_millis(2500));
        boots.won(1, Duration::from_millis(500));
        assert_eq!(boots.sentence(), "boots: 10 tried, 1 lost");
        let mut power = Tally::new("power");
        power.left_out = Some("mounting needs root".into());
        let text = table(&[boots, power]);
        assert!(text.contains("boots             10      1     2.5 s       0 s\n"), "{text}");
        assert!(text.contains("power        left out, because mounting needs root\n"), "{text}");
    }
}
