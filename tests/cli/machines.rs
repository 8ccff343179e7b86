//! Tasks on machines: help, and names that are not there.

use crate::support::Scratch;

#[test]
fn help() {
    let scratch = Scratch::new();
    for task in ["ps", "logs", "exec", "shell", "cp", "stop", "kill", "wait", "rm", "inspect"] {
        let name = format!("help_{task}");
        insta::assert_snapshot!(name, scratch.transcript(&mut scratch.xtask(&[task, "--help"])));
    }
}

#[test]
fn without_machines_there_is_a_heading_and_no_more() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["ps", "-a"])), @r"
    exit code: 0
    ----- stdout
    NAME  IMAGE  STATE  HEALTH  PORTS  UPTIME  MEMORY
    ----- stderr
    ");
    assert_eq!(scratch.xtask(&["ps", "--format", "json"]).output().unwrap().stdout, b"");
}

#[test]
fn a_machine_that_is_not_there_is_named_with_the_nearest() {
    let scratch = Scratch::new();
    scratch.write("cache/machines/web/machine.json", "{}");
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["exec", "wep", "true"])), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: there is no machine named `wep`

    hint: is it `web`?
    ");
    for task in [
        &["logs", "x"][..],
        &["shell", "x"],
        &["wait", "x"],
        &["inspect", "x"],
        &["stop", "x"],
        &["kill", "x"],
    ] {
        let said = scratch.transcript(&mut scratch.xtask(task));
        assert!(
            said.contains("error: there is no machine named `x`\n\nhint: `cargo xtask ps -a` lists them"),
            "{said}"
        );
        assert!(!said.starts_with("exit code: 0"), "{said}");
    }
}

#[test]
fn words_that_mean_nothing_are_refused() {
    let scratch = Scratch::new();
    for (words, complaint) in [
        (&["kill", "-s", "NOSUCH", "x"][..], "`NOSUCH` is not a signal"),
        (&["logs", "--since", "yesterday", "x"], "`yesterday` is neither a time ago"),
        (&["stop", "-t", "-1", "x"], "unexpected argument '-1'"),
        (&["exec", "x"], "required arguments were not provided"),
        (&["cp", "a", "b"], "one of the two has to be in a machine"),
        (&["cp", "x:/a", "y:/b"], "only one of the two can be in a machine"),
        (&["stop"], "required arguments were not provided"),
    ] {
        let said = scratch.transcript(&mut scratch.xtask(words));
        assert!(said.starts_with("exit code: 2") && said.contains(complaint), "{said}");
    }
}

#[test]
fn no_name_leads_out_of_the_cache() {
    let scratch = Scratch::new();
    let precious = scratch.write("precious.ext4", "data");
    scratch.write("cache/volumes/data.ext4", "");
    let absolute = precious.as_str().trim_end_matches(".ext4");
    for name in ["../../precious", "../precious", absolute, "..", ".", "a/b", "", "-x", "a\u{202e}b"] {
        for (words, task) in [
            (&["volume", "rm", "--", name][..], "volume"),
            (&["boot", "--name", name, "--dry-run"], "boot"),
            (&["boot", "--network", name], "network"),
            (&["boot", "--hostname", name], "hostname"),
            (&["supervise", "--", name], "supervise"),
            (&["collect", "--", name], "collect"),
            (&["kernel", "--version", name], "kernel"),
            (&["image", "--name", name, "rootfs:nothing.tar"], "image"),
        ] {
            // Neither a word of the command line nor a name.
            if task == "collect" && ["a/b", ""].contains(&name) {
                continue;
            }
            let output = scratch.xtask(words).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{task} {name:?}: {said}");
        }
        // Where a name is looked up, there is none.
        for task in ["exec", "logs", "shell", "wait", "stop", "kill", "rm", "inspect"] {
            let words: &[&str] = if task == "exec" { &["exec", name, "true"] } else { &[task, "--", name] };
            assert!(!scratch.xtask(words).output().unwrap().status.success(), "{task} {name:?}");
        }
    }
    assert_eq!(std::fs::read_to_string(precious).unwrap(), "data");
    assert!(scratch.xtask(&["volume", "rm", "data"]).status().unwrap().success());
}
