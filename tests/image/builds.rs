//! Dockerfiles that attack this host: nothing of it is reached, and nothing of a build survives it.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use camino::Utf8Path;
use rustix::process::{Pid, Signal, kill_process};
use tar_core::EntryType;

use crate::layers::{Tar, With};
use crate::support::{Scratch, again_as_root, texts, wait_until};

/// With a shell and the usual commands, and no registry.
const BUSYBOX: &str = "# host-program: busybox\nFROM scratch AS base\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// A process of the host's with an argument of its own, which ends with this value.
struct Victim {
    process: Child,
    word: String,
}

impl Victim {
    fn start(seconds: u32) -> Victim {
        let word = format!("{seconds}.{}", std::process::id());
        let process = Command::new("sleep").arg(&word).spawn().unwrap();
        Victim { process, word }
    }
    fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// True if some process of the host has this argument.
fn runs(word: &str) -> bool {
    let is_of = |path: fs::DirEntry| {
        let arguments = fs::read(path.path().join("cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    fs::read_dir("/proc").unwrap().flatten().any(is_of)
}

/// The disk of a Dockerfile, and what was said.
struct Built {
    disk: camino::Utf8PathBuf,
    said: String,
    succeeded: bool,
}

fn build(scratch: &Scratch, dockerfile: &str) -> Built {
    scratch.write("app/Dockerfile", &format!("{BUSYBOX}{dockerfile}"));
    let disk = scratch.path().join("disk.raw");
    let words = ["image", "app", "--size", "64M", "--output", disk.as_str(), "--format", "raw"];
    let output = scratch.xtask(&words).output().unwrap();
    Built { disk, said: texts(&output).1, succeeded: output.status.success() }
}

/// Builds, and fails with the builder's words where it does not succeed.
fn built(scratch: &Scratch, dockerfile: &str) -> Built {
    let built = build(scratch, dockerfile);
    assert!(built.succeeded, "{}", built.said);
    built
}

fn holds(file: &Utf8Path, word: &str) -> bool {
    file.exists()
        && duct::cmd!("grep", "--quiet", "--text", "--fixed-strings", word, file)
            .unchecked()
            .run()
            .unwrap()
            .status
            .success()
}

#[test]
fn a_run_neither_sees_nor_ends_processes_of_the_host() {
    if again_as_root("builds::a_run_neither_sees_nor_ends_processes_of_the_host") {
        return;
    }
    let scratch = Scratch::new();
    let mut victim = Victim::start(80001);
    wait_until("the victim runs", || runs(&victim.word));
    let (pid, word) = (victim.process.id(), victim.word.clone());
    built(
        &scratch,
        &format!("RUN if cat /proc/[0-9]*/cmdline | grep -F {word}; then exit 1; fi; kill -9 {pid}; true\n"),
    );
    assert!(victim.is_alive());
}

#[test]
fn a_run_leaves_no_process_behind() {
    if again_as_root("builds::a_run_leaves_no_process_behind") {
        return;
    }
    let scratch = Scratch::new();
    let word = format!("80002.{}", std::process::id());
    built(
        &scratch,
        &format!("RUN setsid sleep {word} >/dev/null 2>&1 </dev/null & sleep 0.1; ps | grep -F {word}\n"),
    );
    assert!(!runs(&word));
}

#[test]
fn a_build_that_is_killed_leaves_no_process_and_the_next_one_works() {
    if again_as_root("builds::a_build_that_is_killed_leaves_no_process_and_the_next_one_works") {
        return;
    }
    let scratch = Scratch::new();
    let word = format!("80003.{}", std::process::id());
    scratch.write("app/Dockerfile", &format!("{BUSYBOX}RUN sleep {word}\n"));
    for signal in [Signal::KILL, Signal::INT] {
        let mut command = scratch.xtask(&["image", "app"]);
        let mut task = command.stderr(Stdio::null()).spawn().unwrap();
        wait_until("RUN runs", || runs(&word));
        kill_process(Pid::from_child(&task), signal).unwrap();
        task.wait().unwrap();
        wait_until("all of the build has ended", || !runs(&word));
        // The builder and its network have the cache's path, or the task's number, in their arguments.
        let cache = scratch.cache();
        let is_of_cache = |entry: fs::DirEntry| {
            fs::read_link(entry.path().join("exe")).is_ok()
                && String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default())
                    .contains(cache.as_str())
        };
        wait_until("the builder has ended", || !fs::read_dir("/proc").unwrap().flatten().any(is_of_cache));
        assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(cache.as_str()));
    }
    built(&scratch, "RUN true\n");
}

#[test]
fn a_build_reaches_nothing_that_listens_on_the_hosts_loopback() {
    if again_as_root("builds::a_build_reaches_nothing_that_listens_on_the_hosts_loopback") {
        return;
    }
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let tries: String = ["127.0.0.1", "127.1.2.3", "10.0.2.2", "0.0.0.0", "localhost"]
        .map(|host| format!("if echo | nc -w 2 {host} {port}; then exit 1; fi; "))
        .concat();
    built(&scratch, &format!("RUN {tries} true\n"));
    // The builder itself is sent there too.
    let added = build(&scratch, &format!("ADD http://127.0.0.1:{port}/secret /\n"));
    assert!(!added.succeeded, "{}", added.said);
    assert_eq!(listener.accept().map(drop).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// The builder's own checks of paths have been passed in these ways; then what it can see is all that there is.
#[test]
fn a_run_reads_no_file_of_the_host() {
    if again_as_root("builds::a_run_reads_no_file_of_the_host") {
        return;
    }
    let scratch = Scratch::new();
    let secret = format!("secret-{}", std::process::id());
    let path = scratch.write("secret", &secret);
    assert!(holds(&path, &secret));
    let steal = |mount: &str| {
        format!(
            "RUN --mount={mount},target=/c cat /c{path} /c/etc/shadow /c/proc/1/root{path} >/stolen 2>&1; true\n"
        )
    };
    let up = "../".repeat(12);
    for dockerfile in [
        steal(&format!("type=cache,id={up}")),
        steal(&format!("type=bind,source={up}")),
        steal(&format!("type=bind,rw,source={up}")),
        format!("RUN ln -s / /root\nFROM base\n{}", steal("type=bind,from=base,source=/root")),
        format!(
            "RUN ln -s / /root\nFROM base AS next\nRUN ln -s / /out\nFROM base\n{}",
            steal("type=bind,from=next,source=/out,rw")
        ),
        format!("RUN ln -s / /root\nFROM base\nCOPY --from=base /root{path} /stolen\n"),
        format!("COPY {up}{path} /stolen\n"),
        format!("ADD {path} /stolen\n"),
    ] {
        let built = build(&scratch, &dockerfile);
        assert!(!holds(&built.disk, &secret) && !built.said.contains(&secret), "{dockerfile}");
        assert!(!holds(&built.disk, "root:$") && !holds(&built.disk, "root:*"), "{dockerfile}");
        let _ = fs::remove_file(&built.disk);
    }
}

#[test]
fn a_link_in_the_context_that_leaves_it_brings_no_file_of_the_host() {
    if again_as_root("builds::a_link_in_the_context_that_leaves_it_brings_no_file_of_the_host") {
        return;
    }
    let scratch = Scratch::new();
    let secret = format!("linked-{}", std::process::id());
    let path = scratch.write("secret", &secret);
    scratch.write("app/file", "of the context");
    std::os::unix::fs::symlink(&path, scratch.path().join("app/absolute")).unwrap();
    std::os::unix::fs::symlink("../secret", scratch.path().join("app/relative")).unwrap();
    std::os::unix::fs::symlink(scratch.path(), scratch.path().join("app/folder")).unwrap();
    for copied in ["absolute", "relative", "folder/secret", "folder/", "."] {
        let built = build(&scratch, &format!("COPY {copied} /stolen/\n"));
        assert!(!holds(&built.disk, &secret), "{copied}: {}", built.said);
        let _ = fs::remove_file(&built.disk);
    }
}

#[test]
fn a_run_changes_no_file_of_the_users() {
    if again_as_root("builds::a_run_changes_no_file_of_the_users") {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.write("app/file", "mine");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    built(
        &scratch,
        "RUN --mount=type=bind,target=/c,rw cat /c/file && echo theirs >/c/file; chmod 777 /c/file; rm /c/file; true\n",
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode(), mode);
}

#[test]
fn a_run_mounts_nothing_makes_no_device_and_changes_no_setting() {
    if again_as_root("builds::a_run_mounts_nothing_makes_no_device_and_changes_no_setting") {
        return;
    }
    let scratch = Scratch::new();
    let setting = || fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = setting();
    let device = With { device: (1, 5), mode: 0o666, ..With::default() };
    let tar = Tar::new().folder("odd/").entry(EntryType::Char, "odd/zero", b"", &device).bytes();
    fs::create_dir_all(scratch.path().join("app")).unwrap();
    fs::write(scratch.path().join("app/device.tar"), tar).unwrap();
    let attempts = [
        "mount -t tmpfs t /bin",
        "mount --bind /bin /etc",
        "mknod /d b 8 0",
        "unshare -m true",
        "head -c 1 /odd/zero",
        "head -c 1 /m/odd/zero",
        "head -c 1 /n/zero",
        "echo x >/proc/sys/kernel/core_pattern",
        "echo h >/proc/sysrq-trigger",
        "echo 1 >/sys/kernel/mm/ksm/run",
        "grep -E '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts",
        "hostname mine",
        "chroot /proc/1/root cat /etc/shadow",
    ];
    let attempts =
        attempts.map(|attempt| format!("if {attempt}; then echo done: {attempt}; exit 1; fi; ")).concat();
    built(
        &scratch,
        &format!(
            "FROM base AS with\nADD device.tar /\nFROM base\nCOPY --from=with / /\nRUN --mount=type=bind,from=with,target=/m \
             --mount=type=bind,from=with,source=/odd,target=/n,rw {attempts} test -c /odd/zero -a -c /m/odd/zero\n"
        ),
    );
    let up = "../".repeat(12);
    // Through the builder's root, where its checks of paths fail: what is mounted there can be written nowhere.
    for place in ["/proc/sys/kernel", "/usr/bin", "/sys/fs/cgroup", "/dev", "/etc", "/"] {
        let name = format!("built-{}", std::process::id());
        build(
            &scratch,
            &format!(
                "RUN ln -s {place} /out\nFROM base AS next\nRUN --mount=type=bind,from=base,source=/out,target=/c,rw \
                 echo x >/c/core_pattern; chmod 600 /c/null; touch /c/{name}; mkdir /c/{name}; true\n"
            ),
        );
        assert!(!Utf8Path::new(place).join(name).exists());
        assert_eq!(fs::metadata("/dev/null").unwrap().permissions().mode() & 0o777, 0o666);
    }
    build(
        &scratch,
        &format!(
            "RUN --mount=type=cache,id={up},target=/c echo x >/c/proc/sys/kernel/core_pattern; mkdir /c/sys/fs/cgroup/x; true\n"
        ),
    );
    assert_eq!(setting(), before);
}
