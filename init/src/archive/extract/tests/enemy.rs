//! Archives that an enemy sent for one name: nothing but that name changes, as root and as an ordinary user.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Gid, RenameFlags, Uid, listxattr, renameat_with};
use rustix::process::geteuid;

use super::*;
use crate::hostile_tar::{self as hostile, ASKED};

/// Debian's `nobody` and `nogroup`.
const NOBODY: u32 = 65534;

/// Runs a test's body as this user, and where this is root as an ordinary one too: the kernel knows users by thread.
fn as_every_user(body: fn()) {
    body();
    if geteuid().is_root() {
        let thread = std::thread::spawn(move || {
            rustix::thread::set_thread_groups(&[]).unwrap();
            let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            body();
        });
        thread.join().unwrap();
    }
}

/// A target with a file beside it that must stay as it is.
fn world(name: &str) -> (Scratch, String) {
    let scratch = Scratch::new(&format!("{name}-{}", geteuid().as_raw()));
    let sentinel = scratch.0.join("sentinel");
    fs::write(&sentinel, b"precious").unwrap();
    fs::write(scratch.target().join("precious"), b"in the target").unwrap();
    (scratch, sentinel.to_str().unwrap().to_owned())
}

/// Modes, owners, numbers of links, times and contents of all there is, save for what was asked for. The target's own time
/// is left out: a name was made in it.
fn described(scratch: &Scratch) -> BTreeMap<PathBuf, String> {
    let asked = scratch.target().join(ASKED);
    let mut all = BTreeMap::new();
    let mut ahead = vec![scratch.0.clone()];
    while let Some(path) = ahead.pop() {
        if path == asked {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).unwrap();
        let time = if path == scratch.target() { 0 } else { metadata.mtime_nsec() };
        let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
        let known = (
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            links,
            time,
            content.escape_ascii().to_string(),
        );
        all.insert(path.clone(), format!("{known:?}"));
        if metadata.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all
}

/// Unpacks a stream for one name, and gives what was complained of beside the result.
fn unpack(scratch: &Scratch, stream: impl Read, name: &str, keep_all: bool) -> (Result<()>, Vec<String>) {
    let rules = Rules::Foreign { name: name.into(), keep_all };
    let mut complaints = Vec::new();
    let complain = &mut |complaint| complaints.push(complaint);
    let result = crate::archive::extract(stream, &scratch.target(), &rules, complain);
    (result, complaints)
}

fn unpack_well(scratch: &Scratch, stream: &[u8]) {
    unpack(scratch, stream, ASKED, false).0.unwrap();
}

fn refused(scratch: &Scratch, stream: &[u8]) -> String {
    format!("{:#}", unpack(scratch, stream, ASKED, false).0.unwrap_err())
}

fn remove(asked: &Path) {
    let Ok(metadata) = fs::symlink_metadata(asked) else { return };
    if metadata.is_dir() {
        fs::set_permissions(asked, fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_dir_all(asked).unwrap();
    } else {
        fs::remove_file(asked).unwrap();
    }
}

#[test]
fn nothing_but_what_was_asked_for_changes() {
    as_every_user(|| {
        let (scratch, sentinel) = world("hostile");
        let before = described(&scratch);
        for stream in hostile::all(&sentinel) {
            for keep_all in [false, true] {
                let (result, _) = unpack(&scratch, stream.reader(), ASKED, keep_all);
                assert_eq!(before, described(&scratch), "{}", stream.name);
                assert_eq!(result.is_err(), stream.is_refused, "{}: {result:?}", stream.name);
                remove(&scratch.target().join(ASKED));
            }
        }
    });
}

/// The same where the folder's contents were asked for, whose names are free: what lies beside the folder, and the folder
/// itself, stay as they are.
#[test]
fn contents_stay_below_their_folder() {
    as_every_user(|| {
        let (scratch, sentinel) = world("contents");
        for stream in hostile::all(&sentinel) {
            let mut before = described(&scratch);
            let (_result, _) = unpack(&scratch, stream.reader(), ".", true);
            let mut after = described(&scratch);
            for all in [&mut before, &mut after] {
                all.retain(|path, _| path == &scratch.target() || !path.starts_with(scratch.target()));
            }
            assert_eq!(before, after, "{}", stream.name);
            remove(&scratch.target().join(ASKED));
        }
    });
}

#[test]
fn what_root_could_give_is_given_on_request_alone() {
    as_every_user(|| {
        let odd = |kind, name: &str| {
            let mut header = hostile::Header::new(kind, name);
            header.mode(0o7755).owner(12345).device(1, 3).link("x").bytes()
        };
        let attributes = hostile::extended(&[
            hostile::record("SCHILY.xattr.user.note", b"kept"),
            hostile::record("SCHILY.xattr.trusted.note", b"root's"),
            hostile::record("SCHILY.acl.access", b"user::rwx,user:7:rwx,group::r-x,mask::rwx,other::r-x"),
        ]);
        let stream = hostile::archive(&[
            odd(b'5', "asked/"),
            [attributes, odd(b'0', "asked/file")].concat(),
            odd(b'2', "asked/link"),
            odd(b'6', "asked/pipe"),
            odd(b'3', "asked/null"),
            odd(b'4', "asked/disk"),
        ]);
        let me = geteuid().as_raw();
        let is_root = geteuid().is_root();
        for keep_all in [false, true] {
            let (scratch, _) = world("privileges");
            let (result, complaints) = unpack(&scratch, &stream[..], ASKED, keep_all);
            result.unwrap();
            let keeps_owners = keep_all && is_root;
            let asked = scratch.target().join(ASKED);
            let owner = if keeps_owners { 12345 } else { me };
            for name in ["", "file", "link", "pipe"] {
                let metadata = fs::symlink_metadata(asked.join(name)).unwrap();
                assert_eq!(metadata.uid(), owner, "{name}");
                let expected = if keep_all { 0o7000 } else { 0o1000 };
                assert!(
                    metadata.is_symlink() || metadata.mode() & 0o7000 == expected,
                    "{name}: {:o}",
                    metadata.mode()
                );
                assert_eq!(metadata.mtime(), 0o140_0000_0000, "{name}");
            }
            let devices = ["null", "disk"].map(|name| asked.join(name).symlink_metadata().is_ok());
            assert_eq!(devices, [keeps_owners; 2]);
            let expected: &[&str] = if keeps_owners {
                &[]
            } else {
                &["`asked/null` is a device and was left out", "`asked/disk` is a device and was left out"]
            };
            assert_eq!(complaints, expected);
            let mut names = [0; 4096];
            let count = listxattr(asked.join("file"), &mut names[..]).unwrap();
            let mut names: Vec<&str> = names[..count]
                .split(|byte| *byte == 0)
                .map(|name| std::str::from_utf8(name).unwrap())
                .collect();
            names.retain(|name| !name.is_empty());
            names.sort_unstable();
            let expected: &[&str] = match (keep_all, is_root) {
                (false, _) => &["user.note"],
                (true, false) => &["system.posix_acl_access", "user.note"],
                (true, true) => &["system.posix_acl_access", "trusted.note", "user.note"],
            };
            assert_eq!(names, expected);
        }
    });
}

#[test]
fn what_was_there_keeps_its_owner_mode_and_time() {
    as_every_user(|| {
        let (scratch, _) = world("there");
        let asked = scratch.target().join(ASKED);
        let below = asked.join("below");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("old"), b"old").unwrap();
        fs::hard_link(below.join("old"), scratch.0.join("other-name")).unwrap();
        fs::set_permissions(&below, fs::Permissions::from_mode(0o700)).unwrap();
        let stream = hostile::archive(&[
            hostile::directory("asked/", 0o777),
            hostile::directory("asked/below/", 0o777),
            hostile::directory("asked/new/", 0o750),
            hostile::file("asked/below/old", b"new"),
        ]);
        unpack_well(&scratch, &stream);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&below), mode(&asked.join("new"))), (0o700, 0o750));
        assert_ne!(fs::metadata(&asked).unwrap().mtime(), 0o140_0000_0000);
        assert_eq!(fs::metadata(asked.join("new")).unwrap().mtime(), 0o140_0000_0000);
        // A file is another one, not the old one with other content.
        assert_eq!(fs::read(below.join("old")).unwrap(), b"new");
        assert_eq!(fs::read(scratch.0.join("other-name")).unwrap(), b"old");
    });
}

