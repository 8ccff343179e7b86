//! The disk of an image equals what `umoci unpack` makes of the same layers, field by field.

use camino::Utf8Path;
use proptest::prelude::*;
use tar_core::EntryType;

use crate::layers::{Tar, With, layout};
use crate::support::{Scratch, again_as_root};
use crate::view;

/// Makes a disk of a source, and gives it.
pub(crate) fn disk_of(scratch: &Scratch, source: &str) -> camino::Utf8PathBuf {
    let disk = scratch.path().join("disk.raw");
    let mut command =
        scratch.xtask(&["image", source, "--size", "64M", "--output", disk.as_str(), "--format", "raw"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    disk
}

fn assert_equals_umoci(layers: &[Vec<u8>]) {
    let scratch = Scratch::new();
    let image = layout(&scratch.path().join("layout"), layers);
    let ours = view::of_disk(&disk_of(&scratch, &format!("oci:{image}:v1")));
    let bundle = scratch.path().join("bundle");
    let unpack = duct::cmd!("umoci", "unpack", "--image", format!("{image}:v1"), &bundle);
    let output = unpack.stderr_to_stdout().stdout_capture().unchecked().run().unwrap();
    assert!(output.status.success(), "umoci: {}", String::from_utf8_lossy(&output.stdout));
    view::assert_same(&ours, &view::of_folder(&bundle.join("rootfs")));
}

#[test]
fn whiteouts_links_and_replacements() {
    if again_as_root("oracle::whiteouts_links_and_replacements") {
        return;
    }
    let bottom = Tar::new()
        .folder("./")
        .folder("etc/")
        .file("etc/passwd", "root")
        .file("etc/gone", "x")
        .folder("dir/")
        .file("dir/a", "a")
        .folder("dir/sub/")
        .file("dir/sub/b", "b")
        .folder("opaque/")
        .file("opaque/old", "old")
        .file("becomes-folder", "file")
        .folder("becomes-file/")
        .file("becomes-file/x", "x")
        .link("link", "etc/passwd")
        .file("first", "shared")
        .hardlink("second", "first")
        .file(b"\xe9-gone", "a name that is not UTF-8")
        .file(b"\xe9-kept", "another")
        .bytes();
    let middle = Tar::new()
        .entry(EntryType::Regular, "etc/.wh.gone", b"", &With::default())
        .entry(EntryType::Regular, "dir/.wh.sub", b"", &With::default())
        .folder("opaque/")
        .entry(EntryType::Regular, "opaque/.wh..wh..opq", b"", &With::default())
        .file("opaque/new", "new")
        .entry(EntryType::Regular, ".wh.becomes-folder", b"", &With::default())
        .folder("becomes-folder/")
        .file("becomes-folder/inside", "1")
        .file("becomes-file", "2")
        .hardlink("etc/third", "second")
        .entry(EntryType::Regular, b".wh.\xe9-gone", b"", &With::default())
        .hardlink(b"\xe9-again", b"\xe9-kept")
        .bytes();
    let top = Tar::new()
        .file("first", "own now")
        .entry(EntryType::Directory, "etc/", b"", &With { mode: 0o1711, owner: (7, 8), ..With::default() })
        .link("dir/a", "../etc/passwd")
        .bytes();
    assert_equals_umoci(&[bottom, middle, top]);
}

#[test]
fn a_path_through_a_link_stays_in_the_image() {
    if again_as_root("oracle::a_path_through_a_link_stays_in_the_image") {
        return;
    }
    let bottom = Tar::new()
        .folder("./")
        .folder("usr/")
        .folder("usr/lib/")
        .link("lib", "usr/lib")
        .link("out", "/../../../../usr/lib")
        .link("up", "../../../..")
        .bytes();
    let top =
        Tar::new().file("lib/through", "1").file("out/absolute", "2").folder("usr/lib/").folder("./").bytes();
    assert_equals_umoci(&[bottom, top]);
}

/// One thing that a layer does, in words that can be made valid for whatever is there: names are indexes.
#[derive(Debug, Clone)]
enum Step {
    Folder(u8),
    File(u8, Vec<u8>, u32, (u32, u32)),
    Link(u8, String),
    Hardlink(u8, u8),
    Fifo(u8),
    Device(u8, u32, u32),
    Attributed(u8, Vec<u8>),
    Whiteout(u8),
    Opaque(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let owner = (any::<u16>().prop_map(u32::from), 0..3_000_000_u32);
    prop_oneof![
        4 => any::<u8>().prop_map(Step::Folder),
        4 => (any::<u8>(), prop::collection::vec(any::<u8>(), 0..9000), 0..0o7777_u32, owner)
            .prop_map(|(name, content, mode, owner)| Step::File(name, content, mode, owner)),
        2 => (any::<u8>(), "[a-z/.]{1,90}").prop_map(|(name, target)| Step::Link(name, target)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(name, target)| Step::Hardlink(name, target)),
        1 => any::<u8>().prop_map(Step::Fifo),
        1 => (any::<u8>(), 1..4095_u32, 1..1_048_575_u32).prop_map(|(n, major, minor)| Step::Device(n, major, minor)),
        1 => (any::<u8>(), prop::collection::vec(any::<u8>(), 1..300)).prop_map(|(n, v)| Step::Attributed(n, v)),
        2 => any::<u8>().prop_map(Step::Whiteout),
        1 => any::<u8>().prop_map(Step::Opaque),
    ]
}

/// Few names, so that layers meet each other; some of them odd.
const NAMES: [&str; 8] = ["a", "b", "with space", "new\nline", "täst", "c.d", "-dash", "e"];

/// What is there while layers are made: paths, and whether each is a folder.
type Model = std::collections::BTreeMap<String, bool>;

/// A path whose parent is a folder of the model.
fn place(model: &Model, index: u8) -> String {
    let folders: Vec<&String> =
        model.iter().filter(|(_, is_folder)| **is_folder).map(|(path, _)| path).collect();
    let parent = folders[usize::from(index) / NAMES.len() % folders.len()];
    format!("{parent}{}", NAMES[usize::from(index) % NAMES.len()])
}

fn forget(model: &mut Model, path: &str) {
    model.retain(|known, _| known != path && !known.starts_with(&format!("{path}/")));
}

fn layer(model: &mut Model, steps: &[Step]) -> Vec<u8> {
    let mut tar = Tar::new();
    // What this layer has said a word about: whiteouts speak of lower layers, and are made of those alone.
    let mut touched: Vec<String> = Vec::new();
    for step in steps {
        let index = match step {
            Step::Folder(n) | Step::Fifo(n) | Step::Whiteout(n) | Step::Opaque(n) | Step::File(n, ..) => *n,
            Step::Link(n, _) | Step::Hardlink(n, _) | Step::Device(n, ..) | Step::Attributed(n, _) => *n,
        };
        let path = place(model, index);
        let as_folder = format!("{path}/");
        let is_folder = model.contains_key(&as_folder);
        if touched.iter().any(|known| known.starts_with(&path)) {
            continue;
        }
        let plain = With::default();
        let (kind, content, with): (EntryType, &[u8], With) = match step {
            Step::Folder(_) => {
                tar = tar.folder(&as_folder);
                if !is_folder {
                    forget(model, &path);
                }
                model.insert(as_folder, true);
                touched.push(path);
                continue;
            }
            Step::Whiteout(_) | Step::Opaque(_) => {
                let is_opaque = matches!(step, Step::Opaque(_));
                let known = is_folder || !is_opaque && model.contains_key(&path);
                if !known {
                    continue;
                }
                let (parent, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(p, n)| (p, n));
                let slash = if parent.is_empty() { "" } else { "/" };
                if is_opaque {
                    tar = tar.folder(&as_folder).entry(
                        EntryType::Regular,
                        format!("{as_folder}.wh..wh..opq"),
                        b"",
                        &plain,
                    );
                    forget(model, &path);
                    model.insert(as_folder, true);
                } else {
                    let marker = format!("{parent}{slash}.wh.{name}");
                    tar = tar.entry(EntryType::Regular, marker, b"", &plain);
                    forget(model, &path);
                    model.remove(&as_folder);
                }
                touched.push(path);
                continue;
            }
            Step::File(_, content, mode, owner) => {
                (EntryType::Regular, content, With { mode: *mode, owner: *owner, ..plain })
            }
            Step::Link(_, target) => {
                (EntryType::Symlink, b"", With { target: target.clone().into(), mode: 0o777, ..plain })
            }
            Step::Hardlink(_, other) => {
                let files: Vec<&String> = model
                    .iter()
                    .filter(|(known, folder)| !**folder && **known != path)
                    .map(|(known, _)| known)
                    .collect();
                if files.is_empty() {
                    continue;
                }
                let target = files[usize::from(*other) % files.len()].clone();
                // The target goes where it is below what is replaced.
                if target.starts_with(&as_folder) {
                    continue;
                }
                (EntryType::Link, b"", With { target: target.into(), ..plain })
            }
            Step::Fifo(_) => (EntryType::Fifo, b"", plain),
            Step::Device(_, major, minor) => {
                (EntryType::Char, b"", With { device: (*major, *minor), ..plain })
            }
            Step::Attributed(_, value) => {
                let xattrs = vec![("user.a", value.clone()), ("trusted.b", b"\n=\0".to_vec())];
                (EntryType::Regular, b"attributed", With { xattrs, mtime: "-12345.123456789", ..plain })
            }
        };
        tar = tar.entry(kind, &path, content, &with);
        forget(model, &path);
        model.remove(&as_folder);
        model.insert(path.clone(), false);
        touched.push(path);
    }
    // The time of every folder is what its last entry says, not when something was put into it.
    for folder in model.iter().filter(|(_, is_folder)| **is_folder).map(|(path, _)| path) {
        tar = tar.folder(if folder.is_empty() { "./" } else { folder });
    }
    tar.bytes()
}

#[test]
fn random_layers() {
    if again_as_root("oracle::random_layers") {
        return;
    }
    let config = ProptestConfig {
        cases: 24,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(layers in prop::collection::vec(prop::collection::vec(step(), 1..24), 1..4))| {
        let mut model = Model::from([(String::new(), true)]);
        let layers: Vec<Vec<u8>> = layers.iter().map(|steps| layer(&mut model, steps)).collect();
        assert_equals_umoci(&layers);
    });
}

/// The same layers give the same bytes, in whatever cache.
#[test]
fn the_same_image_gives_the_same_bytes() {
    let layers = [Tar::new().folder("./").file("a", "a").folder("b/").file("b/c", "c").bytes()];
    let disks = [0, 1].map(|_| {
        let scratch = Scratch::new();
        let image = layout(&scratch.path().join("layout"), &layers);
        std::fs::read(disk_of(&scratch, &format!("oci:{image}"))).unwrap()
    });
    assert!(disks[0] == disks[1]);
}

/// Used where a test needs only some image.
pub(crate) fn some_layout(folder: &Utf8Path) -> camino::Utf8PathBuf {
    let layers = [
        Tar::new().folder("./").folder("bin/").file("bin/app", "#!/bin/sh").bytes(),
        Tar::new().folder("etc/").file("etc/config", "1").bytes(),
    ];
    layout(folder, &layers)
}
