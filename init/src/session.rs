//! Signals to sessions: hanging up on the ones nobody listens to, and ending everything at the end.

use std::collections::HashMap;
use std::iter;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitStatus, kill_process, kill_process_group};

/// From SIGHUP to SIGKILL, and between looks at what is left.
const SWEEP_INTERVAL: Duration = Duration::from_millis(300);

/// Looks after which a session is left to itself: its processes hang in the kernel.
const SWEEPS: u32 = 20;

/// Sessions that are to end.
#[derive(Debug)]
pub(crate) struct Sweep {
    sessions: Vec<Pid>,
    /// When to look at them next.
    pub(crate) due: Instant,
    left: u32,
}

/// Tells the processes that descend from `leaders` that their user is gone, as a closed terminal does.
pub(crate) fn hang_up(leaders: &[Pid], now: Instant) -> Sweep {
    let processes = processes();
    let mut sessions = leaders.to_vec();
    // Of descendants in sessions of their own, too, unless they left their parents behind as daemons do.
    sessions.extend(descendants(leaders, &processes).map(|process| process.session));
    for leader in leaders {
        // A child on its way to its program has no session yet.
        let _ = kill_process(*leader, Signal::HUP);
    }
    sessions.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
    sessions.dedup();
    for process in processes.iter().filter(|process| sessions.contains(&process.session)) {
        let _ = kill_process(process.id, Signal::HUP);
        // A stopped process acts on no signal but this.
        let _ = kill_process(process.id, Signal::CONT);
    }
    Sweep { sessions, due: now + SWEEP_INTERVAL, left: SWEEPS }
}

/// Kills what is left of the sessions that are due; yields those to look at again.
pub(crate) fn sweep(sweeps: Vec<Sweep>, now: Instant) -> Vec<Sweep> {
    if !sweeps.iter().any(|sweep| sweep.due <= now) {
        return sweeps;
    }
    let processes = processes();
    let look = |mut sweep: Sweep| {
        if sweep.due > now {
            return Some(sweep);
        }
        let members: Vec<Pid> = processes
            .iter()
            .filter(|process| sweep.sessions.contains(&process.session))
            .map(|process| process.id)
            .collect();
        for member in &members {
            let _ = kill_process(*member, Signal::KILL);
        }
        sweep.left -= 1;
        sweep.due = now + SWEEP_INTERVAL;
        (!members.is_empty() && sweep.left > 0).then_some(sweep)
    };
    sweeps.into_iter().filter_map(look).collect()
}

/// A living process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    id: Pid,
    parent: Option<Pid>,
    session: Pid,
}

/// The processes that are one of `ancestors` or descend from one.
fn descendants<'a>(ancestors: &'a [Pid], processes: &'a [Process]) -> impl Iterator<Item = &'a Process> {
    let parents: HashMap<Pid, Pid> =
        processes.iter().filter_map(|process| Some((process.id, process.parent?))).collect();
    processes.iter().filter(move |process| {
        let mut line = iter::successors(Some(process.id), |id| parents.get(id).copied());
        // The table is no snapshot: a number that was given anew could close a circle.
        line.by_ref().take(processes.len()).any(|id| ancestors.contains(&id))
    })
}

/// Every living process that has a session, as far as `/proc` tells.
fn processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let of_entry = |name: &str| {
        let id = Pid::from_raw(name.parse().ok()?)?;
        parse_stat(id, &std::fs::read(format!("/proc/{name}/stat")).ok()?)
    };
    entries.flatten().filter_map(|entry| of_entry(entry.file_name().to_str()?)).collect()
}

/// Reads `/proc/PID/stat` (proc(5)): the second field is a name in parentheses that may hold anything, then follow
/// state, parent, group and session.
fn parse_stat(id: Pid, stat: &[u8]) -> Option<Process> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields: Vec<&str> =
        std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace().take(4).collect();
    let [state, parent, _group, session] = fields[..] else { return None };
    if state == "Z" {
        return None;
    }
    Some(Process {
        id,
        parent: Pid::from_raw(parent.parse().ok()?),
        session: Pid::from_raw(session.parse().ok()?)?,
    })
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

    fn process(id: i32, parent: i32, session: i32) -> Process {
        Process {
            id: Pid::from_raw(id).unwrap(),
            parent: Pid::from_raw(parent),
            session: Pid::from_raw(session).unwrap(),
        }
    }

    #[test]
    fn processes_are_read_past_any_name() {
        let parse = |stat: &[u8]| parse_stat(Pid::from_raw(7).unwrap(), stat);
        assert_eq!(parse(b"7 (sh) S 1 7 5 34816 7 4194560"), Some(process(7, 1, 5)));
        assert_eq!(parse(b"7 (a) Z 1 2) R 2 7 6 0"), Some(process(7, 2, 6)));
        assert_eq!(parse(b"7 (\xff( ) S 0 7 8 0"), Some(process(7, 0, 8)));
        assert_eq!(parse(b"7 (sh) Z 1 7 5 0"), None, "a zombie needs no signal");
        assert_eq!(parse(b"7 (kthreadd) S 0 0 0 0"), None, "the kernel's own threads have no session");
        assert_eq!(parse(b"7 (sh"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_living_process_is_found_in_its_session() {
        // Of its own: this process's session may lie outside of its PID namespace, where `/proc` says 0.
        let mut child = Command::new("setsid").args(["sleep", "60"]).spawn().unwrap();
        let id = Pid::from_child(&child);
        let deadline = Instant::now() + Duration::from_secs(30);
        let found = iter::repeat_with(processes)
            .take_while(|_| Instant::now() < deadline)
            .any(|processes| processes.iter().any(|process| process.id == id && process.session == id));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found, "`setsid sleep` is not among the living");
    }

    #[test]
    fn descent_is_followed_and_ends() {
        let table = [
            process(1, 0, 1),
            process(5, 1, 5),
            process(6, 5, 5),
            process(7, 6, 7),
            process(8, 9, 8),
            process(9, 8, 8),
        ];
        let ancestors = [Pid::from_raw(5).unwrap()];
        let found: Vec<i32> =
            descendants(&ancestors, &table).map(|process| process.id.as_raw_nonzero().get()).collect();
        assert_eq!(found, [5, 6, 7]);
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
    #[expect(clippy::zombie_processes, reason = "it is waited for as PID 1 does it")]
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
