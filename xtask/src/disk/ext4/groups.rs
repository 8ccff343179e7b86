//! The superblock, the groups' descriptors and bitmaps, and the journal's beginning. Inodes and blocks are used from
//! the first one on without a gap, so two counts and the folders of each group say it all.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::Context as _;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::format::{
    BLOCK, BLOCK_BYTES, BLOCKS_UNUSED, EXTRA_SIZE, FIRST_INODE, GroupDescriptor, INODE_BYTES, INODES_UNUSED,
    INODES_ZEROED, JOURNAL_INODE, JournalSuperblock, Seed, Superblock, feature,
};
use super::geometry::{BLOCKS_PER_GROUP, Geometry};
use super::hash;

/// How far a file system is in use.
#[derive(Debug)]
pub(super) struct Usage {
    /// Blocks in use, all of them at the beginning.
    pub(super) blocks: u64,
    /// Inodes in use, the reserved ones among them.
    pub(super) inodes: u64,
    /// Each group's directories.
    pub(super) directories: Vec<u16>,
    /// The journal's `i_block`.
    pub(super) journal_map: [u8; 60],
}

/// Writes everything that is neither an inode nor its blocks.
pub(super) fn write(disk: &File, geometry: &Geometry, usage: &Usage, uuid: &[u8; 16]) -> anyhow::Result<()> {
    let seed = Seed::new(uuid);
    let put = |bytes: &[u8], block: u64| {
        disk.write_all_at(bytes, block * BLOCK).context("failed to write the file system's structures")
    };
    let mut descriptors = Vec::with_capacity(geometry.groups as usize * size_of::<GroupDescriptor>());
    for group in 0..geometry.groups {
        let mut descriptor = GroupDescriptor::new_zeroed();
        descriptor.block_bitmap = low(geometry.block_bitmaps() + group);
        descriptor.inode_bitmap = low(geometry.inode_bitmaps() + group);
        descriptor.inode_table = low(geometry.inode_table() + group * geometry.table_blocks());
        let mut flags = INODES_ZEROED;

        let (in_group, used) = share(geometry.blocks, usage.blocks, group, BLOCKS_PER_GROUP);
        descriptor.free_blocks = ((in_group - used) as u16).into();
        // The last group's bitmap says where the disk ends.
        if used == 0 && group + 1 < geometry.groups {
            flags |= BLOCKS_UNUSED;
        } else {
            let bitmap = bitmap(used, in_group);
            descriptor.block_bitmap_checksum = (seed.checksum(&bitmap) as u16).into();
            put(&bitmap, geometry.block_bitmaps() + group)?;
        }

        let (in_group, used) = share(geometry.inodes(), usage.inodes, group, geometry.inodes_per_group);
        descriptor.free_inodes = ((in_group - used) as u16).into();
        descriptor.unused_inodes = descriptor.free_inodes;
        descriptor.used_directories = usage.directories[group as usize].into();
        if used == 0 {
            flags |= INODES_UNUSED;
        } else {
            let bitmap = bitmap(used, in_group);
            let counted = &bitmap[..(in_group / 8) as usize];
            descriptor.inode_bitmap_checksum = (seed.checksum(counted) as u16).into();
            put(&bitmap, geometry.inode_bitmaps() + group)?;
        }
        descriptor.flags = flags.into();
        descriptors.extend_from_slice(&descriptor.sealed(seed, group as u32));
    }
    put(&descriptors, geometry.descriptors())?;
    put(journal(geometry).as_bytes(), geometry.journal())?;
    // The boot loader's kilobyte is before it.
    disk.write_all_at(&superblock(geometry, usage, uuid).sealed(), 1024)
        .context("failed to write the superblock")
}

fn low(number: u64) -> zerocopy::little_endian::U32 {
    (number as u32).into()
}

/// How many of `all` a group has, and how many of those are among the first `used` ones.
fn share(all: u64, used: u64, group: u64, per_group: u64) -> (u64, u64) {
    let first = group * per_group;
    ((all - first).min(per_group), used.saturating_sub(first).min(per_group))
}

