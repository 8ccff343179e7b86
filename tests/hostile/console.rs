//! What an enemy writes to its console.

use crate::world::Enemy;

/// The most that a console's log may take on the host, in bytes.
const LOG: u64 = 64 << 20;

#[test]
#[ignore = "slow: runs in test --all"]
fn a_line_of_a_hundred_megabytes_fills_neither_memory_nor_disk() {
    let enemy = Enemy::new();
    enemy.boot(&["--name", "box"], &["console-flood"]).wait().is(7, "");
    let log = enemy.scratch.cache().join("machines/box/console.log");
    let length = log.metadata().unwrap().len();
    assert!(length < LOG, "the console's log took {length} bytes");
}

#[test]
fn an_end_that_the_console_tells_does_not_count() {
    Enemy::new().boot(&[], &["console-lies"]).wait().is(8, "");
}

#[test]
fn a_panic_that_is_none_moves_no_terminal() {
    Enemy::new().boot(&[], &["console-panic"]).wait().is(125, "boo");
}

#[test]
fn a_fatal_word_moves_no_terminal() {
    Enemy::new().boot(&[], &["console-fatal"]).wait().is(125, "boo");
}
