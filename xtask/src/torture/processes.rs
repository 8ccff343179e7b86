//! Processes of this host as proc(5) shows them: those of a cache, those below another, and what one holds.

use std::fs;
use std::os::fd::OwnedFd;

use camino::Utf8Path;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::workspace::CACHE_VARIABLE;

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Memory in bytes (`VmRSS`).
    pub memory: u64,
}

/// A process, and not another one that has its number later.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: Pid,
    handle: OwnedFd,
}

impl Process {
    /// `None` where it has ended.
    pub fn open(pid: Pid) -> Option<Process> {
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Process { pid, handle })
    }

    /// Sends it a signal; one that has ended gets none.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// The program's name, as the kernel has it: 15 bytes at most.
    pub fn name(&self) -> String {
        let path = format!("/proc/{}/comm", self.pid.as_raw_pid());
        fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
    }

    /// Whether it is QEMU.
    pub fn is_qemu(&self) -> bool {
        self.name().starts_with("qemu-system")
    }
}

/// All processes that work with this cache, by their environment; those of other users are not seen.
pub fn of_cache(cache: &Utf8Path) -> Vec<Process> {
    let wanted = format!("{CACHE_VARIABLE}={cache}").into_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter_map(|pid| {
        // Opened first: what is read then is of this process, or of one that is not signalled.
        let process = Process::open(pid)?;
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).ok()?;
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted).then_some(process)
    })
    .collect()
}

/// What a process holds; `None` where it has ended.
pub fn holdings(pid: Pid) -> Option<Holdings> {
    let pid = pid.as_raw_pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Holdings {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
        threads: field(&status, "Threads:")?.try_into().ok()?,
        memory: field(&status, "VmRSS:")? * 1024,
    })
}

/// A number of `/proc/PID/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_holdings_grow_with_what_is_opened() {
        let before = holdings(rustix::process::getpid()).unwrap();
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = holdings(rustix::process::getpid()).unwrap();
        // Other tests of this process open and close theirs.
        assert!(after.descriptors > before.descriptors + 50, "{before:?} {after:?}");
        assert!(after.threads > 0 && after.memory > 1 << 20, "{after:?}");
        drop(files);
    }

    #[test]
    fn processes_are_found_by_the_cache_that_they_work_with() {
        let cache = format!("/nowhere/{}", std::process::id());
        let mut child =
            std::process::Command::new("sleep").arg("1000").env(CACHE_VARIABLE, &cache).spawn().unwrap();
        // The child's environment is its own from its exec on.
        let pid = Pid::from_child(&child);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let found = |cache: &str| -> Vec<Pid> {
            of_cache(Utf8Path::new(cache)).iter().map(|process| process.pid).collect()
        };
        while found(&cache) != [pid] {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(found("/nowhere"), []);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
