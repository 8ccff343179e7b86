//! What is mounted into a guest: folders and files of the host, memory, volumes that outlive the machine.

use std::process::{Command, Stdio};

use xtask::disk::volume::{self, Kind};
use xtask::workspace::Workspace;

use crate::support::{Scratch, texts, wait_until};
use crate::world::{fixture, xtask};

/// Boots the image with data, and returns what the script and `boot` said and the exit code.
fn boot(arguments: &[&str], script: &str) -> (String, String, Option<i32>) {
    let image = fixture("data");
    let words = [&["boot"], arguments, &[image.as_str(), "--", "sh", "-c", script]].concat();
    let output = xtask(&words).output().unwrap();
    let (stdout, stderr) = texts(&output);
    (stdout, stderr, output.status.code())
}

#[test]
fn folders_files_and_memory_are_where_they_were_asked_for_on_a_read_only_root() {
    let scratch = Scratch::new();
    scratch.write("site/index.html", "the page\n");
    scratch.write("inner/file", "inside\n");
    scratch.write("secrets/key", "the key\n");
    scratch.write("secrets/other", "nobody's business\n");
    let host = |path: &str| scratch.path().join(path);
    // The inner folder is named first, and must not end up under the outer one.
    let volumes = [
        format!("{}:/made/site/inner/here", host("inner")),
        format!("{}:/made/site:ro", host("site")),
        format!("{}:/etc/keys/key:ro", host("secrets/key")),
        format!("{}:/etc/keys/copy", host("secrets/key")),
    ];
    std::fs::create_dir_all(host("site/inner/here")).unwrap();
    let mut arguments: Vec<&str> = volumes.iter().flat_map(|volume| ["-v", volume.as_str()]).collect();
    arguments.extend(["--tmpfs", "/scratch:size=1m,mode=1777", "--read-only", "--hostname", "reader"]);
    let script = "
        cat /made/site/index.html /made/site/inner/here/file /etc/keys/key
        echo new >/made/site/index.html || echo site: refused
        echo new >/etc/keys/key || echo key: refused
        echo the new key >/etc/keys/copy
        echo from the guest >/made/site/inner/here/file
        echo x >/root-file || echo root: refused
        cat /data/file && echo more >>/data/file && stat -c %u:%g:%a /data
        dd if=/dev/zero of=/scratch/big bs=1M count=2 2>/dev/null || stat -c %s /scratch/big; stat -c %a /scratch
        cat /etc/hostname /etc/resolv.conf && tail -1 /etc/hosts
        umount /etc/keys/copy && mkdir /scratch/share && mount -t 9p -o trans=virtio share3 /scratch/share && ls /scratch/share
        ls -a /dev/.init 2>&1; echo done";
    let (said, talk, code) = boot(&arguments, script);
    let expected = "the page\ninside\nthe key\nsite: refused\nkey: refused\nroot: refused\nfrom the image\n70:71:2750\n\
                    1048576\n1777\nreader\nnameserver 10.0.2.3\n10.0.2.15\treader\n3\nls: /dev/.init: No such file or directory\ndone\n";
    assert_eq!(said, expected, "{talk}");
    assert_eq!(code, Some(0), "{talk}");
    let on_host = |path: &str| std::fs::read_to_string(host(path)).unwrap();
    assert_eq!(on_host("secrets/key"), "the new key\n");
    assert_eq!(on_host("inner/file"), "from the guest\n");
    assert_eq!(on_host("site/index.html"), "the page\n");
}

/// A volume that is removed when the test ends.
struct Named(String);

impl Named {
    fn new(what: &str) -> Named {
        Named(format!("{what}-{}", std::process::id()))
    }

    fn at(&self, target: &str) -> String {
        format!("{}:{target}", self.0)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = volume::remove(&Workspace::discover().unwrap(), &self.0, Some(Kind::Volume));
    }
}

