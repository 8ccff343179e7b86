//! Signals to sessions: hanging up on the ones nobody listens to, and ending everything at the end.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitStatus, kill_process, kill_process_group};

/// From SIGHUP to SIGKILL, and between looks at what is left.
const SWEEP_INTERVAL: Duration = Duration::from_millis(300);

/// Looks after which a session is left to itself: its processes hang in the kernel.
const SWEEPS: u32 = 20;

/// A session that is to end.
#[derive(Debug)]
pub(crate) struct Sweep {
    session: Pid,
    /// When to look at it next.
    pub(crate) due: Instant,
    left: u32,
}

/// Tells the processes of a session that their user is gone, as a closed terminal does.
pub(crate) fn hang_up(session: Pid, now: Instant) -> Sweep {
    // Its leader's group; none yet while the child is on its way to its program.
    if kill_process_group(session, Signal::HUP).is_err() {
        let _ = kill_process(session, Signal::HUP);
    }
    // A stopped process acts on no signal but this.
    let _ = kill_process_group(session, Signal::CONT);
    Sweep { session, due: now + SWEEP_INTERVAL, left: SWEEPS }
}

/// Kills what is left of the sessions that are due; yields those to look at again.
pub(crate) fn sweep(sweeps: Vec<Sweep>, now: Instant) -> Vec<Sweep> {
    if !sweeps.iter().any(|sweep| sweep.due <= now) {
        return sweeps;
    }
    let processes = processes();
    let still_there = |mut sweep: Sweep| {
        if sweep.due > now {
            return Some(sweep);
        }
        let mut members = processes.iter().filter(|(_, session)| *session == sweep.session).peekable();
        members.peek()?;
        members.for_each(|(pid, _)| {
            let _ = kill_process(*pid, Signal::KILL);
        });
        sweep.left -= 1;
        sweep.due = now + SWEEP_INTERVAL;
        (sweep.left > 0).then_some(sweep)
    };
    sweeps.into_iter().filter_map(still_there).collect()
}

/// Every process with its session, as far as `/proc` tells.
fn processes() -> Vec<(Pid, Pid)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pid = |number: i32| Pid::from_raw(number);
    let of_entry = |name: &str| {
        let number = name.parse().ok().and_then(pid)?;
        let stat = std::fs::read(format!("/proc/{name}/stat")).ok()?;
        Some((number, pid(session_of(&stat)?)?))
    };
    entries.flatten().filter_map(|entry| of_entry(entry.file_name().to_str()?)).collect()
}

/// The session of a living process in `/proc/PID/stat` (proc(5)): the sixth field, where the second is a name in
/// parentheses that may hold anything.
fn session_of(stat: &[u8]) -> Option<i32> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(2)?.parse().ok()
}

/// Sends a signal to every process but PID 1.
pub(crate) fn signal_everything(signal: Signal) {
    // Process group 1 becomes `kill(-1, ...)`, which kill(2) defines as every process but the first.
    let _ = kill_process_group(Pid::INIT, signal);
}

/// The signal of this number, if there is one.
#[expect(
    unsafe_code,
    reason = "rustix names no real-time signals, which images use to stop (systemd's SIGRTMIN+3)"
)]
pub(crate) fn signal(number: i32) -> Option<Signal> {
    const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
    Signal::from_named_raw(number).or_else(|| {
        // SAFETY: the number is a real-time signal's; it is sent to other processes and never handled here.
        REAL_TIME.contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) })
    })
}

/// The exit code that shells and docker give a process's end; `None` if it only stopped.
pub(crate) fn exit_code(status: WaitStatus) -> Option<u8> {
    let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?))?;
    u8::try_from(code).ok()
}

/// The exit code of a process that SIGKILL ends.
pub(crate) fn killed_code() -> u8 {
    128 + 9
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::WaitOptions;

    use super::*;

    #[test]
    fn sessions_are_read_past_any_name() {
        assert_eq!(session_of(b"7 (sh) S 1 7 5 34816 7 4194560"), Some(5));
        assert_eq!(session_of(b"7 (a) Z 1 2) R 1 7 6 0"), Some(6));
        assert_eq!(session_of(b"7 (\xff( ) S 1 7 8 0"), Some(8));
        assert_eq!(session_of(b"7 (sh) Z 1 7 5 0"), None, "a zombie needs no signal");
        assert_eq!(session_of(b"7 (sh"), None);
        assert_eq!(session_of(b""), None);
        let own = rustix::process::getsid(None).unwrap();
        assert!(processes().contains(&(rustix::process::getpid(), own)));
    }

    #[test]
    fn every_signal_number_and_no_other() {
        assert_eq!(signal(15), Some(Signal::TERM));
        assert_eq!(signal(37).map(|signal| signal.as_raw()), Some(37));
        for number in [-1, 0, 32, 33, 65] {
            assert_eq!(signal(number), None, "{number}");
        }
    }

    #[test]
    fn codes_of_exits_and_signals() {
        let code = |script: &str| {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let pid = Pid::from_raw(child.id().try_into().unwrap());
            let (_, status) = rustix::process::waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
            exit_code(status)
        };
        assert_eq!(code("exit 0"), Some(0));
        assert_eq!(code("exit 255"), Some(255));
        assert_eq!(code("kill -9 $$"), Some(137));
        assert_eq!(code("kill -40 $$"), Some(168));
    }
}
