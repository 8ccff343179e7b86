//! The user's mounts: folders and single files of the host over 9p, tmpfs, further disks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use init::boot_config::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};

use crate::archive::copy_tree;
use crate::log;
use crate::mounts::{Point, create_point, mount_type, wait_for_device};

/// What 9p is mounted with. The transport takes at most 500 KiB in one message (net/9p/trans_virtio.c), and `mmap`
/// is the least caching with which programs can map files shared, while the host's changes show at once.
const SHARE_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap";

/// Where things are mounted for a moment, out of the image's sight; a directory in devtmpfs.
const STAGE: &str = "/dev/.init";

/// Makes the user's mounts in their order.
///
/// # Errors
/// A mount failed that the user cannot do without; shares that are not required are only reported.
pub(crate) fn make_all(mounts: &[Mount]) -> Result<()> {
    for mount in mounts {
        match (make(mount), mount) {
            (Err(e), Mount::Share { required: false, .. }) => log::say(format_args!("{e:#}")),
            (result, _) => result?,
        }
    }
    Ok(())
}

fn make(mount: &Mount) -> Result<()> {
    match mount {
        Mount::Share { tag, target, read_only, file, .. } => {
            log::step(format_args!("mount share `{tag}` on {target}"));
            if !is_offered(tag) {
                bail!("cannot mount `{target}`: the machine has no share with the tag `{tag}`");
            }
            let flags = read_only_flag(*read_only);
            match file {
                None => {
                    create_point(Path::new(target), Point::Directory)?;
                    mount_type(tag, Path::new(target), "9p", flags, SHARE_OPTIONS)
                }
                Some(file) => on_stage(|stage| {
                    mount_type(tag, stage, "9p", flags, SHARE_OPTIONS)?;
                    bind_file(&stage.join(file), Path::new(target))
                }),
            }
        }
        Mount::Tmpfs { target, options } => {
            log::step(format_args!("mount tmpfs on {target}"));
            let path = Path::new(target);
            create_point(path, Point::Directory)?;
            let (flags, options) = parse_options(options);
            mount_type("tmpfs", path, "tmpfs", flags, &options)
        }
        Mount::Disk { device, fstype, target, read_only, populate } => {
            log::step(format_args!("mount disk `{device}` on {target}"));
            let path = Path::new(target);
            create_point(path, Point::Directory)?;
            wait_for_device(device)?;
            if !populate {
                return mount_type(device, path, fstype, read_only_flag(*read_only), "");
            }
            on_stage(|stage| {
                // Filled once, out of sight, and in full before it is used.
                mount_type(device, stage, fstype, MountFlags::empty(), "")?;
                if is_empty(stage)? {
                    log::step(format_args!("copy what the image has at {target}"));
                    copy_tree(path, stage)?;
                }
                mount_bind(stage, path).with_context(|| format!("cannot mount `{device}` on `{target}`"))?;
                if *read_only {
                    let flags = MountFlags::RDONLY | MountFlags::BIND;
                    mount_remount(path, flags, "")
                        .with_context(|| format!("cannot make `{target}` read-only"))?;
                }
                Ok(())
            })
        }
    }
}

/// Whether a fresh file system holds nothing but what mkfs puts there.
fn is_empty(directory: &Path) -> Result<bool> {
    let mut entries =
        fs::read_dir(directory).with_context(|| format!("cannot read `{}`", directory.display()))?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found")))
}

/// Whether the machine has a 9p device with this tag.
pub(crate) fn is_offered(tag: &str) -> bool {
    let devices = fs::read_dir("/sys/bus/virtio/drivers/9pnet_virtio").into_iter().flatten().flatten();
    let tags = devices.filter_map(|device| fs::read(device.path().join("mount_tag")).ok());
    tags.into_iter()
        .any(|found| found.trim_ascii_end().strip_suffix(b"\0").unwrap_or(&found) == tag.as_bytes())
}

fn read_only_flag(read_only: bool) -> MountFlags {
    if read_only { MountFlags::RDONLY } else { MountFlags::empty() }
}

/// Binds a file over another, creating the other where missing.
///
/// # Errors
/// There is no such file, or it cannot be bound there.
pub(crate) fn bind_file(file: &Path, target: &Path) -> Result<()> {
    create_point(target, Point::File)?;
    fs::symlink_metadata(file)
        .with_context(|| format!("there is no file to mount on `{}`", target.display()))?;
    mount_bind(file, target).with_context(|| format!("cannot mount a file on `{}`", target.display()))
}

/// Calls `use_stage` with a directory for its mounts, and takes them away from there afterwards; what it bound
/// elsewhere stays.
///
/// # Errors
/// The directory cannot be made, or what `use_stage` yields.
pub(crate) fn on_stage<T>(use_stage: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    fs::create_dir_all(STAGE).with_context(|| format!("cannot create `{STAGE}`"))?;
    let result = use_stage(Path::new(STAGE));
    let _ = unmount(STAGE, UnmountFlags::DETACH);
    let _ = fs::remove_dir(STAGE);
    result
}

/// Splits mount(8)'s words into the flags of mount(2) and what the file system reads itself. A user's tmpfs starts
/// with docker's flags.
fn parse_options(options: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mut rest = Vec::new();
    for word in options.split(',').filter(|word| !word.is_empty()) {
        let (flag, on) = match word {
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "noatime" => (MountFlags::NOATIME, true),
            "relatime" => (MountFlags::RELATIME, true),
            _ => {
                rest.push(word);
                continue;
            }
        };
        flags.set(flag, on);
    }
    (flags, rest.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_from_options() {
        let docker = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        assert_eq!(parse_options(""), (docker, String::new()));
        assert_eq!(parse_options("size=64m,exec,mode=1777,,ro"), {
            (MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY, "size=64m,mode=1777".to_owned())
        });
        assert_eq!(parse_options("rw,noexec,nosuid,nodev"), (docker, String::new()));
    }
}
