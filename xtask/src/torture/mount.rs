//! File systems of a trial's own, which root alone can mount: one in memory with little room, and one whose power can be
//! cut.

use std::fs::File;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::ioctl::{Setter, ioctl};

use super::stage::copy_tree;
use crate::artifact::remove_any;

/// A mounted file system; unmounted with this value.
#[derive(Debug)]
pub struct Mount {
    folder: Utf8PathBuf,
    /// The file that holds it, for one that has a disk.
    disk: Option<Utf8PathBuf>,
}

/// How long a file system may stay busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a disk's file system holds.
const DISK_SIZE: u64 = 2 << 30;

/// Metadata is written every second, while data waits for its time: what was not synchronised is lost soonest this way.
/// `noauto_da_alloc` takes away ext4's own guess at what a rename means (ext4(5)).
const OPTIONS: &str = "loop,commit=1,noauto_da_alloc";

/// `_IOR('X', 125, __u32)`: no further write reaches the disk (`EXT4_IOC_SHUTDOWN`, Linux's fs/ext4/ext4.h).
const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);

/// Without writing the journal first (`EXT4_GOING_FLAGS_NOLOGFLUSH`).
const NO_LOG_FLUSH: u32 = 2;

/// Why no file system can be mounted here; `None` where it can.
pub fn obstacle(with_disk: bool) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        Some("mounting a file system needs root".to_owned())
    } else if with_disk && !Utf8Path::new("/dev/loop-control").exists() {
        Some("this host has no loop devices".to_owned())
    } else {
        None
    }
}

impl Mount {
    /// A file system in memory that holds so many bytes.
    pub fn in_memory(folder: &Utf8Path, size: u64) -> anyhow::Result<Mount> {
        duct::cmd!("mount", "-t", "tmpfs", "-o", format!("size={size},mode=700"), "tmpfs", folder)
            .run()
            .context("failed to mount a tmpfs")?;
        Ok(Mount { folder: folder.to_owned(), disk: None })
    }

    /// An ext4 file system in a file beside the folder.
    pub fn of_disk(folder: &Utf8Path) -> anyhow::Result<Mount> {
        let disk = folder.with_extension("disk");
        let file = File::create(&disk).with_context(|| format!("failed to create `{disk}`"))?;
        file.set_len(DISK_SIZE).with_context(|| format!("failed to make `{disk}` large"))?;
        duct::cmd!("mkfs.ext4", "-q", &disk).run().context("failed to make a file system")?;
        let mount = Mount { folder: folder.to_owned(), disk: Some(disk) };
        mount.mount()?;
        Ok(mount)
    }

    fn mount(&self) -> anyhow::Result<()> {
        let disk = self.disk.as_ref().context("a file system in memory cannot come back")?;
        duct::cmd!("mount", "-o", OPTIONS, disk, &self.folder).run().context("failed to mount a disk")?;
        Ok(())
    }

    /// Cuts the disk's power: what has not reached it by now never will, and every further write fails.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        let folder = File::open(&self.folder).with_context(|| format!("failed to open `{}`", self.folder))?;
        #[expect(unsafe_code, reason = "this ioctl has no other name")]
        // SAFETY: the kernel reads one u32 by this number, whose direction is declared the wrong way round.
        let request = unsafe { Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH) };
        #[expect(unsafe_code, reason = "this ioctl has no other name")]
        // SAFETY: the request lives through the call, and the descriptor is a folder's, which takes no other meaning from it.
        unsafe { ioctl(&folder, request) }.context("failed to shut the file system down")
    }

    /// Mounts the disk again after its power was cut; the kernel replays its journal. Nothing may have files open there.
    pub fn power_on(&self) -> anyhow::Result<()> {
        let disk = self.disk.as_ref().context("a file system in memory cannot come back")?;
        let deadline = Instant::now() + DEADLINE;
        // A process that was killed lets go of its files a moment after it is gone from sight.
        while let Err(error) = duct::cmd!("umount", &self.folder).stderr_null().run() {
            ensure!(Instant::now() < deadline, "failed to unmount a disk: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        // Another mount namespace may hold the dead file system, which would be mounted again by its file.
        let copy = disk.with_extension("copy");
        copy_tree(disk, &copy)?;
        std::fs::rename(&copy, disk).with_context(|| format!("failed to replace `{disk}`"))?;
        self.mount()
    }

    /// Writes everything to the disk.
    pub fn sync(&self) -> anyhow::Result<()> {
        let folder = File::open(&self.folder).with_context(|| format!("failed to open `{}`", self.folder))?;
        rustix::fs::syncfs(&folder).context("failed to write everything to the disk")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever is still in it lets go of it later.
        let _ = duct::cmd!("umount", "--lazy", &self.folder).run();
        if let Some(disk) = &self.disk {
            let _ = remove_any(disk);
        }
    }
}
