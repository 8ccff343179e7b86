use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::fs::{Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

use super::*;
use crate::archive::write_tree;

mod enemy;

/// As an archive of one's own, without a complaint.
fn extract(archive: impl Read, target: &Path) -> Result<()> {
    super::extract(archive, target, &Rules::Own, &mut |complaint| panic!("{complaint}"))
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("init-archive-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("target")).unwrap();
        Scratch(path)
    }

    fn target(&self) -> PathBuf {
        self.0.join("target")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An entry with the present user as its owner, so that tests need no privileges.
fn entry(kind: EntryType, path: &[u8], link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = EntryBuilder::new_ustar();
    header.entry_type(kind).path(path).link_name(link);
    header.mode(0o755).unwrap().size(content.len() as u64).unwrap().mtime(1_000_000).unwrap();
    header.uid(rustix::process::getuid().as_raw().into()).unwrap();
    header.gid(rustix::process::getgid().as_raw().into()).unwrap();
    let mut bytes = header.finish_bytes();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn refusal(scratch: &Scratch, bytes: &[u8]) -> String {
    format!("{:#}", extract(bytes, &scratch.target()).unwrap_err())
}

#[test]
fn a_tree_survives_the_way_out_and_in() {
    let scratch = Scratch::new("tree");
    let source = scratch.0.join("source");
    let odd = source.join(std::ffi::OsStr::from_bytes(b"odd \xff\n name"));
    let long = source.join("d".repeat(120)).join("e".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(&odd, b"odd").unwrap();
    fs::write(long.join("file"), vec![7; 100_000]).unwrap();
    fs::set_permissions(long.join("file"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(long.join("file"), source.join("same")).unwrap();
    symlink("../outside", source.join("link")).unwrap();
    symlink("x".repeat(300), source.join("long-link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, source.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    lsetxattr(&odd, "user.note", b"a\nb = \0c", XattrFlags::empty()).unwrap();
    set_time(&source.join("link"), -2, 5);
    set_time(&source, 5_000_000_000, 7);

    let mut bytes = Vec::new();
    write_tree(&mut bytes, &source, b"source", false, &mut |complaint| panic!("{complaint}")).unwrap();
    extract(&bytes[..], &scratch.target()).unwrap();
    let copy = scratch.target().join("source");

    let mut compared = 0;
    let mut to_do = vec![PathBuf::new()];
    while let Some(path) = to_do.pop() {
        let of = |metadata: fs::Metadata| {
            let size = if metadata.is_dir() { 0 } else { metadata.size() };
            (metadata.mode(), metadata.uid(), metadata.gid(), metadata.mtime(), metadata.mtime_nsec(), size)
        };
        let (before, after) = (source.join(&path), copy.join(&path));
        let metadata = fs::symlink_metadata(&before).unwrap();
        assert_eq!(of(metadata.clone()), of(fs::symlink_metadata(&after).unwrap()), "{path:?}");
        if metadata.is_dir() {
            let children = |directory: &Path| -> Vec<PathBuf> {
                let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
                let mut names: Vec<PathBuf> = names.map(|name| path.join(name)).collect();
                names.sort();
                names
            };
            assert_eq!(children(&before), children(&after));
            to_do.extend(children(&before));
        } else if metadata.is_symlink() {
            assert_eq!(fs::read_link(&before).unwrap(), fs::read_link(&after).unwrap());
        } else if metadata.is_file() {
            assert_eq!(fs::read(&before).unwrap(), fs::read(&after).unwrap());
        }
        compared += 1;
    }
    assert_eq!(compared, 9);
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(
        inode(&copy.join("same")),
        inode(&copy.join(long.strip_prefix(&source).unwrap()).join("file"))
    );
    let mut value = [0; 32];
    let count =
        rustix::fs::lgetxattr(copy.join(odd.file_name().unwrap()), "user.note", &mut value[..]).unwrap();
    assert_eq!(value[..count], *b"a\nb = \0c");
}

#[test]
fn gnu_tar_agrees() {
    let scratch = Scratch::new("gnu");
    let source = scratch.0.join("source");
    let long = source.join("m".repeat(80));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("n".repeat(90)), vec![1; 3000]).unwrap();
    symlink("n", long.join("link")).unwrap();
    let mut bytes = Vec::new();
    write_tree(&mut bytes, &source, b".", false, &mut |complaint| panic!("{complaint}")).unwrap();
    fs::write(scratch.0.join("ours.tar"), bytes).unwrap();
    let tar = |arguments: &[&str]| {
        let output =
            std::process::Command::new("tar").args(arguments).current_dir(&scratch.0).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    tar(&["-C", "target", "-xf", "ours.tar"]);
    tar(&["-C", "target", "--compare", "-f", "ours.tar"]);
    for format in ["gnu", "pax", "ustar"] {
        tar(&["-C", "source", &format!("--format={format}"), "-cf", "theirs.tar", "."]);
        let target = scratch.0.join(format);
        fs::create_dir(&target).unwrap();
        extract(fs::File::open(scratch.0.join("theirs.tar")).unwrap(), &target).unwrap();
        tar(&["-C", format, "--compare", "-f", "theirs.tar"]);
    }
}

#[test]
fn holes_stay_holes() {
    let scratch = Scratch::new("holes");
    let mut file = File::create(scratch.0.join("sparse")).unwrap();
    file.write_all(&[1; 4096]).unwrap();
    file.seek(SeekFrom::Start(50 << 20)).unwrap();
    file.write_all(&[2; 100]).unwrap();
    file.set_len(60 << 20).unwrap();
    for format in ["gnu", "pax"] {
        let mut tar = std::process::Command::new("tar");
        tar.args(["--sparse", &format!("--format={format}"), "-cf", "sparse.tar", "sparse"]);
        assert!(tar.current_dir(&scratch.0).status().unwrap().success());
        assert!(fs::metadata(scratch.0.join("sparse.tar")).unwrap().len() < 100_000);
        extract(File::open(scratch.0.join("sparse.tar")).unwrap(), &scratch.target()).unwrap();
        let copy = scratch.target().join("sparse");
        assert!(fs::read(&copy).unwrap() == fs::read(scratch.0.join("sparse")).unwrap(), "{format}");
        assert!(fs::metadata(&copy).unwrap().blocks() < 1000);
    }
}

#[test]
fn nothing_leads_out() {
    let scratch = Scratch::new("out");
    let outside = scratch.0.join("outside");
    fs::create_dir(&outside).unwrap();
    let upward = archive(&[entry(EntryType::Regular, b"a/../../outside/x", b"", b"x")]);
    assert_eq!(
        refusal(&scratch, &upward),
        "the archive has the name `a/../../outside/x`, which leads out of the directory"
    );
    for target in [&b"../outside"[..], outside.as_os_str().as_bytes()] {
        let through = archive(&[
            entry(EntryType::Symlink, b"link", target, b""),
            entry(EntryType::Regular, b"link/x", b"", b"x"),
        ]);
        assert_eq!(
            refusal(&scratch, &through),
            "cannot write `link/x`: `link` leads out of the directory by a symbolic link"
        );
        let hard = archive(&[
            entry(EntryType::Symlink, b"link", target, b""),
            entry(EntryType::Link, b"y", b"link/secret", b""),
        ]);
        fs::write(outside.join("secret"), b"").unwrap();
        assert!(refusal(&scratch, &hard).contains("leads out of the directory"));
        fs::remove_file(outside.join("secret")).unwrap();
    }
    // A file takes the place of a link and is not written through it.
    let over = archive(&[
        entry(EntryType::Symlink, b"file", b"../outside/x", b""),
        entry(EntryType::Regular, b"file", b"", b"inside"),
    ]);
    extract(&over[..], &scratch.target()).unwrap();
    assert_eq!(fs::read(scratch.target().join("file")).unwrap(), b"inside");
    // An absolute name is one in the directory.
    extract(&archive(&[entry(EntryType::Regular, b"/abs/x", b"", b"x")])[..], &scratch.target()).unwrap();
    assert!(scratch.target().join("abs/x").is_file());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn links_inside_are_followed() {
    let scratch = Scratch::new("inside");
    fs::create_dir(scratch.target().join("run")).unwrap();
    symlink("run", scratch.target().join("var-run")).unwrap();
    let bytes = archive(&[
        entry(EntryType::Directory, b"var-run/", b"", b""),
        entry(EntryType::Regular, b"var-run/x", b"", b"x"),
    ]);
    extract(&bytes[..], &scratch.target()).unwrap();
    assert!(scratch.target().join("run/x").is_file());
    assert!(scratch.target().join("var-run").is_symlink());
}

#[test]
fn what_cannot_be_written_is_named() {
    let scratch = Scratch::new("named");
    fs::create_dir(scratch.target().join("directory")).unwrap();
    fs::write(scratch.target().join("file"), b"").unwrap();
    let of = |kind, path: &[u8], link: &[u8]| refusal(&scratch, &archive(&[entry(kind, path, link, b"")]));
    assert_eq!(
        of(EntryType::Regular, b"directory", b""),
        "cannot write `directory`: cannot replace a directory by a file"
    );
    assert_eq!(
        of(EntryType::Directory, b"file/", b""),
        "cannot write `file`: cannot replace a file by a directory"
    );
    assert_eq!(
        of(EntryType::Regular, b"file/x", b""),
        "cannot write `file/x`: cannot enter `file`: Not a directory (os error 20)"
    );
    assert_eq!(
        of(EntryType::Link, b"hard", b"no/such"),
        "cannot write `hard`: cannot link it to `no/such`: cannot enter `no/such`: No such file or directory (os error 2)"
    );
    let whole = archive(&[entry(EntryType::Regular, b"x", b"", &[1; 2000])]);
    for (length, expected) in [
        (100, "the archive is none, or has no entry: the archive ends in the middle of an entry"),
        (700, "cannot write `x`: the archive ends in the middle of an entry"),
        (2500, "cannot write `x`: the archive ends in the middle of an entry"),
        (2560, "the archive is incomplete after `x`"),
        (whole.len() - 512, "the archive is incomplete after `x`"),
    ] {
        assert_eq!(refusal(&scratch, &whole[..length]), expected, "{length}");
        assert_eq!(scratch.target().join("x").exists(), length >= 2560, "half a file is none");
    }
    assert!(
        refusal(&scratch, &[b'x'; 2048]).starts_with("the archive is none, or has no entry: it does not")
    );
    let missing = extract(&whole[..], &scratch.0.join("missing")).unwrap_err();
    assert!(format!("{missing:#}").contains("/missing`: No such file or directory"));
}

#[test]
fn an_archive_of_one_s_own_describes_what_was_there() {
    let scratch = Scratch::new("own");
    let directory = scratch.target().join("d");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    extract(&archive(&[entry(EntryType::Directory, b"d/", b"", b"")])[..], &scratch.target()).unwrap();
    let metadata = fs::metadata(&directory).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o755, 1_000_000));
    let mut header = EntryBuilder::new_ustar();
    header.entry_type(EntryType::Fifo).path("pipe").mode(0o600).unwrap().mtime(0).unwrap();
    header.uid(u32::MAX.into()).unwrap().gid(0).unwrap();
    let said = refusal(&scratch, &archive(&[header.finish_bytes()]));
    assert_eq!(said, "cannot write `pipe`: its owner is out of range");
}
