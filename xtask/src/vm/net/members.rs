//! Who is in a private network: a list in the network's folder with each machine's name and number, from which its
//! addresses follow. A machine that joins takes the lowest free number, or the one that it had.
//!
//! Guests know each other by `/etc/hosts`, which PID 1 writes anew whenever the list changes: so names work for machines
//! that come later, for every C library, and with nothing in the image. A supervisor that is killed cannot leave: the others
//! wait for its lock, which the kernel then lets go, and take it off the list.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};

use crate::artifact::{Lock, create_folder, read_text, remove_any, write_unsynced};
use crate::vm::machine::PrivateNetwork;

/// The list, in the network's folder.
const LIST: &str = "members.json";

/// Numbers are the last byte of an address: 1 is left for a gateway, 255 is broadcast.
const NUMBERS: std::ops::RangeInclusive<u8> = 2..=254;

/// A machine in a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The last byte of its address.
    pub number: u8,
    /// The machine's name.
    pub machine: String,
    /// The file that its supervisor holds locked for as long as it lives.
    #[serde(default)]
    pub lock: Utf8PathBuf,
}

/// Takes a place in the network at `folder` for a machine whose supervisor holds `lock`. Those that do not run any more lose theirs. Errors where the
/// network is full.
pub fn join(
    folder: &Utf8Path,
    machine: &str,
    lock: &Utf8Path,
    is_running: impl Fn(&str) -> bool,
) -> anyhow::Result<(u8, Vec<Member>)> {
    create_folder(folder)?;
    let _turn = turn(folder)?;
    let mut members = read(folder);
    for left in members.iter().filter(|member| member.machine != machine && !is_running(&member.machine)) {
        remove_any(&socket(folder, left.number))?;
    }
    let number = admit(&mut members, machine, lock, is_running).with_context(|| {
        format!("failed to join the network `{}`", folder.file_name().unwrap_or_default())
    })?;
    write(folder, &members)?;
    Ok((number, members))
}

/// Adds the machine to the list. Pure but for `is_running`.
fn admit(
    members: &mut Vec<Member>,
    machine: &str,
    lock: &Utf8Path,
    is_running: impl Fn(&str) -> bool,
) -> anyhow::Result<u8> {
    let earlier = members.iter().find(|member| member.machine == machine).map(|member| member.number);
    members.retain(|member| member.machine != machine && is_running(&member.machine));
    let is_free = |number: &u8| members.iter().all(|member| member.number != *number);
    let Some(number) = earlier.or_else(|| NUMBERS.into_iter().find(is_free)) else {
        bail!("it has {} machines already, as many as it can", members.len());
    };
    members.push(Member { number, machine: machine.to_owned(), lock: lock.to_owned() });
    Ok(number)
}

/// A place in a network, given back when this is dropped.
#[derive(Debug)]
pub struct Joined {
    folder: Utf8PathBuf,
    number: u8,
}

impl Joined {
    pub(super) fn new(network: &PrivateNetwork) -> Joined {
        Joined { folder: network.folder.clone(), number: network.number }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // Who joins next clears away what cannot be removed now.
        let _ = leave(&self.folder, self.number);
    }
}

fn leave(folder: &Utf8Path, number: u8) -> anyhow::Result<()> {
    remove(folder, |member| member.number == number)
}

/// Takes members off the list, and their sockets away.
fn remove(folder: &Utf8Path, is_gone: impl Fn(&Member) -> bool) -> anyhow::Result<()> {
    let _turn = turn(folder)?;
    let (gone, left): (Vec<Member>, Vec<Member>) = read(folder).into_iter().partition(is_gone);
    for member in &gone {
        remove_any(&socket(folder, member.number))?;
    }
    if gone.is_empty() { Ok(()) } else { write(folder, &left) }
}

/// Waits until a member's supervisor has ended in any way, and takes the member off the list.
fn bury(folder: &Utf8Path, member: &Member) -> anyhow::Result<()> {
    if let Ok(file) = File::open(&member.lock) {
        // Shared, since other members wait for it too.
        file.lock_shared().with_context(|| format!("failed to wait for `{}`", member.lock))?;
    }
    remove_ended(folder, member)
}

/// Takes a member off the list unless a machine of its name has taken its place meanwhile: that one holds a lock.
fn remove_ended(folder: &Utf8Path, member: &Member) -> anyhow::Result<()> {
    let is_held = || {
        File::open(&member.lock)
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    };
    remove(folder, |listed| listed == member && !is_held())
}

/// Sees to it that each of these members but our own is [buried](bury) when it has ended. `waited_for` are those that
/// somebody waits for already.
fn watch_over(folder: &Utf8Path, members: &[Member], own: u8, waited_for: &Arc<Mutex<HashSet<Member>>>) {
    let lock = |set: &Mutex<HashSet<Member>>, change: &dyn Fn(&mut HashSet<Member>) -> bool| {
        change(&mut set.lock().unwrap_or_else(PoisonError::into_inner))
    };
    for member in members.iter().filter(|member| member.number != own && !member.lock.as_str().is_empty()) {
        if !lock(waited_for, &|set| set.insert(member.clone())) {
            continue;
        }
        let (folder, member, waited_for) = (folder.to_owned(), member.clone(), Arc::clone(waited_for));
        std::thread::spawn(move || {
            loop {
                // Whoever joins next clears away what cannot be removed now.
                let buried = bury(&folder, &member);
                lock(&waited_for, &|set| set.remove(&member));
                // One that came back before it was taken out of the set was passed over.
                let is_back = buried.is_ok() && read(&folder).contains(&member);
                if !is_back || !lock(&waited_for, &|set| set.insert(member.clone())) {
                    return;
                }
            }
        });
    }
}

