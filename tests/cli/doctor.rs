//! `doctor` and `setup`: what they say of a host that has next to nothing, without changing it.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use rexpect::process::WaitStatus;
use xtask::host::tools::{Probe, Purpose, TOOLS, find, missing};

use crate::support::{DEADLINE, Scratch, texts};

/// A PATH with these programs alone. What lives in `/usr/sbin` is found all the same.
fn path_with(scratch: &Scratch, programs: &[&str]) -> Utf8PathBuf {
    let folder = scratch.path().join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    for program in programs {
        symlink(find(program).unwrap(), folder.join(program)).unwrap();
    }
    folder
}

fn xtask_with(scratch: &Scratch, programs: &[&str], arguments: &[&str]) -> Command {
    let path = path_with(scratch, programs);
    let mut command = scratch.xtask(arguments);
    command.env("PATH", path);
    command
}

#[test]
fn help() {
    let scratch = Scratch::new();
    insta::assert_snapshot!("help_doctor", scratch.transcript(&mut scratch.xtask(&["doctor", "--help"])));
    insta::assert_snapshot!("help_setup", scratch.transcript(&mut scratch.xtask(&["setup", "--help"])));
}

#[test]
fn a_format_that_does_not_exist() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["doctor", "--format", "yaml"])), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: invalid value 'yaml' for '--format <FORMAT>'
      [possible values: table, json]

    For more information, try '--help'.
    ");
}

#[test]
fn a_flag_that_does_not_exist() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["setup", "--test"])), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: unexpected argument '--test' found

      tip: a similar argument exists: '--tests'

    Usage: cargo xtask setup --tests

    For more information, try '--help'.
    ");
}

#[test]
fn a_host_without_tools_is_not_ready() {
    let scratch = Scratch::new();
    let output = xtask_with(&scratch, &["make"], &["doctor"]).output().unwrap();
    let (table, talk) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{table}{talk}");
    let line =
        |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    assert!(line("ok       make").contains(&format!("{}/bin/make", scratch.path())), "{table}");
    assert_eq!(
        line("missing  flex"),
        "missing  flex                         package flex            for kernel"
    );
    assert!(line("collect ").contains("needs tar, ssh"), "{table}");
    assert!(line("Dockerfiles are built by").contains("not possible"), "{table}");
    assert!(talk.contains("`cargo xtask setup` installs what is missing for `boot`"), "{talk}");
}

#[test]
fn the_report_is_there_as_json_too() {
    let scratch = Scratch::new();
    let output = xtask_with(&scratch, &[], &["doctor", "--format", "json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ready"], false);
    let tools = report["tools"].as_array().unwrap();
    let flex = tools.iter().find(|tool| tool["name"] == "flex").unwrap();
    assert_eq!((&flex["missing"], &flex["package"]), (&true.into(), &"flex".into()));
}

#[test]
fn without_apt_the_missing_tools_are_named() {
    let scratch = Scratch::new();
    let output = xtask_with(&scratch, &["make"], &["setup", "--yes"]).output().unwrap();
    let (_, talk) = texts(&output);
    assert_eq!(output.status.code(), Some(125), "{talk}");
    assert!(talk.starts_with("error: missing on this host: `gcc`, "), "{talk}");
    assert!(talk.contains("`flex`, `bison`, `perl`") && !talk.contains("`make`"), "{talk}");
    assert!(talk.contains("hint: this distribution has no apt-get"), "{talk}");
}

/// Not the next ones when a kernel has been compiled.
#[test]
fn a_first_boot_asks_for_all_its_tools_at_once() {
    let scratch = Scratch::new();
    let output = xtask_with(&scratch, &["apt-get", "rustc"], &["boot"]).output().unwrap();
    let (_, talk) = texts(&output);
    assert_eq!(output.status.code(), Some(125), "{talk}");
    for tool in ["flex", "gcc", "qemu-system-x86_64", "qemu-img", "podman or buildah or docker", "busybox"] {
        assert!(talk.contains(&format!("`{tool}`")), "`{tool}` is not in: {talk}");
    }
}

