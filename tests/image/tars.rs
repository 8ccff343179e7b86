//! The disk of a plain archive equals the folder that GNU tar made it of, in every format that it writes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;

use camino::Utf8Path;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use tar_core::EntryType;

use crate::layers::{Tar, With};
use crate::oracle::disk_of;
use crate::support::{Scratch, again_as_root, texts};
use crate::view::{self, View};

/// `setfacl -m u:65501:rw,g:65502:r` on a file of mode 0640, as `getfattr -e hex` shows it.
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0xdd, 0xff, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
    8, 0, 4, 0, 0xde, 0xff, 0, 0, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

/// `cap_net_raw,cap_net_bind_service+ep` and more: a version 2 capability that holds a newline's byte.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0x0a, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A small folder with one of everything that is hard.
fn hard_tree(root: &Utf8Path) {
    let at = |name: &str| root.join(name).into_std_path_buf();
    for folder in ["many", "acl", "mode", "sparse"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    for number in 0..6000 {
        fs::write(at(&format!("many/a-file-with-a-number-{number:05}")), b"").unwrap();
    }
    for (name, content) in
        [("empty", 0), ("small", 10), ("block", 4096), ("block+1", 4097), ("large", 3 << 20)]
    {
        fs::write(at(name), (0..content).map(|n| (n * 7 % 251) as u8).collect::<Vec<u8>>()).unwrap();
    }
    let long = format!("{}/{}", "d".repeat(200), "e".repeat(200));
    fs::create_dir_all(at(&long)).unwrap();
    fs::write(at(&format!("{long}/{}", "f".repeat(255))), "deep").unwrap();
    fs::write(at("new\nline \"quote\" \\back täst"), "odd").unwrap();
    // Names are bytes. One is in a folder that is large enough for an index by hashes.
    let latin1 = |name: &[u8]| root.as_std_path().join(OsStr::from_bytes(name));
    fs::create_dir(latin1(b"caf\xe9")).unwrap();
    fs::write(latin1(b"caf\xe9/\xff\xfe"), "latin").unwrap();
    fs::write(latin1(b"many/\x80\xe9"), "hashed").unwrap();
    fs::hard_link(at("small"), latin1(b"caf\xe9/linked \xfc")).unwrap();
    symlink(OsStr::from_bytes(b"caf\xe9/\xff\xfe"), latin1(b"link-\xe9")).unwrap();
    symlink(OsStr::from_bytes(&[0xe9; 300]), at("link-long-latin")).unwrap();
    fs::hard_link(at("small"), at("many/linked")).unwrap();
    fs::hard_link(at("small"), at("zz-linked")).unwrap();
    symlink("small", at("link")).unwrap();
    symlink("x".repeat(59), at("link-59")).unwrap();
    symlink("x".repeat(60), at("link-60")).unwrap();
    symlink("y/".repeat(2000), at("link-4000")).unwrap();
    symlink("../../../etc/passwd", at("link-out")).unwrap();
    fs::hard_link(at("link"), at("link-linked")).unwrap();

    let mode = Mode::from_raw_mode(0o640);
    let device = |name: &str, kind, major, minor| {
        rustix::fs::mknodat(CWD, at(name), kind, mode, rustix::fs::makedev(major, minor)).unwrap();
    };
    device("fifo", FileType::Fifo, 0, 0);
    device("null", FileType::CharacterDevice, 1, 3);
    device("large-device", FileType::BlockDevice, 4095, 1_048_575);

    for (name, bits) in [("suid", 0o6755), ("sticky", 0o1777), ("none", 0)] {
        fs::write(at(&format!("mode/{name}")), name).unwrap();
        rustix::fs::chownat(
            CWD,
            at(&format!("mode/{name}")),
            Some(rustix::fs::Uid::from_raw(4_000_000_000)),
            Some(rustix::fs::Gid::from_raw(3_000_000)),
            AtFlags::empty(),
        )
        .unwrap();
        rustix::fs::chmodat(CWD, at(&format!("mode/{name}")), Mode::from_raw_mode(bits), AtFlags::empty())
            .unwrap();
    }

    // Data at the start, in the middle of a block, and a hole at the end.
    let sparse = File::create(at("sparse/holes")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(&[7; 5000], 1_000_000).unwrap();
    sparse.write_all_at(b"x", 9_999_999).unwrap();
    sparse.set_len(20_000_000).unwrap();
    File::create(at("sparse/only-a-hole")).unwrap().set_len(5_000_001).unwrap();
    let many = File::create(at("sparse/many-holes")).unwrap();
    for part in 0..300 {
        many.write_all_at(&[1; 700], part * 16_384 + 100).unwrap();
    }

    for (name, seconds, nanoseconds) in [
        ("small", -2_147_483_648, 1),
        ("empty", -1, 999_999_999),
        ("block", 0, 0),
        ("large", 4_102_444_800, 123_456_789),
        ("link", 15_032_385_535, 0),
        ("block+1", 2_147_483_648, 5),
    ] {
        set_time(&at(name), seconds, nanoseconds);
    }
}

fn attributes(root: &Utf8Path) {
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(name).as_std_path(), attribute, value, XattrFlags::empty()).unwrap();
    };
    set("mode/suid", "security.capability", CAPABILITY);
    set("small", "user.note", b"a value\nwith = odd \0 bytes");
    set("small", "trusted.t", b"");
    set("large", "user.large", &[9; 3000]);
    set("link", "trusted.on-a-link", b"1");
    set("fifo", "trusted.on-a-fifo", b"1");
    set("acl", "system.posix_acl_default", ACL);
    fs::write(root.join("block"), b"acl").unwrap();
    set("block", "system.posix_acl_access", ACL);
}

