//! Looking into a machine: PID 1's steps as they happen, and a debugger before the first instruction.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use crate::world::{DEADLINE, xtask};

const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn steps_are_shown_with_their_times() {
    let output = xtask(&["boot", "--init-debug", "images/hello", "--", "true"])
        .current_dir(CHECKOUT)
        .output()
        .unwrap();
    let talk = String::from_utf8(output.stderr).unwrap();
    let steps: Vec<(f64, &str)> = talk
        .lines()
        .filter_map(|line| line.strip_prefix("init: +")?.split_once("s "))
        .map(|(seconds, step)| (seconds.parse().unwrap(), step))
        .collect();
    assert!(steps.is_sorted_by(|(a, _), (b, _)| a <= b), "{talk}");
    let names: Vec<&str> = steps.iter().map(|(_, step)| *step).collect();
    for step in ["enter the root file system", "mount proc on /proc", "run the main process"] {
        assert!(names.contains(&step), "{talk}");
    }
    assert_eq!(output.status.code(), Some(0), "{talk}");
}

#[test]
fn the_guest_waits_for_a_debugger_which_finds_the_kernels_symbols() {
    let mut boot = xtask(&["boot", "--gdb", "images/hello", "--", "sh", "-c", "exit 4"])
        .current_dir(CHECKOUT)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut talk = BufReader::new(boot.stderr.take().unwrap()).lines().map_while(Result::ok);
    let command = talk.find(|line| line.trim_start().starts_with("gdb ")).unwrap();
    let symbols = command.split_whitespace().nth(1).unwrap();
    assert!(std::fs::read(symbols).unwrap().starts_with(b"\x7fELF"), "{command}");
    let socket = command.trim_end_matches('\'').rsplit(' ').next().unwrap().to_owned();

    // The remote protocol of gdb's manual, appendix E: why has it stopped, then go on.
    let deadline = std::time::Instant::now() + DEADLINE;
    let mut debugger = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    };
    debugger.set_read_timeout(Some(DEADLINE)).unwrap();
    debugger.write_all(b"$?#3f").unwrap();
    let mut answer = [0; 5];
    debugger.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "+$T05", "it has stopped with SIGTRAP");
    assert!(boot.try_wait().unwrap().is_none());
    debugger.write_all(b"+$c#63").unwrap();
    assert_eq!(boot.wait().unwrap().code(), Some(4));
}
