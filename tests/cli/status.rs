//! `status`: what it says of an empty cache, and that it is what `cargo xtask` alone does.

use crate::support::Scratch;

#[test]
fn help() {
    let scratch = Scratch::new();
    insta::assert_snapshot!("help", scratch.transcript(&mut scratch.xtask(&["--help"])));
    insta::assert_snapshot!("help_status", scratch.transcript(&mut scratch.xtask(&["status", "--help"])));
}

#[test]
fn with_nothing_built_the_next_command_builds() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&[])), @r"
    exit code: 0
    ----- stdout
    kernel                                                not built yet
    init                                                  not built yet
    image                                                 not built yet
    ----- stderr

    next: `cargo xtask boot` builds what is missing or stale, and boots
    ");
    // It looks, and leaves no trace.
    assert!(!scratch.cache().exists());
}

#[test]
fn a_task_that_does_not_exist() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["state"])), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: unrecognized subcommand 'state'

      tip: a similar subcommand exists: 'status'

    Usage: cargo xtask [OPTIONS] [COMMAND]

    For more information, try '--help'.
    ");
}