fn tar_of(scratch: &Scratch, root: &Utf8Path, options: &[&str]) -> String {
    let tar = scratch.path().join("archive.tar");
    let words = ["--create", "--sort=name", "--file", tar.as_str(), "--directory", root.as_str()];
    let all = words.iter().chain(options).chain(&["."]).copied();
    duct::cmd("tar", all).run().unwrap();
    format!("rootfs:{tar}")
}

#[test]
fn pax_with_attributes() {
    if again_as_root("tars::pax_with_attributes") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    hard_tree(&root);
    attributes(&root);
    set_time(root.as_std_path(), 1_700_000_000, 42);
    let folder = view::of_folder(&root);
    let pax = ["--format=pax", "--xattrs", "--xattrs-include=*"];
    for more in [
        &["--sparse", "--sparse-version=1.0"][..],
        &["--sparse", "--sparse-version=0.1"],
        &["--sparse", "--sparse-version=0.0"],
        &["--acls"],
        &["--acls", "--numeric-owner"],
    ] {
        let source = tar_of(&scratch, &root, &[&pax[..], more].concat());
        view::assert_same(&view::of_disk(&disk_of(&scratch, &source)), &folder);
    }
}

/// GNU's own format has no attributes and whole seconds.
#[test]
fn gnu_and_its_sparse_files() {
    if again_as_root("tars::gnu_and_its_sparse_files") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    hard_tree(&root);
    let mut folder = view::of_folder(&root);
    for node in folder.values_mut() {
        node.mtime.1 = 0;
    }
    for options in
        [&["--format=gnu"][..], &["--format=gnu", "--sparse"], &["--format=gnu", "--sparse", "--zstd"]]
    {
        let source = tar_of(&scratch, &root, options);
        view::assert_same(&view::of_disk(&disk_of(&scratch, &source)), &folder);
    }
}

