//! What a guest says and where it goes: readers that have gone, devices that are full, terminals, and Ctrl-C meanwhile.

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{texts, wait_until};
use crate::world::{Detached, xtask};

fn boot(script: &str) -> Command {
    let mut command = xtask(&["boot", "images/hello", "--", "sh", "-c", script]);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

fn full_device() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn closed_pipe() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

#[test]
fn a_full_device_is_told_and_a_reader_that_has_gone_is_not() {
    let told = |command: &mut Command| {
        let output = command.stdout(full_device()).output().unwrap();
        let said = texts(&output).1;
        let complaint = "error: failed to write to standard output: No space left on device";
        assert_eq!(said.matches(complaint).count(), 1, "{said}");
        assert!(!said.contains("panic"), "{said}");
        assert_eq!(output.status.code(), Some(125), "{said}");
    };
    told(&mut boot("echo hi; exit 3"));
    let machine = Detached::idle("full-device");
    told(&mut machine.task("exec", &[], &["echo", "hi"]));

    let unheard = |command: &mut Command, code| {
        let output = command.stdout(closed_pipe()).stderr(Stdio::piped()).output().unwrap();
        let said = texts(&output).1;
        assert!(!said.contains("error") && !said.contains("panic"), "{said}");
        assert_eq!(output.status.code(), Some(code), "{said}");
    };
    unheard(&mut boot("echo hi; exit 3"), 3);
    unheard(&mut machine.task("exec", &[], &["yes"]), 141);
}

#[test]
fn what_a_guest_prints_arrives_byte_for_byte_and_what_is_told_of_it_steers_no_terminal() {
    let output = boot(r"printf '\033]0;owned\007\033[31mred\r\n'").output().unwrap();
    assert_eq!(output.stdout, b"\x1b]0;owned\x07\x1b[31mred\r\n");

    // The console's last lines.
    let output =
        boot(r"printf '\033]0;owned\007\033[31mred\n' > /dev/hvc0; reboot -f; sleep 1000").output().unwrap();
    let said = texts(&output).1;
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains(r"    \x1b]0;owned\x07\x1b[31mred"), "{said}");
    // A command's name, which the guest quotes.
    let mut missing = xtask(&["boot", "images/hello", "--", "no\x1b[2Jsuch\u{202e}"]);
    let output = missing.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).output().unwrap();
    let missing = texts(&output).1;
    assert_eq!(output.status.code(), Some(127), "{missing}");
    for said in [said, missing] {
        assert!(!said.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{said}");
    }
}

/// The command has ended, and `boot` cannot: nobody takes what it has to write.
#[test]
fn ctrl_c_ends_a_boot_whose_machine_is_gone_and_whose_output_nobody_takes() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    // More than a pipe holds (64 KiB), and less than what is under way without a reader (256 KiB).
    let mut boot = boot("dd if=/dev/zero bs=1k count=150 2> /dev/null; echo done > /dev/hvc0")
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let qemu = crate::failures::qemu_of(boot.id());
    wait_until("QEMU has ended", || crate::failures::has_ended(qemu));
    assert!(boot.try_wait().unwrap().is_none(), "it waits for its reader");
    // One that comes while the end of the machine is noticed may still be taken for the machine's.
    wait_until("boot has ended", || {
        let _ = kill_process(Pid::from_child(&boot), Signal::INT);
        boot.try_wait().unwrap().is_some()
    });
    assert_eq!(boot.wait().unwrap().code(), Some(130));
    let mut taken = Vec::new();
    reader.read_to_end(&mut taken).unwrap();
    assert!(!taken.is_empty() && taken.len() < 150 * 1024);
}

/// A supervisor that cannot follow its machine any more: the third signal is not its to decide.
#[test]
fn a_third_ctrl_c_ends_boot_whatever_its_machine_does() {
    let mut boot = boot("trap '' INT TERM; echo ready; while :; do sleep 1; done")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    boot.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let qemu = crate::failures::qemu_of(boot.id());
    // QEMU that is stopped does nothing that it is asked to.
    kill_process(Pid::from_raw(qemu as i32).unwrap(), Signal::STOP).unwrap();
    // Signals of one number that come together are one.
    wait_until("boot has ended", || {
        let _ = kill_process(Pid::from_child(&boot), Signal::INT);
        boot.try_wait().unwrap().is_some()
    });
    wait_until("QEMU has ended", || crate::failures::has_ended(qemu));
}
