//! One machine's folder: what it is and how it fares, its log, its disk; and beside it, under a path that is short
//! enough, its sockets. Whether it runs is told by a lock that its supervisor holds, so a machine whose supervisor was
//! killed is recognised. What is kept stays until `rm` or until another machine takes the name; what is not kept is
//! cleared away when the next machine is made.

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::holder::Holder;
use super::{Description, State};
use crate::artifact::{Lock, Staged, discard, publish_file, read_text, remove_any, write_unsynced};
use crate::error::Hint as _;
use crate::host::private;
use crate::nearest::nearest;
use crate::workspace::Workspace;

pub use crate::name::parse as parse_name;

/// A machine's folder, and the one of its sockets.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: Utf8PathBuf,
    sockets: Utf8PathBuf,
    /// Held by whoever makes or removes a machine.
    turn: Utf8PathBuf,
}

/// Held by a machine's supervisor for as long as it lives.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl RunLock {
    /// The lock itself: whoever has this open file holds it.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl RunDir {
    /// The folder of the machine with this name, whether it exists or not.
    pub fn named(workspace: &Workspace, name: &str) -> RunDir {
        RunDir {
            path: workspace.machines().join(name),
            sockets: workspace.sockets().join(name),
            turn: workspace.lock("machines"),
        }
    }

    /// The machine of this name. Errors where there is none, with the nearest name.
    pub fn find(workspace: &Workspace, name: &str) -> anyhow::Result<RunDir> {
        let all = RunDir::all(workspace)?;
        if let Some(found) = all.iter().find(|machine| machine.name() == name) {
            return Ok(found.clone());
        }
        let step = match nearest(name, all.iter().map(RunDir::name)) {
            Some(near) => format!("is it `{near}`?"),
            None => "`cargo xtask ps -a` lists them".to_owned(),
        };
        Err(anyhow::anyhow!("there is no machine named `{name}`")).hint(step)
    }

    /// The same, where it has to run.
    pub fn find_running(workspace: &Workspace, name: &str) -> anyhow::Result<RunDir> {
        let found = RunDir::find(workspace, name)?;
        if found.is_running() {
            return Ok(found);
        }
        let ended = found.state().ended.map(|ended| format!(": it ended {}", ended.outcome));
        Err(anyhow::anyhow!("the machine `{name}` does not run{}", ended.unwrap_or_default()))
            .hint("`cargo xtask ps` lists those that do")
    }

    /// All machines, by name, those that have ended among them.
    pub fn all(workspace: &Workspace) -> anyhow::Result<Vec<RunDir>> {
        let folder = workspace.machines();
        let entries = match folder.read_dir_utf8() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("failed to read `{folder}`"))?,
        };
        let names = entries.flatten().map(|entry| entry.file_name().to_owned());
        // One that is being made, or removed, in this moment has another name.
        let mut names: Vec<String> = names.filter(|name| parse_name(name).is_ok()).collect();
        names.sort();
        Ok(names.iter().map(|name| RunDir::named(workspace, name)).collect())
    }

    /// Makes the folder for a new machine, in place of an ended one of this name, and clears away what killed ones have
    /// left. Errors where a machine of this name runs.
    pub fn create(workspace: &Workspace, description: &Description) -> anyhow::Result<(RunDir, RunLock)> {
        // Whoever removes machines is to see this one locked, or not at all.
        let _turn = Lock::hold_briefly(&workspace.lock("machines"))?;
        for left in RunDir::all(workspace)?.iter().filter(|machine| !machine.is_running()) {
            match left.description() {
                Ok(description) if description.kept => left.retire()?,
                _ => left.clear()?,
            }
        }
        let run_dir = RunDir::named(workspace, &description.name);
        run_dir.check_free()?;
        run_dir.clear()?;
        private::make_folder(&run_dir.sockets, SOCKETS_LEVELS).hint(private::SOCKETS_HINT)?;

        let staged = Staged::new(&run_dir.path)?;
        private::make_one(staged.path())?;
        let lock = lock(&staged.path().join(LOCK))?;
        write(&staged.path().join(DESCRIPTION), &to_json(description)?)?;
        write(&staged.path().join(SPARE), &[b' '; SPARE_BYTES])?;
        if description.kept {
            staged.publish()?
        } else {
            staged.publish_unsynced()?
        }
        Ok((run_dir, lock))
    }

    /// Errors where a machine of this name runs.
    pub fn check_free(&self) -> anyhow::Result<()> {
        let name = self.name();
        if self.is_running() {
            return Err(anyhow::anyhow!("a machine named `{name}` is running"))
                .hint(format!("choose another `--name`, or end that one with `cargo xtask stop {name}`"));
        }
        Ok(())
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        self.path.file_name().unwrap_or_default()
    }

    /// The folder itself.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// What the machine is.
    pub fn description(&self) -> anyhow::Result<Description> {
        self.read(DESCRIPTION)
    }

    /// What became of it so far; nothing yet where nothing is written.
    pub fn state(&self) -> State {
        self.read(STATE).unwrap_or_default()
    }

    /// Notes what became of it, for as long as this host runs.
    pub fn write_state(&self, state: &State) -> anyhow::Result<()> {
        write_unsynced(&self.path.join(STATE), &to_json(state)?)
    }

    /// Notes how it ended, for good where that is kept. That takes no room on the disk, which the machine may have filled: there is a file
    /// for it, which gets another name.
    pub fn write_end(&self, state: &State) -> anyhow::Result<()> {
        let (spare, path) = (self.path.join(SPARE), self.path.join(STATE));
        write_in_place(&spare, &ending(state)?).with_context(|| format!("failed to write `{spare}`"))?;
        if self.description()?.kept {
            publish_file(&spare, &path)
        } else {
            fs::rename(&spare, &path).with_context(|| format!("failed to move `{spare}` to `{path}`"))
        }
    }

    /// What the machine's supervisor is told.
    pub fn read_plan<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        self.read(PLAN)
    }

    /// The inverse of [`RunDir::read_plan`].
    pub fn write_plan(&self, plan: &impl Serialize) -> anyhow::Result<()> {
        write_unsynced(&self.path.join(PLAN), &to_json(plan)?)
    }

    /// What the machine writes to its disk, gone with it.
    pub fn overlay(&self) -> Utf8PathBuf {
        self.path.join("overlay.qcow2")
    }

    /// A copy of a disk that others could change.
    pub fn base(&self) -> Utf8PathBuf {
        self.path.join("base.qcow2")
    }

    /// What the connection between the agent's port and its supervisor is called.
    pub fn agent_socket(&self) -> Utf8PathBuf {
        self.sockets.join("agent")
    }

    /// The socket that clients of the agent connect to.
    pub fn clients_socket(&self) -> Utf8PathBuf {
        self.sockets.join("clients")
    }

    /// Where a debugger connects.
    pub fn gdb_socket(&self) -> Utf8PathBuf {
        self.sockets.join("gdb")
    }

    /// Everything the guest's console said.
    pub fn console_log(&self) -> Utf8PathBuf {
        self.path.join("console.log")
    }

    /// Files of the host that are mounted one by one, as links.
    pub fn files(&self) -> Utf8PathBuf {
        self.path.join("files")
    }

    /// Everything the main process said.
    pub fn output_log(&self) -> Utf8PathBuf {
        self.path.join("output.log")
    }

    /// What a supervisor in the background has to say beside that: nothing, unless it fails.
    pub fn supervisor_log(&self) -> Utf8PathBuf {
        self.path.join("supervisor.log")
    }

    /// PID 1 and its settings for this boot.
    pub fn initramfs(&self) -> Utf8PathBuf {
        self.path.join("initramfs.cpio")
    }

    /// The file that its supervisor holds locked for as long as it lives.
    pub fn lock_file(&self) -> Utf8PathBuf {
        self.path.join(LOCK)
    }

    /// True while a supervisor lives.
    pub fn is_running(&self) -> bool {
        // Shared, so that two who look at the same time do not take each other for the supervisor.
        File::open(self.path.join(LOCK))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// The supervisor's process; `None` where none lives, or it is another user's.
    pub fn supervisor(&self) -> Option<Holder> {
        Holder::of(&File::open(self.path.join(LOCK)).ok()?, self.state().supervisor)
    }

    /// Waits until no supervisor lives, but only until then; whether it has come to that.
    pub fn wait_for_end(&self, deadline: Option<Instant>) -> bool {
        // Nothing there is an end too. Opened once: another machine that takes the name has another file.
        let Ok(file) = File::open(self.path.join(LOCK)) else { return true };
        loop {
            if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
                return true;
            }
            let left =
                deadline.map_or(A_WHILE, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            match Holder::of(&file, self.state().supervisor) {
                Some(holder) => drop(holder.wait(left)),
                // It has just ended, or is another user's.
                None => std::thread::sleep(LOOK_AGAIN.min(left)),
            }
        }
    }

    /// Errors where the sockets may be another user's: whoever can connect to them is root inside the machine.
    pub fn check_sockets(&self) -> anyhow::Result<()> {
        private::check_folder(&self.sockets, SOCKETS_LEVELS).hint(private::SOCKETS_HINT)
    }

    /// Removes everything. To be called by its supervisor.
    pub fn remove(&self) -> anyhow::Result<()> {
        let _turn = Lock::hold_briefly(&self.turn)?;
        self.clear()
    }

    /// Removes everything of a machine that has ended. Errors where it runs, or another one of its name does by now.
    pub fn remove_ended(&self) -> anyhow::Result<()> {
        let _turn = Lock::hold_briefly(&self.turn)?;
        if self.is_running() {
            let name = self.name();
            return Err(anyhow::anyhow!("the machine `{name}` is running"))
                .hint(format!("`cargo xtask stop {name}` ends it; `rm -f` does so at once"));
        }
        self.clear()
    }

    fn clear(&self) -> anyhow::Result<()> {
        self.check_sockets()?;
        remove_any(&self.sockets)?;
        discard(&self.path)
    }

    /// Removes what is of no use after the end, and leaves what tells of it.
    pub fn retire(&self) -> anyhow::Result<()> {
        self.check_sockets()?;
        remove_any(&self.sockets)?;
        let spare = self.path.join(SPARE);
        for path in [self.overlay(), self.base(), self.initramfs(), self.files(), spare] {
            remove_any(&path)?;
        }
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, file: &str) -> anyhow::Result<T> {
        let path = self.path.join(file);
        serde_json::from_str(&read_text(&path)?).with_context(|| format!("failed to understand `{path}`"))
    }
}

