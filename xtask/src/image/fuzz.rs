//! What must hold for any input at all: the bodies of the fuzz targets in `fuzz/`, which the tests run too.
//!
//! They panic where something does not hold. An input that is refused is fine.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::str::FromStr as _;

use init::archive::{Rules, extract};

use super::dockerignore::DockerIgnore;
use super::flatten::{Whiteouts, flatten};
use super::layer::Layer;
use super::oci::Manifest;
use super::reference::Reference;
use super::source::Source;
use super::tree::{Kind, ROOT, Tree};
use super::{archive, dockerfile, rootfs_tar};
use crate::disk::ext4;

/// A tar's header and content blocks, in bytes.
const BLOCK: usize = 512;

/// The size of the disks that are written, in bytes.
const DISK: u64 = 16 << 20;

/// Contents beyond this are not compared: a sparse file of a few bytes may claim to be of terabytes.
const LARGEST: u64 = 1 << 20;

/// A layer is laid over nothing and then over itself, and what comes out survives being archived and read again.
pub fn layer(input: &[u8]) {
    let Some(layer) = layer_of(&with_checksums(input)) else { return };
    for whiteouts in [Whiteouts::Apply, Whiteouts::Ignore] {
        let layers = [layer.clone(), layer.clone()];
        let Ok(tree) = flatten(&layers, whiteouts) else { continue };
        write_disk(&tree, &layers);
        if contents(&tree).iter().any(|size| *size > LARGEST) {
            continue;
        }
        let mut archived = Vec::new();
        if rootfs_tar::write(&tree, &layers, &mut archived).is_err() {
            continue;
        }
        let Some(again) = layer_of(&archived) else { return };
        let again = flatten(&[again], Whiteouts::Ignore);
        assert!(again.is_ok(), "what was archived cannot be read: {again:?}");
        let again = again.unwrap_or_default();
        assert_eq!(names(&tree, ROOT), names(&again, ROOT));
        assert_eq!(contents(&tree), contents(&again));
    }
}

/// Refused or written, where it is small: contents and metadata find their places without a panic.
fn write_disk(tree: &Tree, layers: &[Layer]) {
    let Ok(plan) = ext4::Plan::new(tree.clone()) else { return };
    if plan.minimum_size() > DISK {
        return;
    }
    if let Ok(file) = tempfile::tempfile() {
        let _ = plan.write(layers, &file, DISK, |_| {});
    }
}

/// The input with every header's checksum right: wrong ones would keep most inputs out of the parser's inside. What
/// headers say of contents, and the zeros at the end, are left alone.
pub fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<BLOCK>()) {
        at += BLOCK;
        if header.iter().all(|&byte| byte == 0) {
            continue;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        // Links, devices, folders and pipes have no contents, whatever their size says.
        let has_contents = !(b'1'..=b'6').contains(&header[156]);
        let size = header[124..136].iter().take_while(|byte| byte.is_ascii_digit());
        let size =
            size.fold(0_usize, |size, byte| size.wrapping_mul(8).wrapping_add(usize::from(byte - b'0')));
        if has_contents {
            at = at.saturating_add(size.min(input.len())).next_multiple_of(BLOCK);
        }
    }
    bytes
}

fn layer_of(bytes: &[u8]) -> Option<Layer> {
    let mut file = tempfile::tempfile().ok()?;
    file.write_all(bytes).ok()?;
    Layer::whole(file, "the input").ok()
}

/// Names of what is in a folder and below it, parents first.
fn names(tree: &Tree, folder: super::tree::InodeId) -> Vec<Box<[u8]>> {
    let mut found = Vec::new();
    let mut ahead = vec![folder];
    while let Some(here) = ahead.pop() {
        for (name, slot) in tree.sorted_entries(here) {
            found.push(name.into());
            ahead.push(slot.inode);
        }
    }
    found
}

/// The sizes of all files that have a name.
fn contents(tree: &Tree) -> Vec<u64> {
    let mut found = Vec::new();
    let mut ahead = vec![ROOT];
    while let Some(here) = ahead.pop() {
        for (_, slot) in tree.sorted_entries(here) {
            match tree.inode(slot.inode).kind {
                Kind::File(content) => found.push(content.size),
                Kind::Directory => ahead.push(slot.inode),
                _ => {}
            }
        }
    }
    found
}

