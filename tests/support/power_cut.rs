//! A disk of the host whose power can be cut: an ext4 file system in a loop-mounted file. At the cut the kernel forgets
//! all that it has not written yet, the journal included, and the next mount finds what a disk would hold.
//!
//! Needs root, loop devices and `mkfs.ext4`; nothing here depends on other test support.

use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

/// `FS_IOC_SHUTDOWN` and its flag `FS_SHUTDOWN_FLAGS_NOLOGFLUSH` (linux/fs.h): nothing more reaches the disk.
const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
const WITHOUT_JOURNAL: u32 = 2;

/// Processes that were killed let go of the file system within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk whose power can be cut. Unmounted with this value.
pub(crate) struct Disk {
    image: Utf8PathBuf,
    mount: Utf8PathBuf,
}

impl Disk {
    /// Makes the disk in a folder, of so many bytes. The error says in plain words why it cannot be done here.
    pub(crate) fn new(folder: &Utf8Path, bytes: u64) -> Result<Disk, String> {
        let disk = Disk { image: folder.join("disk.img"), mount: folder.join("disk") };
        std::fs::create_dir_all(&disk.mount).map_err(|error| error.to_string())?;
        let file = File::create(&disk.image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=1", disk.image.as_str()])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Utf8Path {
        &self.mount
    }

    /// Cuts the power. Whoever writes from now on gets errors, and is to be ended before the power comes back.
    pub(crate) fn cut(&self) {
        let folder = File::open(&self.mount).unwrap();
        #[expect(unsafe_code, reason = "no crate has this request")]
        // SAFETY: the request reads a number from the pointer that it is given, and `Setter` gives one to a `u32`.
        unsafe {
            let request = rustix::ioctl::Setter::<SHUTDOWN, u32>::new(WITHOUT_JOURNAL);
            rustix::ioctl::ioctl(&folder, request).unwrap();
        }
    }

    /// Mounts it again as a host that starts does.
    pub(crate) fn power_on(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = run("umount", &[self.mount.as_str()]) {
            assert!(Instant::now() < deadline, "somebody still uses the disk: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.mount().unwrap();
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", self.image.as_str(), self.mount.as_str()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", self.mount.as_str()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.map_err(|error| format!("`{program}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{program}`: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
