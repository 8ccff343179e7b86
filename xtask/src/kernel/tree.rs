//! Unpacked kernel trees: made from a tarball, looked at, identified.

use std::io::{Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

use super::source::decompression_option;
use crate::artifact::{Staged, create_folder, read_text, remove_any, require_space};
use crate::error::Hint as _;
use crate::host::{process, tools};
use crate::interrupt::Writer;
use crate::ui;
use crate::workspace::hex;

/// A kernel tree with some room (Linux 6.12: 1.5 GiB).
pub const UNPACKED_BYTES: u64 = 1_800 << 20;

/// Unpacks a tarball to `destination`, which appears whole or not at all.
pub fn unpack(tarball: &Utf8Path, destination: &Utf8Path) -> anyhow::Result<()> {
    let option = decompression_option(tarball)?;
    if let Some((_, program)) = option
        && tools::find(program).is_none()
    {
        return Err(anyhow!("`{program}` was not found on PATH, and `{tarball}` needs it"))
            .hint(format!("install `{program}`"));
    }
    let parent = destination.parent().unwrap_or(Utf8Path::new("."));
    create_folder(parent)?;
    require_space(parent, UNPACKED_BYTES, "the unpacked kernel source")?;
    let staged = Staged::new(destination)?;
    create_folder(staged.path())?;
    run_tar(tarball, option.map(|(option, _)| option), staged.path())
        .with_context(|| format!("failed to unpack `{tarball}`"))?;
    check(staged.path()).with_context(|| format!("`{tarball}` does not hold a kernel"))?;
    staged.publish()
}

fn run_tar(tarball: &Utf8Path, option: Option<&str>, folder: &Utf8Path) -> anyhow::Result<()> {
    let mut file = std::fs::File::open(tarball)?;
    let bytes = file.metadata()?.len();
    let mut complaints = tempfile::tempfile().context("failed to create a temporary file")?;
    let mut command = Command::new("tar");
    command.args(["--extract", "--file=-", "--strip-components=1", "--no-same-owner"]).args(option);
    command.arg("--directory").arg(folder).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(complaints.try_clone()?);
    process::die_with(&mut command, rustix::process::getpid(), Signal::TERM);
    let mut tar = command.spawn().context("failed to start `tar`")?;
    let writer = Writer::new(&tar);

    let bar = ui::byte_bar(&format!("unpacking {}", tarball.file_name().unwrap_or_default()), Some(bytes));
    let reading = tar.stdin.take().map_or(Ok(0), |mut pipe| {
        let mut reader = bar.wrap_read(&mut file);
        // A tar that stops reading has something to say, and a file that cannot be read ends too early for it.
        std::io::copy(&mut reader, &mut pipe).or_else(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Ok(0),
            _ => Err(error),
        })
    });
    // Extracting goes on after the last byte was given, for what is in the pipe.
    drop(writer);
    let status = tar.wait().context("failed to wait for `tar`")?;
    bar.finish_and_clear();
    reading.context("failed to read it")?;
    if !status.success() {
        let mut text = String::new();
        complaints.rewind()?;
        complaints.read_to_string(&mut text)?;
        let first: Vec<&str> = text.lines().take(5).collect();
        bail!("`tar` failed ({status}):\n{}", first.join("\n"));
    }
    Ok(())
}

/// Errors where this is not the top of a kernel tree.
pub fn check(tree: &Utf8Path) -> anyhow::Result<()> {
    for needed in ["Makefile", "Kconfig"] {
        if !tree.join(needed).is_file() {
            return Err(anyhow!("there is no `{needed}` at the top of it"));
        }
    }
    version(&read_text(&tree.join("Makefile"))?).context("its `Makefile` names no kernel version").map(drop)
}

