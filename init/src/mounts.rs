//! The root file system and the mounts that every program of an image expects, as a table of data.
//!
//! Mount points that an image lacks are made. On a read-only root that takes a moment of writing, which only a
//! disk that is itself read-only refuses; what then cannot be mounted is reported, and fatal only where essential.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use init::boot_config::Root;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, mount_remount, unmount};

use crate::log;

/// Where the root file system is mounted before PID 1 moves into it.
const NEW_ROOT: &str = "/new-root";

/// What disks are mounted with: what is freed is told to QEMU, which makes a hole of it in the host's file.
pub(crate) const DISK_OPTIONS: &str = "discard";

/// How long a device may take to appear. Virtio disks are there before PID 1 is.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);

/// One row of the table of standard mounts.
struct Standard {
    target: &'static str,
    fstype: &'static str,
    flags: MountFlags,
    options: &'static str,
    /// Without it PID 1 itself cannot work.
    essential: bool,
}

const NOTHING_SPECIAL: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// In this order, since some lie on others. The options are those of docker's containers.
const STANDARD: [Standard; 7] = [
    Standard { target: "/proc", fstype: "proc", flags: NOTHING_SPECIAL, options: "", essential: true },
    Standard { target: "/sys", fstype: "sysfs", flags: NOTHING_SPECIAL, options: "", essential: true },
    Standard { target: "/dev", fstype: "devtmpfs", flags: MountFlags::NOSUID, options: "", essential: true },
    Standard {
        target: "/dev/pts",
        fstype: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        // Group 5 is `tty` in every distribution; programs such as write(1) rely on it.
        options: "ptmxmode=0666,mode=0620,gid=5",
        essential: false,
    },
    Standard {
        target: "/dev/mqueue",
        fstype: "mqueue",
        flags: NOTHING_SPECIAL,
        options: "",
        essential: false,
    },
    Standard {
        target: "/dev/shm",
        fstype: "tmpfs",
        flags: NOTHING_SPECIAL,
        options: "mode=1777",
        essential: false,
    },
    Standard {
        target: "/sys/fs/cgroup",
        fstype: "cgroup2",
        flags: NOTHING_SPECIAL,
        options: "",
        essential: false,
    },
];

/// Names in `/dev` that shells and servers use and devtmpfs has not.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// A directory.
    Directory,
    /// An empty file, over which another file is bound.
    File,
}

/// Mounts the root device and moves into it; PID 1 stays the same process.
///
/// # Errors
/// The device does not appear, or holds no such file system.
pub(crate) fn enter_root(root: &Root) -> Result<()> {
    fs::create_dir_all("/dev").context("cannot create `/dev` in the initramfs")?;
    mount_type("devtmpfs", Path::new("/dev"), "devtmpfs", MountFlags::NOSUID, "")?;
    wait_for_device(&root.device)?;
    fs::create_dir_all(NEW_ROOT).with_context(|| format!("cannot create `{NEW_ROOT}` in the initramfs"))?;
    let flags = if root.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount_type(&root.device, Path::new(NEW_ROOT), &root.fstype, flags, DISK_OPTIONS)?;
    // The device nodes come again inside the root.
    unmount("/dev", UnmountFlags::DETACH).context("cannot unmount the initramfs's `/dev`")?;
    rustix::process::chdir(NEW_ROOT).context("cannot enter the root file system")?;
    mount_move(".", "/").context("cannot move the root file system into place")?;
    rustix::process::chroot(".").context("cannot make the root file system the root")?;
    rustix::process::chdir("/").context("cannot enter the root file system")
}

