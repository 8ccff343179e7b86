//! `image`: what is refused, what a build that fails leaves, and the cache as `ls`, `rm` and `prune` show it.

use std::fs;
use std::process::Stdio;

use crate::support::{Scratch, texts, wait_until};

#[test]
fn help() {
    let scratch = Scratch::new();
    for words in [&["image", "--help"][..], &["image", "rm", "--help"], &["image", "prune", "--help"]] {
        let name = format!("help_{}", words[..words.len() - 1].join("_"));
        insta::assert_snapshot!(name, scratch.transcript(&mut scratch.xtask(words)));
    }
}

#[test]
fn no_such_dockerfile_names_the_nearest() {
    let scratch = Scratch::new();
    scratch.write("web/Dockerfile", "FROM scratch\n");
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["image", "./wev"])), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `./wev` does not exist; is it `./web`?

    Caused by:
        No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["image", "web/Dockerfil"])), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `web/Dockerfil` does not exist; is it `web/Dockerfile`?

    Caused by:
        No such file or directory (os error 2)
    ");
    fs::rename(scratch.path().join("web/Dockerfile"), scratch.path().join("web/dockerfile")).unwrap();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["image", "web"])), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: the folder `web` has no Dockerfile; is it `web/dockerfile`?
    ");
}

#[test]
fn words_that_are_wrong() {
    let scratch = Scratch::new();
    let cases: [(&[&str], &str); 6] = [
        (&["image"], "the following required arguments were not provided"),
        (&["image", "rootfs:x.tar", "--size", "12X"], "`X` is not a unit of size"),
        (&["image", "rootfs:x.tar", "--size", "1M"], "`1M` is less than a disk can have"),
        (&["image", "dir:x"], "`dir:` is not a kind of source"),
        (&["image", "Not An Image"], "is not an image name"),
        (&["image", "rootfs:x.tar", "--name", "-x-"], "unexpected argument"),
    ];
    for (words, expected) in cases {
        let output = scratch.xtask(words).output().unwrap();
        let said = texts(&output).1;
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains(expected), "{words:?}: {said}");
    }
    assert!(!scratch.cache().exists());
}

#[test]
fn a_build_that_fails_shows_the_builders_words_and_leaves_nothing() {
    let scratch = Scratch::new();
    scratch.write("web/Dockerfile", "FROM scratch\nCOPY no-such-file /\n");
    let output = scratch.xtask(&["image", "web"]).output().unwrap();
    let said = texts(&output).1;
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("failed to build `web/Dockerfile`") && said.contains("its last lines:"), "{said}");
    assert!(said.contains("no-such-file"), "{said}");
    let left = |folder: &str| fs::read_dir(scratch.cache().join(folder)).map_or(0, |entries| entries.count());
    assert_eq!((left("disks"), left("scratch"), left("sources")), (0, 0, 0));
}

/// The whole life of a small image: built, found again, stale when its context changes, listed, removed.
#[test]
fn an_image_is_built_once_and_again_when_it_has_changed() {
    let scratch = Scratch::new();
    scratch.write(
        "web/Dockerfile",
        "FROM scratch\nARG FROM=site\nCOPY $FROM /site\nLABEL word=hello\nCMD [\"/x\"]\n",
    );
    scratch.write("web/site/index.html", "one");
    scratch.write("web/other/index.html", "three");
    scratch.write("web/.dockerignore", "*.log\n");
    let run = |more: &[&str]| {
        let output = scratch.xtask(&[&["image", "web", "--size", "32M"], more].concat()).output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{stderr}");
        (stdout, stderr.contains("building `web/Dockerfile`"))
    };
    let (first, was_built) = run(&[]);
    assert!(was_built);
    assert_eq!(run(&[]), (first.clone(), false));
    scratch.write("web/noise.log", "ignored");
    assert_eq!(run(&[]), (first.clone(), false));
    scratch.write("web/site/index.html", "two");
    let (second, was_built) = run(&[]);
    assert!(was_built && second != first);
    let (third, was_built) = run(&["--build-arg", "FROM=other", "--name", "named"]);
    assert!(was_built && third != second);

    let config =
        fs::read_to_string(std::path::Path::new(third.trim()).with_file_name("config.json")).unwrap();
    assert!(config.contains("\"word\": \"hello\"") && config.contains("\"/x\""), "{config}");

    let list = || texts(&scratch.xtask(&["image", "ls"]).output().unwrap()).0;
    assert_eq!(list().lines().count(), 4, "{}", list());
    assert!(scratch.xtask(&["image", "prune"]).output().unwrap().status.success());
    // The first `web` has been replaced.
    assert_eq!(list().lines().count(), 3, "{}", list());
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["image", "rm", "namedd"])), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: there is no image `namedd` in the cache; is it `named`?
    ");
    assert!(scratch.xtask(&["image", "rm", "named"]).output().unwrap().status.success());
    assert!(!list().contains("named"));
    assert!(scratch.xtask(&["image", "prune", "--all"]).output().unwrap().status.success());
    assert_eq!(list().lines().count(), 1);
}

#[test]
fn two_tasks_on_one_image_wait_for_each_other() {
    let scratch = Scratch::new();
    scratch.write("web/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    // The second image has the same context, so whoever comes later finds the disk made.
    let tasks = [0, 1].map(|_| {
        let mut command = scratch.xtask(&["image", "web", "--size", "32M"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let outputs = tasks.map(|task| task.wait_with_output().unwrap());
    let said = outputs.each_ref().map(|output| texts(output).1);
    assert!(outputs.iter().all(|output| output.status.success()), "{said:?}");
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    let count = |words: &str| said.iter().filter(|said| said.contains(words)).count();
    assert_eq!(count("building `web/Dockerfile`"), 1, "{said:?}");
    assert_eq!(count("waiting for another task that works on `web`"), 1, "{said:?}");
}

/// Ctrl-C while the builder works: the task ends with the signal's code, and nothing half done stays.
#[test]
fn an_interrupted_task_leaves_nothing() {
    let scratch = Scratch::new();
    let pipe = scratch.path().join("pipe");
    duct::cmd!("mkfifo", &pipe).run().unwrap();
    // Standard input that never ends holds the task in the middle of its work.
    let mut command = scratch.xtask(&["image", "-"]);
    let held = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let mut task = command.stdin(held).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the task has begun", || scratch.cache().join("scratch").exists());
    let process = rustix::process::Pid::from_child(&task);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    assert_eq!(task.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(scratch.cache().join("scratch")).unwrap().count(), 0);
}