#[test]
fn a_named_volume_starts_with_the_images_files_and_outlives_its_machine() {
    let named = Named::new("data");
    let (writable, read_only) = (named.at("/data"), named.at("/elsewhere:ro"));
    // As its owner, which the image's directory lets in.
    let script = "cat /data/file && echo second >>/data/file && ls -a /data && stat -c %u:%g:%a /data";
    let (said, talk, code) = boot(&["-v", &writable, "-u", "70:71"], script);
    assert_eq!((said.as_str(), code), ("from the image\n.\n..\nfile\n70:71:2750\n", Some(0)), "{talk}");

    // It is a whole file system, and takes no more space than what was written.
    let disk = volume::disk(&Workspace::discover().unwrap(), &named.0);
    let check = Command::new(xtask::host::tools::find("e2fsck").unwrap())
        .args(["-fn", disk.as_str()])
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    let (said, talk, code) = boot(&["-v", &read_only], "cat /elsewhere/file; echo x >/elsewhere/file");
    assert_eq!((said.as_str(), code), ("from the image\nsecond\n", Some(1)), "{talk}");

    let list = String::from_utf8(xtask(&["volume", "ls"]).output().unwrap().stdout).unwrap();
    let line = list.lines().find(|line| line.starts_with(&named.0)).unwrap();
    assert!(line.ends_with("  no"), "{list}");
    assert!(xtask(&["volume", "rm", &named.0]).status().unwrap().success());
    assert!(!disk.exists());
}

/// Bytes that a file takes on the host (stat(2): a block is 512 bytes).
fn space(file: &camino::Utf8Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(file).unwrap()) * 512
}

#[test]
fn what_a_guest_frees_is_given_back_to_the_host_by_volumes_and_by_its_own_disk() {
    const WRITTEN: u64 = 64 << 20;
    let named = Named::new("freed");
    let at = named.at("/data");
    let workspace = Workspace::discover().unwrap();
    let machine = crate::world::Detached::boot(
        "freed",
        &[
            "-v",
            &at,
            "images/hello",
            "--",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done",
        ],
    );
    let overlay = xtask::vm::record::run_dir::RunDir::named(&workspace, &machine.name).overlay();
    let files = [("/data", volume::disk(&workspace, &named.0)), ("/root", overlay)];
    for (folder, file) in &files {
        machine.sh(&format!("mkdir -p {folder}"));
        let before = space(file);
        // Random bytes, since QEMU may make holes of zeros.
        machine.sh(&format!("dd if=/dev/urandom of={folder}/big bs=1M count=64 2>/dev/null && sync"));
        assert!(space(file) > before + WRITTEN / 10 * 9, "{file} holds what was written");
        machine.sh(&format!("rm {folder}/big && sync"));
        wait_until(&format!("{file} is small again"), || space(file) < before + WRITTEN / 10);
    }
    assert!(machine.task("stop", &[], &[]).output().unwrap().status.success());
    assert!(space(&files[0].1) < WRITTEN / 4);
}

#[test]
fn a_volume_in_use_is_refused_to_a_second_machine_and_to_removal() {
    let named = Named::new("taken");
    let at = named.at("/data");
    let image = fixture("data");
    let words = ["boot", "-i", "-v", &at, image.as_str(), "--", "sh", "-c", "echo up; cat"];
    let mut first =
        xtask(&words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let workspace = Workspace::discover().unwrap();
    wait_until("the first machine has the volume", || {
        volume::all(&workspace).unwrap().iter().any(|volume| volume.name == named.0 && volume.in_use)
    });
    let refusal = format!("error: the volume `{}` is in use by another machine", named.0);
    let (_, talk, code) = boot(&["-v", &at], "true");
    assert!(talk.contains(&refusal) && code == Some(125), "{talk}");
    let removal = xtask(&["volume", "rm", &named.0]).output().unwrap();
    assert!(String::from_utf8_lossy(&removal.stderr).contains(&refusal));
    drop(first.stdin.take());
    let output = first.wait_with_output().unwrap();
    assert_eq!((String::from_utf8_lossy(&output.stdout).as_ref(), output.status.code()), ("up\n", Some(0)));
}
