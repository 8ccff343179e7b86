//! The host's power is cut at any moment, and the next task goes on.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use xtask::workspace::Workspace;

use crate::support::power_cut::Disk;
use crate::support::{Scratch, texts};
use crate::world::busybox_image;

/// Room for kernels, a few disks, and what machines write, in bytes.
const DISK: u64 = 1 << 30;

struct Host<'a> {
    disk: Disk,
    archive: &'a Utf8Path,
    /// Numbers that machines were told to keep, and said that they have.
    kept: u32,
    in_volume: u32,
}

impl Host<'_> {
    fn cache(&self) -> Utf8PathBuf {
        self.disk.path().join("cache")
    }

    fn task(&self, words: &[&str]) -> Command {
        let mut command = crate::world::xtask(words);
        command.env("MICROVM_CACHE", self.cache()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A machine that notes a number on its kept disk and in a volume, and says which were there.
    fn boot(&self, number: u32) -> Command {
        let script = format!(
            "b=/busybox; $b cat /kept /data/kept; echo {number} >/kept; echo {number} >/data/kept; $b sync; echo noted {number}"
        );
        let source = format!("rootfs:{}", self.archive);
        let words = ["boot", "--name", "box", "--persist", "-v", "data:/data", "--size", "64M"];
        let mut command = self.task(&words);
        command.args([&source, "--", "/busybox", "sh", "-c", &script]);
        command
    }

    /// Starts one task of several, and cuts the power at some moment of it.
    fn cut(&mut self, dice: &mut fastrand::Rng, number: u32) -> String {
        let source = format!("rootfs:{}", self.archive);
        let (what, mut command) = match dice.u32(..6) {
            0 => {
                // It is built already: what is tried is how it is put away.
                let _ = std::fs::remove_dir_all(self.cache().join("init"));
                ("init", self.task(&["init"]))
            }
            1 => {
                let _ = std::fs::remove_dir_all(self.cache().join("sources"));
                let size = format!("{}M", 32 + 16 * dice.u32(..3));
                ("image", self.task(&["image", &source, "--size", &size]))
            }
            2 => {
                let _ = std::fs::remove_dir_all(self.cache().join("disks"));
                let _ = std::fs::remove_dir_all(self.cache().join("persistent"));
                self.kept = 0;
                ("boot of a new disk", self.boot(number))
            }
            3 => {
                let _ = std::fs::remove_dir_all(self.cache().join("volumes"));
                self.in_volume = 0;
                ("boot with a new volume", self.boot(number))
            }
            _ => ("boot", self.boot(number)),
        };
        let mut child = command.spawn().unwrap();
        // The moment is what is tried: it follows from the seed, and not from what the task does.
        let moment = Duration::from_millis(dice.u64(..2500));
        std::thread::sleep(moment);
        self.disk.cut();
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        if texts(&output).0.contains(&format!("noted {number}")) {
            (self.kept, self.in_volume) = (number, number);
        }
        self.disk.power_on();
        format!("{what}, cut after {moment:?}")
    }

    /// Everything works, and nothing that was noted is lost.
    fn check(&mut self, number: u32, what: &str) {
        for words in [&["init"][..], &["ps", "-a"], &["volume", "ls"], &["image", "ls"], &["status"]] {
            let output = self.task(words).output().unwrap();
            assert!(output.status.success(), "{what}: `{words:?}` fails: {:?}", texts(&output));
        }
        let output = self.boot(number).output().unwrap();
        let (said, talk) = texts(&output);
        assert!(
            output.status.success() && said.ends_with(&format!("noted {number}\n")),
            "{what}: {said}{talk}"
        );
        let there: Vec<u32> = said.lines().map_while(|line| line.parse().ok()).collect();
        for noted in [self.kept, self.in_volume] {
            // A number may also be there that was noted and not said any more.
            let is_there = noted == 0 || there.iter().any(|&number| number >= noted);
            assert!(is_there, "{what}: {noted} is lost: {said}{talk}");
        }
        (self.kept, self.in_volume) = (number, number);
        let mut left = String::new();
        for entry in walk(&self.cache()) {
            if entry.as_str().contains(".microvm-tmp") {
                let _ = writeln!(left, "{entry}");
            }
        }
        assert_eq!(left, "", "{what}");
    }
}

fn walk(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
    let entries = folder.read_dir_utf8().into_iter().flatten().flatten().map(|entry| entry.path().to_owned());
    entries.flat_map(|path| [walk(&path), vec![path]].concat()).collect()
}

fn cut_power(times: u32) {
    let scratch = Scratch::new();
    let archive = busybox_image(&scratch, "mkdir data");
    let disk = match Disk::new(scratch.path(), DISK) {
        Ok(disk) => disk,
        Err(reason) => return xtask::note!("left out: no disk whose power can be cut: {reason}"),
    };
    let mut host = Host { disk, archive: &archive, kept: 0, in_volume: 0 };
    // What takes minutes to build is there, and safe.
    let built = Workspace::discover().unwrap();
    std::fs::create_dir_all(host.cache()).unwrap();
    for folder in
        [built.kernels(), built.verdicts(), built.init_folder()].iter().filter(|folder| folder.exists())
    {
        let copied = Command::new("cp").args(["-a", folder.as_str(), host.cache().as_str()]).status();
        assert!(copied.unwrap().success());
    }
    assert!(Command::new("sync").status().unwrap().success());
    let seed = fastrand::u64(..1_000_000);
    xtask::note!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    for round in 0..times {
        let number = 2 * round + 1;
        let what = format!("seed {seed}, cut {round}: {}", host.cut(&mut dice, number));
        host.check(number + 1, &what);
    }
}

#[test]
fn after_a_power_cut_of_the_host_the_next_task_goes_on() {
    if !crate::support::again_as_root("power_cuts::after_a_power_cut_of_the_host_the_next_task_goes_on") {
        cut_power(3);
    }
}

#[test]
#[ignore = "slow: runs in test --all"]
fn after_fifty_power_cuts_nothing_that_was_noted_is_lost() {
    cut_power(50);
}
