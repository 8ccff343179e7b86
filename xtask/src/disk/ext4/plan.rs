//! What a tree needs of a disk, and the number of each inode.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use super::attributes::Attributes;
use super::contents::runs;
use super::directory::{entry_bytes, most_blocks};
use super::extents::tree_blocks;
use super::format::{BLOCK, FIRST_INODE, ROOT_INODE, SHORT_TARGET};
use super::geometry::Geometry;
use crate::image::layer::{Special, Xattrs, display};
use crate::image::tree::{IMPLIED, Inode, InodeId, Kind, ROOT, Slot, Tree};

/// `i_mtime` has 34 bits, counted from 2^31 seconds before 1970 (ext4 documentation, "Inode Timestamps").
const TIMES: std::ops::Range<i64> = -(1 << 31)..(1 << 34) - (1 << 31);

/// Bytes of the longest file: blocks are counted in 32 bits, and the last number is none (`EXT_MAX_BLOCKS`).
const LARGEST_FILE: u64 = (u32::MAX as u64 - 1) * BLOCK;

/// The most names that a file can have (`EXT4_LINK_MAX`). Folders in a folder are not bound by it (`dir_nlink`).
pub(super) const MOST_LINKS: u16 = 65_000;

/// The largest device numbers (the kernel's `new_encode_dev`).
const LARGEST_DEVICE: (u32, u32) = (0xfff, 0xf_ffff);

/// What e2fsck expects in every root.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A tree that fits into ext4, and what it takes there.
#[derive(Debug)]
pub struct Plan {
    tree: Tree,
    /// Inodes' numbers on the disk, and their links; 0 where no name leads to one.
    numbers: Vec<u32>,
    links: Vec<u16>,
    /// Inodes beside the reserved ones.
    inodes: u32,
    blocks: u64,
}

impl Plan {
    /// Counts and checks. Errors name the entry that ext4 cannot hold.
    pub fn new(mut tree: Tree) -> anyhow::Result<Plan> {
        ensure_lost_and_found(&mut tree)?;
        let links = count_links(&tree)?;
        let mut plan = Plan { numbers: vec![0; links.len()], links, tree, inodes: 0, blocks: 0 };
        for id in plan.tree.ids().filter(|id| plan.links[id.index()] > 0) {
            if id == ROOT {
                plan.numbers[id.index()] = ROOT_INODE;
            } else {
                plan.numbers[id.index()] = FIRST_INODE + plan.inodes;
                plan.inodes += 1;
            }
            let blocks = blocks_of(&plan.tree, id).with_context(|| describe(&plan.tree, id))?;
            plan.blocks = plan.blocks.saturating_add(blocks);
        }
        Ok(plan)
    }

    /// The tree that was planned.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// An inode's number, or `None` where no name leads to it.
    pub(super) fn number(&self, id: InodeId) -> Option<u32> {
        Some(self.numbers[id.index()]).filter(|&number| number != 0)
    }

    /// How many names lead to an inode; of a directory, with its own and its folders' dots. Where those are too many
    /// it says 1 (`dir_nlink`).
    pub(super) fn links(&self, id: InodeId) -> u16 {
        let links = self.links[id.index()];
        if links > MOST_LINKS { 1 } else { links }
    }

    /// All inodes that have a name but the root, in the order of their numbers.
    pub(super) fn named(&self) -> impl Iterator<Item = (InodeId, u32)> {
        self.tree.ids().filter(|&id| id != ROOT).filter_map(|id| Some((id, self.number(id)?)))
    }

    /// Inodes beside the reserved ones.
    pub(super) fn inodes(&self) -> u64 {
        self.inodes.into()
    }

    /// Blocks of contents, directories, attributes and trees of extents, at most.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of contents and what else varies with them.
    pub fn data_bytes(&self) -> u64 {
        self.blocks.saturating_mul(BLOCK)
    }

    /// The smallest disk that surely holds the tree, in bytes.
    pub fn minimum_size(&self) -> u64 {
        Geometry::smallest(self.inodes(), self.blocks)
    }

    /// What a failure of an inode begins with.
    pub(super) fn describe(&self, id: InodeId) -> String {
        describe(&self.tree, id)
    }

