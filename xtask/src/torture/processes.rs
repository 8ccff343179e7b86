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

/// All other processes that work with this cache: their environment names it, or they have a file in it open, as with
/// QEMU, which is told no paths. Root sees those of other users, too.
pub fn of_cache(cache: &Utf8Path) -> Vec<Process> {
    let wanted = format!("{CACHE_VARIABLE}={cache}").into_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| *pid != rustix::process::getpid())
        .filter_map(|pid| {
            // Opened first: what is read then is of this process, or of one that is not signalled.
            let process = Process::open(pid)?;
            let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap_or_default();
            let is_told = environment.split(|byte| *byte == 0).any(|variable| variable == wanted);
            (is_told || has_open(pid, cache)).then_some(process)
        })
        .collect()
}

/// Whether a process has a file below a folder open.
fn has_open(pid: Pid, folder: &Utf8Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid()));
    descriptors.into_iter().flatten().flatten().any(|descriptor| {
        fs::read_link(descriptor.path()).is_ok_and(|target| target.starts_with(folder.as_std_path()))
    })
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
        let folder = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(folder.path()).unwrap().canonicalize_utf8().unwrap();
        let file = fs::File::create(cache.join("disk")).unwrap();
        let found =
            |cache: &Utf8Path| -> Vec<Pid> { of_cache(cache).iter().map(|process| process.pid).collect() };
        let mut by_environment = std::process::Command::new("sleep");
        by_environment.arg("1000").env(CACHE_VARIABLE, &cache);
        let mut by_file = std::process::Command::new("sleep");
        by_file.arg("1000").env_clear().stdin(file);
        for mut command in [by_environment, by_file] {
            let mut child = command.spawn().unwrap();
            // What it is named by is its own from its exec on.
            let pid = Pid::from_child(&child);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while found(&cache) != [pid] {
                assert!(std::time::Instant::now() < deadline);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found(Utf8Path::new("/nowhere")), []);
    }
}