#[test]
fn links_that_were_there_are_not_followed() {
    as_every_user(|| {
        let (scratch, _) = world("links");
        let outside = scratch.0.join("outside");
        fs::create_dir(&outside).unwrap();
        let asked = scratch.target().join(ASKED);
        fs::create_dir(&asked).unwrap();
        symlink(&outside, asked.join("d")).unwrap();
        symlink("../../sentinel", asked.join("f")).unwrap();
        let below =
            |name: &str| hostile::archive(&[hostile::directory("asked/", 0o755), hostile::file(name, b"x")]);
        assert_eq!(
            refused(&scratch, &below("asked/d/x")),
            "cannot write `asked/d/x`: `asked/d` is a symbolic link or leads through one, and none is followed"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        unpack_well(&scratch, &below("asked/f"));
        assert!(asked.join("f").symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read(scratch.0.join("sentinel")).unwrap(), b"precious");
    });
}

#[test]
fn hard_links_share_what_the_archive_brought() {
    as_every_user(|| {
        let (scratch, _) = world("hard");
        let stream = hostile::archive(&[
            hostile::directory("asked/", 0o755),
            hostile::file("asked/a", b"content"),
            hostile::link("asked/l", "nowhere"),
            hostile::hard_link("asked/b", "asked/a"),
            hostile::hard_link("asked/c", "asked/b"),
            hostile::hard_link("asked/c", "/asked/./a"),
            hostile::hard_link("asked/m", "asked/l"),
        ]);
        unpack_well(&scratch, &stream);
        let asked = scratch.target().join(ASKED);
        let inode = |name: &str| fs::symlink_metadata(asked.join(name)).unwrap().ino();
        assert_eq!([inode("b"), inode("c"), inode("m")], [inode("a"), inode("a"), inode("l")]);
        assert_eq!(fs::read(asked.join("c")).unwrap(), b"content");
        // One that was there before, although below what was asked for.
        fs::write(asked.join("old"), b"old").unwrap();
        let old = hostile::archive(&[
            hostile::directory("asked/", 0o755),
            hostile::hard_link("asked/x", "asked/old"),
        ]);
        assert_eq!(
            refused(&scratch, &old),
            "cannot write `asked/x`: cannot link it to `asked/old`: the archive has not brought it"
        );
    });
}

#[test]
fn refusals_name_what_is_wrong() {
    let (scratch, _) = world("names");
    for (stream, expected) in [
        (
            hostile::archive(&[hostile::file("other", b"")]),
            "the archive has the name `other`, and `asked` was asked for",
        ),
        (
            hostile::archive(&[hostile::directory("./", 0o777)]),
            "the archive has the name `.`, and `asked` was asked for",
        ),
        (hostile::archive(&[]), "the archive is none, or has no entry"),
        (hostile::file("asked", b"x"), "the archive is incomplete after `asked`"),
        (
            hostile::file("asked", b"x")[..512].to_vec(),
            "cannot write `asked`: the archive ends in the middle of an entry",
        ),
    ] {
        assert_eq!(refused(&scratch, &stream), expected);
    }
    let huge = hostile::archive(&[hostile::Header::new(b'0', ASKED)
        .size(1 << 32)
        .put(124, b"\x80\0\0\0\x10\0\0\0\0\0\0\0")
        .bytes()]);
    let said = refused(&scratch, &huge);
    assert!(said.starts_with("cannot write `asked`: it has 1152921504606846976 bytes, and "), "{said}");
    assert!(!scratch.target().join(ASKED).exists());
}

/// Somebody swaps a directory for a link, over and over, while an archive is unpacked into it.
#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    as_every_user(|| {
        let (scratch, _) = world("race");
        let asked = scratch.target().join(ASKED);
        fs::create_dir(&asked).unwrap();
        let outside = scratch.0.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("x"), b"precious").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).unwrap();
        symlink(&outside, scratch.0.join("link")).unwrap();
        let before = described(&scratch).remove(&outside);
        let entries: Vec<Vec<u8>> = (0..100)
            .flat_map(|number| {
                [
                    hostile::directory("asked/d/", 0o777),
                    hostile::file("asked/d/x", b"hostile"),
                    hostile::directory(&format!("asked/d/{number}/"), 0o777),
                    hostile::hard_link("asked/d/y", "asked/d/x"),
                ]
            })
            .collect();
        let stream = hostile::archive(&entries);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let (link, directory) = (scratch.0.join("link"), asked.join("d"));
                while !is_over.load(Ordering::Relaxed) {
                    let _ = renameat_with(CWD, &link, CWD, &directory, RenameFlags::EXCHANGE);
                    std::thread::yield_now();
                }
            });
            for round in 0..200 {
                // Both rules: what is one's own may be followed below the target, and nowhere else.
                let rules = match round % 2 {
                    0 => Rules::Own,
                    _ => Rules::Foreign { name: ASKED.into(), keep_all: true },
                };
                // Refused or taken, as it happens; an ordinary user may not give root's files to root.
                let _ = crate::archive::extract(&stream[..], &scratch.target(), &rules, &mut |_| {});
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(described(&scratch).remove(&outside), before);
        assert_eq!(fs::read(outside.join("x")).unwrap(), b"precious");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    });
}

#[test]
fn folders_are_finished_from_the_inside() {
    as_every_user(|| {
        let (scratch, _) = world("closed");
        let stream =
            hostile::archive(&[hostile::directory("asked/", 0), hostile::directory("asked/d/", 0o750)]);
        unpack_well(&scratch, &stream);
        let asked = scratch.target().join(ASKED);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&asked), 0);
        fs::set_permissions(&asked, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(mode(&asked.join("d")), 0o750);
    });
}

#[test]
fn zeros_become_holes() {
    let (scratch, _) = world("zeros");
    let content = [&[1; 5000][..], &[0; 1 << 20], &[2; 5000]].concat();
    unpack_well(&scratch, &hostile::archive(&[hostile::file(ASKED, &content)]));
    let asked = scratch.target().join(ASKED);
    assert!(fs::read(&asked).unwrap() == content);
    assert!(fs::metadata(&asked).unwrap().blocks() < 200);
}