#[test]
fn without_a_terminal_and_without_consent_the_command_is_named_and_nothing_is_installed() {
    let scratch = Scratch::new();
    let output = xtask_with(&scratch, &["make", "apt-get"], &["setup"]).output().unwrap();
    let (_, talk) = texts(&output);
    assert_eq!(output.status.code(), Some(125), "{talk}");
    assert!(
        talk.contains("apt-get install --no-install-recommends bc bison busybox-static crun flex gcc"),
        "{talk}"
    );
    assert!(talk.contains("`, or the same task with `--yes`\n"), "{talk}");
}

#[test]
fn on_a_terminal_it_asks_and_takes_no_for_an_answer() {
    let scratch = Scratch::new();
    let mut command = xtask_with(&scratch, &["make", "apt-get"], &["setup"]);
    command.stdin(Stdio::inherit());
    let timeout = u64::try_from(DEADLINE.as_millis()).unwrap();
    let mut session = rexpect::session::spawn_command(command, Some(timeout)).unwrap();
    session.exp_string("missing on this host: `gcc`").unwrap();
    session.exp_string("? [Y/n] ").unwrap();
    session.send_line("n").unwrap();
    session.exp_string("error: missing on this host").unwrap();
    session.exp_eof().unwrap();
    let status = session.process().wait().unwrap();
    assert!(matches!(status, WaitStatus::Exited(_, 125)), "{status:?}");
}

/// Makes a program of a shell script.
fn script(folder: &Utf8Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_apt_takes_away_to_bring_another_comes_back() {
    let scratch = Scratch::new();
    let programs: Vec<&str> = TOOLS
        .iter()
        .filter_map(|tool| match tool.probe {
            Probe::Program(name) | Probe::Podman(name) | Probe::RootlessPodman(name)
                if name != "flex" && !name.starts_with("apt") =>
            {
                Some(name)
            }
            _ => None,
        })
        .filter(|name| find(name).is_some())
        .collect();
    let mut command = xtask_with(&scratch, &programs, &["setup", "--yes"]);
    let bin = scratch.path().join("bin");
    let (flex, make, rm, ln) =
        (find("flex").unwrap(), find("make").unwrap(), find("rm").unwrap(), find("ln").unwrap());
    // A package manager that holds the one to be in the other's way, once.
    script(
        &bin,
        "apt-get",
        &format!(
            r#"case "$*" in
            *" install "*" flex") {rm} {bin}/make; {ln} -s {flex} {bin}/flex ;;
            *" install "*" make") {ln} -s {make} {bin}/make ;;
            esac"#
        ),
    );
    script(&bin, "env", r#"while [ "${1#*=}" != "$1" ]; do shift; done; exec "$@""#);
    script(&bin, "sudo", r#"exec "$@""#);
    let output = command.output().unwrap();
    let (_, talk) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{talk}");
    assert!(talk.contains("installing flex\n") && talk.contains("installing make\n"), "{talk}");
    assert!(bin.join("make").exists() && bin.join("flex").exists(), "{talk}");
}

#[test]
fn a_docker_without_a_daemon_builds_nothing() {
    let scratch = Scratch::new();
    let mut command = xtask_with(&scratch, &[], &["doctor"]);
    script(&scratch.path().join("bin"), "docker", "exit 1");
    let (table, _) = texts(&command.output().unwrap());
    assert!(table.contains("missing  podman or buildah or docker"), "{table}");
    assert!(table.contains("built by   not possible"), "{table}");
    script(&scratch.path().join("bin"), "docker", "exit 0");
    let (table, _) = texts(&command.output().unwrap());
    assert!(table.contains("ok       podman or buildah or docker"), "{table}");
    assert!(table.contains("built by   docker"), "{table}");
}

#[test]
fn where_everything_is_there_setup_does_nothing() {
    // The tests' own set-up has brought all of it.
    assert_eq!(missing(&Purpose::FIRST_BOOT), []);
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["setup", "--tests"])), @r"
    exit code: 0
    ----- stdout
    ----- stderr
    everything is there
    ");
}
