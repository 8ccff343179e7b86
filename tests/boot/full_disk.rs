//! A host whose disk is full loses neither how a machine ended nor what it said last.

use std::io::Write as _;
use std::process::{Command, Stdio};

use camino::Utf8Path;
use xtask::workspace::Workspace;

use crate::support::power_cut::Disk;
use crate::support::{Scratch, again_as_root, texts};
use crate::world::busybox_image;

/// A disk of this size with a kernel on it; `None` where this host has no loop devices.
fn small_disk(scratch: &Scratch, mebibytes: u64) -> Option<Disk> {
    let disk = match Disk::new(scratch.path(), mebibytes << 20) {
        Ok(disk) => disk,
        Err(reason) => {
            xtask::note!("left out: no small disk: {reason}");
            return None;
        }
    };
    let (built, cache) = (Workspace::discover().unwrap(), disk.path().join("cache"));
    std::fs::create_dir_all(&cache).unwrap();
    for folder in [built.kernels(), built.verdicts(), built.init_folder()] {
        if folder.exists() {
            let copied = Command::new("cp").args(["-a", folder.as_str(), cache.as_str()]).status();
            assert!(copied.unwrap().success());
        }
    }
    Some(disk)
}

fn task(disk: &Disk, words: &[&str]) -> Command {
    let mut command = crate::world::xtask(words);
    command.env("MICROVM_CACHE", disk.path().join("cache"));
    command
}

/// Takes all room that is left.
fn fill(folder: &Utf8Path) {
    let mut file = std::fs::File::create(folder.join("filler")).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![1; size];
        while file.write_all(&block).and_then(|()| file.sync_data()).is_ok() {}
    }
}

#[test]
fn how_a_machine_ended_and_its_last_words_are_kept_on_a_full_disk() {
    if again_as_root("full_disk::how_a_machine_ended_and_its_last_words_are_kept_on_a_full_disk") {
        return;
    }
    let scratch = Scratch::new();
    let archive = busybox_image(&scratch, "mkdir -p go");
    let Some(disk) = small_disk(&scratch, 400) else { return };
    let (source, share) = (format!("rootfs:{archive}"), scratch.path().join("go"));
    std::fs::create_dir_all(&share).unwrap();
    let mount = format!("{share}:/go:ro");
    let script = "b=/busybox; echo up; until [ -e /go/now ]; do $b sleep 0.1; done; $b seq 30000; echo last words; exit 7";
    let words = ["boot", "-d", "--name", "full", "-v", &mount, &source, "--", "/busybox", "sh", "-c", script];
    let output = task(&disk, &words).output().unwrap();
    assert!(output.status.success(), "{:?}", texts(&output));
    fill(disk.path());
    std::fs::write(share.join("now"), "").unwrap();

    let wait = texts(&task(&disk, &["wait", "full"]).output().unwrap());
    assert_eq!(wait.0, "7\n", "{}", wait.1);
    let logs = texts(&task(&disk, &["logs", "full"]).output().unwrap());
    let numbers: String = (1..=30000).map(|number| format!("{number}\n")).collect();
    let expected = format!("up\n{numbers}last words\n");
    assert!(logs.0 == expected, "{} bytes of {}: {}", logs.0.len(), expected.len(), logs.1);
    let list = texts(&task(&disk, &["ps", "-a"]).output().unwrap());
    assert!(list.0.contains("exited (7)"), "{list:?}");
    let removed = task(&disk, &["rm", "full"]).output().unwrap();
    assert!(removed.status.success(), "{:?}", texts(&removed));
}

#[test]
fn a_machine_that_fills_the_disk_ends_with_its_own_exit_code() {
    if again_as_root("full_disk::a_machine_that_fills_the_disk_ends_with_its_own_exit_code") {
        return;
    }
    let scratch = Scratch::new();
    let archive = busybox_image(&scratch, "");
    let Some(disk) = small_disk(&scratch, 300) else { return };
    let source = format!("rootfs:{archive}");
    let script = "b=/busybox; $b dd if=/dev/zero of=/big bs=1M count=1000; $b sync; echo full; exit 9";
    let words = ["boot", "--name", "filler", "--size", "2G", &source, "--", "/busybox", "sh", "-c", script];
    let output = task(&disk, &words).stdin(Stdio::null()).output().unwrap();
    let (said, talk) = texts(&output);
    assert_eq!((said.as_str(), output.status.code()), ("full\n", Some(9)), "{talk}");
    let list = texts(&task(&disk, &["ps", "-a"]).output().unwrap());
    assert!(list.0.contains("exited (9)"), "{list:?}");
}
