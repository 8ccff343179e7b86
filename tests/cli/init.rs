//! `init`: PID 1 is built once, and is static.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use camino::Utf8PathBuf;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Scratch, in_small_cache, texts, transcript, wait_until, xtask};

#[test]
fn help() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["init", "--help"])));
}

#[test]
fn a_word_too_many() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["init", "now"])), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: unexpected argument 'now' found

    Usage: cargo xtask init [OPTIONS]

    For more information, try '--help'.
    ");
}

/// The cache outlives the test run, as the build of an optimised init takes long.
#[test]
fn init_is_static_and_the_second_run_builds_nothing() {
    let cache = camino::Utf8Path::new(env!("CARGO_TARGET_TMPDIR")).join("init");
    let first = xtask(&cache, &["init"]).output().unwrap();
    let (paths, talk) = texts(&first);
    assert!(first.status.success(), "{talk}");
    let program = paths.lines().next().unwrap();
    let initramfs = std::fs::read(paths.lines().nth(1).unwrap()).unwrap();

    // Without a loader or a library beside it.
    let ldd =
        texts(&duct::cmd!("ldd", program).stdout_capture().stderr_to_stdout().unchecked().run().unwrap()).0;
    assert!(ldd.contains("statically linked") || ldd.contains("not a dynamic executable"), "{ldd}");
    let bytes = std::fs::read(program).unwrap();
    assert!(initramfs.windows(bytes.len()).any(|window| window == bytes), "the initramfs holds another init");
    assert_eq!(initramfs.len() % 4, 0);

    let second = transcript(&mut xtask(&cache, &["init"]));
    assert!(second.contains(program) && !second.contains("building init"), "{second}");
}

#[test]
fn a_full_disk_is_said_and_nothing_stays() {
    let (talk, code, left) = in_small_cache(&Scratch::new(), "256k", &["init"]);
    assert!(talk.contains("No space left on device"), "{talk}");
    let hint = "hint: free some space, or set MICROVM_CACHE to a folder on a larger disk\n";
    assert!(talk.ends_with(hint), "{talk}");
    assert_eq!((code, left.as_str()), (Some(125), ""));
}

/// A Cargo that builds once there is a file `go` beside it, and leaves its process id in `pid`.
fn slow_cargo(scratch: &Scratch) -> Utf8PathBuf {
    let real = std::env::var("CARGO").unwrap();
    let script = "#!/bin/sh\necho $$ >>\"${0%/*}/pid.new\"; mv \"${0%/*}/pid.new\" \"${0%/*}/pid\"\n\
        while [ ! -e \"${0%/*}/go\" ]; do sleep 0.02; done\nexec REAL \"$@\"\n";
    let cargo = scratch.write("cargo", &script.replace("REAL", &real));
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    cargo
}

fn slow_init(scratch: &Scratch) -> Command {
    let mut task = scratch.xtask(&["init"]);
    task.env("CARGO", slow_cargo(scratch)).stdout(Stdio::piped()).stderr(Stdio::piped());
    task
}

#[test]
fn an_interrupted_build_ends_and_leaves_nothing() {
    let scratch = Scratch::new();
    let mut task = slow_init(&scratch).stderr(Stdio::null()).spawn().unwrap();
    let pid = scratch.path().join("pid");
    wait_until("Cargo runs", || pid.exists());
    kill_process(Pid::from_child(&task), Signal::INT).unwrap();
    assert_eq!(task.wait().unwrap().code(), Some(130));
    let cargo = fs::read_to_string(&pid).unwrap();
    // A zombie's command line is empty.
    let command_line = format!("/proc/{}/cmdline", cargo.trim());
    wait_until("Cargo has ended", || fs::read(&command_line).map_or(true, |line| line.is_empty()));
    assert_eq!(built(&scratch), ["lock"]);

    scratch.write("go", "");
    let output = slow_init(&scratch).output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
}

fn built(scratch: &Scratch) -> Vec<String> {
    let entries = scratch.cache().join("init").read_dir_utf8().unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_owned()).collect()
}

#[test]
fn two_tasks_at_once_take_turns() {
    let scratch = Scratch::new();
    let first = slow_init(&scratch).spawn().unwrap();
    let pid = scratch.path().join("pid");
    wait_until("Cargo runs", || pid.exists());
    let log = scratch.path().join("second.log");
    let second = slow_init(&scratch).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    wait_until("the second task waits", || {
        fs::read_to_string(&log).unwrap().contains("waiting for another task that works on init")
    });
    let builder = fs::read_to_string(&pid).unwrap();
    scratch.write("go", "");
    let outputs = [first, second].map(|child| child.wait_with_output().unwrap());
    assert!(outputs.iter().all(|output| output.status.success()));
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    assert_eq!(fs::read_to_string(&pid).unwrap(), builder, "the second task has built again");
}