/// Errors where this tree cannot be built from: it is no kernel, or somebody built inside it.
pub fn check_clean(tree: &Utf8Path) -> anyhow::Result<()> {
    check(tree).with_context(|| format!("`{tree}` is not a kernel tree"))?;
    // The very test that kbuild makes before it builds into another folder.
    if tree.join(".config").exists() || tree.join("include/config").is_dir() {
        return Err(anyhow!("`{tree}` was built in, and cannot be built from until it is clean"))
            .hint(format!("`make -C {tree} mrproper` removes its build, its `.config` included"));
    }
    Ok(())
}

/// Makes a tree of links to the files of another one, whose path make cannot have. What was there is replaced.
pub fn link(tree: &Utf8Path, links: &Utf8Path) -> anyhow::Result<()> {
    remove_any(links)?;
    let mut folders = vec![Utf8PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let (from, to) = (tree.join(&folder), links.join(&folder));
        create_folder(&to)?;
        let reading = || format!("failed to read the folder `{from}`");
        for entry in from.read_dir_utf8().with_context(reading)? {
            let entry = entry.with_context(reading)?;
            // git is given its own folder whole.
            if entry.file_type().with_context(reading)?.is_dir() && entry.file_name() != ".git" {
                folders.push(folder.join(entry.file_name()));
            } else {
                std::os::unix::fs::symlink(entry.path(), to.join(entry.file_name()))
                    .with_context(|| format!("failed to make a link in `{to}`"))?;
            }
        }
    }
    Ok(())
}

/// `6.12.117` from the first lines of a kernel's `Makefile`, `EXTRAVERSION` included.
pub fn version(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        makefile
            .lines()
            .take(20)
            .filter_map(|line| line.split_once('='))
            .find_map(|(variable, value)| (variable.trim() == name).then(|| value.trim()))
    };
    let number = |name: &str| value(name).filter(|text| text.parse::<u32>().is_ok());
    let (version, patch) = (number("VERSION")?, number("PATCHLEVEL")?);
    let sub = number("SUBLEVEL").unwrap_or("0");
    Some(format!("{version}.{patch}.{sub}{}", value("EXTRAVERSION").unwrap_or_default()))
}

/// Identifies a tree by its files' names, sizes and times, as make would; the history of git does not count.
pub fn fingerprint(tree: &Utf8Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut folders: Vec<Utf8PathBuf> = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        let reading = || format!("failed to read the folder `{folder}`");
        let entries: Result<Vec<_>, _> = folder.read_dir_utf8().with_context(reading)?.collect();
        let mut entries = entries.with_context(reading)?;
        entries.sort_by(|a, b| a.file_name().cmp(b.file_name()));
        for entry in entries.iter().filter(|entry| entry.file_name() != ".git") {
            let metadata = entry.metadata().with_context(reading)?;
            if metadata.is_dir() {
                folders.push(entry.path().to_owned());
                continue;
            }
            let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
            let line = format!("{}\0{}\0{seconds}.{nanoseconds}\n", entry.path(), metadata.len());
            hasher.update(line.as_bytes());
        }
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_makefile() {
        let makefile =
            "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION = -rc1\nNAME = Baby\n";
        assert_eq!(version(makefile).as_deref(), Some("6.12.117-rc1"));
        assert_eq!(version("all:\n\techo VERSION=1\n"), None);
    }

    #[test]
    fn a_changed_file_is_another_tree() {
        let guard = tempfile::tempdir().unwrap();
        let tree = Utf8Path::from_path(guard.path()).unwrap();
        std::fs::create_dir_all(tree.join("init")).unwrap();
        std::fs::write(tree.join("init/main.c"), "int main;").unwrap();
        let before = fingerprint(tree).unwrap();
        assert_eq!(fingerprint(tree).unwrap(), before);
        std::fs::create_dir(tree.join(".git")).unwrap();
        std::fs::write(tree.join(".git/index"), "x").unwrap();
        assert_eq!(fingerprint(tree).unwrap(), before);
        std::fs::write(tree.join("init/main.c"), "int main; ").unwrap();
        assert_ne!(fingerprint(tree).unwrap(), before);
    }
}
