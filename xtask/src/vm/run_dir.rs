//! One machine's folder while it runs: its socket, its console's log, its settings. Whether it runs is told by a lock
//! that its supervisor holds, so what a killed one leaves is recognised, and cleared away by the next machine.

use std::fs::{self, File, TryLockError};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use crate::artifact::{Lock, create_folder, remove_any};
use crate::error::Hint as _;
use crate::workspace::Workspace;

/// A machine's folder, and the disk that goes with it.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: Utf8PathBuf,
    overlay: Utf8PathBuf,
}

/// Held by a machine's supervisor for as long as it lives.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunDir {
    /// The folder of the machine with this name, whether it exists or not.
    pub fn named(workspace: &Workspace, name: &str) -> RunDir {
        RunDir {
            path: workspace.machines().join(name),
            overlay: workspace.overlays().join(format!("{name}.qcow2")),
        }
    }

    /// All machines, by name; those among them that were killed do not [run](RunDir::is_running).
    pub fn all(workspace: &Workspace) -> anyhow::Result<Vec<RunDir>> {
        let folder = workspace.machines();
        let entries = match folder.read_dir_utf8() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("failed to read `{folder}`"))?,
        };
        let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_owned()).collect();
        names.sort();
        Ok(names.iter().map(|name| RunDir::named(workspace, name)).collect())
    }

    /// Makes the folder for a new machine, and clears away what killed ones have left. Errors where a machine of this
    /// name runs.
    pub fn create(workspace: &Workspace, name: &str) -> anyhow::Result<(RunDir, RunLock)> {
        // A folder that was just made and is not locked yet must not look like one that was left.
        let _turn = Lock::hold(&workspace.cache().join("locks/machines.lock"), "the list of machines")?;
        for left in RunDir::all(workspace)?.iter().filter(|machine| !machine.is_running()) {
            left.remove()?;
        }
        let run_dir = RunDir::named(workspace, name);
        run_dir.check_free()?;
        create_folder(&run_dir.path)?;
        restrict(&workspace.machines())?;
        let lock = run_dir.try_lock()?.with_context(|| format!("failed to lock `{}`", run_dir.path))?;
        Ok((run_dir, lock))
    }

    /// Errors where a machine of this name runs.
    pub fn check_free(&self) -> anyhow::Result<()> {
        if self.is_running() {
            return Err(anyhow::anyhow!("a machine named `{}` is running", self.name()))
                .hint("choose another `--name`, or end that one first");
        }
        Ok(())
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        self.path.file_name().unwrap_or_default()
    }

    /// What the machine writes to its disk, gone with it.
    pub fn overlay(&self) -> &Utf8Path {
        &self.overlay
    }

    /// The socket that QEMU connects the agent's port to.
    pub fn agent_socket(&self) -> Utf8PathBuf {
        self.path.join("agent.sock")
    }

    /// Everything the guest's console said.
    pub fn console_log(&self) -> Utf8PathBuf {
        self.path.join("console.log")
    }

    /// Files of the host that are mounted one by one, as links.
    pub fn files(&self) -> Utf8PathBuf {
        self.overlay.with_extension("files")
    }

    /// PID 1 and its settings for this boot.
    pub fn initramfs(&self) -> Utf8PathBuf {
        self.path.join("initramfs.cpio")
    }

    /// True while a supervisor lives.
    pub fn is_running(&self) -> bool {
        self.path.exists() && matches!(self.try_lock(), Ok(None))
    }

    /// Removes the folder and the disk that goes with it.
    pub fn remove(&self) -> anyhow::Result<()> {
        remove_any(&self.overlay)?;
        remove_any(&self.files())?;
        remove_any(&self.path)
    }

    /// The supervisor's lock, or `None` where another one holds it.
    fn try_lock(&self) -> anyhow::Result<Option<RunLock>> {
        let path = self.path.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("failed to open `{path}`"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RunLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("failed to lock `{path}`")),
        }
    }
}

/// Whoever can connect to a machine's sockets is root inside it: the folder is its owner's alone.
fn restrict(folder: &Utf8Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let metadata = fs::metadata(folder).with_context(|| format!("failed to look at `{folder}`"))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(anyhow::anyhow!("`{folder}` belongs to another user"))
            .hint("set XDG_RUNTIME_DIR to a folder of your own");
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("failed to restrict `{folder}` to its owner"))
}

/// Checks a name for a machine: docker's rule, `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, and short enough for a socket's path.
pub fn parse_name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(is_plain) {
        Err(format!("`{text}` is not a name: letters, digits, `_`, `.` and `-`, a letter or digit first"))
    } else if text.len() > 40 {
        Err(format!("`{text}` is longer than 40 characters"))
    } else {
        Ok(text.to_owned())
    }
}
