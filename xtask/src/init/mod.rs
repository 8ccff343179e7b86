//! PID 1 for the guest: built by Cargo, verified to be static, packed into the initramfs.
//!
//! [`ensure`] is the way in; it builds only where the sources, the toolchain or the profile have changed. This
//! boot's settings are a second archive behind the initramfs ([`cpio`]), and `boot`'s business.

pub mod cpio;

use std::io::BufReader;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use cargo_metadata::{Message, TargetKind};
use sha2::{Digest as _, Sha256};

use crate::artifact::{Lock, Staged, create_folder, publish_link, remove_any};
use crate::error::Hint as _;
use crate::host::process::dies_with_us;
use crate::host::tools::Purpose;
use crate::tasks::Context;
use crate::ui;
use crate::workspace::{Workspace, create_builds, hex};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "init";
/// Static, with the C library inside: the guest's image may have none, or another.
const RUSTFLAGS: &str = "-C target-feature=+crt-static";

/// What the build of PID 1 depends on, beside the compiler.
const SOURCES: &[&str] = &["init/Cargo.toml", "init/src", "Cargo.toml", "Cargo.lock"];

/// How many builds are kept: switching between branches costs no build.
const KEPT: usize = 8;

/// PID 1, ready to boot.
#[derive(Debug, Clone)]
pub struct Init {
    /// The static ELF file.
    pub binary: Utf8PathBuf,
    /// An uncompressed cpio archive with the binary as `/init`; more archives may follow behind it.
    pub initramfs: Utf8PathBuf,
    /// When it was built.
    pub built: SystemTime,
}

/// PID 1 of this checkout, if it is built.
pub fn ready(workspace: &Workspace) -> anyhow::Result<Option<Init>> {
    Ok(load(&workspace.init_folder().join(sources_key(workspace)?)))
}

/// PID 1 of this checkout, built where it is missing or its sources have changed.
///
/// Errors where it does not compile, and where what was linked is not a static x86-64 program.
pub fn ensure(context: &Context) -> anyhow::Result<Init> {
    let workspace = &context.workspace;
    let folder = workspace.init_folder();
    let key = sources_key(workspace)?;
    if let Some(init) = load(&folder.join(&key)) {
        return publish(workspace, init);
    }
    context.require(&[Purpose::Init])?;
    let _lock = Lock::hold(&folder.join("lock"), "init")?;
    if let Some(init) = load(&folder.join(&key)) {
        return publish(workspace, init);
    }
    let built = compile(workspace, "init")?;
    let binary = std::fs::read(&built).with_context(|| format!("failed to read `{built}`"))?;
    check_static(&binary).with_context(|| format!("`{built}` cannot be PID 1"))?;

    let staged = Staged::new(&folder.join(&key))?;
    create_folder(staged.path())?;
    // A copy keeps the execute bits.
    let (program, packed) = (staged.path().join("init"), staged.path().join("initramfs.cpio"));
    std::fs::copy(&built, &program).with_context(|| format!("failed to copy `{built}` to `{program}`"))?;
    std::fs::write(&packed, initramfs(&binary)).with_context(|| format!("failed to write `{packed}`"))?;
    staged.publish()?;
    remove_old(&folder)?;
    publish(workspace, load(&folder.join(&key)).context("init was built and is gone")?)
}

fn load(folder: &Utf8Path) -> Option<Init> {
    let (binary, initramfs) = (folder.join("init"), folder.join("initramfs.cpio"));
    let built = initramfs.metadata().and_then(|metadata| metadata.modified()).ok()?;
    binary.is_file().then_some(Init { binary, initramfs, built })
}

fn publish(workspace: &Workspace, init: Init) -> anyhow::Result<Init> {
    publish_link(&init.binary, &workspace.artifacts().join("init"))?;
    Ok(init)
}

/// The initramfs of this PID 1.
pub fn initramfs(init: &[u8]) -> Vec<u8> {
    use cpio::Entry::{CharDevice, File, Folder};
    cpio::archive(&[
        Folder { path: "dev" },
        // What the kernel gives PID 1 as its standard streams, before any devtmpfs is mounted.
        CharDevice { path: "dev/console", major: 5, minor: 1 },
        Folder { path: "proc" },
        Folder { path: "sys" },
        // The image's root file system is mounted here, and then moved into.
        Folder { path: "root" },
        File { path: "init", mode: 0o755, contents: init },
    ])
}

/// Identifies everything that the binary depends on.
fn sources_key(workspace: &Workspace) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    // The compiler is the one that built this program: Cargo builds it anew with another one.
    hasher.update(format!("{}\n{TARGET} {PROFILE} {RUSTFLAGS}\n", env!("WORKBENCH_RUSTC")));
    for source in SOURCES {
        hash_tree(&mut hasher, workspace.root(), Utf8Path::new(source))?;
    }
    Ok(hex(&hasher.finalize())[..16].to_owned())
}

