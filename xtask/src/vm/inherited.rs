//! What QEMU is given open in place of names: disks that were judged, the kernel, its ends of sockets. So QEMU needs no
//! right to any file or folder of ours, and nobody else can be at the other end of a socket.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use super::machine::Machine;
use crate::disk::opened;

/// Descriptors for QEMU, each under the path that it stands for. Empty for a command line that a person pastes: then
/// QEMU opens paths itself.
#[derive(Debug, Default)]
pub struct Inherited {
    held: Vec<OwnedFd>,
    handed: HashMap<Utf8PathBuf, Handed>,
    sets: Vec<Vec<RawFd>>,
}

#[derive(Debug, Clone, Copy)]
enum Handed {
    /// A file that QEMU opens again through its own descriptor.
    File(RawFd),
    /// A place in `sets`: the same file, open for reading and for writing.
    Disk(usize),
    Socket(RawFd),
}

impl Inherited {
    /// Opens a machine's files, its disks as [`opened::open`] does. Errors where one cannot be opened, or is not what it
    /// is to be.
    pub fn of(machine: &Machine) -> anyhow::Result<Inherited> {
        let mut all = Inherited::default();
        for path in [Some(&machine.kernel), machine.initramfs.as_ref()].into_iter().flatten() {
            let file = readable(path).with_context(|| format!("failed to open `{path}`"))?;
            let fd = all.hold(file.into());
            all.handed.insert(path.clone(), Handed::File(fd));
        }
        for disk in &machine.disks {
            let files = opened::open(disk)?;
            all.disk(&disk.path, files.file);
            if let (Some(base), Some(file)) = (&disk.base, files.base) {
                all.disk(&base.path, vec![file]);
            }
        }
        Ok(all)
    }

    fn disk(&mut self, path: &Utf8Path, files: Vec<File>) {
        let set = files.into_iter().map(|file| self.hold(file.into())).collect();
        self.handed.insert(path.to_owned(), Handed::Disk(self.sets.len()));
        self.sets.push(set);
    }

    /// Gives QEMU one end of a new connection, under this path, and yields the other one.
    pub fn connect(&mut self, path: &Utf8Path) -> anyhow::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair().context("failed to make a pair of sockets")?;
        self.socket(path, theirs.into());
        Ok(ours)
    }

    /// Gives QEMU a socket, under this path.
    pub fn socket(&mut self, path: &Utf8Path, socket: OwnedFd) {
        let fd = self.hold(socket);
        self.handed.insert(path.to_owned(), Handed::Socket(fd));
    }

    /// Gives QEMU an open file under this path, through which it goes on writing.
    pub fn opened(&mut self, path: &Utf8Path, file: OwnedFd) {
        self.disk(path, vec![file.into()]);
    }

    fn hold(&mut self, fd: OwnedFd) -> RawFd {
        let raw = fd.as_raw_fd();
        self.held.push(fd);
        raw
    }

    /// The descriptors.
    pub fn descriptors(&self) -> &[OwnedFd] {
        &self.held
    }

    /// What a file is called on QEMU's command line.
    pub fn file(&self, path: &Utf8Path) -> String {
        match self.handed.get(path) {
            Some(Handed::File(fd)) => format!("/proc/self/fd/{fd}"),
            Some(Handed::Disk(set)) => format!("/dev/fdset/{set}"),
            _ => path.to_string(),
        }
    }

    /// The descriptor of a socket.
    pub fn socket_number(&self, path: &Utf8Path) -> Option<RawFd> {
        match self.handed.get(path) {
            Some(Handed::Socket(fd)) => Some(*fd),
            _ => None,
        }
    }

    /// The sets of descriptors that `/dev/fdset/N` names (QEMU's `-add-fd`): number and descriptor.
    pub fn sets(&self) -> impl Iterator<Item = (usize, RawFd)> {
        let sets = self.sets.iter().enumerate();
        sets.flat_map(|(number, set)| set.iter().map(move |fd| (number, *fd)))
    }
}

/// A file that QEMU may open again whoever it runs as: where its mode is against that, a copy in memory.
fn readable(path: &Utf8Path) -> std::io::Result<File> {
    let mut file = File::open(path)?;
    if file.metadata()?.mode() & 0o004 != 0 {
        return Ok(file);
    }
    let mut copy = File::from(rustix::fs::memfd_create("copy", rustix::fs::MemfdFlags::CLOEXEC)?);
    std::io::copy(&mut file, &mut copy)?;
    Ok(copy)
}
