//! The tasks that are disturbed: what each needs before, its words, and how one sees that it works again.

use anyhow::{Context as _, ensure};
use fastrand::Rng;

use crate::artifact::{create_folder, remove_any};
use crate::torture::stage::{Stage, write};

/// A task to be disturbed.
#[derive(Debug)]
pub(super) struct Task {
    /// For people, and to tell it from the others.
    pub(super) name: &'static str,
    /// Makes what it needs.
    pub(super) before: fn(&Stage, &mut Rng) -> anyhow::Result<()>,
    /// Its command line; `APP` is the image, `FILES` the folder for the trial's own files.
    words: &'static [&'static str],
    /// Runs the same again, whatever the disturbance has left, and looks whether it did its work.
    pub(super) again: fn(&Stage) -> anyhow::Result<()>,
}

impl Task {
    /// Its command line on this stage.
    pub(super) fn words(&self, stage: &Stage) -> Vec<String> {
        let place =
            |word: &&str| word.replace("APP", stage.app.as_str()).replace("FILES", stage.folder.as_str());
        self.words.iter().map(place).collect()
    }
}

/// The name of the machine that tasks work on.
pub(super) const BOX: &str = "box";

/// What the machine does when nobody asks it for anything: it says a hundred numbers and waits. It ends with this code.
pub(super) const BOX_CODE: u64 = 7;
const IDLE: &str = "trap 'exit 7' TERM; i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); done; \
                    while :; do sleep 1000 & wait $!; done";

/// All of them.
pub(super) const TASKS: &[Task] = &[
    Task {
        name: "boot",
        before: nothing,
        words: &["boot", "APP", "--", "echo", "hello"],
        again: |stage| {
            let said = stage.succeed(&["boot", stage.app.as_str(), "--", "echo", "hello"])?;
            ensure!(said == "hello\n", "it said `{said}`");
            Ok(())
        },
    },
    Task {
        name: "boot -d",
        before: nothing,
        words: &["boot", "-d", "--name", BOX, "APP", "--", "sleep", "1000"],
        again: |stage| {
            remove_box(stage)?;
            start_box(stage)?;
            stage.succeed(&["exec", BOX, "true"]).map(drop)
        },
    },
    Task {
        name: "boot --persist",
        before: nothing,
        words: &["boot", "--name", BOX, "--persist", "APP", "--", "sh", "-c", "echo x >> /kept; sync"],
        again: |stage| {
            let script = "echo x >> /kept; sync; cat /kept";
            let words = ["boot", "--name", BOX, "--persist", stage.app.as_str(), "--", "sh", "-c", script];
            let said = stage.succeed(&words)?;
            ensure!(said.lines().count() > 0 && said.lines().all(|line| line == "x"), "it kept `{said}`");
            Ok(())
        },
    },
    Task {
        name: "boot -v",
        before: nothing,
        words: &["boot", "-v", "data:/data", "APP", "--", "sh", "-c", "echo x >> /data/kept; sync"],
        again: |stage| {
            let script = "echo x >> /data/kept; cat /data/kept";
            stage.succeed(&["boot", "-v", "data:/data", stage.app.as_str(), "--", "sh", "-c", script])?;
            stage.succeed(&["volume", "rm", "data"]).map(drop)
        },
    },
    Task {
        name: "volume rm",
        before: |stage, _| {
            stage.succeed(&["boot", "-v", "data:/data", stage.app.as_str(), "--", "true"]).map(drop)
        },
        words: &["volume", "rm", "data"],
        again: |stage| {
            if stage.succeed(&["volume", "ls"])?.contains("data") {
                stage.succeed(&["volume", "rm", "data"])?;
            }
            ensure!(!stage.succeed(&["volume", "ls"])?.contains("data"), "the volume is still there");
            Ok(())
        },
    },
    Task {
        name: "image",
        before: |stage, dice| {
            make_tree(stage, dice)?;
            let (tree, archive) = (stage.folder.join("tree"), stage.folder.join("tree.tar"));
            duct::cmd!("tar", "-cf", archive, "-C", tree, ".").run().context("failed to make an archive")?;
            Ok(())
        },
        words: &["image", "rootfs:FILES/tree.tar", "--size", "256M", "-o", "FILES/disk", "--format", "raw"],
        again: |stage| {
            let (source, disk) =
                (format!("rootfs:{}", stage.folder.join("tree.tar")), stage.folder.join("disk"));
            stage.succeed(&["image", &source, "--size", "256M", "-o", disk.as_str(), "--format", "raw"])?;
            duct::cmd!("e2fsck", "-fn", &disk)
                .stdout_null()
                .stderr_null()
                .run()
                .with_context(|| format!("e2fsck finds faults in `{disk}`"))?;
            remove_any(&disk)
        },
    },
    Task {
        name: "image DOCKERFILE",
        before: |stage, dice| {
            make_tree(stage, dice)?;
            write(&stage.folder.join("tree/Dockerfile"), "FROM scratch\nCOPY . /\n")
        },
        words: &["image", "FILES/tree"],
        again: |stage| stage.succeed(&["image", stage.folder.join("tree").as_str()]).map(drop),
    },
    Task {
        name: "init",
        before: |stage, _| remove_any(&stage.workspace.init_folder()),
        words: &["init"],
        again: |stage| {
            stage.succeed(&["init"])?;
            stage.succeed(&["boot", stage.app.as_str(), "--", "true"]).map(drop)
        },
    },
    Task {
        name: "exec",
        before: |stage, _| start_box(stage),
        words: &["exec", BOX, "sh", "-c", "echo a; sleep 1.5; echo b"],
        again: |stage| {
            ensure_box(stage)?;
            let said = stage.succeed(&["exec", BOX, "sh", "-c", "echo a; echo b"])?;
            ensure!(said == "a\nb\n", "it said `{said}`");
            stage.wait_until("no process of a killed `exec` is left", || {
                Ok(!stage.succeed(&["exec", BOX, "ps", "-o", "args"])?.contains("sleep 1.5"))
            })
        },
    },
    Task {
        name: "cp into a machine",
        before: |stage, dice| {
            make_tree(stage, dice)?;
            start_box(stage)
        },
        words: &["cp", "FILES/tree", "box:/copy"],
        again: |stage| {
            ensure_box(stage)?;
            copies_are_equal(stage)
        },
    },
    Task {
        name: "cp out of a machine",
        before: |stage, dice| {
            make_tree(stage, dice)?;
            start_box(stage)?;
            stage.succeed(&["cp", stage.folder.join("tree").as_str(), "box:/tree"]).map(drop)
        },
        words: &["cp", "box:/tree", "FILES/copy"],
        again: |stage| {
            remove_any(&stage.folder.join("copy"))?;
            ensure_box(stage)?;
            copies_are_equal(stage)
        },
    },
    Task {
        name: "logs -f",
        before: |stage, _| start_box(stage),
        words: &["logs", "-f", BOX],
        again: |stage| {
            ensure_listed(stage)?;
            let said = stage.succeed(&["logs", BOX])?;
            let wanted: Vec<String> = (0..100).map(|number| number.to_string()).collect();
            ensure!(said.lines().zip(&wanted).all(|(line, wanted)| line == wanted), "it said `{said}`");
            Ok(())
        },
    },
    Task {
        name: "stop",
        before: |stage, _| start_box(stage),
        words: &["stop", BOX],
        again: |stage| {
            ensure_listed(stage)?;
            stage.succeed(&["stop", BOX])?;
            ensure!(!runs(stage)?, "it was stopped and runs");
            Ok(())
        },
    },
    Task {
        name: "rm -f",
        before: |stage, _| start_box(stage),
        words: &["rm", "-f", BOX],
        again: |stage| {
            remove_box(stage)?;
            ensure!(stage.machines()?.is_empty(), "it was removed and is listed");
            Ok(())
        },
    },
];

