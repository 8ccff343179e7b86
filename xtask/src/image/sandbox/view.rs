//! The root that a confined builder sees: the host's programs, a few files about the host, and the folders it is given.
//!
//! A builder's own checks of paths have failed before (a link in an image, the name of a cache mount), and then a RUN
//! saw the builder's root in place of its container's, mounted so that it could write. So there is nothing in it that a
//! RUN must not see, and nothing of the host's that can be written: a read-only bind mount would not do, since the
//! builder's root may make it writable again. Files are copies, folders are overlays, and file systems are read-only as a whole.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};

use super::network::NAME_SERVER;
use super::{Order, RUNTIME};
use crate::artifact::create_folder;

/// Where programs and their libraries are. Where `/usr` is merged, the others are links.
const PROGRAMS: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"];

/// What programs look up: users, libraries, whom to trust, which registries there are. No keys and no passwords.
const SETTINGS: [&str; 12] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/etc/containers/policy.json",
    "/etc/containers/registries.conf",
    "/etc/containers/registries.conf.d",
    "/etc/containers/seccomp.json",
];

/// Names and numbers, from the kernel's `devices.txt`.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Makes the root and moves this process, which must be the first of its namespaces, into it.
pub(super) fn make(order: &Order) -> anyhow::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("failed to part from the host's mounts")?;
    let view = View { root: &order.root };
    view.fresh("tmpfs", "/", QUIET, "mode=755")?;
    for path in ["/run", "/tmp", "/root", "/none", "/dev", "/proc", "/sys", "/etc", "/var/tmp"] {
        create_folder(&view.inside(path))?;
    }
    for path in PROGRAMS.map(Utf8Path::new).into_iter().filter(|path| path.exists()) {
        match path.read_link_utf8() {
            Ok(target) => symlink(target, view.inside(path.as_str()))
                .with_context(|| format!("failed to make the link `{path}`"))?,
            Err(_) => view.show(path, None)?,
        }
    }
    for path in SETTINGS.map(Utf8Path::new).into_iter().filter(|path| path.exists()) {
        let target = view.inside(path.as_str());
        create_folder(target.parent().unwrap_or(view.root))?;
        copy(path, &target).with_context(|| format!("failed to copy `{path}` for the builder"))?;
    }
    view.write("/etc/resolv.conf", &format!("nameserver {NAME_SERVER}\n"))?;
    view.write(RUNTIME, include_str!("runtime.sh"))?;
    for path in ["/run", "/tmp"] {
        view.fresh("tmpfs", path, QUIET, "mode=1777")?;
    }
    make_devices(&view)?;
    make_kernel_files(&view)?;
    // The builder may write to what it reads, as a `RUN --mount=type=bind,rw` does, and nobody else sees it.
    view.show(&order.input, Some("/run/input"))?;
    for path in &order.writable {
        view.share(path, path.as_str())?;
    }
    view.share(&order.temporary, "/var/tmp")?;
    // Not as a bind mount: the file system itself.
    mount_remount(order.root.as_str(), QUIET | MountFlags::RDONLY, c"mode=755")
        .context("failed to shut the builder's root")?;
    move_into(&order.root)
}

