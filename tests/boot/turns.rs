//! Tasks that make and remove the same things at the same time.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use camino::Utf8PathBuf;
use xtask::workspace::Workspace;

use crate::support::{Scratch, texts};
use crate::world::busybox_image;

/// A cache of its own with the kernel and init of the usual one.
struct World {
    scratch: Scratch,
    source: String,
}

impl World {
    fn new() -> World {
        let scratch = Scratch::new();
        let source = format!("rootfs:{}", busybox_image(&scratch, ""));
        let built = Workspace::discover().unwrap();
        std::fs::create_dir_all(scratch.cache()).unwrap();
        for folder in [built.kernels(), built.verdicts(), built.init_folder()] {
            if folder.exists() {
                let cache = scratch.cache();
                let copied = Command::new("cp").args(["-a", folder.as_str(), cache.as_str()]).status();
                assert!(copied.unwrap().success());
            }
        }
        World { scratch, source }
    }

    fn task(&self, words: &[&str]) -> Command {
        let mut command = crate::world::xtask(words);
        command.env("MICROVM_CACHE", self.scratch.cache()).stdin(Stdio::null());
        command
    }

    /// Boots with these options: what the guest said, what `boot` said, and the exit code.
    fn boot(&self, options: &[&str], script: &str) -> (String, String, Option<i32>) {
        let mut command = self.task(&["boot", "--size", "64M"]);
        let output = command
            .args(options)
            .args([&self.source, "--", "/busybox", "sh", "-c", script])
            .output()
            .unwrap();
        let (said, talk) = texts(&output);
        (said, talk, output.status.code())
    }

    fn disks(&self) -> Vec<Utf8PathBuf> {
        let folders = self.scratch.cache().join("disks").read_dir_utf8().into_iter().flatten().flatten();
        folders.map(|folder| folder.path().join("disk.ext4")).filter(|disk| disk.exists()).collect()
    }
}

#[test]
fn a_changed_image_is_refused_to_what_was_kept_until_that_is_discarded() {
    let world = World::new();
    let kept = ["--name", "box", "--persist"];
    assert_eq!(world.boot(&kept, "echo one >/file").2, Some(0));

    // The disk that it lies on stays, whatever else is removed.
    assert!(world.task(&["image", "prune", "--all"]).status().unwrap().success());
    let removal = world.task(&["image", "rm", "busybox"]).output().unwrap();
    let (_, talk) = texts(&removal);
    assert!(!removal.status.success() && talk.contains("the kept disk `box` lies on"), "{talk}");
    assert_eq!(world.disks().len(), 1);
    let (said, talk, code) = world.boot(&kept, "/busybox cat /file");
    assert_eq!((said.as_str(), code), ("one\n", Some(0)), "{talk}");

    let root = world.scratch.path().join("root");
    std::fs::write(root.join("new"), "new").unwrap();
    let archive = world.source.strip_prefix("rootfs:").unwrap();
    let packed = Command::new("tar").args(["-cf", archive, "."]).current_dir(&root).status();
    assert!(packed.unwrap().success());
    let (said, talk, code) = world.boot(&kept, "/busybox cat /file /new");
    assert_eq!((said.as_str(), code), ("", Some(125)), "{talk}");
    assert!(talk.contains("the kept disk `box` was made on `busybox` (sha256:"), "{talk}");
    assert!(
        talk.contains("and this boot is of `busybox` (sha256:") && talk.contains("--persist=reset"),
        "{talk}"
    );
    let list = texts(&world.task(&["volume", "ls"]).output().unwrap()).0;
    assert!(list.lines().any(|line| line.starts_with("box ") && line.contains(" kept ")), "{list}");

    let (said, talk, code) =
        world.boot(&["--name", "box", "--persist=reset"], "/busybox cat /file; /busybox cat /new");
    assert_eq!((said.as_str(), code), ("new", Some(0)), "{talk}");
    assert!(world.task(&["volume", "rm", "box"]).status().unwrap().success());
    assert!(world.task(&["image", "prune", "--all"]).status().unwrap().success());
    assert_eq!(world.disks(), [""; 0]);
}

#[test]
fn images_that_are_removed_all_the_time_boot_all_the_same() {
    let world = World::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut removed = 0;
            while !over.load(Ordering::Relaxed) {
                let there = world.disks().len();
                assert!(world.task(&["image", "prune", "--all"]).output().unwrap().status.success());
                removed += usize::from(there > world.disks().len());
            }
            removed
        });
        let results: Vec<_> = (0..5).map(|_| world.boot(&[], "echo up")).collect();
        over.store(true, Ordering::Relaxed);
        let removed = pruning.join().unwrap();
        for (said, talk, code) in results {
            assert_eq!((said.as_str(), code), ("up\n", Some(0)), "{talk}");
        }
        assert!(removed > 0, "no disk was ever removed");
    });
}

#[test]
fn a_machine_that_runs_is_never_removed_by_its_name() {
    let world = World::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let removing = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // An ended one of this name goes, one that runs is refused.
                let _ = world.task(&["rm", "web"]).output().unwrap();
            }
        });
        for round in 0..4 {
            let options = ["-d", "--name", "web"];
            let (said, talk, code) = world.boot(&options, "/busybox sleep 1000");
            assert_eq!((said.as_str(), code), ("web\n", Some(0)), "{talk}");
            let list = texts(&world.task(&["ps", "-q"]).output().unwrap()).0;
            assert_eq!(list, "web\n", "round {round}");
            assert!(world.task(&["kill", "web"]).output().unwrap().status.success());
            let _ = world.task(&["wait", "web"]).output().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        removing.join().unwrap();
    });
}

#[test]
fn of_two_machines_that_take_one_name_at_once_one_boots() {
    let world = World::new();
    std::thread::scope(|scope| {
        let boots: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| world.boot(&["-d", "--name", "one"], "/busybox sleep 1000")))
            .collect();
        let results: Vec<_> = boots.into_iter().map(|boot| boot.join().unwrap()).collect();
        let (up, refused): (Vec<_>, Vec<_>) = results.iter().partition(|(_, _, code)| *code == Some(0));
        assert_eq!((up.len(), refused.len()), (1, 2), "{results:?}");
        assert!(
            refused.iter().all(|(_, talk, _)| talk.contains("a machine named `one` is running")),
            "{results:?}"
        );
    });
    assert!(world.task(&["rm", "-f", "one"]).status().unwrap().success());
}