/// A bit for each that is in use, and for each that the group does not have.
fn bitmap(used: u64, in_group: u64) -> [u8; BLOCK_BYTES] {
    let mut bitmap = [0; BLOCK_BYTES];
    for (byte, first) in bitmap.iter_mut().zip((0..).step_by(8)) {
        let below = |limit: u64| (1_u16 << limit.saturating_sub(first).min(8)) as u8;
        *byte = below(used).wrapping_sub(1) | !below(in_group).wrapping_sub(1);
    }
    bitmap
}

/// An empty journal of version 2; the kernel adds its features when it mounts it.
fn journal(geometry: &Geometry) -> JournalSuperblock {
    let mut journal = JournalSuperblock::new_zeroed();
    // `JBD2_MAGIC_NUMBER` and `JBD2_SUPERBLOCK_V2`.
    journal.magic = 0xc03b_3998.into();
    journal.block_type = 4.into();
    journal.block_size = (BLOCK as u32).into();
    journal.blocks = (geometry.journal_blocks as u32).into();
    journal.first = 1.into();
    journal.sequence = 1.into();
    journal.users = 1.into();
    journal
}

fn superblock(geometry: &Geometry, usage: &Usage, uuid: &[u8; 16]) -> Superblock {
    let mut it = Superblock::new_zeroed();
    it.inodes_count = low(geometry.inodes());
    it.blocks_count = low(geometry.blocks);
    // A container sees all the space there is: none is reserved for root.
    it.free_blocks_count = low(geometry.blocks - usage.blocks);
    it.free_inodes_count = low(geometry.inodes() - usage.inodes);
    // 1024 shifted by 2.
    it.log_block_size = 2.into();
    it.log_cluster_size = 2.into();
    it.blocks_per_group = low(BLOCKS_PER_GROUP);
    it.clusters_per_group = low(BLOCKS_PER_GROUP);
    it.inodes_per_group = low(geometry.inodes_per_group);
    // Never checked by count of mounts.
    it.max_mount_count = u16::MAX.into();
    it.magic = 0xef53.into();
    // `EXT4_VALID_FS`, `EXT4_ERRORS_CONTINUE`, `EXT4_DYNAMIC_REV`.
    it.state = 1.into();
    it.errors = 1.into();
    it.revision = 1.into();
    it.first_inode = FIRST_INODE.into();
    it.inode_size = (INODE_BYTES as u16).into();
    it.compatible = feature::COMPATIBLE.into();
    it.incompatible = feature::INCOMPATIBLE.into();
    it.read_only = feature::READ_ONLY.into();
    it.uuid = *uuid;
    it.journal_inode = JOURNAL_INODE.into();
    it.hash_seed = *uuid;
    it.hash_version = hash::VERSION;
    // The journal's inode once more, for e2fsck: its `i_block`, then its size, the high half first.
    it.journal_backup_type = 1;
    let words = usage.journal_map.as_chunks::<4>().0;
    for (place, word) in it.journal_blocks.iter_mut().zip(words) {
        *place = u32::from_le_bytes(*word).into();
    }
    it.journal_blocks[16] = low(geometry.journal_blocks * BLOCK);
    // `EXT4_DEFM_XATTR_USER`, `EXT4_DEFM_ACL`.
    it.default_mount_options = (0x4 | 0x8).into();
    it.min_extra_size = EXTRA_SIZE.into();
    it.want_extra_size = EXTRA_SIZE.into();
    // `EXT2_FLAGS_UNSIGNED_HASH`.
    it.flags = 2.into();
    // mke2fs's 16; here it only guides the kernel's choice of groups.
    it.log_groups_per_flex = 4;
    // CRC-32C.
    it.checksum_type = 1;
    it
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_count_bits_and_end_with_the_group() {
        let bits = |bitmap: [u8; BLOCK_BYTES]| {
            (0..BLOCK_BYTES * 8).map(|bit| bitmap[bit / 8] >> (bit % 8) & 1 == 1).collect::<Vec<_>>()
        };
        for (used, in_group) in
            [(0, 32_768), (1, 32_768), (8, 32_768), (15, 100), (32_768, 32_768), (0, 1), (3, 3)]
        {
            for (bit, set) in (0..).zip(bits(bitmap(used, in_group))) {
                assert_eq!(set, bit < used || bit >= in_group, "{used} of {in_group}, bit {bit}");
            }
        }
    }
}