/// What a machine sends to `cp` changes nothing beside what was asked for, and what anybody unpacks nothing outside its target.
pub fn extraction(input: &[u8]) {
    let archive = with_checksums(input);
    let Ok(folder) = tempfile::tempdir() else { return };
    let (target, sentinel) = (folder.path().join("target"), folder.path().join("sentinel"));
    let beside = target.join("beside");
    let made = fs::create_dir(&target).and_then(|()| fs::write(&sentinel, b"precious"));
    if made.and_then(|()| fs::write(&beside, b"precious")).is_err() {
        return;
    }
    let known = |path: &std::path::Path| {
        let metadata = fs::symlink_metadata(path).ok()?;
        let content = if metadata.is_file() { fs::read(path).ok()? } else { Vec::new() };
        let owner = (metadata.mode(), metadata.uid(), metadata.gid());
        let links = if metadata.is_file() { metadata.nlink() } else { 0 };
        Some((owner, links, metadata.mtime(), content))
    };
    let foreign = |name: &str, keep_all| Rules::Foreign { name: name.into(), keep_all };
    for rules in [foreign("asked", false), foreign("asked", true), foreign(".", true), Rules::Own] {
        let before = [&*sentinel, &*beside].map(known);
        let mode = known(&target).map(|(owner, ..)| owner);
        let _ = extract(&archive[..], &target, &rules, &mut |_| {});
        let after = [&*sentinel, &*beside].map(known);
        assert_eq!(before[0], after[0], "{rules:?}");
        let names: Vec<_> = fs::read_dir(folder.path()).into_iter().flatten().flatten().collect();
        assert_eq!(names.len(), 2, "{names:?}");
        if let Rules::Foreign { name, .. } = &rules {
            assert_eq!(mode, known(&target).map(|(owner, ..)| owner), "{rules:?}");
            assert!(name == b"." || before[1] == after[1], "{rules:?}");
        }
    }
}

/// Patterns are read and matched, whatever they are; and a pattern that is a path's own letters matches the path.
pub fn dockerignore(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (path, patterns) = text.split_once('\n').unwrap_or((text, ""));
    let ignore = DockerIgnore::parse(patterns);
    let _ = (ignore.ignores(path), ignore.has_exceptions());
    let is_plain = |name: &str| !matches!(name, "" | "." | "..") && name == name.trim();
    let is_path =
        path.split('/').all(is_plain) && !path.starts_with(['!', '#', '\u{feff}']) && !path.contains('\r');
    if is_path {
        let escaped: String = path
            .chars()
            .flat_map(|letter| if letter == '/' { vec![letter] } else { vec!['\\', letter] })
            .collect();
        assert!(DockerIgnore::parse(&escaped).ignores(path), "{escaped}");
        assert!(!DockerIgnore::parse(&format!("{escaped}\n!{escaped}")).ignores(path), "{escaped}");
    }
}

/// A Dockerfile's text and a program's bytes are read, whatever they are.
pub fn dockerfile(input: &[u8]) {
    let _ = dockerfile::names_an_interpreter(input);
    let text = String::from_utf8_lossy(input);
    let _ = dockerfile::mentions_init(&text);
    assert!(dockerfile::host_programs(&text).all(|name| !name.contains('\n')));
}

/// A name that is accepted is written in full, and means the same when it is read again.
pub fn reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(reference) = Reference::from_str(text) {
        let full = reference.to_string();
        assert_eq!(full.parse::<Reference>().ok(), Some(reference), "{full}");
    }
    if let Ok(source) = Source::parse(text, |_| false) {
        let _ = (source.short_name(), source.to_string());
    }
}

/// Manifests and configs are read or refused, and every digest that comes through is one.
pub fn manifest(input: &[u8]) {
    if let Ok(manifest) = Manifest::parse(input) {
        let digests: Vec<&str> = match &manifest {
            Manifest::Image { config, layers } => {
                std::iter::once(config).chain(layers).map(|blob| blob.digest.as_str()).collect()
            }
            Manifest::Index(entries) => entries.iter().map(|entry| entry.digest.as_str()).collect(),
        };
        assert!(digests.iter().all(|digest| digest.len() == 71 && !digest.contains(['/', '.'])));
    }
    if let Ok(config) = archive::Image::check_config(input) {
        let _ = config.resolve(&Default::default());
    }
}
