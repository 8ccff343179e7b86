//! Which kinds of trials there are, and how much of each is wanted.

use std::str::FromStr;
use std::time::Duration;

use super::{Row, boots, full_disks, guest_power, host_power, kills, soak};
use crate::nearest::nearest;

/// A kind of trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tasks, supervisors and QEMU are killed at random moments.
    Kills,
    /// Machines boot on a host that stalls, and eight at once.
    Boots,
    /// QEMU is killed while its guest writes records.
    GuestPower,
    /// The cache's file system ends while tasks write to it.
    HostPower,
    /// The cache's file system has next to no room.
    FullDisks,
    /// Health checks, commands and copies for a while: nothing may accumulate.
    Soak,
}

impl Kind {
    /// All of them, in the order of the table.
    pub const ALL: [Kind; 6] =
        [Kind::Kills, Kind::Boots, Kind::GuestPower, Kind::HostPower, Kind::FullDisks, Kind::Soak];

    /// Its name in the table and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kills => "kills",
            Kind::Boots => "boots",
            Kind::GuestPower => "guest-power",
            Kind::HostPower => "host-power",
            Kind::FullDisks => "full-disks",
            Kind::Soak => "soak",
        }
    }

    /// The trials themselves.
    pub fn row(self) -> Box<dyn Row> {
        match self {
            Kind::Kills => Box::new(kills::Kills::default()),
            Kind::Boots => Box::new(boots::Boots),
            Kind::GuestPower => Box::new(guest_power::GuestPower),
            Kind::HostPower => Box::new(host_power::HostPower::default()),
            Kind::FullDisks => Box::new(full_disks::FullDisks),
            Kind::Soak => Box::new(soak::Soak::default()),
        }
    }
}

/// How much of a row is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many trials.
    Count(u64),
    /// As many as fit; at least one.
    Time(Duration),
}

impl Amount {
    /// Whether another round is to follow.
    pub fn wants_more(self, tried: u64, elapsed: Duration) -> bool {
        match self {
            Amount::Count(count) => tried < count,
            Amount::Time(limit) => tried == 0 || elapsed < limit,
        }
    }
}

/// A row that was asked for by name: `boots`, or `boots=1000` for so many trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    kind: Kind,
    count: Option<u64>,
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Wish, String> {
        let (name, count) = match text.split_once('=') {
            Some((name, count)) => (name, Some(count)),
            None => (text, None),
        };
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Kind::ALL.map(Kind::name);
            match nearest(name, names) {
                Some(near) => format!("there is no row `{name}`; is it `{near}`?"),
                None => format!("there is no row `{name}`, but {}", names.join(", ")),
            }
        })?;
        let count = count.map(|count| match count.parse() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(format!("`{count}` is not a number of trials")),
        });
        Ok(Wish { kind, count: count.transpose()? })
    }
}

/// What to do where these rows were asked for (none means all) and there is so much time for those without a count.
pub fn divide(wishes: &[Wish], time: Duration) -> Vec<(Kind, Amount)> {
    let all = Kind::ALL.map(|kind| Wish { kind, count: None });
    let wishes = if wishes.is_empty() { &all } else { wishes };
    let timed = wishes.iter().filter(|wish| wish.count.is_none()).count();
    let share = time / u32::try_from(timed.max(1)).unwrap_or(1);
    wishes.iter().map(|wish| (wish.kind, wish.count.map_or(Amount::Time(share), Amount::Count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_share_the_time_and_counts_take_none() {
        let hour = Duration::from_secs(3600);
        let all = divide(&[], hour);
        assert_eq!(all.len(), Kind::ALL.len());
        let share = hour / Kind::ALL.len() as u32;
        assert!(all.iter().all(|(_, amount)| *amount == Amount::Time(share)));

        let wishes: Vec<Wish> =
            ["boots=1000", "kills", "soak"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(
            divide(&wishes, hour),
            [
                (Kind::Boots, Amount::Count(1000)),
                (Kind::Kills, Amount::Time(hour / 2)),
                (Kind::Soak, Amount::Time(hour / 2)),
            ]
        );
    }

    #[test]
    fn a_wrong_row_or_count_is_named() {
        let error = |text: &str| text.parse::<Wish>().unwrap_err();
        assert_eq!(error("boot"), "there is no row `boot`; is it `boots`?");
        assert_eq!(error("kills=0"), "`0` is not a number of trials");
        assert_eq!(error("kills="), "`` is not a number of trials");
    }

    #[test]
    fn every_row_is_tried_at_least_once() {
        let none = Amount::Time(Duration::ZERO);
        assert!(none.wants_more(0, Duration::from_secs(9)));
        assert!(!none.wants_more(1, Duration::ZERO));
        assert!(Amount::Count(2).wants_more(1, Duration::MAX));
        assert!(!Amount::Count(2).wants_more(2, Duration::ZERO));
    }
}
