//! Files and trees as tar streams, in and out, with no program of the image: what `cp` and volumes are made of.
//!
//! Host and guest use the same. Both ways keep owners, modes, times to the nanosecond, symbolic and hard links, device nodes, extended attributes
//! and names that are not UTF-8, in the POSIX `pax` form. [`write_tree`] reads files, [`extract()`] writes them.

mod entry;
mod extract;
mod out;

pub use extract::extract;
pub use out::write_tree;

use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::Timespec;

/// Copies what is below one directory into another, everything kept.
///
/// # Errors
/// Something could not be read or written, named.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    std::thread::scope(|threads| {
        let writing = threads.spawn(move || {
            let mut complaints = Vec::new();
            write_tree(writer, from, b".", false, &mut |complaint| complaints.push(complaint))?;
            match complaints.into_iter().next() {
                Some(complaint) => Err(anyhow::Error::msg(complaint)),
                None => Ok(()),
            }
        });
        let extracted = extract(reader, to, true);
        let written = writing.join().unwrap_or_else(|_| Err(anyhow::Error::msg("reading stopped")));
        // Reading is the cause where both failed.
        written.and(extracted).with_context(|| format!("cannot copy `{}`", from.display()))
    })
}

/// A time as a `pax` record has it: seconds since 1970 with a decimal fraction, perhaps negative.
fn format_time(time: Timespec) -> String {
    let (seconds, nanoseconds) = match (time.tv_sec, time.tv_nsec) {
        (seconds, 0) => return seconds.to_string(),
        // Nanoseconds count forward from a negative second as well; decimals do not.
        (seconds, nanoseconds) if seconds < 0 => (seconds + 1, 1_000_000_000 - nanoseconds),
        both => both,
    };
    let sign = if time.tv_sec < 0 { "-" } else { "" };
    format!("{sign}{}.{nanoseconds:09}", seconds.abs())
}

/// The inverse of [`format_time`], with any number of decimals.
fn parse_time(text: &str) -> Option<Timespec> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !seconds.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
        (true, 0) => Timespec { tv_sec: -seconds, tv_nsec: 0 },
        (true, _) => Timespec { tv_sec: -seconds - 1, tv_nsec: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038_survive() {
        for (tv_sec, tv_nsec, text) in [
            (0, 0, "0"),
            (1, 500_000_000, "1.500000000"),
            (4_102_444_800, 1, "4102444800.000000001"),
            (-1, 0, "-1"),
            (-2, 500_000_000, "-1.500000000"),
            (-1, 999_999_999, "-0.000000001"),
        ] {
            let time = Timespec { tv_sec, tv_nsec };
            assert_eq!(format_time(time), text);
            assert_eq!(parse_time(text), Some(time), "{text}");
        }
        assert_eq!(parse_time("7.25"), Some(Timespec { tv_sec: 7, tv_nsec: 250_000_000 }));
        assert_eq!(parse_time("7.1234567899"), Some(Timespec { tv_sec: 7, tv_nsec: 123_456_789 }));
        for text in ["", "-", "x", "1.x", "1.2.3", "+1", "99999999999999999999"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
