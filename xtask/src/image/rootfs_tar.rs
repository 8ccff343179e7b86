//! Writes a tree as one tar, for tools that take nothing else.

use std::collections::{HashMap, HashSet};
use std::io::Write;

use anyhow::Context as _;
use init::archive::format_time;
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

use super::blob::RangeReader;
use super::layer::{Content, Layer, Metadata, Segment, Special, display};
use super::tree::{Inode, InodeId, Kind, ROOT, Tree};

/// Writes everything below the root, and the root itself as `./`. Holes are written out as zeros.
pub fn write(tree: &Tree, layers: &[Layer], to: &mut impl Write) -> anyhow::Result<()> {
    // Of inodes that have several names: the first.
    let mut first_names: HashMap<InodeId, Vec<u8>> = HashMap::new();
    let has_several = with_several_names(tree);
    let mut ahead = vec![(b"./".to_vec(), ROOT)];
    while let Some((path, id)) = ahead.pop() {
        let inode = tree.inode(id);
        let failed = || format!("failed to archive {}", display(&path));
        let first = first_names.get(&id);
        to.write_all(&header(&path, &inode, first.map(Vec::as_slice)).with_context(failed)?)
            .with_context(failed)?;
        match &inode.kind {
            Kind::Directory => ahead.extend(tree.sorted_entries(id).iter().rev().map(|(name, slot)| {
                let end: &[u8] = if tree.is_directory(slot.inode) { b"/" } else { b"" };
                ([&path[..], name, end].concat(), slot.inode)
            })),
            Kind::File(content) if first.is_none() => copy(content, layers, to).with_context(failed)?,
            _ => {}
        }
        if has_several.contains(&id) {
            first_names.entry(id).or_insert(path);
        }
    }
    to.write_all(&[0; 1024]).context("failed to end the archive")
}

fn with_several_names(tree: &Tree) -> HashSet<InodeId> {
    let mut named = vec![false; tree.ids().len()];
    let mut several = HashSet::new();
    let mut ahead = vec![ROOT];
    while let Some(directory) = ahead.pop() {
        for (_, slot) in tree.entries(directory) {
            if tree.is_directory(slot.inode) {
                ahead.push(slot.inode);
            } else if std::mem::replace(&mut named[slot.inode.index()], true) {
                several.insert(slot.inode);
            }
        }
    }
    several
}

fn header(path: &[u8], inode: &Inode<'_>, first_name: Option<&[u8]>) -> anyhow::Result<Vec<u8>> {
    let Metadata { mode, uid, gid, mtime: (seconds, nanoseconds) } = inode.metadata;
    let mut entry = EntryBuilder::new_ustar();
    entry.path(path).mode(u32::from(mode))?.uid(u64::from(uid))?.gid(u64::from(gid))?;
    entry.mtime(seconds.clamp(0, 0o777_7777_7777) as u64)?;
    if nanoseconds != 0 || !(0..=0o777_7777_7777).contains(&seconds) {
        entry.add_pax("mtime", format_time((seconds, nanoseconds)));
    }
    for (name, value) in inode.xattrs {
        entry.add_pax(&format!("SCHILY.xattr.{name}"), value);
    }
    match (&inode.kind, first_name) {
        (_, Some(first)) => {
            entry.entry_type(EntryType::Link).link_name(first);
        }
        (Kind::Directory, _) => {
            entry.entry_type(EntryType::Directory);
        }
        (Kind::File(content), _) => {
            entry.entry_type(EntryType::Regular).size(content.size)?;
        }
        (Kind::Symlink(target), _) => {
            entry.entry_type(EntryType::Symlink).link_name(target);
        }
        (&Kind::Special(Special::CharDevice { major, minor }), _) => {
            entry.entry_type(EntryType::Char).device(major, minor)?;
        }
        (&Kind::Special(Special::BlockDevice { major, minor }), _) => {
            entry.entry_type(EntryType::Block).device(major, minor)?;
        }
        (Kind::Special(Special::Fifo), _) => {
            entry.entry_type(EntryType::Fifo);
        }
    }
    Ok(entry.finish_bytes())
}

fn copy(content: &Content, layers: &[Layer], to: &mut impl Write) -> anyhow::Result<()> {
    let whole = [Segment { offset: 0, length: content.size }];
    let (mut at, mut stored_at) = (0, content.offset);
    for part in content.sparse.as_deref().unwrap_or(&whole) {
        zeros(part.offset - at, to)?;
        let layer = Layer { start: stored_at, length: part.length, ..layers[content.layer as usize].clone() };
        std::io::copy(&mut RangeReader::new(&layer), to)?;
        (at, stored_at) = (part.offset + part.length, stored_at + part.length);
    }
    zeros(content.size - at, to)?;
    zeros(content.size.next_multiple_of(512) - content.size, to)
}

fn zeros(count: u64, to: &mut impl Write) -> anyhow::Result<()> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), count), to)?;
    Ok(())
}
