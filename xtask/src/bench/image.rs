//! From a root file system's tar to a disk that boots: ours, the recipe's, `mke2fs`'s, and a plain copy beside them.

use std::fs::{self, File};
use std::io::Write as _;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};

use super::{Figures, Side, hard_tar, measure, table};
use crate::artifact::{Staged, create_folder};
use crate::disk;
use crate::host::process::run_watched;
use crate::image::{ImageRequest, Source};
use crate::tasks::Context;
use crate::vm::machine::{Base, DiskFormat};

/// What to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How often each side does its work.
    pub runs: usize,
    /// Also the recipe's way, which takes half a minute each time.
    pub guestfs: bool,
}

/// Runs the comparison and prints its tables.
pub fn run(context: &Context, plan: Plan) -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "unpacking owners and devices for `mke2fs -d` needs root");
    let work = Staged::new(&context.workspace.cache().join("scratch/bench"))?;
    create_folder(work.path())?;
    let tars = [("a Debian with nginx", debian(context)?), ("a hard one", hard(context)?)];
    for (name, tar) in tars {
        let size = tar.metadata().with_context(|| format!("failed to read `{tar}`"))?.len();
        let title = format!("{name}: {}", crate::ui::human_bytes(size));
        crate::note!("measuring {title}");
        let figures = compare(&tar, work.path(), plan)?;
        crate::out!("{}", table(&title, &figures));
    }
    Ok(())
}

fn debian(context: &Context) -> anyhow::Result<Utf8PathBuf> {
    let folder = context.workspace.cache().join("stand-in");
    let script = context.workspace.scripts_folder().join("stand-in-base");
    run_watched("the script `stand-in-base`", &duct::cmd!(script.as_std_path(), folder.as_str()), |_| {})?;
    Ok(folder.join("nginx-rootfs.tar"))
}

fn hard(context: &Context) -> anyhow::Result<Utf8PathBuf> {
    let tar = context.workspace.cache().join("bench/hard.tar");
    if !tar.exists() {
        let staged = Staged::new(&tar)?;
        let file =
            File::create(staged.path()).with_context(|| format!("failed to create `{}`", staged.path()))?;
        let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
        hard_tar::write(&mut file)?;
        file.flush().context("failed to write the archive")?;
        drop(file);
        staged.publish()?;
    }
    Ok(tar)
}

fn compare(tar: &Utf8Path, work: &Utf8Path, plan: Plan) -> anyhow::Result<Vec<Figures>> {
    // What all sides read is in memory before the first begins.
    let _ = fs::read(tar).with_context(|| format!("failed to read `{tar}`"))?;
    let at = |name: &str| work.join(name);
    let mut sides = vec![
        Side { name: "ours, to an overlay", leaves: vec![at("cache")], work: Box::new(|| ours(tar, work)) },
        Side { name: "ours again, unchanged", leaves: Vec::new(), work: Box::new(|| ours(tar, work)) },
        Side {
            name: "cp of the tar",
            leaves: vec![at("copy.tar")],
            work: Box::new(|| plain_copy(tar, &at("copy.tar"))),
        },
        Side {
            name: "untar + mke2fs -d + qemu-img",
            leaves: vec![at("unpacked"), at("mke2fs.ext4"), at("mke2fs.qcow2")],
            work: Box::new(|| mke2fs(tar, work)),
        },
    ];
    if plan.guestfs {
        sides.push(Side {
            name: "virt-make-fs + qemu-img",
            leaves: vec![at("guestfs.ext4"), at("guestfs.qcow2")],
            work: Box::new(|| virt_make_fs(tar, work)),
        });
    }
    measure(&mut sides, plan.runs)
}

/// This program itself, in a cache of its own, from its start to its end.
fn ours(tar: &Utf8Path, work: &Utf8Path) -> anyhow::Result<Option<u64>> {
    let program = std::env::current_exe().context("failed to name this program")?;
    let prepare = duct::cmd!(program, "bench", "prepare", tar, work.join("overlay.qcow2"));
    let said = prepare.env(crate::workspace::CACHE_VARIABLE, work.join("cache")).stderr_null().read();
    Ok(said.context("failed to make the disk")?.trim().parse().ok())
}

/// What `boot` does with an image before it starts a machine. Gives this process's peak of memory in bytes.
pub fn prepare(context: &Context, tar: &Utf8Path, overlay: &Utf8Path) -> anyhow::Result<u64> {
    let request = ImageRequest::new(Source::Rootfs(tar.to_owned()));
    let image = crate::image::ensure(context, &request, Utf8Path::new(""))?;
    disk::overlay(&Base { path: image.disk, format: DiskFormat::Raw }, overlay)?;
    // proc(5): the peak of the resident set, in kB.
    let status = fs::read_to_string("/proc/self/status").context("failed to read `/proc/self/status`")?;
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let peak: u64 = peak.context("the kernel does not tell this process's memory")?;
    Ok(peak * 1024)
}

fn plain_copy(tar: &Utf8Path, copy: &Utf8Path) -> anyhow::Result<Option<u64>> {
    run_watched("`cp`", &duct::cmd!("cp", tar, copy), |_| {})?;
    Ok(None)
}

fn mke2fs(tar: &Utf8Path, work: &Utf8Path) -> anyhow::Result<Option<u64>> {
    let (folder, raw) = (work.join("unpacked"), work.join("mke2fs.ext4"));
    create_folder(&folder)?;
    let options = ["--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*"];
    let words = options.iter().copied().chain(["--file", tar.as_str(), "--directory", folder.as_str()]);
    run_watched("`tar`", &duct::cmd("tar", words), |_| {})?;
    let mke2fs = crate::host::tools::find("mke2fs").context("`mke2fs` was not found")?.into_string();
    run_watched("`mke2fs`", &duct::cmd!(mke2fs, "-q", "-t", "ext4", "-d", &folder, &raw, "8G"), |_| {})?;
    disk::to_qcow2(&raw, &work.join("mke2fs.qcow2"), false)?;
    Ok(None)
}

fn virt_make_fs(tar: &Utf8Path, work: &Utf8Path) -> anyhow::Result<Option<u64>> {
    let raw = work.join("guestfs.ext4");
    // The recipe's room beside the contents: 200 MiB.
    let size = tar.metadata().with_context(|| format!("failed to read `{tar}`"))?.len() * 5 / 4 + (200 << 20);
    disk::guestfs::make(tar, &raw, size)?;
    disk::to_qcow2(&raw, &work.join("guestfs.qcow2"), false)?;
    Ok(None)
}
