//! `cp` between the host and a machine, in an image that has nothing to help with it.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

use crate::support::Scratch;
use crate::world::{Detached, busybox_image, xtask};

/// An image that holds one static program and nothing else: no shell, no `tar`, no `/etc`.
fn bare_machine(scratch: &Scratch) -> Detached {
    let source = format!("rootfs:{}", busybox_image(scratch, ""));
    Detached::boot("copy", &[&source, "--", "/busybox", "sleep", "100000"])
}

/// Files of every kind that a plain user can make, with names and times that are easily lost.
fn odd_tree(folder: &Utf8Path) {
    let odd = |name: &[u8]| folder.as_std_path().join(OsStr::from_bytes(name));
    fs::create_dir_all(odd(b"deep/er/and/empty")).unwrap();
    for name in
        [&b"new\nline"[..], b"\xff\xfe not utf-8", b"-dash", b" space ", b"back\\slash", b"quo\"te'", b"*"]
    {
        fs::write(odd(name), name).unwrap();
    }
    fs::write(odd(b"deep/big"), vec![7; 3 << 20]).unwrap();
    fs::set_permissions(odd(b"deep/big"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(odd(b"deep/er"), fs::Permissions::from_mode(0o1750)).unwrap();
    fs::hard_link(odd(b"deep/big"), odd(b"another-name")).unwrap();
    symlink("nowhere/\u{e9}", odd(b"dangling")).unwrap();
    let sparse = fs::File::create(odd(b"sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.set_modified(SystemTime::UNIX_EPOCH - Duration::new(86_400, 5)).unwrap();
    let late = SystemTime::UNIX_EPOCH + Duration::new(5_000_000_000, 123_456_789);
    fs::File::open(odd(b"-dash")).unwrap().set_modified(late).unwrap();
    lsetxattr(odd(b"*"), "user.odd", b"\0value", XattrFlags::empty()).unwrap();
}

/// All that `find` knows of a tree, sorted.
fn described(folder: &Utf8Path) -> Vec<u8> {
    let output = Command::new("find")
        .args([".", "-printf", r"%P %y %m %U %G %T@ %s %l %n\0"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success());
    let mut entries: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
    entries.sort_unstable();
    entries.join(&b'\n')
}

fn copy(from: &str, to: &str) -> (String, Option<i32>) {
    run(&["cp", from, to])
}

fn run(words: &[&str]) -> (String, Option<i32>) {
    let output = xtask(words).output().unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

#[test]
fn a_tree_goes_in_and_comes_out_as_it_was() {
    let scratch = Scratch::new();
    let machine = bare_machine(&scratch);
    let tree = scratch.path().join("tree");
    odd_tree(&tree);
    let inside = |path: &str| format!("{}:{path}", machine.name);
    let came_out = |name: &str| scratch.path().join(name);

    assert_eq!(copy(tree.as_str(), &inside("/moved")), (String::new(), Some(0)));
    assert_eq!(run(&["cp", "-a", &inside("/moved"), came_out("back").as_str()]), (String::new(), Some(0)));
    let (before, after) = (described(&tree), described(&came_out("back")));
    assert!(before == after, "{}\n--- became\n{}", before.escape_ascii(), after.escape_ascii());
    let same =
        Command::new("diff").args(["-r", "--no-dereference"]).arg(&tree).arg(came_out("back")).status();
    assert!(same.unwrap().success());
    let mut value = [0; 16];
    let length = lgetxattr(came_out("back/*").as_std_path(), "user.odd", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"\0value");
    let space = |path: Utf8PathBuf| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap());
    assert!(space(came_out("back/sparse")) < 2048, "holes were filled");

    // What could act for somebody else comes on request alone.
    assert_eq!(copy(&inside("/moved/deep/big"), came_out("plain").as_str()), (String::new(), Some(0)));
    assert_eq!(fs::metadata(came_out("plain")).unwrap().permissions().mode() & 0o7777, 0o711);

    // Into a folder that exists, its contents alone, and one file under a new name.
    fs::create_dir(came_out("folder")).unwrap();
    assert_eq!(copy(&inside("/moved/deep"), came_out("folder").as_str()).1, Some(0));
    assert_eq!(fs::read(came_out("folder/deep/big")).unwrap().len(), 3 << 20);
    assert_eq!(copy(&inside("/moved/deep/."), came_out("folder").as_str()).1, Some(0));
    assert!(came_out("folder/er/and/empty").is_dir());
    assert_eq!(copy(came_out("back/-dash").as_str(), &inside("/new-name")).1, Some(0));
    assert_eq!(copy(&inside("/new-name"), came_out("file").as_str()).1, Some(0));
    assert_eq!(fs::read(came_out("file")).unwrap(), b"-dash");

    let (talk, code) = copy(&inside("/no/such"), came_out("none").as_str());
    assert!(talk.contains("/no/such") && talk.contains("No such file"), "{talk}");
    assert_eq!(code, Some(125));
    let (talk, code) = copy("/etc/hostname", &inside("/no/such/folder/name"));
    assert!(talk.contains("`/no/such/folder`"), "{talk}");
    assert_eq!(code, Some(125));
    let (talk, code) = copy("/etc/hostname", &inside("/new-name/"));
    assert!(talk.contains("`/new-name/`: Not a directory"), "{talk}");
    assert_eq!(code, Some(125));
    assert_eq!(copy("/etc", "/tmp").1, Some(2));

    // As streams, which GNU tar reads and writes.
    let stream = xtask(&["cp", &inside("/moved"), "-"]).output().unwrap().stdout;
    fs::create_dir(came_out("unpacked")).unwrap();
    let mut tar = Command::new("tar")
        .args(["-x", "-C"])
        .arg(came_out("unpacked"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(&stream).unwrap();
    assert!(tar.wait().unwrap().success());
    let same = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(&tree)
        .arg(came_out("unpacked/moved"))
        .status();
    assert!(same.unwrap().success());
    let mut tar =
        Command::new("tar").args(["-c", "-C"]).arg(&tree).arg("deep").stdout(Stdio::piped()).spawn().unwrap();
    let into = xtask(&["cp", "-", &inside("/")]).stdin(tar.stdout.take().unwrap()).status().unwrap();
    assert!(into.success() && tar.wait().unwrap().success());
    assert_eq!(copy(&inside("/deep/big"), came_out("big").as_str()).1, Some(0));
    assert_eq!(fs::read(came_out("big")).unwrap().len(), 3 << 20);
    let garbage =
        xtask(&["cp", "-", &inside("/")]).stdin(fs::File::open(came_out("big")).unwrap()).output().unwrap();
    assert_eq!(garbage.status.code(), Some(125), "{}", String::from_utf8_lossy(&garbage.stderr));

    // No shell, and no program but one.
    let shell = machine.task("shell", &[], &[]).output().unwrap();
    let talk = String::from_utf8_lossy(&shell.stderr);
    assert!(
        talk.contains("the image has no shell: looked for ") && talk.contains("cargo xtask exec"),
        "{talk}"
    );
    assert_eq!(shell.status.code(), Some(127));
    let echo = machine.task("exec", &[], &["/busybox", "echo", "all there is"]).output().unwrap();
    assert_eq!(echo.stdout, b"all there is\n");
}
