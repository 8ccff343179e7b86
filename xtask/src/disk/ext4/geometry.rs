//! Where everything but contents lies on the disk.
//!
//! All groups' bitmaps and inodes are at the disk's beginning, as `mke2fs -E packed_meta_blocks` puts them, and the
//! superblock has no copies. So the inode tables are one array, the space for contents is one range that is filled from
//! its beginning, and what a bitmap says follows from how far that has gone.

use super::format::{BLOCK, BLOCK_BYTES, FIRST_INODE, INODE_BYTES};

/// As many blocks as one block of bitmap speaks of.
pub(super) const BLOCKS_PER_GROUP: u64 = BLOCK * 8;

/// As many inodes as one block of bitmap can speak of.
const MOST_INODES_PER_GROUP: u64 = BLOCK * 8;

/// Inodes in one block of their table; a group's table ends with a block.
const INODES_PER_BLOCK: u64 = (BLOCK_BYTES / INODE_BYTES) as u64;

/// One inode for this many bytes, as mke2fs has it.
const BYTES_PER_INODE: u64 = 16384;

/// Blocks of the journal for a disk below so many blocks (e2fsprogs, `ext2fs_default_journal_size`).
const JOURNAL_BLOCKS: [(u64, u64); 7] = [
    (32_768, 1024),
    (256 << 10, 4096),
    (512 << 10, 8192),
    (4096 << 10, 16_384),
    (8192 << 10, 32_768),
    (16_384 << 10, 65_536),
    // mke2fs goes on to twice as many. So many are four extents, which fit into the inode.
    (u64::MAX, 131_072),
];

/// A file system's plan, in blocks, counted from the disk's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Geometry {
    /// All blocks of the disk.
    pub(super) blocks: u64,
    /// Groups, of which the last may be short.
    pub(super) groups: u64,
    /// A multiple of [`INODES_PER_BLOCK`].
    pub(super) inodes_per_group: u64,
    /// Blocks of the journal.
    pub(super) journal_blocks: u64,
}

impl Geometry {
    /// Plans a disk of `size` bytes for so many inodes, and as many again as mke2fs would leave. `None` where it cannot
    /// have that many, or not even its own structures.
    pub(super) fn new(size: u64, inodes: u64) -> Option<Geometry> {
        let blocks = size / BLOCK;
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let needed = inodes + u64::from(FIRST_INODE);
        let wanted = (size / BYTES_PER_INODE).max(needed + needed / 8);
        let inodes_per_group = wanted
            .div_ceil(groups.max(1))
            .next_multiple_of(INODES_PER_BLOCK)
            .min(MOST_INODES_PER_GROUP)
            // Inodes are counted in 32 bits.
            .min(u64::from(u32::MAX) / groups.max(1) / INODES_PER_BLOCK * INODES_PER_BLOCK);
        let (_, journal_blocks) = JOURNAL_BLOCKS.into_iter().find(|(below, _)| blocks < *below)?;
        let geometry = Geometry { blocks, groups, inodes_per_group, journal_blocks };
        (geometry.inodes() >= needed && geometry.contents() <= blocks).then_some(geometry)
    }

    /// The smallest disk, in bytes, that has room for so many inodes and blocks of contents.
    pub(super) fn smallest(inodes: u64, blocks: u64) -> u64 {
        let mut size = ((blocks + 2048) * BLOCK).next_multiple_of(16 << 20);
        while Geometry::new(size, inodes).is_none_or(|geometry| geometry.room() < blocks) {
            size += (size / 64).next_multiple_of(16 << 20);
        }
        size
    }

    /// All inodes, the reserved ones among them.
    pub(super) fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }

    /// The first descriptor's block; the superblock is in the block before.
    pub(super) fn descriptors(&self) -> u64 {
        1
    }

    /// The first group's bitmap of blocks.
    pub(super) fn block_bitmaps(&self) -> u64 {
        self.descriptors() + (self.groups * 32).div_ceil(BLOCK)
    }

    /// The first group's bitmap of inodes.
    pub(super) fn inode_bitmaps(&self) -> u64 {
        self.block_bitmaps() + self.groups
    }

    /// The first inode's block.
    pub(super) fn inode_table(&self) -> u64 {
        self.inode_bitmaps() + self.groups
    }

    /// Blocks of one group's inodes.
    pub(super) fn table_blocks(&self) -> u64 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// The journal's first block.
    pub(super) fn journal(&self) -> u64 {
        self.inode_table() + self.groups * self.table_blocks()
    }

    /// The first block for contents; they have all that follow.
    pub(super) fn contents(&self) -> u64 {
        self.journal() + self.journal_blocks
    }

    /// Blocks for contents.
    pub(super) fn room(&self) -> u64 {
        self.blocks - self.contents()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_or_is_none() {
        assert_eq!(Geometry::new(0, 0), None);
        assert_eq!(Geometry::new(4 << 20, 0), None);
        let small = Geometry::new(16 << 20, 0).unwrap();
        assert_eq!((small.groups, small.inodes(), small.journal_blocks), (1, 1024, 1024));
        assert_eq!(small.contents() + small.room(), 4096);
        assert_eq!(Geometry::new(16 << 20, 40_000), None);
        let large = Geometry::new((u64::from(u32::MAX) - 1) * BLOCK, 1 << 31).unwrap();
        assert!(large.inodes() <= u64::from(u32::MAX));
        assert!(large.inodes() > 1 << 31);
    }

    #[test]
    fn the_smallest_disk_holds_what_it_is_for() {
        for (inodes, blocks) in [(0, 0), (1, 100_000), (300_000, 5000), (3_000_000, 1)] {
            let size = Geometry::smallest(inodes, blocks);
            assert!(Geometry::new(size, inodes).unwrap().room() >= blocks);
            // A group has at most an inode for each of its blocks.
            let needed = (blocks + inodes.div_ceil(16)).max(inodes) * BLOCK;
            assert!(size < needed * 5 / 4 + (80 << 20), "{size} for {needed}");
        }
    }
}