    /// The file system's UUID: a hash of everything but contents, so that it is the same for the same image.
    pub(super) fn identifier(&self, size: u64) -> [u8; 16] {
        let mut hash = Sha256::new_with_prefix(size.to_le_bytes());
        for id in std::iter::once(ROOT).chain(self.named().map(|(id, _)| id)) {
            let Inode { metadata, kind, .. } = self.tree.inode(id);
            hash.update(metadata.mtime.0.to_le_bytes());
            hash.update(metadata.mode.to_le_bytes());
            if let Kind::File(content) = kind {
                hash.update(content.size.to_le_bytes());
            }
            for (name, slot) in self.tree.entries(id) {
                hash.update(self.numbers[slot.inode.index()].to_le_bytes());
                hash.update((name.len() as u64).to_le_bytes());
                hash.update(name);
            }
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&hash.finalize()[..16]);
        // RFC 9562: version 8 is for such home-made ones.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}

fn ensure_lost_and_found(tree: &mut Tree) -> anyhow::Result<()> {
    match tree.lookup(ROOT, LOST_AND_FOUND) {
        Some(there) => {
            let is_empty = tree.is_directory(there.inode) && tree.entries(there.inode).next().is_none();
            ensure!(is_empty, "`/lost+found` can only be an empty directory in an ext4 file system");
        }
        None => {
            let mut metadata = tree.inode(ROOT).metadata;
            (metadata.mode, metadata.uid, metadata.gid) = (0o700, IMPLIED.uid, IMPLIED.gid);
            let inode = tree.add(Kind::Directory, metadata, Xattrs::new())?;
            tree.link(ROOT, LOST_AND_FOUND, Slot { inode, layer: 0 })?;
        }
    }
    Ok(())
}

fn count_links(tree: &Tree) -> anyhow::Result<Vec<u16>> {
    let mut links = vec![0_u16; tree.ids().len()];
    // A directory has its parent's name for it, and its own dot.
    links[ROOT.index()] = 2;
    let mut ahead = vec![ROOT];
    while let Some(directory) = ahead.pop() {
        for (_, slot) in tree.entries(directory) {
            let count = &mut links[slot.inode.index()];
            if tree.is_directory(slot.inode) {
                *count = 2;
                ahead.push(slot.inode);
                let above = &mut links[directory.index()];
                *above = above.saturating_add(1);
            } else {
                *count += 1;
                ensure!(
                    *count <= MOST_LINKS,
                    "{}: it has more than {MOST_LINKS} names, which ext4 does not hold",
                    describe(tree, slot.inode)
                );
            }
        }
    }
    Ok(links)
}

/// Blocks that an inode takes at most. Errors where ext4 cannot hold it.
fn blocks_of(tree: &Tree, id: InodeId) -> anyhow::Result<u64> {
    let Inode { kind, metadata, xattrs } = tree.inode(id);
    let (seconds, _) = metadata.mtime;
    ensure!(TIMES.contains(&seconds), "its time {seconds} is outside what ext4 holds, 1901 to 2446");
    let attributes = Attributes::new(xattrs)?;
    let contents = match kind {
        Kind::Directory => most_blocks(tree.entries(id).map(|(name, _)| entry_bytes(name) as u64).sum()),
        Kind::File(content) => {
            ensure!(content.size <= LARGEST_FILE, "its {} bytes are more than ext4 holds", content.size);
            let runs = runs(&content);
            runs.iter().map(|run| run.length).sum::<u64>() + tree_blocks(&runs)
        }
        Kind::Symlink(target) => u64::from(target.len() >= SHORT_TARGET),
        Kind::Special(Special::CharDevice { major, minor } | Special::BlockDevice { major, minor }) => {
            let (most_major, most_minor) = LARGEST_DEVICE;
            ensure!(
                major <= most_major && minor <= most_minor,
                "its device number {major}:{minor} is more than Linux has, {most_major}:{most_minor}"
            );
            0
        }
        Kind::Special(Special::Fifo) => 0,
    };
    Ok(contents + u64::from(attributes.has_block()))
}

/// Names an inode by its first path, which is looked for from the root: for messages only.
fn describe(tree: &Tree, id: InodeId) -> String {
    let mut ahead = BTreeSet::from([(Vec::new(), ROOT)]);
    while let Some((path, directory)) = ahead.pop_first() {
        if directory == id {
            return format!(
                "failed to put {} into the disk",
                display(if path.is_empty() { b"/" } else { &path })
            );
        }
        for (name, slot) in tree.entries(directory) {
            if slot.inode == id || tree.is_directory(slot.inode) {
                ahead.insert(([&path[..], b"/", name].concat(), slot.inode));
            }
        }
    }
    "failed to put a file into the disk".into()
}
