//! Who may be answered: those who sent datagrams through published ports, for as long as a conversation lasts.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// A correspondent is remembered for this long at least after its last datagram, and for twice as long at most. libslirp
/// forgets its own after 240 s (`SO_EXPIRE` in src/socket.h). A guest's answers do not count: the port may have become
/// somebody else's.
pub(super) const LIFETIME: Duration = Duration::from_secs(120);

/// And it is remembered until so many others have come at least.
pub(super) const MOST: usize = 4096;

/// Two generations of them: when the younger is full or old enough it becomes the older one, and what was older is
/// forgotten.
#[derive(Debug, Default)]
pub(super) struct Correspondents {
    young: HashSet<(u16, u16)>,
    old: HashSet<(u16, u16)>,
    /// When the younger generation began.
    since: Option<Instant>,
}

impl Correspondents {
    /// A datagram came from a port of the gateway's for one of the guest's.
    pub(super) fn heard(&mut self, gateway_port: u16, guest_port: u16, now: Instant) {
        self.age(now);
        if self.young.len() == MOST {
            self.turn(now);
        }
        self.young.insert((gateway_port, guest_port));
    }

    /// Whether a datagram from the guest's port to the gateway's is an answer.
    pub(super) fn knows(&mut self, gateway_port: u16, guest_port: u16, now: Instant) -> bool {
        self.age(now);
        let pair = (gateway_port, guest_port);
        self.young.contains(&pair) || self.old.contains(&pair)
    }

    fn age(&mut self, now: Instant) {
        let age = now.saturating_duration_since(*self.since.get_or_insert(now));
        if age >= LIFETIME {
            self.turn(now);
        }
        if age >= 2 * LIFETIME {
            self.old.clear();
        }
    }

    fn turn(&mut self, now: Instant) {
        self.old = std::mem::take(&mut self.young);
        self.since = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correspondent_is_known_by_both_ports_for_one_to_two_lifetimes() {
        let begin = Instant::now();
        let mut known = Correspondents::default();
        known.heard(50001, 53, begin);
        assert!(known.knows(50001, 53, begin));
        assert!(!known.knows(53, 50001, begin) && !known.knows(50001, 54, begin));
        let almost = Duration::from_millis(1);
        assert!(known.knows(50001, 53, begin + LIFETIME));
        assert!(known.knows(50001, 53, begin + 2 * LIFETIME - almost));
        assert!(!known.knows(50001, 53, begin + 2 * LIFETIME));
    }

    #[test]
    fn nobody_is_known_after_a_long_silence() {
        let begin = Instant::now();
        let mut known = Correspondents::default();
        known.heard(1, 2, begin);
        assert!(!known.knows(1, 2, begin + 2 * LIFETIME));
    }

    #[test]
    fn only_what_the_correspondent_sends_keeps_it_known() {
        let begin = Instant::now();
        let mut known = Correspondents::default();
        for round in 0..5 {
            known.heard(1, 2, begin + round * LIFETIME);
        }
        assert!(known.knows(1, 2, begin + 5 * LIFETIME));
        for round in 5..9 {
            assert_eq!(known.knows(1, 2, begin + round * LIFETIME), round < 6, "{round}");
        }
    }

    #[test]
    fn however_many_come_the_last_are_known_and_memory_is_bounded() {
        let now = Instant::now();
        let mut known = Correspondents::default();
        for guest_port in 0..20 {
            for gateway_port in 0..u16::MAX {
                known.heard(gateway_port, guest_port, now);
                assert!(known.knows(gateway_port, guest_port, now));
            }
        }
        assert!(known.young.len() <= MOST && known.old.len() <= MOST);
        let last = u16::MAX - 1;
        assert!(known.knows(last - MOST as u16, 19, now), "as many as it holds");
        assert!(!known.knows(last - 2 * MOST as u16, 19, now));
    }
}
