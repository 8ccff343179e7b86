//! How slowly another machine may send before it counts as gone: a limit for bodies that trickle for ever, which no
//! limit on silence ends. Pure; time is a parameter.

use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// The slowest that is borne: this many bytes within this time, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slowest {
    /// Bytes.
    pub bytes: u64,
    /// Counted from when there were as many the last time.
    pub within: Duration,
}

impl Default for Slowest {
    /// About 1 KiB/s, which is less than any line that is in use.
    fn default() -> Slowest {
        Slowest { bytes: 64 << 10, within: Duration::from_secs(60) }
    }
}

/// It was slower.
#[derive(Debug)]
pub struct TooSlow(Slowest);

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "less than {} bytes came within {} s", self.0.bytes, self.0.within.as_secs_f64())
    }
}

impl std::error::Error for TooSlow {}

impl From<TooSlow> for io::Error {
    fn from(error: TooSlow) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, error)
    }
}

/// How fast something comes.
#[derive(Debug)]
pub struct Pace {
    slowest: Slowest,
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Begins to count.
    pub fn new(slowest: Slowest, now: Instant) -> Pace {
        Pace { slowest, since: now, bytes: 0 }
    }

    /// Counts bytes that have come, which may be none. Errors where they are too few by now.
    pub fn add(&mut self, now: Instant, bytes: u64) -> Result<(), TooSlow> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= self.slowest.bytes {
            (self.since, self.bytes) = (now, 0);
        } else if now.duration_since(self.since) > self.slowest.within {
            return Err(TooSlow(self.slowest));
        }
        Ok(())
    }
}

/// Reads to the end. Errors where that is farther than `limit` bytes, or comes too slowly.
pub fn read_all(mut reader: impl Read, limit: u64, slowest: Slowest) -> io::Result<Vec<u8>> {
    let mut pace = Pace::new(slowest, Instant::now());
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => {
                bytes.extend_from_slice(&buffer[..read]);
                if bytes.len() as u64 > limit {
                    return Err(io::Error::other(format!("it is longer than {limit} bytes")));
                }
                pace.add(Instant::now(), read as u64)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_ends_and_a_slow_line_does_not() {
        let slowest = Slowest { bytes: 1000, within: Duration::from_secs(10) };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut slow = Pace::new(slowest, start);
        assert!((1..1000).all(|second| slow.add(after(second), 101).is_ok()));
        let mut trickle = Pace::new(slowest, start);
        let held = (1..1000).take_while(|&second| trickle.add(after(second), 1).is_ok()).count();
        assert_eq!(held, 10);
        // Haste at the beginning is no credit for later.
        let mut hasty = Pace::new(slowest, start);
        hasty.add(after(1), 1 << 30).unwrap();
        assert!(hasty.add(after(12), 1).is_err());
    }

    #[test]
    fn what_is_read_whole_has_a_limit() {
        assert_eq!(read_all(&b"text"[..], 4, Slowest::default()).unwrap(), b"text");
        assert!(read_all(io::repeat(0), 4, Slowest::default()).is_err());
    }
}
