//! Signals by their names, as users and images write them. Numbers are those of Linux on x86-64 (signal(7)).

const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The highest signal number, `SIGRTMAX`.
const LAST: i32 = 64;

/// SIGTERM, what a process is asked to end by where nobody says otherwise.
pub const TERM: i32 = 15;

/// SIGKILL.
pub const KILL: i32 = 9;

/// Reads `SIGTERM`, `TERM`, `15`, `RTMIN+3` or `RTMAX-1`, in any case.
pub fn parse(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str| name.strip_prefix(prefix).and_then(|n| n.parse::<i32>().ok());
    let number = NAMES
        .iter()
        .find_map(|(known, number)| (*known == name).then_some(*number))
        .or_else(|| name.parse().ok())
        // glibc keeps 32 and 33 for itself.
        .or_else(|| offset("RTMIN+").map(|n| 34 + n))
        .or_else(|| offset("RTMAX-").map(|n| LAST - n))
        .or_else(|| (name == "RTMIN").then_some(34))
        .or_else(|| (name == "RTMAX").then_some(LAST));
    number.filter(|number| (1..=LAST).contains(number)).ok_or_else(|| format!("`{text}` is not a signal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_names_or_numbers() {
        for (text, number) in [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "SIGNAL", "-9", "RTMAX-90"] {
            assert_eq!(parse(text), Err(format!("`{text}` is not a signal")));
        }
    }
}
