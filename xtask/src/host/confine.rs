//! How QEMU is started, which runs what a guest asks of it: as a user of its own where we are root, with the rights that
//! its devices need and no others, with none of our variables, and with no descriptor but those that it is given.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use camino::Utf8Path;
use rustix::fs::{Gid, Uid};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The first of the users that machines run as, one for each; systemd's `UIDS-GIDS` lists the range as unused.
const FIRST_USER: u32 = 0x7000_0000;

/// `nobody`, for where numbers are mapped (user_namespaces(7)) and those above do not exist.
const NOBODY: u32 = 65534;

/// What files of the host, shared with the guest, need of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// There are none.
    None,
    /// Whatever we can read can be read.
    Read,
    /// Files are made and changed as root makes and changes them.
    Write,
}

/// What a program is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// The user and group that it runs as; `None` for ours.
    user: Option<u32>,
    /// A further group, for `/dev/kvm`.
    group: Option<u32>,
    kept: CapabilitySet,
}

impl Rights {
    /// The least for a machine on this host: `process` is a number that no other machine has while this one runs.
    pub fn least(process: u32, program: &Utf8Path, files: Files, low_port: bool, kvm: bool) -> Rights {
        let ours = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        if !rustix::process::geteuid().is_root() {
            return Rights { user: None, group: None, kept: CapabilitySet::empty() };
        }
        let mut kept = match files {
            Files::None => CapabilitySet::empty(),
            Files::Read => CapabilitySet::DAC_READ_SEARCH,
            // Not all of root: no other user's process, no device, no network, no module.
            Files::Write => {
                CapabilitySet::CHOWN
                    | CapabilitySet::DAC_OVERRIDE
                    | CapabilitySet::FOWNER
                    | CapabilitySet::FSETID
                    | CapabilitySet::MKNOD
            }
        };
        if low_port {
            kept |= CapabilitySet::NET_BIND_SERVICE;
        }
        let can_change = ours.contains(CapabilitySet::SETUID | CapabilitySet::SETGID);
        let user = [FIRST_USER + process, NOBODY].into_iter().find(|number| is_mapped(*number));
        // Root's files are root's to write, and `/dev/kvm` may be root's alone.
        let device = if kvm { kvm_group() } else { Some(None) };
        let user = user.filter(|_| can_change && files != Files::Write && is_for_all(program));
        let user = user.filter(|_| device.is_some());
        Rights { user, group: user.and(device.flatten()), kept: kept & ours }
    }
}

/// Prepares to start a program with these rights and descriptors, beside its standard streams.
pub fn confine(command: &mut Command, rights: Rights, descriptors: &[OwnedFd]) {
    command.env_clear().current_dir("/");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    let given: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let leaked: Vec<RawFd> = open_descriptors().into_iter().filter(|fd| *fd > 2).collect();
    let prepare = move || {
        for &fd in &leaked {
            let flags = if given.contains(&fd) { FdFlags::empty() } else { FdFlags::CLOEXEC };
            #[expect(unsafe_code, reason = "descriptors that were inherited have no owner here")]
            // SAFETY: it is borrowed for one system call, which fails where it is not open.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            match rustix::io::fcntl_setfd(fd, flags) {
                // The one that the list was read through.
                Ok(()) | Err(Errno::BADF) => {}
                Err(error) => return Err(error.into()),
            }
        }
        give_up(rights)?;
        Ok(())
    };
    #[expect(unsafe_code, reason = "rights are given up between fork and exec")]
    // SAFETY: the closure makes system calls and allocates nothing.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Gives up everything else, for good. An order of steps: each needs what the next ones take away.
fn give_up(rights: Rights) -> rustix::io::Result<()> {
    use rustix::thread;
    // A core would hold the guest's memory.
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    for bit in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if rights.kept.contains(bit) {
            continue;
        }
        match thread::remove_capability_from_bounding_set(bit) {
            // Not one that this kernel has; one who may not do this has nothing to give up either.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(user) = rights.user {
        thread::set_keep_capabilities(true)?;
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        match rights.group {
            Some(group) => thread::set_thread_groups(&[Gid::from_raw(group)])?,
            None => thread::set_thread_groups(&[])?,
        }
        thread::set_thread_res_gid(gid, gid, gid)?;
        thread::set_thread_res_uid(uid, uid, uid)?;
    }
    let kept = rights.kept;
    thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    thread::clear_ambient_capability_set()?;
    if rights.user.is_some() {
        for capability in kept.iter() {
            thread::configure_capability_in_ambient_set(capability, true)?;
        }
    }
    thread::set_no_new_privs(true)
}

/// The descriptors of this process; none where that cannot be told.
fn open_descriptors() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// True where this namespace has the number, for users and for groups.
fn is_mapped(number: u32) -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"].iter().all(|map| {
        std::fs::read_to_string(map).is_ok_and(|text| {
            text.lines().any(|line| {
                let mut fields = line.split_whitespace().map(str::parse::<u64>);
                let (Some(Ok(first)), _, Some(Ok(count))) = (fields.next(), fields.next(), fields.next())
                else {
                    return false;
                };
                (first..first + count).contains(&u64::from(number))
            })
        })
    })
}

/// True where every user can run a program.
fn is_for_all(program: &Utf8Path) -> bool {
    let Ok(path) = program.canonicalize_utf8() else { return false };
    path.ancestors().all(|part| part.metadata().is_ok_and(|metadata| metadata.mode() & 0o001 != 0))
}

/// The group that may use `/dev/kvm`, or none where all may; `None` where its owner alone may.
fn kvm_group() -> Option<Option<u32>> {
    let metadata = std::fs::metadata("/dev/kvm").ok()?;
    match metadata.mode() & 0o066 {
        mode if mode & 0o006 == 0o006 => Some(None),
        mode if mode & 0o060 == 0o060 => Some(Some(metadata.gid())),
        _ => None,
    }
}

/// True where a port of this host is root's alone.
pub fn is_low(port: u16) -> bool {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    u32::from(port) < first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}
