//! Two views of a root file system that must agree: of a folder on the host, and of an ext4 file without a loop device.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use camino::Utf8Path;
use mkext4::reader::Fs;
use sha2::{Digest as _, Sha256};

/// Everything that a container can see of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    /// Size and hash of a file's contents, a link's target, or a device's numbers.
    pub(crate) content: String,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path of the same inode, in the order of paths.
    pub(crate) same_as: String,
}

pub(crate) type View = BTreeMap<String, Node>;

fn escaped(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

/// What stands for a file's contents.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!(
        "{} bytes, {}",
        bytes.len(),
        Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>()
    )
}

/// Panics at the first difference, which is easier to read than two whole views.
pub(crate) fn assert_same(ours: &View, theirs: &View) {
    for (path, node) in theirs {
        assert_eq!(ours.get(path), Some(node), "the disk (left) and the folder differ at `{path}`");
    }
    for path in ours.keys() {
        assert!(theirs.contains_key(path), "only the disk has `{path}`");
    }
}

/// A folder as lstat(2) and its kin see it. The root is the empty path.
pub(crate) fn of_folder(root: &Utf8Path) -> View {
    let mut view = View::new();
    let mut first = BTreeMap::new();
    let mut ahead = vec![root.as_std_path().to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = ahead.pop() {
        if path.symlink_metadata().unwrap().is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push(path);
    }
    let relative = |path: &Path| escaped(path.strip_prefix(root).unwrap().as_os_str().as_bytes());
    paths.sort_by_key(|path| relative(path));
    for path in paths {
        let name = relative(&path);
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let device =
            || format!("{}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        use std::os::unix::fs::FileTypeExt as _;
        let (kind, content) = if kind.is_dir() {
            ("directory", String::new())
        } else if kind.is_file() {
            ("file", digest(&fs::read(&path).unwrap()))
        } else if kind.is_symlink() {
            ("link", escaped(fs::read_link(&path).unwrap().as_os_str().as_bytes()))
        } else if kind.is_char_device() {
            ("character device", device())
        } else if kind.is_block_device() {
            ("block device", device())
        } else if kind.is_fifo() {
            ("fifo", String::new())
        } else {
            panic!("what is {}?", path.display())
        };
        let same_as = first.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
        let node = Node {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
            content,
            xattrs: host_xattrs(&path),
            same_as,
        };
        view.insert(name, node);
    }
    view
}

fn host_xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 64 * 1024];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0_u8; 64 * 1024];
            let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// An ext4 file system in a file. `lost+found` is the file system's own and is left out.
pub(crate) fn of_disk(disk: &Utf8Path) -> View {
    check(disk);
    let fs = Fs::open(File::open(disk).unwrap()).unwrap();
    let mut paths: Vec<(Vec<u8>, u32)> = vec![(Vec::new(), 2)];
    let mut at = 0;
    while at < paths.len() {
        let (path, number) = paths[at].clone();
        at += 1;
        if fs.inode(number).unwrap().mode >> 12 != 0o04 {
            continue;
        }
        for entry in fs.read_dir(number).unwrap() {
            let is_own = path.is_empty() && entry.name == b"lost+found";
            if entry.name != b"." && entry.name != b".." && !is_own {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                paths.push(([&path, slash, &entry.name].concat(), entry.inode));
            }
        }
    }
    paths.sort_by_key(|(path, _)| escaped(path));
    let mut first = BTreeMap::new();
    let mut view = View::new();
    for (path, number) in paths {
        let name = escaped(&path);
        let same_as = first.entry(number).or_insert_with(|| name.clone()).clone();
        view.insert(name, node(&fs, number, same_as));
    }
    view
}

fn node(fs: &Fs<File>, number: u32, same_as: String) -> Node {
    let inode = fs.inode(number).unwrap();
    let device = || {
        let (major, minor) = inode.dev_numbers().unwrap();
        format!("{major}:{minor}")
    };
    let (kind, content) = match inode.mode >> 12 {
        0o04 => ("directory", String::new()),
        0o10 => ("file", digest(&fs.read_file(number).unwrap())),
        0o12 => ("link", escaped(&fs.symlink_target(number).unwrap())),
        0o02 => ("character device", device()),
        0o06 => ("block device", device()),
        0o01 => ("fifo", String::new()),
        other => panic!("what is type {other:o}?"),
    };
    // ext4 documentation, "Inode Timestamps": two more bits of seconds, thirty of nanoseconds.
    let seconds = i64::from(inode.mtime.cast_signed()) + (i64::from(inode.mtime_extra & 3) << 32);
    let xattrs = fs.xattrs(number).unwrap().into_iter().map(|entry| {
        let name = String::from_utf8(entry.full_name().unwrap()).unwrap();
        let value =
            if name.starts_with("system.posix_acl") { acl_as_xattr(&entry.value) } else { entry.value };
        (name, value)
    });
    Node {
        kind,
        mode: u32::from(inode.mode & 0o7777),
        owner: (inode.uid, inode.gid),
        mtime: (seconds, inode.mtime_extra >> 2),
        content,
        xattrs: xattrs.collect(),
        same_as,
    }
}

/// What the kernel makes of ext4's short form (fs/ext4/acl.c) when it is asked for the attribute.
fn acl_as_xattr(ext4: &[u8]) -> Vec<u8> {
    assert_eq!(ext4[..4], 1_u32.to_le_bytes());
    let mut xattr = 2_u32.to_le_bytes().to_vec();
    let mut rest = &ext4[4..];
    while !rest.is_empty() {
        let has_id = matches!(rest[0], 0x02 | 0x08);
        let (entry, after) = rest.split_at(if has_id { 8 } else { 4 });
        xattr.extend_from_slice(entry);
        if !has_id {
            xattr.extend_from_slice(&[0xff; 4]);
        }
        rest = after;
    }
    xattr
}

/// The file system's own checker finds nothing, and neither does the reader's.
pub(crate) fn check(disk: &Utf8Path) {
    let e2fsck = xtask::host::tools::find("e2fsck").expect("e2fsck is here").into_string();
    let output =
        duct::cmd!(e2fsck, "-fn", disk).stderr_to_stdout().stdout_capture().unchecked().run().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let issues = Fs::open(File::open(disk).unwrap()).unwrap().verify().unwrap();
    assert!(issues.is_empty(), "{issues:?}");
}