/// Calls `tell` with the lines of the network's machines, now and after every change, until it says false.
pub(super) fn watch(
    network: &PrivateNetwork,
    tell: impl Fn(String) -> bool + Send + 'static,
) -> anyhow::Result<()> {
    let folder = network.folder.clone();
    let watching = || format!("failed to watch `{folder}`");
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC).with_context(watching)?;
    // The list is renamed into its place.
    inotify::add_watch(&changes, folder.as_str(), inotify::WatchFlags::MOVED_TO).with_context(watching)?;
    let own = network.number;
    std::thread::spawn(move || {
        let mut told = None;
        let waited_for = Arc::default();
        loop {
            let members = read(&folder);
            watch_over(&folder, &members, own, &waited_for);
            let lines = host_lines(&members);
            if told.as_ref() != Some(&lines) && !tell(lines.clone()) {
                return;
            }
            told = Some(lines);
            // Which file it was does not matter.
            if rustix::io::read(&changes, &mut [0; 4096]).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The machines' lines for `/etc/hosts`.
pub fn host_lines(members: &[Member]) -> String {
    let line =
        |member: &Member| format!("{}\t{}\n", PrivateNetwork::address_of(member.number), member.machine);
    members.iter().map(line).collect()
}

/// Where frames for a member go.
pub fn socket(folder: &Utf8Path, number: u8) -> Utf8PathBuf {
    folder.join(number.to_string())
}

/// The numbers whose sockets are there.
pub(super) fn numbers(folder: &Utf8Path) -> Vec<u8> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn turn(folder: &Utf8Path) -> anyhow::Result<Lock> {
    Lock::hold(&folder.join("lock"), "the private network")
}

/// A list that is not there or not to be understood is an empty one: whoever runs joins anew with its next start.
fn read(folder: &Utf8Path) -> Vec<Member> {
    read_text(&folder.join(LIST)).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn write(folder: &Utf8Path, members: &[Member]) -> anyhow::Result<()> {
    // Nobody of it lives on when this host is started again.
    write_unsynced(&folder.join(LIST), &serde_json::to_vec(members)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u8, machine: &str) -> Member {
        Member { number, machine: machine.into(), lock: format!("/{machine}/lock").into() }
    }

    #[test]
    fn a_machine_takes_the_lowest_free_number_or_its_own() {
        let mut members = vec![member(2, "gone"), member(3, "db")];
        let is_running = |name: &str| name != "gone";
        assert_eq!(admit(&mut members, "web", "/web/lock".into(), is_running).unwrap(), 2);
        assert_eq!(members, [member(3, "db"), member(2, "web")]);
        assert_eq!(admit(&mut members, "db", "/db/lock".into(), is_running).unwrap(), 3);
        assert_eq!(members, [member(2, "web"), member(3, "db")]);
    }

    #[test]
    fn a_full_network_says_so() {
        let mut members: Vec<Member> = NUMBERS.map(|number| member(number, &format!("m{number}"))).collect();
        let refusal = admit(&mut members, "one-more", "".into(), |_| true).unwrap_err().to_string();
        assert_eq!(refusal, "it has 253 machines already, as many as it can");
    }

    /// A network that is watched by its first member, `web`, and what that hears.
    fn watched(folder: &Utf8Path) -> (PrivateNetwork, impl Fn() -> String) {
        join(folder, "web", &folder.join("web.lock"), |_| true).unwrap();
        let network = PrivateNetwork { folder: folder.to_owned(), number: 2 };
        let (sender, told) = std::sync::mpsc::channel();
        watch(&network, move |lines| sender.send(lines).is_ok()).unwrap();
        (network, move || told.recv_timeout(std::time::Duration::from_secs(60)).unwrap())
    }

    /// The lock of a supervisor that lives.
    fn held(path: &Utf8Path) -> File {
        let _ = fs::remove_file(path);
        let file = File::create(path).unwrap();
        file.lock().unwrap();
        file
    }

    #[test]
    fn a_member_that_leaves_is_no_longer_listed_and_the_watch_tells() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (network, hear) = watched(folder);
        assert_eq!(hear(), "10.0.3.2\tweb\n");
        let _lock = held(&folder.join("db.lock"));
        let (number, members) = join(folder, "db", &folder.join("db.lock"), |_| true).unwrap();
        assert_eq!((number, members.len()), (3, 2));
        assert_eq!(hear(), "10.0.3.2\tweb\n10.0.3.3\tdb\n");
        drop(Joined::new(&network));
        assert_eq!(hear(), "10.0.3.3\tdb\n");
    }

    #[test]
    fn a_member_whose_lock_is_let_go_is_taken_off_the_list() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (_, hear) = watched(folder);
        assert_eq!(hear(), "10.0.3.2\tweb\n");
        for _ in 0..2 {
            let lock = held(&folder.join("db.lock"));
            join(folder, "db", &folder.join("db.lock"), |_| true).unwrap();
            fs::write(socket(folder, 3), "").unwrap();
            assert_eq!(hear(), "10.0.3.2\tweb\n10.0.3.3\tdb\n");
            drop(lock);
            assert_eq!(hear(), "10.0.3.2\tweb\n");
            assert!(!socket(folder, 3).exists());
        }
    }

    #[test]
    fn a_member_that_came_back_stays_when_its_earlier_self_is_buried() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let path = folder.join("db.lock");
        let later = held(&path);
        let (_, members) = join(folder, "db", &path, |_| true).unwrap();
        remove_ended(folder, &members[0]).unwrap();
        assert_eq!(read(folder), members);
        drop(later);
        remove_ended(folder, &members[0]).unwrap();
        assert_eq!(read(folder), []);
    }
}