/// What is a hole in the archive takes no space on the disk, which has no room for it.
#[test]
fn holes_stay_holes() {
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    File::create(root.join("hole")).unwrap().set_len(60 << 20).unwrap();
    let source = tar_of(&scratch, &root, &["--format=pax", "--sparse"]);
    let disk = view::of_disk(&disk_of(&scratch, &source));
    assert!(disk["hole"].content.starts_with("62914560 bytes"), "{:?}", disk["hole"]);
}

/// Whiteouts are a matter of layers: in a plain archive such names are files.
#[test]
fn a_root_file_system_may_have_names_like_whiteouts() {
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a"), "a").unwrap();
    fs::write(root.join(".wh.a"), "kept").unwrap();
    let source = tar_of(&scratch, &root, &[]);
    let disk: View = view::of_disk(&disk_of(&scratch, &source));
    assert_eq!(disk.keys().collect::<Vec<_>>(), ["", ".wh.a", "a"]);
}

/// An independent reader: e2fsprogs's own debugfs, on what it shows in one line.
#[test]
fn debugfs_sees_the_same_inode() {
    if again_as_root("tars::debugfs_sees_the_same_inode") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "content").unwrap();
    let set = |attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join("file").as_std_path(), attribute, value, XattrFlags::empty())
            .unwrap();
    };
    set("user.note", b"hello");
    rustix::fs::chownat(
        CWD,
        root.join("file").as_std_path(),
        Some(rustix::fs::Uid::from_raw(2_000_000_000)),
        None,
        AtFlags::empty(),
    )
    .unwrap();
    set_time(root.join("file").as_std_path(), -86_400, 0);
    let source = tar_of(&scratch, &root, &["--format=pax", "--xattrs"]);
    let disk = disk_of(&scratch, &source);
    let debugfs = xtask::host::tools::find("debugfs").unwrap().into_string();
    let read = |command: &str| duct::cmd!(&debugfs, "-R", command, &disk).stderr_null().read().unwrap();
    let stat = read("stat file");
    assert!(stat.contains("User: 2000000000") && stat.contains("Size: 7"), "{stat}");
    assert!(stat.contains("mtime: 0xfffeae80"), "{stat}");
    assert_eq!(read("cat file"), "content");
    assert!(read("ea_get file user.note").contains("hello"));
}

/// No file of the host can have it: chown(2) takes it for "leave it as it is".
#[test]
fn the_highest_owner_of_all() {
    let scratch = Scratch::new();
    let owner = (u32::MAX, u32::MAX);
    let bytes = Tar::new()
        .folder("./")
        .entry(EntryType::Regular, "file", b"", &With { owner, ..With::default() })
        .bytes();
    let tar = scratch.path().join("archive.tar");
    fs::write(&tar, bytes).unwrap();
    assert_eq!(view::of_disk(&disk_of(&scratch, &format!("rootfs:{tar}")))["file"].owner, owner);
}

/// Of each file, and nothing of what files hold: what a large image takes follows from this.
#[test]
fn a_file_takes_a_hundred_bytes_of_memory() {
    let peak = |files: u32, bytes: usize| {
        let scratch = Scratch::new();
        let mut tar = Tar::new().folder("./").file("large", &"x".repeat(bytes));
        for number in 0..files {
            tar = tar.file(format!("{}/a-name-of-some-length-{number}", number / 100), "");
        }
        let path = scratch.path().join("archive.tar");
        fs::write(&path, tar.bytes()).unwrap();
        let overlay = scratch.path().join("overlay.qcow2");
        let output = scratch.xtask(&["bench", "prepare", path.as_str(), overlay.as_str()]).output().unwrap();
        let (said, talk) = texts(&output);
        said.trim().parse::<u32>().unwrap_or_else(|_| panic!("{said}{talk}"))
    };
    let (few, many, large) = (peak(1000, 0), peak(41_000, 0), peak(1000, 64 << 20));
    // Half as much again for tables that have just doubled.
    assert!(many - few < 40_000 * 200, "{few} and {many} bytes");
    assert!(large < few + (4 << 20), "{few} and {large} bytes");
}
