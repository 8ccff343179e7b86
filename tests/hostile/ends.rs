//! How an enemy ends, or does not.

use crate::world::Enemy;

#[test]
fn a_guest_that_restarts_ends_before_its_command() {
    Enemy::new().boot(&[], &["reboot"]).wait().is(125, "the guest ended the machine");
}

#[test]
fn a_guest_whose_pid_1_ends_is_told_by_its_panic() {
    Enemy::new().boot(&[], &["kernel-crash"]).wait().is(125, "PID 1 ended");
}

#[test]
fn guests_that_halt_spin_or_freeze_are_removed_in_seconds() {
    for attack in ["halt", "power-off", "spin", "frozen"] {
        let enemy = Enemy::new();
        enemy.detached(&[attack]);
        enemy.remove();
    }
}

#[test]
#[ignore = "slow: runs in test --all"]
fn a_machine_that_goes_on_after_its_command_is_ended() {
    Enemy::new().boot(&[], &["end-without-an-end"]).wait().is(3, "");
}

#[test]
#[ignore = "slow: runs in test --all"]
fn a_frozen_agent_is_named_and_stopped_by_force() {
    let enemy = Enemy::new();
    enemy.detached(&["frozen"]);
    enemy.task(&["exec", "box", "true"]).wait().is(125, "did not answer within");
    enemy.task(&["stop", "-t", "1", "box"]).wait().is(0, "");
    enemy.task(&["wait", "box"]).wait().is(0, "");
    enemy.remove();
}
