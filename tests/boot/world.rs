//! Machines for tests: the program with the shared cache, booted in the background and talked to.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, kill_process};
use xtask::host::tools::find;
use xtask::workspace::Workspace;

use crate::support::Scratch;

/// The most that anything here may take on a busy machine without KVM.
pub(crate) const DEADLINE: Duration = Duration::from_secs(300);

/// `cargo xtask` with the cache that holds the kernel.
pub(crate) fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("xtask"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}

/// The base image `docker.io/nginx:1.21.0`, or its stand-in where no registry can be reached.
pub(crate) fn nginx_base() {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let workspace = Workspace::discover().unwrap();
        let script = workspace.scripts_folder().join("stand-in-base");
        let output = Command::new(script).arg(workspace.cache().join("stand-in")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

/// A folder of this test package.
pub(crate) fn fixture(name: &str) -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/boot").join(name)
}

/// Writes an archive of one static program, `busybox`, and what else a script puts into the folder that it runs in.
pub(crate) fn busybox_image(scratch: &Scratch, script: &str) -> Utf8PathBuf {
    let (root, archive) = (scratch.path().join("root"), scratch.path().join("busybox.tar"));
    std::fs::create_dir(&root).unwrap();
    std::fs::copy(which::which("busybox").unwrap(), root.join("busybox")).unwrap();
    let script = format!("set -e; {script}\ntar -cf \"$0\" .");
    let made = Command::new("sh").args(["-c", &script, archive.as_str()]).current_dir(root).status();
    assert!(made.unwrap().success());
    archive
}

/// A set as `collect` makes it, of an image's archive; without `init` the disk's own boots.
pub(crate) fn set_of(scratch: &Scratch, archive: &Utf8Path, with_init: bool) -> Utf8PathBuf {
    let set = scratch.path().join("set");
    let disk = set.join("hda.qcow2");
    std::fs::create_dir(&set).unwrap();
    let source = format!("rootfs:{archive}");
    let words = ["image", &source, "--size", "64M", "--output", disk.as_str(), "--format", "qcow2"];
    let output = xtask(&words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    complete_set(&set, with_init);
    set
}

/// Adds to a set what is not its disk.
pub(crate) fn complete_set(set: &Utf8Path, with_init: bool) {
    let workspace = Workspace::discover().unwrap();
    let kernel = xtask::kernel::latest(&workspace).unwrap();
    std::fs::copy(kernel.boot_image(), set.join("kernel")).unwrap();
    if with_init {
        let init = xtask::init::ready(&workspace).unwrap().unwrap();
        std::fs::copy(init.binary, set.join("init")).unwrap();
        let config = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]}}"#;
        std::fs::write(set.join("image.json"), config).unwrap();
    }
}

/// The disk that `--persist` kept for a name, as a raw file in which e2fsck finds nothing. What was kept is removed.
pub(crate) fn kept_disk(name: &str) -> tempfile::NamedTempFile {
    let kept = Workspace::discover().unwrap().persistent_disks().join(format!("{name}.qcow2"));
    let raw = tempfile::NamedTempFile::new().unwrap();
    let converted = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw", kept.as_str()])
        .arg(raw.path())
        .status();
    assert!(converted.unwrap().success());
    let check = Command::new(find("e2fsck").unwrap()).arg("-fn").arg(raw.path()).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    std::fs::remove_file(&kept).unwrap();
    let _ = std::fs::remove_file(kept.with_extension("json"));
    raw
}

/// A machine that runs in the background; ended with this value.
pub(crate) struct Machine {
    boot: Child,
    /// What `boot` has said on standard error, a line at a time.
    lines: mpsc::Receiver<String>,
    heard: Vec<String>,
}

impl Machine {
    /// Boots with these arguments.
    pub(crate) fn boot(arguments: &[&str]) -> Machine {
        let words: Vec<&str> = ["boot"].iter().chain(arguments).copied().collect();
        let mut boot = xtask(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = boot.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Machine { boot, lines, heard: Vec::new() }
    }

    /// Waits for `boot` to say which port of the host leads to this port of the guest.
    pub(crate) fn port(&mut self, guest: u16) -> u16 {
        let wanted = format!("(guest port {guest}/");
        let line = self.line_with(&wanted);
        let address = line.split(" (guest port").next().unwrap();
        address.rsplit(':').next().unwrap().parse().unwrap()
    }

    fn line_with(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(patience) {
                Ok(line) if line.contains(wanted) => return line,
                Ok(line) => self.heard.push(line),
                Err(_) => panic!("boot never said `{wanted}`, but:\n{}", self.heard.join("\n")),
            }
        }
    }