/// Waits until a block device is there.
///
/// # Errors
/// It does not appear in time; the devices that the machine has are named.
pub(crate) fn wait_for_device(device: &str) -> Result<()> {
    let deadline = Instant::now() + DEVICE_PATIENCE;
    while !fs::metadata(device).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        if Instant::now() >= deadline {
            let disks = disks().join(" ");
            bail!(
                "device `{device}` did not appear within {} s; the machine has {}",
                DEVICE_PATIENCE.as_secs(),
                if disks.is_empty() { "no disk" } else { &disks }
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The disks in `/dev`. Loop devices are always there, and hold nothing yet.
fn disks() -> Vec<String> {
    let is_block = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_block_device());
    let blocks = fs::read_dir("/dev").into_iter().flatten().flatten().filter(is_block);
    let paths = blocks.map(|entry| entry.path().to_string_lossy().into_owned());
    let mut disks: Vec<String> = paths.filter(|path| !path.starts_with("/dev/loop")).collect();
    disks.sort();
    disks
}

/// Makes the standard mounts. Those that fail are named, and only essential ones end the boot.
///
/// # Errors
/// An essential mount failed.
pub(crate) fn make_standard() -> Result<()> {
    for row in &STANDARD {
        log::step(format_args!("mount {} on {}", row.fstype, row.target));
        let target = Path::new(row.target);
        let made = create_point(target, Point::Directory)
            .and_then(|()| mount_type("none", target, row.fstype, row.flags, row.options));
        match made {
            // The kernel or an earlier boot stage has done it.
            Err(e) if e.root_cause().downcast_ref() == Some(&Errno::BUSY) => {}
            Err(e) if row.essential => return Err(e),
            Err(e) => log::say(format_args!("{e:#}")),
            Ok(()) => {}
        }
    }
    for (original, link) in LINKS {
        match symlink(original, link) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                log::say(format_args!("cannot link `{link}` to `{original}`: {e}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Mounts a file system, naming it in the error.
///
/// # Errors
/// The kernel's.
pub(crate) fn mount_type(
    source: &str,
    target: &Path,
    fstype: &str,
    flags: MountFlags,
    options: &str,
) -> Result<()> {
    let options = CString::new(options).context("mount options with a NUL byte")?;
    mount(source, target, fstype, flags, options.as_c_str()).with_context(|| {
        let target = target.display();
        match source {
            "none" => format!("cannot mount {fstype} on `{target}`"),
            _ => format!("cannot mount `{source}` ({fstype}) on `{target}`"),
        }
    })
}

/// Makes sure that there is something to mount on, with its parents.
///
/// # Errors
/// It cannot be made, or is a directory where a file is needed or the other way round.
pub(crate) fn create_point(target: &Path, point: Point) -> Result<()> {
    let no_point = || format!("cannot create mount point `{}`", target.display());
    if let Ok(metadata) = fs::metadata(target) {
        return match point {
            Point::Directory if !metadata.is_dir() => {
                Err(anyhow!("`{}` is not a directory", target.display()))
            }
            Point::File if metadata.is_dir() => Err(anyhow!("`{}` is a directory", target.display())),
            _ => Ok(()),
        };
    }
    let create = || -> io::Result<()> {
        match point {
            Point::Directory => fs::create_dir_all(target),
            Point::File => {
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::File::create(target).map(drop)
            }
        }
    };
    match create() {
        Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => {
            mount_remount("/", MountFlags::empty(), "").map_err(|_| e).with_context(no_point)?;
            let created = create();
            mount_remount("/", MountFlags::RDONLY, "").context("cannot make the root read-only again")?;
            created
        }
        other => other,
    }
    .with_context(no_point)
}

/// The mount points in `/proc/self/mounts` with their types, in the order of mounting.
pub(crate) fn parse_mounts(table: &[u8]) -> Vec<(Vec<u8>, String)> {
    let row = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let _source = fields.next()?;
        let target = unescape(fields.next()?);
        Some((target, String::from_utf8_lossy(fields.next()?).into_owned()))
    };
    table.split(|byte| *byte == b'\n').filter_map(row).collect()
}

/// The kernel writes blanks and backslashes in names as three octal digits (`mangle` in fs/proc_namespace.c).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(code) if byte == b'\\' => {
                result.push(code);
                rest = &after[3..];
            }
            _ => {
                result.push(byte);
                rest = after;
            }
        }
    }
    result
}

/// Takes every file system that holds data out of use, the root last, so that none needs a check at the next boot.
pub(crate) fn release_all() {
    /// Nothing of these outlives the machine.
    const MEMORY_ONLY: [&str; 9] =
        ["proc", "sysfs", "devtmpfs", "devpts", "mqueue", "tmpfs", "cgroup2", "rootfs", "ramfs"];
    let table = fs::read("/proc/self/mounts").unwrap_or_default();
    for (target, fstype) in parse_mounts(&table).into_iter().rev() {
        if target == b"/" || MEMORY_ONLY.contains(&fstype.as_str()) {
            continue;
        }
        let path = Path::new(OsStr::from_bytes(&target));
        if let Err(e) = unmount(path, UnmountFlags::NOFOLLOW) {
            log::say(format_args!("cannot unmount `{}`: {e}", path.display()));
            let _ = mount_remount(path, MountFlags::RDONLY, "");
        }
    }
    rustix::fs::sync();
    if let Err(e) = mount_remount("/", MountFlags::RDONLY, "") {
        log::say(format_args!("cannot make the root read-only: {e}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_standard_mount_hides_an_earlier_one() {
        for (index, row) in STANDARD.iter().enumerate() {
            for later in &STANDARD[index + 1..] {
                assert!(
                    !Path::new(row.target).starts_with(later.target),
                    "{} hides {}",
                    later.target,
                    row.target
                );
            }
        }
    }

    #[test]
    fn mount_tables_with_odd_names_are_read() {
        let table =
            b"/dev/root / ext4 rw,relatime 0 0\nnone /proc proc rw 0 0\nx /a\\040b\\134c\\011 9p rw 0 0\n\n";
        let of = |target: &[u8], fstype: &str| (target.to_vec(), fstype.to_owned());
        assert_eq!(parse_mounts(table), [of(b"/", "ext4"), of(b"/proc", "proc"), of(b"/a b\\c\t", "9p")]);
    }
}
