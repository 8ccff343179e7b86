//! A supervisor over a long time and against enemies: guests that harm themselves, clients that vanish, processes that
//! somebody stops, and an agent that floods its port.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use init::boot_config;
use init::protocol::{
    Decoder, Failure, Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message, Program, Start, Stream, VERSION,
    WindowSize,
};
use rustix::process::{Pid, Signal, kill_process};
use xtask::host::tools::find;
use xtask::vm::record::run_dir::RunDir;
use xtask::workspace::Workspace;

use crate::support::{Scratch, wait_until};
use crate::world::{Detached, fixture, xtask};

/// Far below the limits that the supervisor has for a guest that lives.
const SECONDS: Duration = Duration::from_secs(60);

fn talk(command: &mut Command) -> (String, Option<i32>) {
    let output = command.output().unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

/// The state of a process (proc_pid_stat(5)).
fn state_of(process: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// One that has ended may wait for its new parent to take notice.
fn is_gone(process: Pid) -> bool {
    matches!(state_of(process), None | Some('Z' | 'X'))
}

/// Open files and threads of a process.
fn holdings(process: Pid) -> (usize, usize) {
    let count = |folder: &str| {
        fs::read_dir(format!("/proc/{}/{folder}", process.as_raw_nonzero())).map_or(0, Iterator::count)
    };
    (count("fd"), count("task"))
}

fn memory(process: Pid, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn clients_socket(machine: &Detached) -> UnixStream {
    let run_dir = RunDir::named(&Workspace::discover().unwrap(), &machine.name);
    UnixStream::connect(run_dir.clients_socket()).unwrap()
}

fn say(mut stream: &UnixStream, channel: u32, message: Message) {
    let mut bytes = Vec::new();
    Frame::new(channel, message).encode(&mut bytes);
    stream.write_all(&bytes).unwrap();
}

fn start(argv: [&str; 2]) -> Message {
    let command = boot_config::Command {
        argv: argv.map(str::to_owned).to_vec(),
        env: vec![],
        cwd: String::new(),
        user: String::new(),
    };
    let tty = Some(WindowSize { rows: 1, columns: 1 });
    Message::Start(Start { program: Program::Command(command), tty, stdin: true })
}

/// Whether the agent says anything when it is asked for a process.
fn answers(machine: &Detached) -> bool {
    let stream = clients_socket(machine);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    say(&stream, 2, start(["true", ""]));
    (&stream).read(&mut [0]).is_ok()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_supervisor_has_after_all_kinds_of_use_what_it_had_before() {
    // Its health is checked every second meanwhile.
    let machine = Detached::boot("soak", &[fixture("health").as_str()]);
    let supervisor = machine.process("supervisor");
    let silent = |task: &str, flags: &[&str], words: &[&str]| {
        let mut command = machine.task(task, flags, words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let use_it = || {
        machine.sh("true");
        assert!(!silent("exec", &[], &["no-such-command"]).status().unwrap().success());
        let copy = |from: &str, to: &str| xtask(&["cp", from, to]).stdout(Stdio::null()).status().unwrap();
        assert!(copy(&format!("{}:/bin", machine.name), "-").success());
        assert!(copy(fixture("health").as_str(), &format!("{}:/tmp", machine.name)).success());
        // Clients that vanish.
        let mut cat = silent("exec", &["-i"], &["cat"]);
        end(cat.stdin(Stdio::piped()).spawn().unwrap());
        end(silent("logs", &["-f"], &[]).spawn().unwrap());
        end(silent("wait", &[], &[]).spawn().unwrap());
        for nonsense in [&b""[..], b"\0\0", b"GET / HTTP/1.0\r\n\r\n"] {
            clients_socket(&machine).write_all(nonsense).unwrap();
        }
        // Windows that change, in a session that is left without a word.
        let window = clients_socket(&machine);
        say(&window, 2, start(["sleep", "7777"]));
        for rows in 1..200 {
            say(&window, 2, Message::Resize(WindowSize { rows, columns: 80 }));
        }
    };
    use_it();
    let mut before = (0, 0);
    wait_until("nothing changes any more", || {
        let now = holdings(supervisor);
        machine.sh("true");
        std::mem::replace(&mut before, now) == now
    });
    let memory_before = memory(supervisor, "VmRSS:");
    for _ in 0..8 {
        use_it();
    }
    wait_until("it has what it had before", || {
        // A health check may be under way.
        let (files, threads) = holdings(supervisor);
        files <= before.0 && threads <= before.1
    });
    machine.wait_for_end("sleep 7777");
    let grown = memory(supervisor, "VmRSS:").saturating_sub(memory_before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    wait_until("it is healthy", || machine.listed().unwrap()["health"] == "healthy");

    // Of a supervisor that stands still nothing is known.
    kill_process(supervisor, Signal::STOP).unwrap();
    wait_until("it is stopped", || state_of(supervisor) == Some('T'));
    assert_eq!(machine.listed().unwrap()["health"], "unhealthy");
}

#[test]
fn more_clients_than_descriptors_wait_for_their_turn() {
    let machine = Detached { name: format!("many-{}", std::process::id()) };
    let script = "ulimit -n 129; exec \"$@\"";
    let program = assert_cmd::cargo::cargo_bin!("xtask");
    let booted = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(program)
        .args(["boot", "-d", "--name", &machine.name, fixture("health").as_str()])
        .output()
        .unwrap();
    assert!(booted.status.success(), "{}", String::from_utf8_lossy(&booted.stderr));
    let commands: Vec<Child> = (0..70)
        .map(|_| machine.task("exec", &[], &["sleep", "1"]).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for command in commands {
        let output = command.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // Connections that say nothing, more than there are places for.
    let idle: Vec<UnixStream> = (0..100).map(|_| clients_socket(&machine)).collect();
    drop(idle);
    assert_eq!(machine.sh("echo on"), "on\n");
    assert!(machine.task("stop", &["-t", "1"], &[]).output().unwrap().status.success());
}

#[test]
fn a_stopped_supervisor_keeps_nobody_waiting() {
    for task in ["stop", "rm"] {
        let machine = Detached::boot("stopped", &[fixture("health").as_str()]);
        let (supervisor, qemu) = (machine.process("supervisor"), machine.process("qemu"));
        kill_process(supervisor, Signal::STOP).unwrap();
        wait_until("it is stopped", || state_of(supervisor) == Some('T'));
        let (said, code) = talk(&mut machine.task("exec", &[], &["true"]));
        assert!(said.contains("the supervisor of") && said.contains("kill -CONT"), "{said}");
        assert_eq!(code, Some(125));
        assert!(machine.listed().is_some());
        let begun = Instant::now();
        let flags: &[&str] = if task == "rm" { &["-f"] } else { &["-t", "2"] };
        let (said, code) = talk(&mut machine.task(task, flags, &[]));
        assert_eq!(code, Some(0), "{said}");
        assert!(begun.elapsed() < SECONDS);
        wait_until("all processes are gone", || is_gone(supervisor) && is_gone(qemu));
    }
}

#[test]
#[ignore = "slow: runs in test --all"]
fn a_supervisor_that_somebody_stops_again_is_killed_with_its_machine() {
    let machine = Detached::boot("held", &[fixture("health").as_str()]);
    let (supervisor, qemu) = (machine.process("supervisor"), machine.process("qemu"));
    let waiter = machine.task("wait", &[], &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stop = machine.task("stop", &["-t", "0"], &[]).stderr(Stdio::piped()).spawn().unwrap();
    // It goes on by nobody's word for long.
    while stop.try_wait().unwrap().is_none() {
        let _ = kill_process(supervisor, Signal::STOP);
        std::thread::yield_now();
    }
    let output = stop.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_until("all processes are gone", || is_gone(supervisor) && is_gone(qemu));
    assert_eq!(machine.listed().unwrap()["state"], "killed");
    assert_eq!(waiter.wait_with_output().unwrap().stdout, b"137\n");
}

#[test]
fn a_stopped_qemu_ends_soon_after_its_grace() {
    let machine = Detached::boot("still", &[fixture("health").as_str()]);
    let qemu = machine.process("qemu");
    kill_process(qemu, Signal::STOP).unwrap();
    let begun = Instant::now();
    let (said, code) = talk(&mut machine.task("stop", &["-t", "3"], &[]));
    assert_eq!(code, Some(0), "{said}");
    assert!(begun.elapsed() < SECONDS, "its limit for what a guest writes at its end is longer");
    let listed = machine.listed().unwrap();
    assert_eq!(listed["cause"], "the guest did not end when it was asked to");
    assert!(is_gone(qemu));
}

#[test]
#[ignore = "slow: runs in test --all"]
fn words_of_a_panic_are_no_panic() {
    let machine = Detached::boot("words", &[fixture("health").as_str()]);
    machine.sh("echo 'Kernel panic - not syncing: VFS: Unable to mount root fs' >/dev/hvc0");
    machine.sh("echo '<0>reboot: System halted' >/dev/kmsg; echo 'init: fatal: no disk' >/dev/hvc0");
    let log = RunDir::named(&Workspace::discover().unwrap(), &machine.name).console_log();
    wait_until("the words have arrived", || {
        fs::read_to_string(&log).unwrap().contains("init: fatal: no disk")
    });
    // Longer than an answer may take.
    let later = Instant::now() + Duration::from_secs(15);
    while Instant::now() < later {
        machine.sh("sleep 1");
    }
    assert_eq!(machine.listed().unwrap()["state"], "running");
}

#[test]
fn whatever_a_guest_does_to_itself_it_ends_and_is_named() {
    for (script, cause) in [
        ("reboot -f", "the guest ended the machine before its command had ended"),
        ("poweroff -f", "the guest switched itself off"),
        ("echo c >/proc/sysrq-trigger", "the guest's kernel panicked: sysrq triggered crash"),
    ] {
        let machine = Detached::boot("self", &[fixture("health").as_str()]);
        let output = machine.task("exec", &[], &["sh", "-c", script]).output().unwrap();
        if output.status.code() == Some(1) {
            // A kernel without this way to end.
            continue;
        }
        wait_until("it has ended", || machine.listed().unwrap()["state"] != "running");
        let listed = machine.listed().unwrap();
        assert_eq!((&listed["state"], &listed["exit_code"]), (&"failed".into(), &125.into()), "{script}");
        assert_eq!(listed["cause"], cause, "{script}");
    }
}

#[test]
#[ignore = "slow: runs in test --all"]
fn a_guest_that_halted_ends_when_it_is_asked_to() {
    for script in ["poweroff -f", "halt -f"] {
        let machine = Detached::boot("halted", &[fixture("health").as_str()]);
        let mut halting =
            machine.task("exec", &[], &["sh", "-c", script]).stderr(Stdio::null()).spawn().unwrap();
        wait_until("nobody answers", || !answers(&machine));
        let begun = Instant::now();
        let (said, code) = talk(&mut machine.task("stop", &["-t", "1"], &[]));
        assert_eq!(code, Some(0), "{said}");
        assert!(begun.elapsed() < SECONDS, "its limit for what a guest writes at its end is longer");
        assert_eq!(machine.listed().unwrap()["exit_code"], 125);
        // Its connection has ended with the machine.
        halting.wait().unwrap();
    }
}

#[test]
fn an_output_without_end_keeps_its_bounds_and_can_be_followed() {
    let bounds = ["--log-opt", "max-size=100k", "--log-opt", "max-file=3"];
    let script = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i; done; sleep 100000";
    let image = fixture("health");
    let words = [&bounds[..], &[image.as_str(), "--", "sh", "-c", script]].concat();
    let machine = Detached::boot("endless", &words);
    let mut follower = machine.task("logs", &["-f"], &[]).stdout(Stdio::piped()).spawn().unwrap();
    let folder = RunDir::named(&Workspace::discover().unwrap(), &machine.name).path().to_owned();
    let last_line = || {
        let output = machine.task("logs", &["--tail", "1"], &[]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    wait_until("all is said", || last_line() == "line 60000\n");
    let logs = folder.read_dir_utf8().unwrap().flatten();
    let logs = logs.filter(|entry| entry.file_name().starts_with("output.log"));
    let bytes: u64 = logs.map(|entry| entry.metadata().unwrap().len()).sum();
    assert!(bytes <= 3 * 100 * 1024, "{bytes} bytes");
    let kept = String::from_utf8(machine.task("logs", &[], &[]).output().unwrap().stdout).unwrap();
    assert!(kept.len() > 100 * 1024 && kept.ends_with("line 60000\n"), "{} bytes", kept.len());
    assert!(machine.task("stop", &["-t", "0"], &[]).output().unwrap().status.success());
    let mut followed = String::new();
    follower.stdout.take().unwrap().read_to_string(&mut followed).unwrap();
    assert!(follower.wait().unwrap().success());
    assert!(followed.ends_with("line 60000\n"));
}

/// Set where this program is to play QEMU: a word for what it does, and QEMU's own arguments.
const PART: &str = "MICROVM_TEST_FAKE_QEMU";

/// Bytes of a flood.
const FLOOD: usize = 400 << 20;

/// Not a test: QEMU's part, played by this program, with a hostile agent at the other end of the port.
#[test]
#[ignore = "run by the tests of hostile agents"]
fn plays_qemu() {
    let Ok(part) = std::env::var(PART) else { return };
    let (word, arguments) = part.split_once(' ').unwrap();
    let number = arguments.split("socket,id=agent,fd=").nth(1).unwrap().split([' ', ',']).next().unwrap();
    #[expect(unsafe_code, reason = "the number of a descriptor that was inherited")]
    // SAFETY: the supervisor handed it over for QEMU, whose part this is, and nothing else here knows of it.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) });
    say(&stream, MACHINE_CHANNEL, Message::Hello { version: VERSION });
    say(&stream, MAIN_CHANNEL, Message::Started { pid: 1 });
    let piece = |stream, bytes| Message::Data(stream, vec![b'x'; bytes]);
    let flood: Vec<(u32, Message)> = match word {
        "output" => vec![(MAIN_CHANNEL, piece(Stream::Stdout, 32 * 1024))],
        "credit" => vec![(MAIN_CHANNEL, Message::Credit(Stream::Stdin, 1))],
        "started" => vec![(MAIN_CHANNEL, Message::Started { pid: 1 })],
        "nobody" => vec![(7, piece(Stream::Stdout, 32 * 1024)), (8, Message::Exited { code: 1 })],
        "machine" => vec![
            (MACHINE_CHANNEL, Message::Pong(0)),
            (MACHINE_CHANNEL, Message::Hello { version: VERSION }),
            (9, Message::Failed(Failure { code: 0, message: "x".repeat(30_000) })),
        ],
        _ => panic!("{word}"),
    };
    let mut bytes = Vec::new();
    while bytes.len() < 1 << 20 {
        flood.iter().for_each(|(channel, message)| Frame::new(*channel, message.clone()).encode(&mut bytes));
    }
    let mut written = 0;
    while written < FLOOD {
        if (&stream).write_all(&bytes).is_err() {
            break;
        }
        written += bytes.len();
    }
    // A word that the flood is over, for one client that asks for a process.
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 * 1024]);
    while let Ok(length @ 1..) = (&stream).read(&mut buffer) {
        decoder.push(&buffer[..length]);
        while let Some(frame) = decoder.next_frame().unwrap() {
            if let Message::Start(_) = frame.message {
                say(&stream, frame.channel, Message::Started { pid: 2 });
                say(&stream, frame.channel, Message::Exited { code: 42 });
            }
        }
    }
}

/// A machine whose QEMU is this program.
fn with_fake_qemu(scratch: &Scratch, word: &str) -> Detached {
    let script = scratch.path().join("qemu-system-x86_64");
    let real = find("qemu-system-x86_64").unwrap();
    let this = std::env::current_exe().unwrap();
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *socket,id=agent*) ;; *) exec {real} \"$@\" ;; esac\n\
         {PART}=\"{word} $*\" exec {} --exact supervision::plays_qemu --ignored --nocapture\n",
        this.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let machine = Detached { name: format!("{word}-{}", std::process::id()) };
    let path = format!("{}:{}", scratch.path(), std::env::var("PATH").unwrap());
    let booted = xtask(&["boot", "-d", "--accel", "tcg", "--network", "none", "--name", &machine.name])
        .arg(fixture("health"))
        .env("PATH", path)
        .output()
        .unwrap();
    // One that fails at once may have failed before `boot` looked.
    let talk = String::from_utf8_lossy(&booted.stderr);
    assert!(booted.status.success() || talk.contains("agent protocol"), "{talk}");
    machine
}

#[test]
fn an_agent_that_breaks_the_protocol_ends_its_machine() {
    for (word, cause) in [
        ("output", "agent protocol: more than 262144 bytes of a stream without credit"),
        ("credit", "agent protocol: credit for input that was not sent"),
        ("started", "agent protocol: a process's start, twice"),
    ] {
        let scratch = Scratch::new();
        let machine = with_fake_qemu(&scratch, word);
        wait_until("it has ended", || machine.listed().is_some_and(|listed| listed["state"] == "failed"));
        assert_eq!(machine.listed().unwrap()["cause"], cause, "{word}");
    }
}

#[test]
fn an_agent_that_floods_its_port_takes_no_memory() {
    for word in ["nobody", "machine"] {
        let scratch = Scratch::new();
        let machine = with_fake_qemu(&scratch, word);
        let supervisor = machine.process("supervisor");
        wait_until("the flood is over", || {
            machine.task("exec", &[], &["x"]).output().unwrap().status.code() == Some(42)
        });
        let peak = memory(supervisor, "VmHWM:");
        assert!(peak < 64 << 20, "{word}: {peak} bytes of memory");
        assert!(machine.task("rm", &["-f"], &[]).output().unwrap().status.success());
    }
}
