//! The process that holds a machine's lock: its supervisor. It is found by the lock itself and kept by a descriptor, so
//! that a process which was given its number anew is never taken for it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A living process, or one that has just ended.
#[derive(Debug)]
pub struct Holder {
    id: Pid,
    process: OwnedFd,
}

impl Holder {
    /// Who holds this lock; `likely` is looked at first. `None` where nobody does, or none that may be looked at.
    pub fn of(lock: &File, likely: Option<u32>) -> Option<Holder> {
        let likely = likely.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        likely.into_iter().chain(all_processes()).find_map(|id| {
            let holder = Holder::open(id)?;
            // Looked at after it was opened: either this is the process, or the descriptor's has ended.
            holds(id, lock).then_some(holder)
        })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether somebody has stopped it (SIGSTOP, a debugger).
    pub fn is_stopped(&self) -> bool {
        stat(self.id).is_some_and(|(state, _)| matches!(state, 'T' | 't')) && !self.wait(Duration::ZERO)
    }

    /// Sends it a signal. One that has ended needs none.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.process, signal);
    }

    /// Waits for its end, at most for this long; whether it has come.
    pub fn wait(&self, patience: Duration) -> bool {
        let patience = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&patience)).is_ok_and(|count| count > 0)
    }

    /// The processes that it has started: QEMU.
    pub fn children(&self) -> Vec<Holder> {
        let is_child = |id: Pid| stat(id).is_some_and(|(_, parent)| parent == self.id.as_raw_nonzero().get());
        let child = |id: Pid| is_child(id).then(|| Holder::open(id)).flatten().filter(|_| is_child(id));
        all_processes().filter_map(child).collect()
    }

    fn open(id: Pid) -> Option<Holder> {
        Some(Holder { id, process: pidfd_open(id, PidfdFlags::empty()).ok()? })
    }
}

fn all_processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// State and parent of a process (proc_pid_stat(5)): the name before them may hold anything.
fn stat(id: Pid) -> Option<(char, i32)> {
    let stat = fs::read(format!("/proc/{}/stat", id.as_raw_nonzero())).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether one of a process's open files holds this lock (proc_pid_fdinfo(5)). Others only look at the file.
fn holds(id: Pid, lock: &File) -> bool {
    let Ok(wanted) = lock.metadata() else { return false };
    let folder = format!("/proc/{}", id.as_raw_nonzero());
    let files = fs::read_dir(format!("{folder}/fd")).into_iter().flatten().flatten();
    files.map(|entry| entry.file_name()).any(|number| {
        let number = number.to_string_lossy();
        let is_same = fs::metadata(format!("{folder}/fd/{number}"))
            .is_ok_and(|file| (file.dev(), file.ino()) == (wanted.dev(), wanted.ino()));
        is_same
            && fs::read_to_string(format!("{folder}/fdinfo/{number}")).is_ok_and(|text| {
                text.lines().any(|line| line.starts_with("lock:") && line.contains("WRITE"))
            })
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_and_who_only_looks_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = File::create(&path).unwrap();
        held.lock().unwrap();
        let looked_at = File::open(&path).unwrap();
        let us = Holder::of(&looked_at, None).unwrap();
        assert_eq!(us.id(), std::process::id());
        drop(us);

        // As `boot -d` does it: the lock goes to another process with the open file.
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::from(held)).spawn().unwrap();
        for likely in [None, Some(child.id()), Some(std::process::id()), Some(1)] {
            let holder = Holder::of(&looked_at, likely).unwrap();
            assert_eq!(holder.id(), child.id(), "{likely:?}");
            assert!(!holder.is_stopped());
            assert!(!holder.wait(Duration::ZERO));
        }
        let holder = Holder::of(&looked_at, None).unwrap();
        holder.signal(Signal::STOP);
        while !holder.is_stopped() {
            std::thread::yield_now();
        }
        holder.signal(Signal::KILL);
        assert!(holder.wait(Duration::from_secs(60)));
        child.wait().unwrap();
        // Whoever has the number now is not meant.
        holder.signal(Signal::KILL);
        assert!(Holder::of(&looked_at, Some(holder.id())).is_none());
    }

    #[test]
    fn children_are_found() {
        let mut shell = Command::new("sh");
        let mut parent =
            shell.args(["-c", "sleep 1000 & echo; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(parent.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let holder = Holder::open(Pid::from_child(&parent)).unwrap();
        let children = holder.children();
        assert_eq!(children.len(), 1);
        children[0].signal(Signal::KILL);
        assert!(children[0].wait(Duration::from_secs(60)));
        parent.wait().unwrap();
        assert_eq!(holder.children().len(), 0);
    }
}
