//! The file system where it is large or odd: indexed folders, trees of extents, blocks of attributes, the ends of disks.
//! Each disk is read by e2fsck and by another implementation. What a kernel makes of one is a boot test's.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use camino::Utf8PathBuf;
use xtask::disk::ext4::Plan;
use xtask::image::layer::{Content, Layer, Segment, Xattrs};
use xtask::image::tree::{IMPLIED, InodeId, Kind, ROOT, Slot, Tree};

use crate::support::Scratch;
use crate::view::{self, View};

/// A tree under construction, and one layer with the contents of all its files.
struct Made {
    scratch: Scratch,
    tree: Tree,
    contents: File,
    end: u64,
}

impl Made {
    fn new() -> Made {
        Made {
            scratch: Scratch::new(),
            tree: Tree::default(),
            contents: tempfile::tempfile().unwrap(),
            end: 0,
        }
    }

    fn put(&mut self, folder: InodeId, name: &[u8], kind: Kind<'_>, xattrs: Xattrs) -> InodeId {
        let inode = self.tree.add(kind, IMPLIED, xattrs).unwrap();
        self.tree.link(folder, name, Slot { inode, layer: 0 }).unwrap();
        inode
    }

    fn folder(&mut self, folder: InodeId, name: &str) -> InodeId {
        self.put(folder, name.as_bytes(), Kind::Directory, Xattrs::new())
    }

    fn file(&mut self, folder: InodeId, name: &[u8], bytes: &[u8]) -> InodeId {
        let content = self.content(bytes, None);
        self.put(folder, name, Kind::File(content), Xattrs::new())
    }

    /// Stores bytes. `sparse` are their parts' places and the file's size.
    fn content(&mut self, bytes: &[u8], sparse: Option<(Vec<Segment>, u64)>) -> Content {
        self.contents.write_all_at(bytes, self.end).unwrap();
        let offset = self.end;
        self.end += bytes.len() as u64;
        let (parts, size) = sparse.map_or((None, bytes.len() as u64), |(parts, size)| (Some(parts), size));
        Content { layer: 0, offset, size, sparse: parts.map(Into::into) }
    }

    fn plan(&self) -> Plan {
        Plan::new(self.tree.clone()).unwrap()
    }

    fn write(&self, plan: &Plan, size: u64) -> anyhow::Result<Utf8PathBuf> {
        let disk = self.scratch.path().join("disk.ext4");
        let layer = Layer::whole(self.contents.try_clone().unwrap(), "the contents").unwrap();
        plan.write(&[layer], &File::create(&disk).unwrap(), size, |_| {}).map(|()| disk)
    }

    /// The view of a disk of that size.
    fn view(&self, size: u64) -> (View, Utf8PathBuf) {
        let disk = self.write(&self.plan(), size).unwrap();
        (view::of_disk(&disk), disk)
    }
}

