//! One machine's folder while it runs, and after a detached one has ended: its sockets, its logs, how it was started
//! and how it ended. Whether it runs is told by a lock that its supervisor holds, so a killed one is recognised.

use std::fs::{self, File, TryLockError};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::machine::PublishedPort;
use super::outcome::Outcome;
use crate::artifact::{create_folder, read_text, remove_any, write_whole};
use crate::error::Hint as _;
use crate::workspace::Workspace;

/// How a machine was started: written once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    /// The machine's name.
    pub name: String,
    /// Where its image came from, as the user wrote it.
    pub image: String,
    /// The main process's words.
    pub command: Vec<String>,
    /// Ports of the host that lead into it.
    pub ports: Vec<PublishedPort>,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// When it was started.
    pub created: SystemTime,
    /// The overlay that goes with the folder.
    pub overlay: Option<Utf8PathBuf>,
    /// Nothing of it stays when it has ended.
    pub remove_at_end: bool,
    /// What `Shutdown` sends by default.
    pub stop_signal: i32,
}

/// What became of a machine: rewritten as it goes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// QEMU's process id.
    pub qemu_pid: Option<u32>,
    /// When the main process had started.
    pub started: Option<SystemTime>,
    /// When the machine ended.
    pub finished: Option<SystemTime>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// A machine's folder.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: Utf8PathBuf,
}

/// Held by a machine's supervisor for as long as it lives.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunDir {
    /// The folder of the machine with this name, whether it exists or not.
    pub fn named(workspace: &Workspace, name: &str) -> RunDir {
        RunDir { path: workspace.machines().join(name) }
    }

    /// All machines, by name.
    pub fn all(workspace: &Workspace) -> anyhow::Result<Vec<RunDir>> {
        let folder = workspace.machines();
        let entries = match folder.read_dir_utf8() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("failed to read `{folder}`"))?,
        };
        let mut found: Vec<RunDir> =
            entries.flatten().map(|entry| RunDir { path: entry.path().to_owned() }).collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Makes the folder for a new machine. Errors where a machine of this name exists, running or ended.
    pub fn create(workspace: &Workspace, name: &str) -> anyhow::Result<(RunDir, RunLock)> {
        let run_dir = RunDir::named(workspace, name);
        create_folder(&run_dir.path)?;
        restrict(&workspace.machines())?;
        let Some(lock) = run_dir.try_lock()? else {
            return Err(anyhow::anyhow!("a machine named `{name}` is running"))
                .hint(format!("choose another `--name`, or end it with `cargo xtask rm -f {name}`"));
        };
        if run_dir.description_path().exists() {
            return Err(anyhow::anyhow!("a machine named `{name}` exists; it has ended"))
                .hint(format!("choose another `--name`, or remove it with `cargo xtask rm {name}`"));
        }
        Ok((run_dir, lock))
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        self.path.file_name().unwrap_or_default()
    }

    /// The folder itself.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// The socket that QEMU connects the agent's port to.
    pub fn agent_socket(&self) -> Utf8PathBuf {
        self.path.join("agent.sock")
    }

    /// The socket that clients connect to.
    pub fn clients_socket(&self) -> Utf8PathBuf {
        self.path.join("clients.sock")
    }

    /// Everything the guest's console said.
    pub fn console_log(&self) -> Utf8PathBuf {
        self.path.join("console.log")
    }

    /// The main process's output, a JSON object to a line.
    pub fn output_log(&self) -> Utf8PathBuf {
        self.path.join("output.log")
    }

    /// PID 1 and its settings for this boot.
    pub fn initramfs(&self) -> Utf8PathBuf {
        self.path.join("initramfs.cpio")
    }

    fn description_path(&self) -> Utf8PathBuf {
        self.path.join("machine.json")
    }

    fn state_path(&self) -> Utf8PathBuf {
        self.path.join("state.json")
    }

    /// How the machine was started; errors where there is none of this name.
    pub fn description(&self) -> anyhow::Result<Description> {
        let path = self.description_path();
        if !path.exists() {
            bail!("no machine named `{}`", self.name());
        }
        serde_json::from_str(&read_text(&path)?).with_context(|| format!("failed to understand `{path}`"))
    }

    /// Writes how the machine was started.
    pub fn describe(&self, description: &Description) -> anyhow::Result<()> {
        write_whole(&self.description_path(), &serde_json::to_vec_pretty(description)?)
    }

    /// What became of the machine so far.
    pub fn state(&self) -> anyhow::Result<State> {
        let path = self.state_path();
        if !path.exists() {
            return Ok(State::default());
        }
        serde_json::from_str(&read_text(&path)?).with_context(|| format!("failed to understand `{path}`"))
    }

    /// Writes what became of the machine.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        let mut state = self.state()?;
        change(&mut state);
        write_whole(&self.state_path(), &serde_json::to_vec_pretty(&state)?)
    }

    /// True while a supervisor lives.
    pub fn is_running(&self) -> bool {
        self.path.exists() && matches!(self.try_lock(), Ok(None))
    }

    /// Removes the folder and the overlay that goes with it.
    pub fn remove(&self) -> anyhow::Result<()> {
        if let Ok(Description { overlay: Some(overlay), .. }) = self.description() {
            remove_any(&overlay)?;
        }
        remove_any(&self.path)
    }

    /// The supervisor's lock, or `None` where another one holds it.
    pub fn try_lock(&self) -> anyhow::Result<Option<RunLock>> {
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
