//! Where trials take place: caches of their own with the kernel and PID 1 of the real one, and this program run in them.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal};

use super::mount::Mount;
use super::processes;
use crate::artifact::{create_folder, remove_any};
use crate::host::process::die_with;
use crate::image::store::Store;
use crate::workspace::{CACHE_VARIABLE, Workspace};

/// The most that one task may take on a busy host without KVM.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// The image of most trials: a shell and the usual commands, made by this host's own busybox.
pub(super) const DOCKERFILE: &str = "\
# host-program: busybox
FROM scratch
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]
";

/// The user has asked for an end.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The folder of a whole run, with a cache that every stage is a copy of.
#[derive(Debug)]
pub struct Grounds {
    template: Stage,
    stages: Cell<u32>,
    path: Utf8PathBuf,
    _folder: tempfile::TempDir,
}

/// One cache with what runs in it. What still runs there ends with this value, and the cache is removed.
#[derive(Debug)]
pub struct Stage {
    /// Its paths.
    pub workspace: Workspace,
    /// The Dockerfile's folder that most trials boot; its disk is in the cache.
    pub app: Utf8PathBuf,
    /// For files of the trials themselves.
    pub folder: Utf8PathBuf,
    temporary: Utf8PathBuf,
    tasks: Cell<u32>,
    is_interrupted: Arc<AtomicBool>,
    /// The cache is a file system of its own.
    mount: Option<Mount>,
}

/// A task that was started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    words: String,
    stdout: Utf8PathBuf,
    stderr: Utf8PathBuf,
    is_interrupted: Arc<AtomicBool>,
}

/// A task that has ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// All that it said on standard output.
    pub stdout: String,
    /// All that it said on standard error.
    pub stderr: String,
    words: String,
}

impl Grounds {
    /// Prepares the first cache from that of `workspace`, which is left as it is.
    pub fn new(workspace: &Workspace, is_interrupted: Arc<AtomicBool>) -> anyhow::Result<Grounds> {
        let folder = tempfile::Builder::new()
            .prefix("microvm-torture-")
            .tempdir()
            .context("failed to make a temporary folder")?;
        let path = Utf8Path::from_path(folder.path()).context("the temporary folder's name is not text")?;
        create_folder(&path.join("app"))?;
        write(&path.join("app/Dockerfile"), DOCKERFILE)?;
        let template = workspace.with_cache(path.join("template"));
        create_folder(template.cache())?;
        // Read only: nothing here compiles a kernel.
        std::os::unix::fs::symlink(workspace.kernels(), template.kernels())
            .context("failed to link the kernels")?;
        for folder in [workspace.init_folder(), workspace.verdicts()] {
            copy_tree(&folder, template.cache())?;
        }
        let template = Stage::new(template, path.join("app"), is_interrupted)?;
        template
            .succeed(&["image", template.app.as_str()])
            .context("failed to make the image for the trials")?;
        Ok(Grounds { template, stages: Cell::new(0), path: path.to_owned(), _folder: folder })
    }

    /// Whether the user has asked for an end.
    pub fn is_interrupted(&self) -> bool {
        self.template.is_interrupted.load(Ordering::Relaxed)
    }

    /// A fresh copy of the first cache.
    pub fn stage(&self) -> anyhow::Result<Stage> {
        self.stage_at(&self.free_path(), None)
    }

    /// The same on a file system of its own; `mount` makes that at an empty folder.
    pub fn stage_on(&self, mount: impl FnOnce(&Utf8Path) -> anyhow::Result<Mount>) -> anyhow::Result<Stage> {
        let cache = self.free_path();
        create_folder(&cache)?;
        let mount = mount(&cache)?;
        self.stage_at(&cache, Some(mount))
    }

    /// Where nothing is yet.
    fn free_path(&self) -> Utf8PathBuf {
        let number = self.stages.replace(self.stages.get() + 1);
        self.path.join(format!("cache-{number}"))
    }

    fn stage_at(&self, cache: &Utf8Path, mount: Option<Mount>) -> anyhow::Result<Stage> {
        let Stage { workspace, app, is_interrupted, .. } = &self.template;
        create_folder(cache)?;
        let layers = Store::new(workspace).builder_storage();
        let template = workspace.cache();
        let entries = template.read_dir_utf8().with_context(|| format!("failed to read `{template}`"))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("failed to read `{template}`"))?;
            // The builder's layers know where they are, and serve nowhere else.
            if !layers.starts_with(entry.path()) {
                copy_tree(entry.path(), cache)?;
            }
        }
        let mut stage =
            Stage::new(workspace.with_cache(cache.to_owned()), app.clone(), Arc::clone(is_interrupted))?;
        stage.mount = mount;
        Ok(stage)
    }
}

