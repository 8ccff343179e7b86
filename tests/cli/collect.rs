//! `collect`: its help and what it refuses before it connects. The rest is in `tests/collect`.

use crate::support::Scratch;

#[test]
fn help() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["collect", "--help"])));
}

#[test]
fn no_host() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["collect"])), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: the following required arguments were not provided:
      <[USER@]HOST[:PORT]>

    Usage: cargo xtask collect <[USER@]HOST[:PORT]>

    For more information, try '--help'.
    ");
}

#[test]
fn a_port_that_is_none() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["collect", "build:65536"])), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: invalid value 'build:65536' for '<[USER@]HOST[:PORT]>': port `65536` is not a number from 1 to 65535

    For more information, try '--help'.
    ");
}

#[test]
fn a_host_that_ssh_would_take_for_an_option() {
    let scratch = Scratch::new();
    let mut command = scratch.xtask(&["collect", "--", "-oProxyCommand=touch evil"]);
    insta::assert_snapshot!(scratch.transcript(&mut command), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: invalid value '-oProxyCommand=touch evil' for '<[USER@]HOST[:PORT]>': `-oProxyCommand=touch evil` is not the name of a host

    For more information, try '--help'.
    ");
    assert!(!scratch.path().join("evil").exists());
}

/// A far side that offers a set, and sends it a byte at a time for ever.
#[test]
#[ignore = "slow: runs in test --all"]
fn a_transfer_that_trickles_is_given_up() {
    let scratch = Scratch::new();
    let offer = "microvm-collect 1\\nfound 0\\nfile 9999 00 init\\nfile 9999 00 kernel\\nfile 9999 00 hda.qcow2\\n\\n";
    let ssh = scratch
        .write("bin/ssh", &format!("#!/bin/sh\nprintf '{offer}'\nwhile printf x; do sleep 0.5; done\n"));
    std::fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", ssh.parent().unwrap(), std::env::var("PATH").unwrap());
    let destination = scratch.path().join("set");
    let words = ["collect", "builder", "--dest", destination.as_str()];
    let said = scratch.transcript(scratch.xtask(&words).env("PATH", path));
    assert!(said.starts_with("exit code: 125"), "{said}");
    assert!(said.contains("less than 65536 bytes came within 60 s"), "{said}");
    assert!(!destination.exists());
}
