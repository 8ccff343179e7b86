//! Machines in the background: `boot -d` and what is done with them until `rm`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process};
use xtask::host::tools::find;

use crate::support::{Scratch, wait_until};
use crate::world::{Detached, Machine, busybox_image, fixture, get, kept_disk, set_of, xtask};

/// What a command says on its two streams, and its exit code.
fn said(command: &mut Command) -> (String, String, Option<i32>) {
    let output = command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

#[test]
fn a_machine_lives_in_the_background_and_is_stopped_in_good_order() {
    let machine = Detached::boot("life", &["--persist", "-p", "0:80", "images/hello"]);
    let name = machine.name.as_str();

    let listed = machine.listed().unwrap();
    assert_eq!((&listed["state"], &listed["image"]), (&"running".into(), &"hello".into()));
    assert!(listed["memory_bytes"].as_u64().unwrap() > 1 << 20, "{listed}");
    let port = listed["ports"][0]["host"].as_u64().unwrap();
    assert!(get(port.try_into().unwrap(), "/").contains("hello from a microVM"));

    let (_, talk, code) = said(&mut xtask(&["boot", "-d", "--name", name, "images/hello"]));
    assert!(talk.contains(&format!("a machine named `{name}` is running")), "{talk}");
    assert_eq!(code, Some(125));
    let (_, talk, code) = said(&mut machine.task("rm", &[], &[]));
    assert!(talk.contains("is running") && talk.contains("cargo xtask stop"), "{talk}");
    assert_eq!(code, Some(1));

    let streams = said(&mut machine.task("exec", &[], &["sh", "-c", "echo out; echo err >&2; exit 7"]));
    assert_eq!(streams, ("out\n".into(), "err\n".into(), Some(7)));
    let settings = ["-e", "WORD=a b", "-w", "/tmp", "-u", "12:34"];
    let script = "echo $WORD:$(pwd):$(id -u):$(id -g)";
    assert_eq!(said(&mut machine.task("exec", &settings, &["sh", "-c", script])).0, "a b:/tmp:12:34\n");
    let (_, talk, code) = said(&mut machine.task("exec", &[], &["no-such-command"]));
    assert!(talk.starts_with("error: `no-such-command` was not found"), "{talk}");
    assert_eq!(code, Some(127));
    assert_eq!(said(&mut machine.task("exec", &[], &["/etc/passwd"])).2, Some(126));

    let mut shell =
        machine.task("shell", &[], &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"hostname; exit 3\n").unwrap();
    let output = shell.wait_with_output().unwrap();
    assert_eq!((&output.stdout[..], output.status.code()), (&b"microvm\n"[..], Some(3)));

    // Whoever reads only the beginning ends the command, as in a pipeline of one host.
    let mut endless = machine.task("exec", &[], &["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    endless.stdout.take().unwrap().read_exact(&mut [0; 2]).unwrap();
    assert_eq!(endless.wait().unwrap().code(), Some(141));

    let (log, _, _) = said(&mut machine.task("logs", &[], &[]));
    assert!(log.contains("hello from a microVM: Linux "), "{log}");
    assert_eq!(said(&mut machine.task("logs", &["--since", "2100-01-01T00:00:00Z"], &[])).0, "");
    let mut follower = machine.task("logs", &["-f"], &[]).stdout(Stdio::piped()).spawn().unwrap();
    let waiter = machine.task("wait", &[], &[]).stdout(Stdio::piped()).spawn().unwrap();

    machine.sh("echo kept >/kept");
    assert_eq!(said(&mut machine.task("stop", &[], &[])), (format!("{name}\n"), String::new(), Some(0)));
    assert!(follower.wait().unwrap().success());
    assert_eq!(waiter.wait_with_output().unwrap().stdout, b"143\n");
    let listed = machine.listed().unwrap();
    assert_eq!((&listed["state"], &listed["exit_code"]), (&"exited".into(), &143.into()));
    let (_, talk, code) = said(&mut machine.task("exec", &[], &["true"]));
    assert!(talk.contains("does not run: it ended with exit code 143"), "{talk}");
    assert_eq!(code, Some(125));

    // What was kept is a clean file system with the last write in it.
    let disk = kept_disk(name);
    let shown = said(Command::new(find("debugfs").unwrap()).args(["-R", "cat /kept"]).arg(disk.path()));
    assert_eq!(shown.0, "kept\n");

    assert_eq!(said(&mut machine.task("rm", &[], &[])).2, Some(0));
    assert_eq!(machine.listed(), None);
    let (_, talk, code) = said(&mut machine.task("rm", &[], &[]));
    assert!(talk.contains(&format!("there is no machine named `{name}`")), "{talk}");
    assert_eq!(code, Some(1));
}

#[test]
fn a_command_that_cannot_start_is_reported_and_nothing_runs() {
    let name = format!("nothing-{}", std::process::id());
    let machine = Detached { name: name.clone() };
    let boot = |flags: &[&str]| {
        said(xtask(&["boot", "-d", "--name", &name]).args(flags).args([
            "images/hello",
            "--",
            "no-such-command",
        ]))
    };
    let (out, talk, code) = boot(&[]);
    assert!(talk.contains("error: `no-such-command` was not found"), "{talk}");
    assert_eq!((out.as_str(), code), ("", Some(127)));
    let listed = machine.listed().unwrap();
    assert_eq!((&listed["state"], &listed["exit_code"]), (&"failed".into(), &127.into()));
    assert_eq!(boot(&["--rm"]).2, Some(127));
    assert_eq!(machine.listed(), None);
}

#[test]
fn a_machine_with_an_init_of_its_own_is_listed_and_ended() {
    let scratch = Scratch::new();
    let own_init = "mkdir dev sbin; printf '%s\\n' '#!/busybox sh' 'echo an init of its own' \
        'while :; do /busybox sleep 1; done' >sbin/init; chmod +x sbin/init";
    let set = set_of(&scratch, &busybox_image(&scratch, own_init), false);
    let machine = Detached { name: format!("own-init-{}", std::process::id()) };
    let foreground = Machine::boot(&["--name", &machine.name, "--from", set.as_str()]);
    let log_has = |line: &str| said(&mut machine.task("logs", &[], &[])).0.contains(line);
    wait_until("its init runs", || log_has("an init of its own"));
    assert_eq!(machine.listed().unwrap()["state"], "running");

    let (_, talk, code) = said(&mut machine.task("exec", &[], &["true"]));
    assert!(talk.contains("hint: a machine with an init of its own cannot be talked to"), "{talk}");
    assert_eq!(code, Some(125));
    let (_, talk, code) = said(&mut machine.task("kill", &["-s", "USR1"], &[]));
    assert!(talk.contains("has an init of its own, which cannot be sent signals"), "{talk}");
    assert_eq!(code, Some(1));

    let qemu = machine.process("qemu");
    assert_eq!(said(&mut machine.task("stop", &[], &[])).2, Some(0));
    assert!(has_ended(qemu), "QEMU runs on");
    assert_eq!(foreground.wait(), Some(143));
    assert_eq!(machine.listed().unwrap()["exit_code"], 143);
}

#[test]
fn signals_reach_the_command_and_rm_f_ends_it() {
    let script = "trap 'echo usr1' USR1; trap 'exit 9' INT; echo ready; while :; do sleep 1 & wait $!; done";
    let machine = Detached::boot("signal", &["images/hello", "--", "sh", "-c", script]);
    let log_has = |line: &str| said(&mut machine.task("logs", &[], &[])).0.lines().any(|known| known == line);
    wait_until("the command is ready", || log_has("ready"));
    assert_eq!(said(&mut machine.task("kill", &["-s", "USR1"], &[])).2, Some(0));
    wait_until("the command has its signal", || log_has("usr1"));
    machine.task("kill", &["-s", "SIGINT"], &[]).output().unwrap();
    assert_eq!(said(&mut machine.task("wait", &[], &[])).0, "9\n");

    let machine = Detached::idle("removed");
    let qemu = machine.process("qemu");
    assert_eq!(said(&mut machine.task("rm", &["-f"], &[])).2, Some(0));
    assert_eq!(machine.listed(), None);
    assert!(has_ended(qemu), "QEMU runs on");
}

/// A process that has ended may wait for its parent to take notice (state Z).
fn has_ended(pid: rustix::process::Pid) -> bool {
    match fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

#[test]
fn a_killed_qemu_or_supervisor_is_recognised() {
    let machine = Detached::idle("qemu-killed");
    kill_process(machine.process("qemu"), Signal::KILL).unwrap();
    assert_eq!(said(&mut machine.task("wait", &[], &[])).0, "125\n");
    let listed = machine.listed().unwrap();
    assert_eq!(listed["state"], "failed");
    assert_eq!(listed["cause"], "QEMU ended with signal: 9 (SIGKILL)");

    let machine = Detached::idle("supervisor-killed");
    let qemu = machine.process("qemu");
    kill_process(machine.process("supervisor"), Signal::KILL).unwrap();
    wait_until("QEMU has ended", || has_ended(qemu));
    // The last of the supervisor's threads lets go of the lock.
    wait_until("nobody supervises it", || machine.listed().unwrap()["state"] == "killed");
    let listed = machine.listed().unwrap();
    assert_eq!((&listed["state"], &listed["exit_code"]), (&"killed".into(), &serde_json::Value::Null));
    let (_, talk, code) = said(&mut machine.task("wait", &[], &[]));
    assert!(talk.contains("was killed, and left no exit code"), "{talk}");
    assert_eq!(code, Some(125));
    assert_eq!(said(&mut machine.task("rm", &[], &[])).2, Some(0));
    assert_eq!(machine.listed(), None);
}

#[test]
fn a_client_that_vanishes_leaves_no_process() {
    let machine = Detached::idle("vanish");
    let mut client = machine
        .task("exec", &["-i"], &["sh", "-c", "sleep 12345 & setsid sleep 12346 & echo there; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut there = [0; 6];
    client.stdout.as_mut().unwrap().read_exact(&mut there).unwrap();
    let sleepers = || machine.sh("ps | grep -c 'sleep 1234[56]' || true");
    assert_eq!(sleepers().trim(), "2");
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("its processes are gone", || sleepers().trim() == "0");
}

#[test]
fn an_image_says_how_to_see_whether_it_is_well() {
    let machine = Detached::boot("health", &[fixture("health").as_str()]);
    let becomes = |health: &str| {
        wait_until(&format!("it is {health}"), || machine.listed().unwrap()["health"] == health);
    };
    becomes("healthy");
    machine.sh("touch /sick");
    becomes("unhealthy");
    machine.sh("rm /sick");
    becomes("healthy");
}

#[test]
fn a_boot_that_is_interrupted_before_the_start_leaves_nothing() {
    let name = format!("interrupted-{}", std::process::id());
    let machine = Detached { name: name.clone() };
    let mut boot = xtask(&["boot", "-d", "--rm", "--name", &name, "images/hello"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("QEMU runs", || machine.listed().is_some_and(|listed| !listed["memory_bytes"].is_null()));
    let qemu = machine.process("qemu");
    // It gets no further.
    kill_process(qemu, Signal::STOP).unwrap();
    kill_process(rustix::process::Pid::from_child(&boot), Signal::INT).unwrap();
    assert_eq!(boot.wait().unwrap().code(), Some(130));
    assert!(has_ended(qemu), "QEMU runs on");
    assert_eq!(machine.listed(), None);
}
