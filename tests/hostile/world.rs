//! Machines with the enemy as their PID 1, and tasks whose memory is watched.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, kill_process};
use xtask::workspace::Workspace;

use crate::support::{Scratch, texts};

/// The most that anything here may take on a busy machine without KVM.
const DEADLINE: Duration = Duration::from_secs(200);

/// The most memory that a task may take, in bytes, whatever a guest sends it.
pub(crate) const MEMORY: u64 = 128 << 20;

/// A set that boots the enemy, and a cache of its own.
pub(crate) struct Enemy {
    pub(crate) scratch: Scratch,
    set: Utf8PathBuf,
}

/// A task that was started, with its output in files.
pub(crate) struct Task {
    child: Child,
    folder: tempfile::TempDir,
    peak: u64,
}

/// A task that has ended.
pub(crate) struct Done {
    /// `None` where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
    /// The most memory that it took, in bytes.
    pub(crate) peak: u64,
}

/// The enemy as a program, built once.
fn program() -> &'static Utf8Path {
    static BUILT: OnceLock<Utf8PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| xtask::init::compile(&Workspace::discover().unwrap(), "hostile-guest").unwrap())
}

impl Enemy {
    pub(crate) fn new() -> Enemy {
        Enemy::with_disk(&[])
    }

    /// The enemy finds these bytes on its disk.
    pub(crate) fn with_disk(bytes: &[u8]) -> Enemy {
        let scratch = Scratch::new();
        let set = scratch.path().join("set");
        fs::create_dir_all(&set).unwrap();
        let workspace = Workspace::discover().unwrap();
        let kernel = xtask::kernel::latest(&workspace).expect("`cargo xtask test` builds a kernel first");
        fs::copy(kernel.boot_image(), set.join("kernel")).unwrap();
        fs::copy(program(), set.join("init")).unwrap();
        fs::write(
            set.join("image.json"),
            r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["silence"]}}"#,
        )
        .unwrap();
        let raw = scratch.path().join("disk");
        let file = File::create(&raw).unwrap();
        std::io::Write::write_all(&mut &file, bytes).unwrap();
        file.set_len((bytes.len() as u64).next_multiple_of(1 << 20).max(1 << 20)).unwrap();
        let disk = set.join("hda.qcow2");
        let made =
            Command::new("qemu-img").args(["convert", "-O", "qcow2", raw.as_str(), disk.as_str()]).status();
        assert!(made.unwrap().success());
        // Whether KVM works here is known already.
        let verdicts = scratch.cache().join("verdicts");
        fs::create_dir_all(&verdicts).unwrap();
        for verdict in workspace.verdicts().read_dir_utf8().into_iter().flatten().flatten() {
            fs::copy(verdict.path(), verdicts.join(verdict.file_name())).unwrap();
        }
        Enemy { scratch, set }
    }

    /// `boot FLAGS --from SET -- ATTACK`.
    pub(crate) fn boot(&self, flags: &[&str], attack: &[&str]) -> Task {
        let words = [&["boot"], flags, &["--from", self.set.as_str(), "--"], attack].concat();
        self.task(&words)
    }

    /// A machine named `box` in the background, whose main process is said to run.
    pub(crate) fn detached(&self, attack: &[&str]) {
        let done = self.boot(&["-d", "--name", "box"], attack).wait();
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }

    /// Any task.
    pub(crate) fn task(&self, words: &[&str]) -> Task {
        Task::start(self.scratch.xtask(words))
    }

    /// The supervisor of the machine in the background.
    pub(crate) fn supervisor(&self) -> Pid {
        let output = self.scratch.xtask(&["inspect", "box"]).output().unwrap();
        let machine: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let pid = machine[0]["state"]["supervisor"].as_i64().expect("it has a supervisor");
        Pid::from_raw(pid.try_into().unwrap()).unwrap()
    }

    /// Removes the machine in the background, which has to be done in seconds whatever it does.
    pub(crate) fn remove(&self) {
        let start = Instant::now();
        let done = self.task(&["rm", "-f", "box"]).wait();
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(30), "`rm -f` took {took:?}");
    }
}

impl Drop for Enemy {
    fn drop(&mut self) {
        // A test that failed leaves its machine.
        let _ = self.scratch.xtask(&["rm", "-f", "box"]).output();
    }
}

impl Task {
    fn start(mut command: Command) -> Task {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| Stdio::from(File::create(folder.path().join(name)).unwrap());
        let child = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
        Task { child, folder, peak: 0 }
    }

    /// Whether it has ended; its memory is looked at.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.peak = self.peak.max(peak(Pid::from_child(&self.child)));
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub(crate) fn wait(self) -> Done {
        self.wait_while(|_| true)
    }

    /// Waits for its end, or kills it as soon as the condition no longer holds.
    pub(crate) fn wait_while(mut self, mut condition: impl FnMut(&mut Task) -> bool) -> Done {
        let deadline = Instant::now() + DEADLINE;
        while !self.has_ended() {
            if Instant::now() > deadline || !condition(&mut self) {
                let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
                let done = self.done();
                assert!(Instant::now() < deadline, "it did not end: {}", done.stderr);
                return done;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.done()
    }

    fn done(&mut self) -> Done {
        let code = self.child.wait().unwrap().code();
        let read = |name: &str| fs::read(self.folder.path().join(name)).unwrap();
        let stderr = String::from_utf8_lossy(&read("err")).into_owned();
        Done { code, stderr, peak: self.peak }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Done {
    /// It ended with this code and said these words, took little memory, and said nothing that a terminal would obey.
    pub(crate) fn is(&self, code: i32, words: &str) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(self.stderr.contains(words), "`{words}` is not in: {}", self.stderr);
        self.is_harmless();
    }

    /// It took little memory, and said nothing that a terminal would obey.
    pub(crate) fn is_harmless(&self) {
        assert!(self.peak < MEMORY, "it took {} bytes of memory: {}", self.peak, self.stderr);
        let obeyed = |c: char| c.is_control() && c != '\n';
        assert!(!self.stderr.contains(obeyed), "it said {:?}", self.stderr);
    }
}

/// The most memory that a process has taken so far, in bytes (`VmHWM` of proc(5)); 0 where it has ended.
pub(crate) fn peak(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).map_or(0, |kib: u64| kib * 1024)
}

/// All that `find` knows of these folders, but for what is below `target`.
pub(crate) fn described(folder: &Utf8Path, target: &Utf8Path) -> String {
    let mut command = Command::new("find");
    command.args([folder.as_str(), "-path", target.as_str(), "-prune", "-o", "-type", "d", "-printf"]);
    // A folder's own size and times change with what is meant to change in it.
    command.args([r"%p %y %m %U %G\n", "-o", "-printf", r"%p %y %m %U %G %T@ %s %l %n\n"]);
    let (listing, _) = texts(&command.output().unwrap());
    let mut lines: Vec<&str> = listing.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
