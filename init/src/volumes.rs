//! The user's mounts: folders and single files of the host over 9p, tmpfs, named volumes.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use init::boot_config::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};

use crate::log;
use crate::mounts::{DISK_OPTIONS, Point, create_point, mount_type, wait_for_device};
use init::archive::copy_tree;

/// What 9p is mounted with. The transport takes at most 500 KiB in one message (net/9p/trans_virtio.c), and `mmap`
/// is the least caching with which programs can map files shared, while the host's changes show at once.
const SHARE_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap";

/// Where things are mounted for a moment, out of the image's sight; a directory in devtmpfs.
const STAGE: &str = "/dev/.init";

/// The directory of a volume's disk that is mounted, beside the disk's own `lost+found`, which programs that expect
/// an empty directory would stumble over.
const VOLUME_DATA: &str = "data";

/// Makes the user's mounts in their order.
///
/// # Errors
/// A mount failed that the user cannot do without; shares that are not required are only reported.
pub(crate) fn make_all(mounts: &[Mount]) -> Result<()> {
    // A share can be mounted once only (net/9p/trans_virtio.c); its folder and files are bound from there.
    let mut staged: Vec<&str> = Vec::new();
    let result = mounts.iter().try_for_each(|mount| match (make(mount, &mut staged), mount) {
        (Err(e), Mount::Share { required: false, .. }) => {
            log::say(format_args!("{e:#}"));
            Ok(())
        }
        (result, _) => result,
    });
    for tag in staged {
        clear(&Path::new(STAGE).join(tag));
    }
    result
}

fn make<'a>(mount: &'a Mount, staged: &mut Vec<&'a str>) -> Result<()> {
    match mount {
        Mount::Share { tag, target, read_only, file, .. } => {
            log::step(format_args!("mount share `{tag}` on {target}"));
            let share = Path::new(STAGE).join(tag);
            if !staged.contains(&tag.as_str()) {
                if !is_offered(tag) {
                    bail!("cannot mount `{target}`: the machine has no share with the tag `{tag}`");
                }
                create_stage(&share)?;
                mount_type(tag, &share, "9p", read_only_flag(*read_only), SHARE_OPTIONS)?;
                staged.push(tag);
            }
            match file {
                None => {
                    create_point(Path::new(target), Point::Directory)?;
                    bind_directory(&share, Path::new(target), MountFlags::empty())
                }
                Some(file) => bind_file(&share.join(file), Path::new(target)),
            }
        }
        Mount::Tmpfs { target, options } => {
            log::step(format_args!("mount tmpfs on {target}"));
            let path = Path::new(target);
            let before = fs::metadata(path).ok().filter(fs::Metadata::is_dir);
            create_point(path, Point::Directory)?;
            let options = parse_options(options, before.map(|metadata| metadata.mode() & 0o7777));
            if !options.copy_up {
                return mount_type("tmpfs", path, "tmpfs", options.flags, &options.rest);
            }
            on_stage(|stage| {
                let flags = options.flags - MountFlags::RDONLY;
                mount_type("tmpfs", stage, "tmpfs", flags, &options.rest)?;
                copy_tree(path, stage)?;
                bind_directory(stage, path, options.flags)
            })
        }
        Mount::Volume { device, fstype, target, read_only } => {
            log::step(format_args!("mount volume `{device}` on {target}"));
            let path = Path::new(target);
            create_point(path, Point::Directory)?;
            wait_for_device(device)?;
            on_stage(|stage| {
                mount_type(device, stage, fstype, MountFlags::empty(), DISK_OPTIONS)?;
                let data = stage.join(VOLUME_DATA);
                if is_empty(&data)? {
                    log::step(format_args!("copy what the image has at {target}"));
                    fill(path, &data)?;
                }
                bind_directory(&data, path, read_only_flag(*read_only))
            })
        }
    }
}

/// Whether a directory is missing or holds nothing.
fn is_empty(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e).with_context(|| format!("cannot read `{}`", directory.display())),
    }
}

/// Makes `data` from a directory of the image, with its owner and mode; a machine that ends meanwhile leaves none.
fn fill(image: &Path, data: &Path) -> Result<()> {
    let fresh = data.with_extension("new");
    let write = || format!("cannot write `{}`", fresh.display());
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(write)?;
    }
    fs::create_dir(&fresh).with_context(write)?;
    copy_tree(image, &fresh)?;
    // All of it is on the disk before its name is.
    rustix::fs::sync();
    fs::rename(&fresh, data).with_context(write)
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

/// Binds a directory over another, read-only where `flags` say so.
fn bind_directory(directory: &Path, target: &Path, flags: MountFlags) -> Result<()> {
    mount_bind(directory, target).with_context(|| format!("cannot mount on `{}`", target.display()))?;
    if flags.contains(MountFlags::RDONLY) {
        mount_remount(target, flags | MountFlags::BIND, "")
            .with_context(|| format!("cannot make `{}` read-only", target.display()))?;
    }
    Ok(())
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
    let stage = Path::new(STAGE).join("one");
    create_stage(&stage)?;
    let result = use_stage(&stage);
    clear(&stage);
    result
}

fn create_stage(stage: &Path) -> Result<()> {
    fs::create_dir_all(stage).with_context(|| format!("cannot create `{}`", stage.display()))
}

/// Takes a stage away, and with the last one the folder that they are in.
fn clear(stage: &Path) {
    let _ = unmount(stage, UnmountFlags::DETACH);
    let _ = fs::remove_dir(stage);
    let _ = fs::remove_dir(STAGE);
}

/// What the words of mount(8) come to.
#[derive(Debug, PartialEq, Eq)]
struct TmpfsOptions {
    flags: MountFlags,
    /// What the file system reads itself.
    rest: String,
    /// Start with what the image has there.
    copy_up: bool,
}

/// Reads a user's words about a tmpfs, which starts with docker's flags and, as runc has it, with the mode of the
/// directory that it covers.
fn parse_options(options: &str, covered_mode: Option<u32>) -> TmpfsOptions {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mut copy_up = false;
    let mut rest: Vec<String> = Vec::new();
    for word in options.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => flags -= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "suid" => flags -= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "dev" => flags -= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "exec" => flags -= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "tmpcopyup" => copy_up = true,
            _ => rest.push(word.to_owned()),
        }
    }
    if let (Some(mode), false) = (covered_mode, rest.iter().any(|word| word.starts_with("mode="))) {
        rest.push(format!("mode={mode:o}"));
    }
    TmpfsOptions { flags, rest: rest.join(","), copy_up }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_from_options() {
        let docker = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let parsed = |options, mode| {
            let TmpfsOptions { flags, rest, copy_up } = parse_options(options, mode);
            (flags, rest, copy_up)
        };
        assert_eq!(parsed("", None), (docker, String::new(), false));
        assert_eq!(parsed("rw,noexec,nosuid,nodev", None), (docker, String::new(), false));
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY;
        assert_eq!(
            parsed("size=64m,exec,mode=1777,,ro", Some(0o755)),
            (flags, "size=64m,mode=1777".into(), false)
        );
        let taken_back = "suid,dev,exec,ro,rw,noatime,relatime";
        assert_eq!(
            parsed(taken_back, None),
            (MountFlags::NOATIME | MountFlags::RELATIME, String::new(), false)
        );
        assert_eq!(parsed("tmpcopyup,size=1m", Some(0o1750)), (docker, "size=1m,mode=1750".into(), true));
    }
}
