//! Many clients at once, much data, and a guest or a client that does not keep up.

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};
use xtask::workspace::hex;

use crate::world::Detached;

#[test]
fn a_hundred_commands_at_once_keep_to_themselves() {
    let machine = Detached::idle("hundred");
    let start = |number: usize| {
        let script = format!("cat; echo to stderr {number} >&2; exit {number}");
        machine
            .task("exec", &["-i"], &["sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut clients: Vec<Child> = (0..100).map(start).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        writeln!(client.stdin.take().unwrap(), "to stdin {number}").unwrap();
    }
    for (number, client) in clients.into_iter().enumerate() {
        let output = client.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("to stdin {number}\n"));
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("to stderr {number}\n"));
        assert_eq!(output.status.code(), Some(number as i32));
    }
}

/// The most memory that a process has had, in bytes, by its `/proc/PID/status` (`VmHWM` in proc_pid_status(5)).
fn peak_memory(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn peak_memory_of(process: Pid) -> u64 {
    peak_memory(&std::fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap())
}

#[test]
fn a_gibibyte_goes_through_unharmed_in_bounded_memory() {
    const PIECE: usize = 1 << 20;
    let machine = Detached::idle("gibibyte");
    let mut client = machine
        .task("exec", &["-i"], &["sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let mut digest = Sha256::new();
    let mut piece = vec![0; PIECE];
    for number in 0..(1 << 30) / PIECE as u64 {
        // Every byte depends on its place, so that nothing can be lost, doubled or swapped unseen.
        for (place, bytes) in piece.chunks_exact_mut(8).enumerate() {
            let word = (number << 32 | place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest.update(&piece);
        stdin.write_all(&piece).unwrap();
    }
    let peak = peak_memory_of(Pid::from_child(&client)).max(peak_memory_of(machine.process("supervisor")));
    drop(stdin);
    let output = client.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}  -\n", hex(&digest.finalize())));
    assert!(peak < 64 << 20, "{peak} bytes of memory");
    let guest = peak_memory(&machine.sh("cat /proc/1/status"));
    assert!(guest < 16 << 20, "PID 1 has had {guest} bytes of memory");
}

#[test]
fn who_does_not_keep_up_holds_up_nobody_else() {
    let machine = Detached::idle("stalled");
    // A process that reads nothing, and a client that reads nothing.
    let mut full = machine.task("exec", &["-i"], &["sleep", "100000"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = full.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let piece = [0; 64 * 1024];
        while stdin.write_all(&piece).is_ok() {}
    });
    let mut deaf = machine.task("exec", &[], &["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    deaf.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    kill_process(Pid::from_child(&deaf), Signal::STOP).unwrap();

    for number in 0..20 {
        assert_eq!(machine.sh(&format!("echo {number}")), format!("{number}\n"));
    }
    for client in [&mut full, &mut deaf] {
        client.kill().unwrap();
        client.wait().unwrap();
    }
    writer.join().unwrap();
    machine.wait_for_end("yes");
}

#[test]
fn an_agent_that_does_not_answer_is_reported_with_the_console() {
    let machine = Detached::boot("frozen", &["images/hello"]);
    let qemu = machine.process("qemu");
    kill_process(qemu, Signal::STOP).unwrap();
    let begun = Instant::now();
    let output = machine.task("exec", &[], &["true"]).output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(talk.contains("did not answer within 30 s; the console's last lines:"), "{talk}");
    assert!(talk.contains(&format!("hint: `cargo xtask rm -f {}`", machine.name)), "{talk}");
    assert_eq!(output.status.code(), Some(125));
    assert!(begun.elapsed().as_secs() >= 30);
    // A machine that cannot be asked can still be ended.
    assert!(machine.task("rm", &["-f"], &[]).output().unwrap().status.success());
    assert_eq!(machine.listed(), None);
}