impl Stage {
    fn new(workspace: Workspace, app: Utf8PathBuf, is_interrupted: Arc<AtomicBool>) -> anyhow::Result<Stage> {
        let folder = workspace.cache().with_extension("files");
        let temporary = folder.join("tmp");
        create_folder(&temporary)?;
        Ok(Stage { workspace, app, folder, temporary, tasks: Cell::new(0), is_interrupted, mount: None })
    }

    /// `cargo xtask WORDS` in this cache, started now, with what it says in files.
    pub fn start(&self, words: &[impl AsRef<str>]) -> anyhow::Result<Running> {
        let number = self.tasks.replace(self.tasks.get() + 1);
        let [stdout, stderr] = ["out", "err"].map(|stream| self.folder.join(format!("{number}.{stream}")));
        let create =
            |path: &Utf8Path| File::create(path).with_context(|| format!("failed to create `{path}`"));
        let mut command = Command::new(std::env::current_exe().context("failed to find this program")?);
        command
            .args(words.iter().map(AsRef::as_ref))
            .env(CACHE_VARIABLE, self.workspace.cache())
            .env("TMPDIR", &self.temporary)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            // Ctrl-C on the terminal is for us.
            .process_group(0);
        die_with(&mut command, rustix::process::getpid(), Signal::KILL);
        let child = command.spawn().context("failed to start this program")?;
        let is_interrupted = Arc::clone(&self.is_interrupted);
        let joined = words.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
        Ok(Running { child, words: joined, stdout, stderr, is_interrupted })
    }

    /// The same, run to its end.
    pub fn run(&self, words: &[impl AsRef<str>]) -> anyhow::Result<Done> {
        self.start(words)?.wait()
    }

    /// The same; anything but exit code 0 is an error. What it said on standard output.
    pub fn succeed(&self, words: &[impl AsRef<str>]) -> anyhow::Result<String> {
        self.run(words)?.success()
    }

    /// Machines in `ps -a`, with their states.
    pub fn machines(&self) -> anyhow::Result<Vec<(String, String)>> {
        let text = self.succeed(&["ps", "-a", "--format", "json"])?;
        let machines = text.lines().map(|line| {
            let machine: serde_json::Value = serde_json::from_str(line)?;
            let word = |key: &str| machine[key].as_str().unwrap_or_default().to_owned();
            Ok((word("name"), word("state")))
        });
        machines.collect::<Result<_, serde_json::Error>>().context("failed to understand `ps`")
    }

    /// Waits until a condition holds; `what` names it where it does not come true in time.
    pub fn wait_until(
        &self,
        what: &str,
        mut condition: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while !condition()? {
            if self.is_interrupted.load(Ordering::Relaxed) {
                return Err(Interrupted.into());
            }
            ensure!(Instant::now() < deadline, "waited {} s in vain until {what}", DEADLINE.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Removes all machines. Errors unless everything is in order then, see [`Stage::check_at_rest`].
    pub fn clear(&self) -> anyhow::Result<()> {
        for (name, _) in self.machines()? {
            self.succeed(&["rm", "-f", &name])?;
        }
        if !self.leftovers()?.is_empty() {
            // What a killed task left is cleared away by the next one that comes by.
            self.succeed(&["boot", self.app.as_str(), "--", "true"])?;
        }
        self.check_at_rest()
    }

    /// Errors unless nothing runs, nothing is locked, no machine counts as running, and nothing half done lies about.
    pub fn check_at_rest(&self) -> anyhow::Result<()> {
        let cache = self.workspace.cache();
        let is_empty = || Ok(processes::of_cache(cache).is_empty());
        self.wait_until("no process works with the cache", is_empty).with_context(|| {
            let left = processes::of_cache(cache);
            let names = left.iter().map(|process| format!("{} ({})", process.name(), process.pid));
            format!("there still run: {}", names.collect::<Vec<_>>().join(", "))
        })?;
        for (name, state) in self.machines()? {
            ensure!(
                state != "running" && state != "booting",
                "`{name}` has no process and counts as {state}"
            );
        }
        let held = self.held()?;
        ensure!(held.is_empty(), "nothing runs, and these are locked: {}", held.join(", "));
        let left = self.leftovers()?;
        ensure!(left.is_empty(), "left half done: {}", left.join(", "));
        Ok(())
    }

    /// Files in the cache that somebody has locked.
    fn held(&self) -> anyhow::Result<Vec<String>> {
        let mut files = files_below(self.workspace.cache())?;
        files.retain(|file| is_held(file));
        Ok(files.into_iter().map(Utf8PathBuf::into_string).collect())
    }

    /// What is half done in the cache and in the folder for temporary files.
    pub fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let is_staged = |path: &&Utf8Path| path.file_name().is_some_and(|name| name.ends_with(".tmp"));
        let in_cache = files_below(self.workspace.cache())?;
        let staged = in_cache.iter().filter_map(|path| path.ancestors().find(is_staged));
        let mut left: Vec<String> = staged.map(|path| path.to_string()).collect();
        left.extend(files_below(&self.temporary)?.into_iter().map(Utf8PathBuf::into_string));
        left.dedup();
        Ok(left)
    }

    /// The file system that the cache is on; errors where it has none of its own.
    pub fn mount(&self) -> anyhow::Result<&Mount> {
        self.mount.as_ref().context("the cache has no file system of its own")
    }

    /// Kills what works with this cache, and waits until it is gone.
    pub fn kill_all(&self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let processes = processes::of_cache(self.workspace.cache());
            if processes.is_empty() || Instant::now() > deadline {
                return;
            }
            processes.iter().for_each(|process| process.signal(Signal::KILL));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill_all();
        drop(self.mount.take());
        for path in
            [self.workspace.cache(), &self.folder, &self.workspace.sockets(), &self.workspace.networks()]
        {
            // The temporary folder's own removal is the second try.
            let _ = remove_any(path);
        }
    }
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait().context("failed to look after a task")?.is_some())
    }

