//! A user without any privilege makes the same disk as root does: owners, devices and attributes included.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tar_core::EntryType;

use crate::layers::{Tar, With, layout};
use crate::oracle::disk_of;
use crate::support::{Scratch, texts, xtask};

/// Debian's `nobody`.
const NOBODY: u32 = 65534;

/// An image that nobody could unpack.
fn privileged_image() -> Vec<Vec<u8>> {
    let capability = vec![1, 0, 0, 2, 0x0a, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let suid = With {
        mode: 0o6755,
        owner: (0, 3_000_000),
        xattrs: vec![("security.capability", capability), ("trusted.t", b"1".to_vec())],
        ..With::default()
    };
    let tar = Tar::new()
        .folder("./")
        .folder("dev/")
        .entry(EntryType::Char, "dev/null", b"", &With { device: (1, 3), ..With::default() })
        .entry(EntryType::Block, "dev/vda", b"", &With { device: (254, 0), ..With::default() })
        .entry(EntryType::Regular, "su", b"root's", &suid);
    vec![tar.bytes(), Tar::new().folder("./").hardlink("again", "su").bytes()]
}

#[test]
fn no_privilege_is_needed() {
    let scratch = Scratch::new();
    let open =
        |path: &camino::Utf8Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    open(scratch.path());
    let image = layout(&scratch.path().join("layout"), &privileged_image());
    let expected = disk_of(&scratch, &format!("oci:{image}"));

    let home = scratch.path().join("home");
    fs::create_dir(&home).unwrap();
    open(&home);
    // Root's own folders, where the program may have been built, are closed to others.
    let program = home.join("xtask");
    // By another process: a program that this one, or a child that another test has just forked, holds open for writing
    // cannot be run.
    let copied = std::process::Command::new("cp").arg(xtask(&home, &[]).get_program()).arg(&program).status();
    assert!(copied.unwrap().success());
    let disk = home.join("disk.raw");
    let user = NOBODY.to_string();
    let drop_everything: &[&str] = if rustix::process::geteuid().is_root() {
        &["--reuid", &user, "--regid", &user, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    } else {
        &[]
    };
    let image = format!("oci:{image}");
    let words = ["--no-new-privs", "--", program.as_str(), "image", &image, "--size", "64M"];
    let more = ["--output", disk.as_str(), "--format", "raw"];
    let mut run = std::process::Command::new("setpriv");
    run.args(drop_everything)
        .args(words)
        .args(more)
        .current_dir("/")
        .env("MICROVM_CACHE", home.join("cache"));
    let output = run.env("HOME", &home).output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
    assert!(fs::read(&disk).unwrap() == fs::read(&expected).unwrap(), "root's disk and nobody's differ");
}
