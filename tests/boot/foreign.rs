//! Disks from elsewhere that refer to this host's files: none of them is read.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};

use crate::support::{Scratch, texts};
use crate::world::{busybox_image, complete_set, set_of, xtask};

fn qemu_img(words: &[&str]) {
    let output = Command::new("qemu-img").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn set(scratch: &Scratch, with_init: bool) -> Utf8PathBuf {
    let set = scratch.path().join("set");
    std::fs::create_dir(&set).unwrap();
    complete_set(&set, with_init);
    set
}

/// Changes four bytes of a file.
fn patch(path: &Utf8Path, at: u64, value: u32) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &value.to_be_bytes(), at).unwrap();
}

#[test]
fn a_set_whose_disk_refers_to_anything_outside_is_refused() {
    let scratch = Scratch::new();
    let set = set(&scratch, true);
    let disk = set.join("hda.qcow2");
    let secret = scratch.write("secret", "of this host");
    let create = ["create", "-q", "-u", "-f", "qcow2"];
    let over = |name: &str, format: &str| {
        qemu_img(&[&create[..], &["-b", name, "-F", format, disk.as_str(), "1M"]].concat())
    };
    let json = format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}"#);
    let enemies: &[(&str, &dyn Fn())] = &[
        ("it lies on another file", &|| over(secret.as_str(), "raw")),
        ("it lies on another file", &|| over("/etc/shadow", "raw")),
        ("it lies on another file", &|| over("../secret", "raw")),
        ("it lies on another file", &|| over("nbd://127.0.0.1:1/x", "raw")),
        ("it lies on another file", &|| over(&json, "raw")),
        ("its data is in another file", &|| {
            let data = format!("data_file={},data_file_raw=on", scratch.path().join("data"));
            qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, disk.as_str(), "1M"]);
        }),
        ("it is encrypted", &|| {
            let options =
                ["--object", "secret,id=key,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=key"];
            qemu_img(&[&["create", "-q", "-f", "qcow2"][..], &options, &[disk.as_str(), "1M"]].concat());
        }),
        ("it has features that are not known here (0x8000)", &|| {
            qemu_img(&["create", "-q", "-f", "qcow2", disk.as_str(), "1M"]);
            patch(&disk, 76, 0x8000);
        }),
        ("it is no qcow2 file", &|| qemu_img(&["create", "-q", "-f", "vmdk", disk.as_str(), "1M"])),
        ("it is no qcow2 file", &|| qemu_img(&["create", "-q", "-f", "raw", disk.as_str(), "1M"])),
        ("it is no qcow2 file", &|| std::fs::write(&disk, "").unwrap()),
    ];
    for (said, make) in enemies {
        let _ = std::fs::remove_file(&disk);
        make();
        for dry_run in [None, Some("--dry-run")] {
            let mut boot = xtask(&["boot", "--from", set.as_str()]);
            let output = boot.args(dry_run).args(["--", "cat", "/dev/vda"]).output().unwrap();
            let (stdout, talk) = texts(&output);
            let expected = format!("error: `{disk}` cannot be a disk: {said}");
            assert!(talk.starts_with(&expected), "{expected}\n{talk}");
            assert_eq!((stdout.as_str(), output.status.code()), ("", Some(125)));
        }
    }
}

/// An overlay with the base that was recorded boots; one whose header names something else does not.
#[test]
fn a_kept_disk_lies_on_the_base_that_it_was_made_for() {
    let name = format!("kept-{}", std::process::id());
    let boot = |script: &str| {
        let words = ["boot", "--rm", "--name", &name, "--persist", "images/hello", "--", "sh", "-c", script];
        let output = xtask(&words).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).output().unwrap();
        let (said, talk) = texts(&output);
        (said, talk, output.status.code())
    };
    let (_, talk, code) = boot("echo kept >/kept");
    assert_eq!(code, Some(0), "{talk}");
    let folder = xtask::workspace::Workspace::discover().unwrap().persistent_disks();
    let (disk, record) = (folder.join(format!("{name}.qcow2")), folder.join(format!("{name}.base.json")));
    // As an earlier workbench left it.
    let aside = record.with_extension("aside");
    std::fs::rename(&record, &aside).unwrap();
    let (said, talk, _) = boot("cat /kept");
    assert_eq!(said, "kept\n", "{talk}");
    std::fs::rename(&aside, &record).unwrap();

    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", disk.as_str()]);
    let (_, talk, code) = boot("cat /kept");
    assert!(talk.contains("lies on `/etc/hostname`, and was made to lie on"), "{talk}");
    assert_eq!(code, Some(125));
    std::fs::remove_file(&record).unwrap();
    let (_, talk, code) = boot("cat /kept");
    assert!(talk.contains("was made on `/etc/hostname`, and this boot is of"), "{talk}");
    assert_eq!(code, Some(125));
    std::fs::remove_file(disk).unwrap();
}

#[test]
fn a_set_that_others_can_change_is_copied_before_it_is_judged() {
    let scratch = Scratch::new();
    let set = set_of(&scratch, &busybox_image(&scratch, ""), true);
    let disk = set.join("hda.qcow2");
    if rustix::process::geteuid().is_root() {
        chown(&disk, Some(65534), Some(65534)).unwrap();
    } else {
        std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    let before = std::fs::read(&disk).unwrap();
    let output = xtask(&["boot", "--from", set.as_str(), "--", "/busybox", "echo", "here"]).output().unwrap();
    let (said, talk) = texts(&output);
    assert_eq!((said.as_str(), output.status.code()), ("here\n", Some(0)), "{talk}");
    assert!(talk.contains("can be changed by other users: the machine gets a copy"), "{talk}");
    assert!(std::fs::read(&disk).unwrap() == before);
    let words = ["boot", "--persist", "--from", set.as_str(), "--", "/busybox", "true"];
    let (_, talk) = texts(&xtask(&words).output().unwrap());
    assert!(talk.contains("can be changed by other users, and `--persist` builds on it"), "{talk}");
}
