//! Where the output goes: a reader that has gone, a device that is full, a terminal that quoted words would steer.

use std::fs::File;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use xtask::vm::machine::Accelerator;
use xtask::vm::record::Description;

use crate::support::{Scratch, texts};

/// What an image may be called by whoever made it: a title for the terminal, colours, an overwritten line, a text that
/// runs the other way, a C1 control and a line of its own.
const EVIL: &str = "\x1b]0;owned\x07\x1b[31mred\x1b[0m\roverwritten\u{202e}txt\u{9b}2J\x7f\nnew line";
const SHOWN: &str = r"\x1b]0;owned\x07\x1b[31mred\x1b[0m\x0doverwritten\u{202e}txt\u{9b}2J\x7f\x0anew line";

/// A cache with a machine that has ended and said something, and with a disk; both of an image with an evil name.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    let description = Description {
        name: "web".into(),
        image: EVIL.into(),
        created: Timestamp::UNIX_EPOCH,
        command: vec![EVIL.into()],
        ports: vec![],
        memory_mib: 256,
        cpus: 1,
        accelerator: Accelerator::Tcg,
        healthcheck: None,
        kept: true,
    };
    scratch.write("cache/machines/web/machine.json", &serde_json::to_string(&description).unwrap());
    let ended = r#"{"ended":{"at":"1970-01-01T00:00:00Z","outcome":{"exited":3},"last_lines":[]}}"#;
    scratch.write("cache/machines/web/state.json", ended);
    scratch.write("cache/machines/web/output.log", "log 1\n0 o 9\n\x1b[31mred\n\n");
    let record = serde_json::json!({
        "name": "web", "source": EVIL, "digest": "sha256:0123456789abcdef", "size": 4096, "created": 0
    });
    scratch.write("cache/disks/one/image.json", &record.to_string());
    scratch.write("cache/disks/one/config.json", "{}");
    scratch.write("cache/disks/one/disk.ext4", &"\0".repeat(4096));
    scratch.write("cache/volumes/data.ext4", "");
    scratch.write("linux/Makefile", "VERSION = 6\nPATCHLEVEL = 99\nSUBLEVEL = 1\n");
    scratch
}

/// Every task that prints without a kernel or a machine that runs, with its exit code.
const PRINTING: &[(&[&str], i32)] = &[
    (&[], 0),
    (&["status"], 0),
    (&["ps"], 0),
    (&["ps", "-a"], 0),
    (&["ps", "-a", "-q"], 0),
    (&["ps", "-a", "--format", "json"], 0),
    (&["inspect", "web"], 0),
    (&["wait", "web"], 0),
    (&["logs", "web"], 0),
    (&["image", "ls"], 0),
    (&["volume", "ls"], 0),
    (&["doctor"], 0),
    (&["doctor", "--format", "json"], 0),
    (&["rm", "web"], 0),
    (&["--help"], 0),
    (&["boot", "--help"], 0),
    (&["help", "image"], 0),
    (&["--version"], 0),
];

fn run(words: &[&str], stdout: Stdio, stderr: Stdio) -> (Option<i32>, String) {
    let output =
        scratch().xtask(words).stdout(stdout).stderr(stderr).spawn().unwrap().wait_with_output().unwrap();
    (output.status.code(), texts(&output).1)
}

/// The writing end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

fn full_device() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    for (words, code) in PRINTING {
        let (actual, said) = run(words, closed_pipe(), Stdio::piped());
        assert_eq!(actual, Some(*code), "{words:?}: {said}");
        assert!(!said.contains("panic") && !said.contains("error"), "{words:?}: {said}");
    }
}

#[test]
fn a_full_device_is_an_error_with_its_cause() {
    for (words, _) in PRINTING {
        let (code, said) = run(words, full_device(), Stdio::piped());
        let complaint = "error: failed to write to standard output: No space left on device";
        assert_eq!(code, Some(125), "{words:?}: {said}");
        assert_eq!(said.matches(complaint).count(), 1, "{words:?}: {said}");
        assert!(!said.contains("panic"), "{words:?}: {said}");
    }
}

#[test]
fn talk_that_nobody_hears_changes_nothing() {
    for stderr in [closed_pipe, full_device] {
        for (words, code) in PRINTING {
            assert_eq!(run(words, Stdio::null(), stderr()).0, Some(*code), "{words:?}");
        }
        // Words that are wrong, and a machine that is not there.
        assert_eq!(run(&["no-such-task"], Stdio::null(), stderr()).0, Some(2));
        assert_eq!(run(&["inspect", "nothing"], Stdio::null(), stderr()).0, Some(125));
        assert_eq!(run(&["stop", "nothing"], Stdio::null(), stderr()).0, Some(1));
    }
}

#[test]
fn a_task_on_several_machines_goes_on_when_its_reader_has_gone() {
    for stdout in [closed_pipe, full_device] {
        let scratch = scratch();
        let other = std::fs::read_to_string(scratch.cache().join("machines/web/machine.json")).unwrap();
        scratch.write("cache/machines/other/machine.json", &other.replace("web", "other"));
        let status = scratch.xtask(&["rm", "web", "other"]).stdout(stdout()).status().unwrap();
        assert!(status.code().is_some());
        assert_eq!(scratch.cache().join("machines").read_dir_utf8().unwrap().count(), 0);
    }
}

fn all_said(command: &mut Command) -> (String, String) {
    texts(&command.output().unwrap())
}

/// True where nothing in it steers a terminal.
fn is_harmless(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}')
}

#[test]
fn names_in_tables_and_errors_cannot_steer_the_terminal() {
    let scratch = scratch();
    for words in [&["ps", "-a"][..], &["image", "ls"], &["status"]] {
        let (table, said) = all_said(&mut scratch.xtask(words));
        assert!(table.contains(SHOWN) && is_harmless(&table) && is_harmless(&said), "{words:?}: {table}");
    }
    let source = format!("docker-archive:{EVIL}");
    for words in [
        &["inspect", EVIL][..],
        &["exec", EVIL, "true"],
        &["logs", EVIL],
        &["stop", EVIL],
        &["volume", "rm", EVIL],
        &["image", "rm", EVIL],
        &["image", &source],
        &["boot", "--from", EVIL],
        &["kernel", "--source", EVIL],
        &["kernel", "--config", EVIL],
        &["cp", "-", "web:/x"],
    ] {
        let (_, said) = all_said(&mut scratch.xtask(words));
        assert!(said.contains("error: ") && is_harmless(&said), "{words:?}: {said}");
    }
}

#[test]
fn json_holds_the_names_as_they_are_and_steers_no_terminal() {
    let scratch = scratch();
    for (words, pointer) in
        [(&["ps", "-a", "--format", "json"][..], "/image"), (&["inspect", "web"], "/0/machine/image")]
    {
        let (json, _) = all_said(&mut scratch.xtask(words));
        assert!(is_harmless(&json), "{json}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value.pointer(pointer).unwrap(), EVIL);
    }
}

#[test]
fn a_log_is_printed_byte_for_byte() {
    assert_eq!(scratch().xtask(&["logs", "web"]).output().unwrap().stdout, b"\x1b[31mred\n");
}
