//! `collect` from inside a machine that this workbench booted, through a published port; what it brings boots.

use std::fs;
use std::process::Command;

use crate::support::Scratch;
use crate::world::{Machine, fixture, nginx_base, xtask};

#[test]
fn a_set_collected_out_of_a_machine_boots() {
    nginx_base();
    let scratch = Scratch::new();
    // What the far machine has built: the hello image's set.
    assert!(xtask(&["init"]).output().unwrap().status.success());
    let made = xtask(&["image", "images/hello"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let workspace = xtask::workspace::Workspace::discover().unwrap();
    for name in ["init", "kernel", "hda.qcow2", "image.json"] {
        let to = scratch.path().join("work").join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(workspace.artifacts().join(name), to).unwrap();
    }

    let key = scratch.path().join("user_key");
    let keygen =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", key.as_str()]).status();
    assert!(keygen.unwrap().success());
    let image = scratch.path().join("image");
    fs::create_dir(&image).unwrap();
    fs::copy(fixture("sshd").join("Dockerfile"), image.join("Dockerfile")).unwrap();
    fs::copy(scratch.path().join("user_key.pub"), image.join("user_key.pub")).unwrap();
    let volume = format!("{}:/root/work:ro", scratch.path().join("work"));
    let mut machine = Machine::boot(&["-p", "0:22", "-v", &volume, image.as_str()]);
    let port = machine.port(22);
    crate::world::answers(port, "SSH-2.0-");

    let collected = scratch.path().join("collected");
    let output = xtask(&[
        "collect",
        &format!("root@127.0.0.1:{port}"),
        "--dest",
        collected.as_str(),
        "-i",
        key.as_str(),
    ])
    .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
    .output()
    .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    machine.stop();

    let output = xtask(&["boot", "--from", collected.as_str(), "--", "sh", "-c", "echo collected; exit 6"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "collected\n");
    assert_eq!(output.status.code(), Some(6));
}
