//! What an enemy says on the agent's port.

use crate::world::{Enemy, MEMORY, peak};

#[test]
fn an_agent_of_another_version_is_named() {
    Enemy::new().boot(&[], &["wrong-hello"]).wait().is(125, "of the agent protocol");
}

#[test]
fn rubbish_ends_the_machine() {
    Enemy::new().boot(&[], &["rubbish"]).wait().is(125, "agent protocol");
}

#[test]
fn a_frame_of_four_gibibytes_is_refused_before_it_comes() {
    Enemy::new().boot(&[], &["endless-frame"]).wait().is(125, "a frame of 4294967295 bytes");
}

#[test]
fn an_agent_that_says_nothing_ends_by_the_time_limit() {
    Enemy::new().boot(&["--timeout", "6s"], &["silence"]).wait().is(124, "longer than 6 s");
}

#[test]
fn an_agent_that_says_a_byte_a_second_ends_by_the_time_limit() {
    Enemy::new().boot(&["--timeout", "6s"], &["a-byte-a-second"]).wait().is(124, "longer than 6 s");
}

#[test]
fn a_failures_text_moves_no_terminal() {
    Enemy::new().boot(&[], &["failure"]).wait().is(127, "error: ");
}

#[test]
fn the_first_end_counts() {
    Enemy::new().boot(&[], &["two-ends"]).wait().is(3, "");
}

#[test]
fn words_that_are_the_hosts_do_no_harm() {
    let done = Enemy::new().boot(&[], &["words-of-the-host"]).wait();
    // Passed over, or taken for the nonsense that they are.
    assert!([Some(6), Some(125)].contains(&done.code), "{}", done.stderr);
    done.is_harmless();
}

/// Nobody reads what it says: `boot` writes into a pipe that is full.
#[test]
fn output_beyond_the_credit_is_not_kept() {
    let enemy = Enemy::new();
    enemy.detached(&["more-than-credit"]);
    let supervisor = enemy.supervisor();
    crate::support::wait_until("the flood is over, or too much", || {
        let memory = peak(supervisor);
        assert!(memory < MEMORY, "the supervisor took {memory} bytes");
        memory == 0
    });
    enemy.remove();
}

#[test]
fn output_on_channels_that_nobody_opened_is_not_kept() {
    let done = Enemy::new().boot(&[], &["nobodys-channels"]).wait();
    assert!([Some(5), Some(125)].contains(&done.code), "{}", done.stderr);
    done.is_harmless();
}

#[test]
fn a_flood_for_a_client_that_reads_nothing_stays_in_the_guest() {
    let enemy = Enemy::new();
    enemy.detached(&["deaf-clients"]);
    let supervisor = enemy.supervisor();
    // The client's own standard output is stopped, as `| less` stops it.
    let mut client = enemy.scratch.xtask(&["exec", "box", "anything"]);
    let mut client = client.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&client);
    // Until so much has come that it would show, or nothing more is taken.
    let mut rounds = 0;
    crate::support::wait_until("the flood has come", || {
        for process in [supervisor, pid] {
            let memory = peak(process);
            assert!(memory < MEMORY, "it took {memory} bytes");
        }
        rounds += 1;
        rounds > 1000 || peak(supervisor) == 0
    });
    client.kill().unwrap();
    client.wait().unwrap();
    enemy.remove();
}

#[test]
fn an_answer_without_an_end_is_not_kept() {
    let enemy = Enemy::new();
    enemy.detached(&["endless-answers", "out"]);
    let out = enemy.scratch.path().join("out");
    let task = enemy.task(&["cp", "box:/anything", out.as_str()]);
    let mut rounds = 0;
    let done = task.wait_while(|_| {
        rounds += 1;
        rounds < 1500
    });
    // It may be listened to for ever, which the user can end.
    done.is_harmless();
    enemy.remove();
}