    /// What it has said on standard output so far.
    pub fn said(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// Waits for its end. One that does not come is an error.
    pub fn wait(mut self) -> anyhow::Result<Done> {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("failed to wait for a task")? {
                break status;
            }
            if self.is_interrupted.load(Ordering::Relaxed) {
                return Err(Interrupted.into());
            }
            if Instant::now() > deadline {
                let talk = read_lossy(&self.stderr);
                bail!("`{}` did not end within {} s:\n{talk}", self.words, DEADLINE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let (stdout, stderr) = (read_lossy(&self.stdout), read_lossy(&self.stderr));
        for path in [&self.stdout, &self.stderr] {
            remove_any(path)?;
        }
        Ok(Done { code: status.code(), stdout, stderr, words: std::mem::take(&mut self.words) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Done {
    /// What it said on standard output. Anything but exit code 0 is an error.
    pub fn success(self) -> anyhow::Result<String> {
        self.with_code(0)
    }

    /// The same with this exit code.
    pub fn with_code(self, code: i32) -> anyhow::Result<String> {
        if self.code == Some(code) {
            return Ok(self.stdout);
        }
        let how = self.code.map_or_else(|| "by a signal".to_owned(), |code| format!("with exit code {code}"));
        bail!("`{}` ended {how}, not with {code}:\n{}{}", self.words, self.stdout, self.stderr)
    }
}

/// Copies a folder or a file with all that belongs to it, holes as holes: to `to`, or into it where it is a folder.
pub fn copy_tree(from: &Utf8Path, to: &Utf8Path) -> anyhow::Result<()> {
    duct::cmd!("cp", "-a", from, to).run().with_context(|| format!("failed to copy `{from}` to `{to}`"))?;
    Ok(())
}

/// Writes a file of a trial.
pub fn write(path: &Utf8Path, contents: impl AsRef<[u8]>) -> anyhow::Result<()> {
    fs::write(path, contents).with_context(|| format!("failed to write `{path}`"))
}

fn read_lossy(path: &Utf8Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// All that is no folder below a folder; links are not followed. What vanishes meanwhile is left out.
fn files_below(folder: &Utf8Path) -> anyhow::Result<Vec<Utf8PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match folder.read_dir_utf8() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("failed to read `{folder}`"))?,
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.into_path()),
                Ok(_) => files.push(entry.into_path()),
                Err(_) => {}
            }
        }
    }
    Ok(files)
}

/// Whether anybody has locked a file.
fn is_held(path: &Utf8Path) -> bool {
    let is_file = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    is_file
        && File::open(path)
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_locked_or_half_done_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(folder.path()).unwrap().join("cache");
        let workspace = Workspace::discover().unwrap().with_cache(cache.clone());
        let stage = Stage::new(workspace, "app".into(), Arc::default()).unwrap();
        create_folder(&cache.join("locks")).unwrap();
        write(&cache.join("locks/image"), "").unwrap();
        assert!(stage.held().unwrap().is_empty() && stage.leftovers().unwrap().is_empty());

        let lock = File::open(cache.join("locks/image")).unwrap();
        lock.lock().unwrap();
        assert_eq!(stage.held().unwrap(), [cache.join("locks/image").as_str()]);
        lock.unlock().unwrap();
        assert!(stage.held().unwrap().is_empty());

        create_folder(&cache.join("scratch/.build.17.tmp")).unwrap();
        write(&cache.join("scratch/.build.17.tmp/a"), "").unwrap();
        write(&cache.join("scratch/.build.17.tmp/b"), "").unwrap();
        assert_eq!(stage.leftovers().unwrap(), [cache.join("scratch/.build.17.tmp").as_str()]);
    }
}