/// Nodes of its own: the host's could be given another mode.
fn make_devices(view: &View<'_>) -> anyhow::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    view.fresh("tmpfs", "/dev", flags, "mode=755")?;
    for (name, major, minor) in DEVICES {
        let path = view.inside("/dev").join(name);
        let all = Mode::from_raw_mode(0o666);
        mknodat(CWD, path.as_str(), FileType::CharacterDevice, all, makedev(major, minor))
            .with_context(|| format!("failed to make the device `{name}`"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .with_context(|| format!("failed to open the device `{name}` to all"))?;
    }
    view.fresh("devpts", "/dev/pts", flags, "newinstance,ptmxmode=0666,mode=620")?;
    view.fresh("tmpfs", "/dev/shm", flags | MountFlags::NODEV, "mode=1777")?;
    for (target, path) in [("pts/ptmx", "/dev/ptmx"), ("/proc/self/fd", "/dev/fd")] {
        symlink(target, view.inside(path)).with_context(|| format!("failed to make the link `{path}`"))?;
    }
    Ok(())
}

/// `/proc` of the new PID namespace and `/sys` of the new network. An empty folder in place of the cgroups makes container
/// runtimes, told to do without them, work on every host: they refuse one that has both kinds.
fn make_kernel_files(view: &View<'_>) -> anyhow::Result<()> {
    let flags = QUIET | MountFlags::NOEXEC | MountFlags::RDONLY;
    view.fresh("proc", "/proc", flags, "")?;
    view.fresh("sysfs", "/sys", flags, "")?;
    view.fresh("tmpfs", "/sys/fs/cgroup", flags, "")
}

/// Makes the new root this process's, and lets go of the old one.
fn move_into(root: &Utf8Path) -> anyhow::Result<()> {
    let failed = || format!("failed to enter the root `{root}`");
    std::env::set_current_dir(root).with_context(failed)?;
    // pivot_root(2): with both the same, the old root lies on the new one until it is unmounted.
    rustix::process::pivot_root(".", ".").with_context(failed)?;
    unmount(".", UnmountFlags::DETACH).with_context(failed)?;
    std::env::set_current_dir("/").with_context(failed)
}

struct View<'a> {
    root: &'a Utf8Path,
}

impl View<'_> {
    /// Where a path of the inside is, as long as the host's root is there.
    fn inside(&self, path: &str) -> Utf8PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let target = self.inside(path);
        fs::write(&target, text)
            .and_then(|()| fs::set_permissions(&target, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("failed to write `{target}`"))
    }

    fn fresh(&self, kind: &str, path: &str, flags: MountFlags, data: &str) -> anyhow::Result<()> {
        let target = self.inside(path);
        if !target.exists() {
            create_folder(&target)?;
        }
        self.mount(kind, path, flags, data)
    }

    fn mount(&self, kind: &str, path: &str, flags: MountFlags, data: &str) -> anyhow::Result<()> {
        let data = CString::new(data).context("a mount option with a zero byte")?;
        mount(kind, self.inside(path).as_str(), kind, flags, &*data)
            .with_context(|| format!("failed to mount a file system ({kind}) at `{path}` for the builder"))
    }

    /// The host's folder at the same path, which stays as it is. With a folder of the inside for what is written,
    /// the builder may write; without one it cannot.
    fn show(&self, folder: &Utf8Path, changes: Option<&str>) -> anyhow::Result<()> {
        create_folder(&self.inside(folder.as_str()))?;
        let lower = format!("lowerdir={}:{}", escaped(folder), escaped(&self.inside("/none")));
        let Some(changes) = changes else {
            return self.mount("overlay", folder.as_str(), QUIET | MountFlags::RDONLY, &lower);
        };
        let [upper, work] = ["upper", "work"].map(|name| self.inside(changes).join(name));
        create_folder(&upper)?;
        create_folder(&work)?;
        let data = format!("{lower},upperdir={},workdir={}", escaped(&upper), escaped(&work));
        self.mount("overlay", folder.as_str(), QUIET, &data)
    }

    /// The host's folder itself.
    fn share(&self, folder: &Utf8Path, path: &str) -> anyhow::Result<()> {
        let target = self.inside(path);
        create_folder(&target)?;
        let failed = || format!("failed to give `{folder}` to the builder");
        mount_bind(folder.as_str(), target.as_str()).with_context(failed)?;
        // Flags of a bind mount take a second call (mount(2)).
        mount_remount(target.as_str(), MountFlags::BIND | MountFlags::NODEV, c"").with_context(failed)
    }
}

/// A path in an overlay's options, where `:` and `,` part one from the next.
fn escaped(path: &Utf8Path) -> String {
    path.as_str().replace('\\', r"\\").replace(':', r"\:").replace(',', r"\,")
}

/// A file or a tree. Links stay links: those of certificates point to where programs are.
fn copy(from: &Utf8Path, to: &Utf8Path) -> std::io::Result<()> {
    // What was named is read through links; `/etc/localtime` is one.
    if !from.is_dir() {
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir_all(to)?;
    for entry in from.read_dir_utf8()? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if let Ok(link) = path.read_link() {
            symlink(link, target)?;
        } else if path.is_dir() || path.is_file() {
            copy(path, &target)?;
        }
    }
    Ok(())
}