/// The supervisor's lock. Whoever looks whether it is held lets go at once.
fn lock(path: &Utf8Path) -> anyhow::Result<RunLock> {
    let file = private::create(path).with_context(|| format!("failed to create `{path}`"))?;
    file.lock().with_context(|| format!("failed to lock `{path}`"))?;
    Ok(RunLock { file })
}

fn to_json(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(value)?)
}

/// In a folder that is not published yet.
fn write(path: &Utf8Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || private::create(path).and_then(|mut file| file.write_all(bytes));
    write().with_context(|| format!("failed to write `{path}`"))
}

/// The state as it is written in the end: with as many of the console's last lines as there is room for.
fn ending(state: &State) -> anyhow::Result<Vec<u8>> {
    let mut state = state.clone();
    loop {
        let json = to_json(&state)?;
        match &mut state.ended {
            Some(ended) if json.len() > SPARE_BYTES && !ended.last_lines.is_empty() => {
                ended.last_lines.remove(0);
            }
            _ => return Ok(json),
        }
    }
}

fn write_in_place(path: &Utf8Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)
}

/// How long a wait without end waits at a time.
const A_WHILE: Duration = Duration::from_secs(3600);
/// Between looks at a lock whose holder cannot be seen.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Folders of our own in a socket's path: this program's, the cache's, the machine's.
pub const SOCKETS_LEVELS: usize = 3;

const LOCK: &str = "lock";
const DESCRIPTION: &str = "machine.json";
const STATE: &str = "state.json";
const PLAN: &str = "plan.json";

/// Room for the machine's end, taken while there is some.
const SPARE: &str = "spare";
const SPARE_BYTES: usize = 64 << 10;
