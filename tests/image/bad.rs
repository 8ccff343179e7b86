//! Archives that are damaged or hostile: an error that names the image and the entry, or a result inside the image.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use tar_core::EntryType;

use crate::layers::{Tar, With, gzip, layout};
use crate::oracle::disk_of;
use crate::support::{Scratch, in_small_cache, texts};
use crate::view;

fn write(scratch: &Scratch, bytes: &[u8]) -> Utf8PathBuf {
    let path = scratch.path().join("image.tar");
    fs::write(&path, bytes).unwrap();
    path
}

/// What `image` says of an archive that it refuses; nothing of it may stay in the cache.
fn refusal(scratch: &Scratch, source: &str, more: &[&str]) -> String {
    let output = scratch.path().join("out");
    let words = [&["image", source, "--output", output.as_str()], more].concat();
    let run = scratch.xtask(&words).output().unwrap();
    assert_eq!(run.status.code(), Some(125), "{}", texts(&run).1);
    assert!(!output.exists());
    assert_no_leftovers(&scratch.cache());
    texts(&run).1
}

fn assert_no_leftovers(cache: &Utf8Path) {
    for folder in ["disks", "blobs/sha256", "scratch"] {
        let left: Vec<_> = cache.join(folder).read_dir_utf8().into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn refused_rootfs(bytes: &[u8], expected: &[&str]) {
    let scratch = Scratch::new();
    let path = write(&scratch, bytes);
    let said = refusal(&scratch, &format!("rootfs:{path}"), &[]);
    assert!(said.contains(path.as_str()), "{said}");
    for words in expected {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

#[test]
fn entries_that_cannot_be() {
    let plain = || Tar::new().folder("./").file("a", "a");
    let odd = With { xattrs: vec![("os2.name", b"1".to_vec())], ..With::default() };
    let acl = With { xattrs: vec![("system.posix_acl_access", b"nonsense".to_vec())], ..With::default() };
    let huge = With { xattrs: vec![("user.huge", vec![0; 5000])], ..With::default() };
    let far = With { mtime: "99999999999", ..With::default() };
    let file = EntryType::Regular;
    let cases: [(Tar, &[&str]); 11] = [
        (plain().file("../outside", "x"), &["`../outside`", "leaves the image's root"]),
        (plain().file("b/../../outside", "x"), &["leaves the image's root"]),
        (plain().hardlink("b", "missing"), &["`b`", "its target `missing` does not exist"]),
        (plain().folder("d/").hardlink("b", "d"), &["its target `d` is a directory"]),
        (plain().file("a/below", "x"), &["`a/below`", "its parent `a` is not a directory"]),
        (plain().link("loop", "loop").file("loop/x", "x"), &["`loop/x`", "more than 40 links"]),
        (plain().entry(file, "b", b"", &odd), &["`/b`", "`os2.name` is of a namespace"]),
        (plain().entry(file, "b", b"", &acl), &["`/b`", "an ACL of an unknown version"]),
        (plain().entry(file, "b", b"", &huge), &["`/b`", "`user.huge`"]),
        (plain().entry(file, "b", b"", &far), &["`/b`", "its time 99999999999 is outside what ext4 holds"]),
        (
            plain().folder("lost+found/").file("lost+found/x", "x"),
            &["`/lost+found` can only be an empty directory"],
        ),
    ];
    for (tar, expected) in cases {
        refused_rootfs(&tar.bytes(), expected);
    }
}

#[test]
fn archives_that_are_damaged() {
    let good = Tar::new().folder("./").file("first", &"x".repeat(3000)).bytes();
    refused_rootfs(&good[..4000], &["the archive ends in the middle of `first`"]);
    refused_rootfs(&good[..700], &["the archive ends in the middle of"]);
    let mut header = good.clone();
    header[3] ^= 1;
    refused_rootfs(&header, &["checksum"]);
    let compressed = gzip(&good);
    refused_rootfs(&compressed[..compressed.len() - 9], &["its compressed data is damaged or cut short"]);
    let mut corrupt = compressed.clone();
    let last = corrupt.len() - 6;
    corrupt[last] ^= 1;
    refused_rootfs(&corrupt, &["its compressed data is damaged or cut short"]);
    refused_rootfs(
        b"this is no archive, but it is longer than nothing",
        &["the archive ends in the middle of an entry"],
    );
}

#[test]
fn a_bomb_is_refused_before_it_fills_the_disk() {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..400 {
        std::io::Write::write_all(&mut bomb, &vec![0; 1 << 20]).unwrap();
    }
    refused_rootfs(&bomb.finish().unwrap(), &["unpacks from", "which is refused", "--unpack-limit SIZE"]);
}

/// The image is a few lines longer for each layer that comes again.
#[test]
fn layers_without_number_are_refused_and_one_that_comes_again_is_read_once() {
    let scratch = Scratch::new();
    let tar = Tar::new().folder("./").file("a", "a").bytes();
    let many = layout(&scratch.path().join("many"), &vec![tar.clone(); 1001]);
    let said = refusal(&scratch, &format!("oci:{many}"), &[]);
    assert!(said.contains("the image has 1001 layers; more than 1000 are refused"), "{said}");
    let other = Tar::new().file("a", "other").file("b", "b").bytes();
    let again = layout(&scratch.path().join("again"), &[tar.clone(), other.clone(), tar.clone()]);
    let once = layout(&scratch.path().join("once"), &[other, tar]);
    let disk = |image: &Utf8Path| view::of_disk(&disk_of(&scratch, &format!("oci:{image}")));
    let (again, once) = (disk(&again), disk(&once));
    assert!(again["a"].content.starts_with("1 bytes") && again.contains_key("b"));
    view::assert_same(&again, &once);
}

#[test]
fn how_far_an_archive_is_unpacked_can_be_said() {
    let scratch = Scratch::new();
    let path = write(&scratch, &gzip(&Tar::new().folder("./").file("a", &"a".repeat(3 << 20)).bytes()));
    let source = format!("rootfs:{path}");
    let said = refusal(&scratch, &source, &["--unpack-limit", "2M"]);
    assert!(said.contains("to more than 2.00 MiB, which is refused"), "{said}");
    disk_of(&scratch, &source);
}

/// What a link points to is looked up inside the image, whatever it says.
#[test]
fn a_write_through_a_link_stays_inside() {
    let scratch = Scratch::new();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let tar = Tar::new()
        .folder("./")
        .link("absolute", outside.as_str())
        .link("relative", "../../../../../../../../../../etc")
        .file("absolute/written", "1")
        .file("relative/written", "2")
        .file("/rooted", "3")
        .bytes();
    let source = format!("rootfs:{}", write(&scratch, &tar));
    let disk = view::of_disk(&disk_of(&scratch, &source));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let inside = outside.as_str().trim_start_matches('/');
    assert!(disk.contains_key(&format!("{inside}/written")));
    assert!(disk.contains_key("etc/written") && disk.contains_key("rooted"));
}

#[test]
fn of_two_entries_the_later_counts() {
    let scratch = Scratch::new();
    let tar =
        Tar::new().folder("./").file("a", "one").file("a", "two").folder("b/").file("b", "three").bytes();
    let disk = view::of_disk(&disk_of(&scratch, &format!("rootfs:{}", write(&scratch, &tar))));
    assert!(disk["a"].content.starts_with("3 bytes") && disk["b"].content.starts_with("5 bytes"));
    let again = Tar::new().folder("./").file("a", "two").file("b", "three").bytes();
    let expected = view::of_disk(&disk_of(&scratch, &format!("rootfs:{}", write(&scratch, &again))));
    view::assert_same(&disk, &expected);
}

#[test]
fn a_layout_with_a_wrong_or_missing_blob() {
    let blobs = |folder: &Utf8Path| -> Vec<Utf8PathBuf> {
        let entries = folder.join("blobs/sha256").read_dir_utf8().unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().into_path()).collect();
        paths.sort_by_key(|path| path.metadata().unwrap().len());
        paths
    };
    for damage in ["flip", "cut", "remove"] {
        let scratch = Scratch::new();
        let content =
            (0..9000_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26));
        let folder = layout(
            &scratch.path().join("layout"),
            &[Tar::new().file("a", &content.collect::<String>()).bytes()],
        );
        let layer = blobs(&folder).pop().unwrap();
        let mut bytes = fs::read(&layer).unwrap();
        let middle = bytes.len() / 2;
        let expected = match damage {
            "flip" => {
                bytes[middle] ^= 1;
                fs::write(&layer, &bytes).unwrap();
                "has the digest"
            }
            "cut" => {
                fs::write(&layer, &bytes[..middle]).unwrap();
                "and the manifest says"
            }
            _ => {
                fs::remove_file(&layer).unwrap();
                "does not exist"
            }
        };
        let said = refusal(&scratch, &format!("oci:{folder}"), &[]);
        assert!(said.contains(expected) && said.contains(layer.file_name().unwrap()), "{damage}: {said}");
    }
}

#[test]
fn a_disk_that_is_too_small_says_what_would_do() {
    let scratch = Scratch::new();
    let tar = write(&scratch, &Tar::new().folder("./").file("a", &"a".repeat(30 << 20)).bytes());
    let source = format!("rootfs:{tar}");
    let said = refusal(&scratch, &source, &["--size", "20M"]);
    assert!(said.contains("do not fit into a disk of 20.00 MiB"), "{said}");
    let hint = said.split("--size ").nth(1).unwrap().split('`').next().unwrap().to_owned();
    let output = scratch.path().join("out");
    let words = ["image", &source, "--size", &hint, "--output", output.as_str(), "--format", "raw"];
    assert!(scratch.xtask(&words).output().unwrap().status.success(), "--size {hint}");
    view::check(&output);
}

#[test]
fn a_host_disk_that_is_full() {
    let scratch = Scratch::new();
    let tar = write(&scratch, &Tar::new().folder("./").file("a", &"a".repeat(30 << 20)).bytes());
    let source = format!("rootfs:{tar}");
    let output = scratch.cache().join("out");
    let words = ["image", &source, "--size", "64M", "--output", output.as_str()];
    let (talk, code, left) = in_small_cache(&scratch, "8m", &words);
    assert!(talk.contains("needs") && talk.contains("are free"), "{talk}");
    assert_eq!((code, left.as_str()), (Some(125), ""), "{talk}");
}