fn debugfs(disk: &Utf8PathBuf, request: &str) -> String {
    let debugfs = xtask::host::tools::find("debugfs").unwrap().into_string();
    let output = duct::cmd!(debugfs, "-R", request, disk).stderr_null().stdout_capture().run().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One block with room, one that is full to its last byte, one name more, two levels of index; the longest names, and
/// some that are not text.
#[test]
fn a_folder_holds_any_number_of_names() {
    let mut made = Made::new();
    // 253 entries of 16 bytes and the last one's 12 are the 4060 that a block has beside its dots and its checksum.
    let sizes = [("few", 3, 1), ("full", 253, 1), ("over", 254, 1), ("some", 1000, 20), ("long", 9000, 248)];
    for (folder, count, padding) in sizes {
        let folder = made.folder(ROOT, folder);
        for number in 0..count {
            let name = format!("{number:07}{}", "x".repeat(padding)).into_bytes();
            made.file(folder, &name, b"");
        }
        made.file(folder, b"\xff\xfe\x80", b"");
    }
    let (view, disk) = made.view(512 << 20);
    for (folder, count, _) in sizes {
        let names = view.keys().filter(|path| path.starts_with(&format!("{folder}/"))).count();
        assert_eq!(names, count + 1, "{folder}");
    }
    for folder in ["few", "full"] {
        assert!(debugfs(&disk, &format!("stat /{folder}")).contains("Flags: 0x80000"), "{folder}");
    }
    for (folder, levels) in [("over", 0), ("some", 0), ("long", 1)] {
        assert!(debugfs(&disk, &format!("stat /{folder}")).contains("Flags: 0x81000"), "{folder}");
        let dump = debugfs(&disk, &format!("htree_dump /{folder}"));
        assert!(dump.contains(&format!("Indirect levels: {levels}")), "{dump}");
    }
}

#[test]
fn a_file_has_any_number_of_parts() {
    let mut made = Made::new();
    let mut expected = BTreeMap::new();
    for (name, parts, length, step) in [
        ("four", 4, 4096, 8192),
        ("five", 5, 1, 8192),
        ("many", 3000, 5000, 20_000),
        ("touching", 900, 300, 4096),
    ] {
        let segments = (0..parts).map(|part| Segment { offset: part * step + 17, length }).collect();
        let bytes: Vec<u8> = (0..parts * length).map(|at| (at / length % 251) as u8 + 1).collect();
        let size = parts * step + 99_999;
        let mut whole = vec![0; size as usize];
        for (part, bytes) in bytes.chunks(length as usize).enumerate() {
            let at = part * step as usize + 17;
            whole[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let content = made.content(&bytes, Some((segments, size)));
        made.put(ROOT, name.as_bytes(), Kind::File(content), Xattrs::new());
        expected.insert(name, view::digest(&whole));
    }
    let (view, disk) = made.view(256 << 20);
    for (name, digest) in expected {
        assert_eq!(view[name].content, digest, "{name}");
    }
    // The inode, its blocks of indexes, their blocks of extents.
    assert!(debugfs(&disk, "stat /many").contains("(ETB1)"), "{}", debugfs(&disk, "stat /many"));
}

/// Beyond the longest extent, 128 MiB, and across groups.
#[test]
fn a_file_may_be_larger_than_an_extent() {
    let mut made = Made::new();
    let size = (300 << 20) + 1;
    made.contents.set_len(size).unwrap();
    made.contents.write_all_at(b"middle", 150 << 20).unwrap();
    let content = Content { layer: 0, offset: 0, size, sparse: None };
    made.put(ROOT, b"large", Kind::File(content), Xattrs::new());
    let disk = made.write(&made.plan(), 512 << 20).unwrap();
    view::check(&disk);
    let extents = debugfs(&disk, "dump_extents /large");
    assert_eq!(extents.lines().filter(|line| line.starts_with(" 0/ 0")).count(), 3, "{extents}");
    let dumped = made.scratch.path().join("dumped");
    debugfs(&disk, &format!("dump /large {dumped}"));
    let dumped = File::open(dumped).unwrap();
    let mut read = [0; 8];
    dumped.read_exact_at(&mut read, (150 << 20) - 1).unwrap();
    assert_eq!((&read, dumped.metadata().unwrap().len()), (b"\0middle\0", size));
}

#[test]
fn attributes_go_into_the_inode_and_then_into_a_block() {
    let mut made = Made::new();
    let mut expected = BTreeMap::new();
    for (file, sizes) in
        [("one", &[3][..]), ("full", &[60]), ("both", &[20, 300, 1]), ("block", &[3900]), ("many", &[7; 90])]
    {
        let xattrs: Xattrs = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| {
                let value: Box<[u8]> = (0..*size).map(|at| (at + number) as u8).collect();
                (format!("user.attribute-{number:02}").into(), value)
            })
            .collect();
        let known = xattrs.iter().map(|(name, value)| (name.to_string(), value.to_vec()));
        expected.insert(file, known.collect::<BTreeMap<_, _>>());
        made.put(ROOT, file.as_bytes(), Kind::Directory, xattrs);
    }
    let (view, _) = made.view(16 << 20);
    for (file, xattrs) in expected {
        assert_eq!(view[file].xattrs, xattrs, "{file}");
    }
}

/// A disk may end anywhere: in its first group, at a group's end, a block beyond.
#[test]
fn a_disk_is_whole_at_any_size() {
    const GROUP: u64 = 128 << 20;
    for size in [16 << 20, (16 << 20) + 4096, GROUP - 4096, GROUP, GROUP + 4096, 17 * GROUP - 8192, 8 << 30] {
        let mut made = Made::new();
        let folder = made.folder(ROOT, "folder");
        made.file(folder, b"file", b"contents");
        let (view, _) = made.view(size);
        assert_eq!(view["folder/file"].content, view::digest(b"contents"), "{size}");
    }
}

#[test]
fn the_smallest_disk_holds_its_tree_and_a_smaller_one_is_refused() {
    let mut made = Made::new();
    for number in 0..20_000_u32 {
        made.file(ROOT, format!("{number}").as_bytes(), &number.to_le_bytes());
    }
    let plan = made.plan();
    view::check(&made.write(&plan, plan.minimum_size()).unwrap());
    let error = made.write(&plan, plan.minimum_size() / 2).unwrap_err();
    assert!(error.to_string().contains("do not fit into a disk of"), "{error}");
}

#[test]
fn names_of_one_file_are_bounded_and_folders_in_one_folder_are_not() {
    let mut made = Made::new();
    let file = made.file(ROOT, b"0", b"");
    for number in 1..65_000 {
        let name = number.to_string();
        made.tree.link(ROOT, name.as_bytes(), Slot { inode: file, layer: 0 }).unwrap();
    }
    let parent = made.folder(ROOT, "parent");
    for number in 0..65_100 {
        made.folder(parent, &number.to_string());
    }
    let disk = made.write(&made.plan(), 2 << 30).unwrap();
    view::check(&disk);
    assert!(debugfs(&disk, "stat /0").contains("Links: 65000"));
    assert!(debugfs(&disk, "stat /parent").contains("Links: 1"));

    made.tree.link(ROOT, b"one-more", Slot { inode: file, layer: 0 }).unwrap();
    let error = Plan::new(made.tree).unwrap_err().to_string();
    assert!(error.contains("`/0`") && error.contains("more than 65000 names"), "{error}");
}