    /// Asks the machine to end and returns `boot`'s exit code.
    pub(crate) fn stop(self) -> Option<i32> {
        self.signal(Signal::INT);
        self.wait()
    }

    /// `boot`'s exit code, when the machine has ended.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.boot.wait().unwrap().code()
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.boot), signal);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.boot.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::KILL);
            let _ = self.boot.wait();
        }
    }
}

/// What a web server on a port of the host answers to `GET path`, waited for: status line, headers and body.
pub(crate) fn get(port: u16, path: &str) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        // The forwarded port accepts before the guest does, and then closes: ask until there is an answer.
        if let Some(answer) = try_get(port, path).filter(|answer| !answer.is_empty()) {
            return answer;
        }
        assert!(Instant::now() < deadline, "nothing answered on port {port}");
        std::thread::yield_now();
    }
}

fn try_get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Waits until what listens behind a port greets with these words.
pub(crate) fn answers(port: u16, greeting: &str) {
    let deadline = Instant::now() + DEADLINE;
    let is_there = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        let mut heard = vec![0; greeting.len()];
        stream.read_exact(&mut heard).ok()?;
        (heard == greeting.as_bytes()).then_some(())
    };
    while is_there().is_none() {
        assert!(Instant::now() < deadline, "nothing greeted on port {port} with `{greeting}`");
        std::thread::yield_now();
    }
}

/// A machine that `boot -d` started; removed with this value.
pub(crate) struct Detached {
    pub(crate) name: String,
}

impl Detached {
    /// Boots with these arguments under a name of its own that begins with `word`.
    pub(crate) fn boot(word: &str, arguments: &[&str]) -> Detached {
        let machine = Detached { name: format!("{word}-{}", std::process::id()) };
        let output = xtask(&["boot", "-d", "--name", &machine.name])
            .args(arguments)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .unwrap();
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{talk}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\n", machine.name), "{talk}");
        machine
    }

    /// The default image with a command that does nothing until it is told to end.
    pub(crate) fn idle(word: &str) -> Detached {
        Detached::boot(
            word,
            &["images/hello", "--", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"],
        )
    }

    /// `cargo xtask TASK FLAGS NAME WORDS`.
    pub(crate) fn task(&self, task: &str, flags: &[&str], words: &[&str]) -> Command {
        let mut command = xtask(&[task]);
        command.args(flags).arg(&self.name).args(words);
        command
    }

    /// What `exec NAME sh -c SCRIPT` says on standard output, having succeeded.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.task("exec", &[], &["sh", "-c", script]).output().unwrap();
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{script}` failed with {}: {talk}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until a process with these words runs in it.
    pub(crate) fn wait_for(&self, words: &str) {
        crate::support::wait_until(&format!("`{words}` runs"), || self.runs(words));
    }

    /// Waits until none does.
    pub(crate) fn wait_for_end(&self, words: &str) {
        crate::support::wait_until(&format!("`{words}` has ended"), || !self.runs(words));
    }

    fn runs(&self, words: &str) -> bool {
        self.sh("ps -o args").lines().any(|line| line.trim() == words)
    }

    /// Its line of `ps -a --format json`.
    pub(crate) fn listed(&self) -> Option<serde_json::Value> {
        let output = xtask(&["ps", "-a", "--format", "json"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.find(|row| row["name"] == self.name.as_str())
    }

    /// Processes on the host: `supervisor` or `qemu`.
    pub(crate) fn process(&self, which: &str) -> Pid {
        let output = self.task("inspect", &[], &[]).output().unwrap();
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let pid = value[0]["state"][which].as_i64().unwrap();
        Pid::from_raw(pid.try_into().unwrap()).unwrap()
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        let _ = self.task("rm", &["-f"], &[]).output();
    }
}