/// Adds names and contents, in the order of the names.
fn hash_tree(hasher: &mut Sha256, root: &Utf8Path, path: &Utf8Path) -> anyhow::Result<()> {
    let full = root.join(path);
    if full.is_dir() {
        let entries = full.read_dir_utf8().with_context(|| format!("failed to read the folder `{full}`"))?;
        let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_owned()).collect();
        names.sort();
        return names.iter().try_for_each(|name| hash_tree(hasher, root, &path.join(name)));
    }
    let bytes = std::fs::read(&full).with_context(|| format!("failed to read `{full}`"))?;
    hasher.update(format!("{path}\n{}\n", bytes.len()));
    hasher.update(&bytes);
    Ok(())
}

/// Builds a package's program of its own name as PID 1 is built, static, and returns the path of the executable.
pub fn compile(workspace: &Workspace, package: &str) -> anyhow::Result<Utf8PathBuf> {
    let bar = ui::spinner(&format!("building {package}"));
    let target = workspace.init_builds();
    create_builds(&target)?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = [
        "build",
        "--quiet",
        "--locked",
        &format!("--package={package}"),
        &format!("--bin={package}"),
        &format!("--profile={PROFILE}"),
        &format!("--target={TARGET}"),
        &format!("--target-dir={target}"),
        "--message-format=json-render-diagnostics",
    ];
    let command = duct::cmd(&cargo, arguments)
        .dir(workspace.root())
        // These would take precedence over the flags for the target.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", RUSTFLAGS);
    let reader = dies_with_us(&command)
        .stdin_null()
        .unchecked()
        .reader()
        .with_context(|| format!("failed to start `{cargo}`"))?;
    let mut executable = None;
    for message in Message::parse_stream(BufReader::new(&reader)) {
        if let Message::CompilerArtifact(artifact) = message.context("failed to read Cargo's messages")?
            && artifact.target.name == package
            && artifact.target.kind.contains(&TargetKind::Bin)
        {
            executable = artifact.executable;
        }
    }
    let status = reader.try_wait().context("failed to wait for Cargo")?.map(|output| output.status);
    bar.finish_and_clear();
    if !status.is_some_and(|status| status.success()) {
        // Cargo has said why, on standard error.
        return Err(anyhow!("failed to compile {package}")).hint(format!(
            "Cargo's own words are above; `rustup target add {TARGET}` adds a missing target"
        ));
    }
    executable.context("Cargo succeeded and named no executable")
}

/// Errors where this is not an x86-64 program that runs with no file beside it.
fn check_static(bytes: &[u8]) -> anyhow::Result<()> {
    let elf = goblin::elf::Elf::parse(bytes).context("it is not an ELF file")?;
    if elf.header.e_machine != goblin::elf::header::EM_X86_64 {
        bail!("it is not a program for x86-64");
    }
    if let Some(interpreter) = elf.interpreter {
        bail!("it is not static: it needs the loader `{interpreter}`");
    }
    if !elf.libraries.is_empty() {
        bail!("it is not static: it needs {}", elf.libraries.join(", "));
    }
    Ok(())
}

/// Keeps the newest builds.
fn remove_old(folder: &Utf8Path) -> anyhow::Result<()> {
    let entries = folder.read_dir_utf8().with_context(|| format!("failed to read the folder `{folder}`"))?;
    let mut builds: Vec<_> = entries
        .flatten()
        .filter_map(|entry| load(entry.path()).map(|init| (init.built, entry.into_path())))
        .collect();
    builds.sort();
    let surplus = builds.len().saturating_sub(KEPT);
    builds[..surplus].iter().try_for_each(|(_, path)| remove_any(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_a_loader_is_refused() {
        // The test itself is linked dynamically.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = check_static(&own).unwrap_err().to_string();
        assert!(error.starts_with("it is not static: it needs the loader `/lib64/ld-linux"), "{error}");
        assert_eq!(check_static(b"#!/bin/sh").unwrap_err().to_string(), "it is not an ELF file");
    }

    #[test]
    fn a_changed_source_is_another_key() {
        let guard = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(guard.path()).unwrap();
        let key = || {
            let mut hasher = Sha256::new();
            hash_tree(&mut hasher, root, Utf8Path::new("src")).unwrap();
            hex(&hasher.finalize())
        };
        std::fs::create_dir(root.join("src")).unwrap();
        std::fs::write(root.join("src/main.rs"), "fn main() {}").unwrap();
        let before = key();
        assert_eq!(key(), before);
        std::fs::rename(root.join("src/main.rs"), root.join("src/lib.rs")).unwrap();
        assert_ne!(key(), before);
    }
}
