//! PID 1's duties towards the processes of an image.

use crate::support::texts;
use crate::world::xtask;

fn boot(arguments: &[&str], script: &str) -> (String, String, Option<i32>) {
    let words = [&["boot"], arguments, &["images/hello", "--", "sh", "-c", script]].concat();
    let output = xtask(&words).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).output().unwrap();
    let (stdout, stderr) = texts(&output);
    (stdout, stderr, output.status.code())
}

#[test]
fn the_command_begins_with_clean_signals_in_a_session_of_its_own_with_cgroups() {
    let script = "
        [ $(cut -d ' ' -f 6 /proc/$$/stat) = $$ ] && echo its own session
        grep -E '^Sig(Blk|Ign)' /proc/self/status
        mkdir /sys/fs/cgroup/mine && echo $$ >/sys/fs/cgroup/mine/cgroup.procs && cat /proc/self/cgroup";
    let (said, talk, code) = boot(&[], script);
    let expected = "its own session\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0::/mine\n";
    assert_eq!((said.as_str(), code), (expected, Some(0)), "{talk}");
}

#[test]
fn ten_thousand_orphans_leave_nothing_and_killing_everything_leaves_pid_1() {
    // Each child's parent ends at once. The last orphans may be on their way to PID 1 when the loop ends.
    let script = "
        i=0; while [ $i -lt 10000 ]; do (: &); i=$((i + 1)); done
        zombies() { grep -l 'State:.Z' /proc/[0-9]*/status | wc -l; }
        i=0; while [ $(zombies) -gt 0 ] && [ $i -lt 100 ]; do usleep 10000; i=$((i + 1)); done
        echo zombies: $(zombies)
        before=$(cut -d . -f 1 /proc/uptime); /bin/true; /bin/true
        [ $(($(cut -d . -f 1 /proc/uptime) - before)) -le 1 ] && echo no delay
        sleep 1000 & setsid sleep 1000 &
        kill -9 -1
        i=0; while [ -n \"$(pidof sleep)\" ] && [ $i -lt 500 ]; do usleep 10000; i=$((i + 1)); done
        echo \"sleepers:$(pidof sleep)\"
        exit 3";
    let (said, talk, code) = boot(&[], script);
    assert_eq!((said.as_str(), code), ("zombies: 0\nno delay\nsleepers:\n", Some(3)), "{talk}");
}

#[test]
fn what_pid_1_cannot_do_ends_the_machine_with_the_cause() {
    let (_, talk, code) = boot(&["--tmpfs", "/scratch:nonsense=1"], "true");
    let cause =
        "error: failed to make the mounts that were asked for: cannot mount `tmpfs` (tmpfs) on `/scratch`: ";
    assert!(talk.contains(cause) && talk.contains("Unknown parameter 'nonsense'"), "{talk}");
    assert_eq!(code, Some(125), "{talk}");
}