fn nothing(_: &Stage, _: &mut Rng) -> anyhow::Result<()> {
    Ok(())
}

pub(super) fn start_box(stage: &Stage) -> anyhow::Result<()> {
    stage.succeed(&["boot", "-d", "--name", BOX, stage.app.as_str(), "--", "sh", "-c", IDLE])?;
    // From then on it knows how to end.
    stage.wait_until("the machine has said its numbers", || {
        Ok(stage.succeed(&["logs", BOX])?.lines().next_back() == Some("99"))
    })
}

fn runs(stage: &Stage) -> anyhow::Result<bool> {
    Ok(stage.machines()?.iter().any(|(_, state)| state == "running"))
}

/// Starts the machine again where nothing is known of it.
fn ensure_listed(stage: &Stage) -> anyhow::Result<()> {
    if stage.machines()?.is_empty() { start_box(stage) } else { Ok(()) }
}

/// Starts the machine again where it has ended.
fn ensure_box(stage: &Stage) -> anyhow::Result<()> {
    if runs(stage)? { Ok(()) } else { start_box(stage) }
}

fn remove_box(stage: &Stage) -> anyhow::Result<()> {
    if stage.machines()?.iter().any(|(name, _)| name == BOX) {
        stage.succeed(&["rm", "-f", BOX])?;
    }
    Ok(())
}

/// Files that no earlier trial had, 8 MiB of them.
fn make_tree(stage: &Stage, dice: &mut Rng) -> anyhow::Result<()> {
    let tree = stage.folder.join("tree");
    remove_any(&tree)?;
    create_folder(&tree.join("folder"))?;
    for number in 0..32 {
        let mut bytes = vec![0; 256 * 1024];
        dice.fill(&mut bytes);
        write(&tree.join(format!("folder/{number}")), bytes)?;
    }
    Ok(())
}

/// Copies a tree into the machine and out again.
fn copies_are_equal(stage: &Stage) -> anyhow::Result<()> {
    let (tree, back) = (stage.folder.join("tree"), stage.folder.join("back"));
    remove_any(&back)?;
    stage.succeed(&["exec", BOX, "rm", "-rf", "/again"])?;
    stage.succeed(&["cp", tree.as_str(), "box:/again"])?;
    stage.succeed(&["cp", "box:/again", back.as_str()])?;
    duct::cmd!("diff", "-r", &tree, &back).stdout_null().run().context("the copy is not what was copied")?;
    Ok(())
}
