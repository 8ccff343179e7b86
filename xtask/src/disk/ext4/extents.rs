//! The tree of extents that says where an inode's blocks are (`fs/ext4/ext4_extents.h`).
//!
//! Contents lie in one piece for each stored part of a file, so a tree is made from such pieces alone.

use super::format::{BLOCK_BYTES, Seed};

/// Blocks that one extent can have (`EXT_INIT_MAX_LEN`).
const LONGEST: u64 = 1 << 15;

/// Entries in an inode, and in a block, whose last four bytes are a checksum.
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK_BYTES - HEADER - 4) / ENTRY;

/// Bytes of `struct ext4_extent_header`, and of an extent or an index.
const HEADER: usize = 12;
const ENTRY: usize = 12;

/// `EXT4_EXT_MAGIC`.
const MAGIC: u16 = 0xf30a;

/// Blocks of a file that are in one piece on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first one's number in the file.
    pub(super) block: u64,
    /// Their number.
    pub(super) length: u64,
}

/// Blocks that the tree itself takes beside its root in the inode.
pub(super) fn tree_blocks(runs: &[Run]) -> u64 {
    let mut entries: usize = runs.iter().map(|run| run.length.div_ceil(LONGEST) as usize).sum();
    let mut blocks = 0;
    while entries > IN_INODE {
        entries = entries.div_ceil(IN_BLOCK);
        blocks += entries;
    }
    blocks as u64
}

/// An extent of the file, or a block of the tree that begins with that block of the file.
#[derive(Debug, Clone, Copy)]
struct Entry {
    block: u64,
    /// 0 for a block of the tree.
    length: u64,
    on_disk: u64,
}

/// Makes the tree of runs that lie one behind the other, from block `data` of the disk on. Gives the root for the inode,
/// and the tree's [own blocks](tree_blocks), which will be at `own`.
pub(super) fn tree(runs: &[Run], data: u64, own: u64, seed: Seed) -> ([u8; 60], Vec<u8>) {
    let mut level = Vec::new();
    let mut on_disk = data;
    for run in runs {
        let mut done = 0;
        while done < run.length {
            let length = (run.length - done).min(LONGEST);
            level.push(Entry { block: run.block + done, length, on_disk });
            (done, on_disk) = (done + length, on_disk + length);
        }
    }
    let mut blocks = Vec::new();
    let mut depth = 0;
    while level.len() > IN_INODE {
        let mut above = Vec::with_capacity(level.len().div_ceil(IN_BLOCK));
        for entries in level.chunks(IN_BLOCK) {
            above.push(Entry {
                block: entries[0].block,
                length: 0,
                on_disk: own + (blocks.len() / BLOCK_BYTES) as u64,
            });
            let start = blocks.len();
            blocks.resize(start + BLOCK_BYTES, 0);
            write_node(&mut blocks[start..], entries, depth, IN_BLOCK);
            let end = start + BLOCK_BYTES - 4;
            let sum = seed.checksum(&blocks[start..end]);
            blocks[end..].copy_from_slice(&sum.to_le_bytes());
        }
        level = above;
        depth += 1;
    }
    let mut root = [0; 60];
    write_node(&mut root, &level, depth, IN_INODE);
    (root, blocks)
}

fn write_node(node: &mut [u8], entries: &[Entry], depth: u16, room: usize) {
    let header = [MAGIC, entries.len() as u16, room as u16, depth];
    for (field, value) in node.chunks_exact_mut(2).zip(header) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    for (place, entry) in node[HEADER..].chunks_exact_mut(ENTRY).zip(entries) {
        let (low, high) = (entry.on_disk as u32, (entry.on_disk >> 32) as u16);
        place[..4].copy_from_slice(&(entry.block as u32).to_le_bytes());
        if depth == 0 {
            place[4..6].copy_from_slice(&(entry.length as u16).to_le_bytes());
            place[6..8].copy_from_slice(&high.to_le_bytes());
            place[8..].copy_from_slice(&low.to_le_bytes());
        } else {
            place[4..8].copy_from_slice(&low.to_le_bytes());
            place[8..10].copy_from_slice(&high.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_takes_the_blocks_that_it_says() {
        let seed = Seed::new(&[7; 16]);
        for (parts, length) in
            [(0, 1), (1, 1), (1, 4 << 15), (1, (4 << 15) + 1), (5, 1), (341, 9), (1361, 2), (99_999, 1)]
        {
            let runs: Vec<Run> = (0..parts).map(|part| Run { block: part * length * 2, length }).collect();
            let (root, blocks) = tree(&runs, 1000, 10, seed);
            assert_eq!(blocks.len() as u64, tree_blocks(&runs) * BLOCK_BYTES as u64, "{parts} of {length}");
            assert_eq!(root[..2], MAGIC.to_le_bytes());
            assert!(root[2] <= 4);
        }
    }
}
