//! ext4's structures as they lie on the disk, and their checksums. Field names are the kernel's, without prefixes
//! (`fs/ext4/ext4.h`, `ext4_extents.h`, `xattr.h`, `include/linux/jbd2.h`; ext4 documentation, "Data Structures").

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout, big_endian as be};

/// ext4's block here, in bytes.
pub(super) const BLOCK: u64 = 4096;

/// [`BLOCK`] for sizes in memory.
pub(super) const BLOCK_BYTES: usize = BLOCK as usize;

/// `i_blocks` counts in these, in bytes.
pub(super) const SECTOR: u64 = 512;

/// `EXT4_ROOT_INO`, `EXT4_JOURNAL_INO` and `EXT4_GOOD_OLD_FIRST_INO`.
pub(super) const ROOT_INODE: u32 = 2;
pub(super) const JOURNAL_INODE: u32 = 8;
pub(super) const FIRST_INODE: u32 = 11;

/// Bytes of an inode on the disk, as mke2fs has it.
pub(super) const INODE_BYTES: usize = 256;

/// Bytes of the fields that ext3's inodes did not have, from `extra_size` to `project`.
pub(super) const EXTRA_SIZE: u16 = 32;

/// Room for attributes behind an inode's fields, in bytes.
pub(super) const INODE_TAIL: usize = INODE_BYTES - 128 - EXTRA_SIZE as usize;

/// A link's target that is shorter, in bytes, is in the inode itself, with a zero behind.
pub(super) const SHORT_TARGET: usize = 60;

/// `i_flags`: the directory has an index; `i_block` is a tree of extents.
pub(super) const INDEX_FLAG: u32 = 0x1000;
pub(super) const EXTENTS_FLAG: u32 = 0x8_0000;

/// `bg_flags`: no inode is in use; no block is; the inode table is zeros already.
pub(super) const INODES_UNUSED: u16 = 1;
pub(super) const BLOCKS_UNUSED: u16 = 2;
pub(super) const INODES_ZEROED: u16 = 4;

/// The features of this file system, by how much who does not know them may do with it.
pub(super) mod feature {
    /// `has_journal`, `ext_attr`, `dir_index`, and `sparse_super2`: the superblock has the copies that it names, and
    /// here it names none. A copy would split the space for data, for a disk that is made again from its image.
    pub(in super::super) const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20 | 0x200;
    /// `filetype`, `extent`, and `flex_bg`: a group's bitmaps and inodes may lie outside of it.
    pub(in super::super) const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
    /// `sparse_super`, `large_file`, `huge_file`, `dir_nlink`, `extra_isize`, `metadata_csum`.
    pub(in super::super) const READ_ONLY: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
}

/// ext4's CRC-32C: inverted neither before nor after.
pub(super) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// What the checksums of one file system begin with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(uuid: &[u8; 16]) -> Seed {
        Seed(checksum(!0, uuid))
    }

    /// For blocks that belong to one inode. Its generation is 0.
    pub(super) fn of_inode(self, number: u32) -> Seed {
        Seed(checksum(checksum(self.0, &number.to_le_bytes()), &[0; 4]))
    }

    pub(super) fn checksum(self, bytes: &[u8]) -> u32 {
        checksum(self.0, bytes)
    }

    /// Of several parts, one behind the other.
    pub(super) fn checksum_of(self, parts: &[&[u8]]) -> u32 {
        parts.iter().fold(self.0, |sum, part| checksum(sum, part))
    }
}

/// `struct ext4_super_block`, without the fields that stay zero at its end.
#[derive(Debug, Clone, FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Superblock {
    pub(super) inodes_count: U32,
    pub(super) blocks_count: U32,
    pub(super) reserved_blocks_count: U32,
    pub(super) free_blocks_count: U32,
    pub(super) free_inodes_count: U32,
    pub(super) first_data_block: U32,
    pub(super) log_block_size: U32,
    pub(super) log_cluster_size: U32,
    pub(super) blocks_per_group: U32,
    pub(super) clusters_per_group: U32,
    pub(super) inodes_per_group: U32,
    pub(super) mount_time: U32,
    pub(super) write_time: U32,
    pub(super) mount_count: U16,
    pub(super) max_mount_count: U16,
    pub(super) magic: U16,
    pub(super) state: U16,
    pub(super) errors: U16,
    pub(super) minor_revision: U16,
    pub(super) last_check: U32,
    pub(super) check_interval: U32,
    pub(super) creator_os: U32,
    pub(super) revision: U32,
    pub(super) default_owner: U32,
    pub(super) first_inode: U32,
    pub(super) inode_size: U16,
    pub(super) block_group: U16,
    pub(super) compatible: U32,
    pub(super) incompatible: U32,
    pub(super) read_only: U32,
    pub(super) uuid: [u8; 16],
    pub(super) names: [u8; 80],
    pub(super) compression: U32,
    pub(super) preallocated: U32,
    pub(super) journal_uuid: [u8; 16],
    pub(super) journal_inode: U32,
    pub(super) journal_device: U32,
    pub(super) last_orphan: U32,
    pub(super) hash_seed: [u8; 16],
    pub(super) hash_version: u8,
    pub(super) journal_backup_type: u8,
    pub(super) descriptor_size: U16,
    pub(super) default_mount_options: U32,
    pub(super) first_meta_group: U32,
    pub(super) made: U32,
    pub(super) journal_blocks: [U32; 17],
    pub(super) high_counts: [U32; 3],
    pub(super) min_extra_size: U16,
    pub(super) want_extra_size: U16,
    pub(super) flags: U32,
    pub(super) raid: [U32; 4],
    pub(super) log_groups_per_flex: u8,
    pub(super) checksum_type: u8,
    pub(super) rest: [u8; 646],
    pub(super) checksum: U32,
}

/// `struct ext4_group_desc` without the feature `64bit`.
#[derive(Debug, Clone, FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct GroupDescriptor {
    pub(super) block_bitmap: U32,
    pub(super) inode_bitmap: U32,
    pub(super) inode_table: U32,
    pub(super) free_blocks: U16,
    pub(super) free_inodes: U16,
    pub(super) used_directories: U16,
    pub(super) flags: U16,
    pub(super) exclude_bitmap: U32,
    pub(super) block_bitmap_checksum: U16,
    pub(super) inode_bitmap_checksum: U16,
    pub(super) unused_inodes: U16,
    pub(super) checksum: U16,
}

/// `struct ext4_inode`, and the attributes behind it.
#[derive(Debug, Clone, FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InodeRecord {
    pub(super) mode: U16,
    pub(super) uid: U16,
    pub(super) size: U32,
    pub(super) access_time: U32,
    pub(super) change_time: U32,
    pub(super) modify_time: U32,
    pub(super) delete_time: U32,
    pub(super) gid: U16,
    pub(super) links: U16,
    pub(super) sectors: U32,
    pub(super) flags: U32,
    pub(super) version: U32,
    pub(super) block: [u8; 60],
    pub(super) generation: U32,
    pub(super) attributes_block: U32,
    pub(super) size_high: U32,
    pub(super) fragment: U32,
    pub(super) sectors_high: U16,
    pub(super) attributes_block_high: U16,
    pub(super) uid_high: U16,
    pub(super) gid_high: U16,
    pub(super) checksum: U16,
    pub(super) reserved: U16,
    pub(super) extra_size: U16,
    pub(super) checksum_high: U16,
    pub(super) change_time_extra: U32,
    pub(super) modify_time_extra: U32,
    pub(super) access_time_extra: U32,
    pub(super) birth_time: U32,
    pub(super) birth_time_extra: U32,
    pub(super) version_high: U32,
    pub(super) project: U32,
    pub(super) tail: [u8; INODE_TAIL],
}

/// `struct journal_superblock_s` up to the fields that stay zero: a version 2 journal with nothing in it.
#[derive(Debug, Clone, FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct JournalSuperblock {
    pub(super) magic: be::U32,
    pub(super) block_type: be::U32,
    pub(super) header_sequence: be::U32,
    pub(super) block_size: be::U32,
    pub(super) blocks: be::U32,
    pub(super) first: be::U32,
    pub(super) sequence: be::U32,
    pub(super) start: be::U32,
    pub(super) error: be::U32,
    pub(super) features: [be::U32; 3],
    pub(super) uuid: [u8; 16],
    pub(super) users: be::U32,
}

const _: () = assert!(size_of::<Superblock>() == 1024);
const _: () = assert!(size_of::<GroupDescriptor>() == 32);
const _: () = assert!(size_of::<InodeRecord>() == INODE_BYTES);

/// A time as three of the inode's fields have it: seconds with their sign, and two more bits of them below thirty of
/// nanoseconds (ext4 documentation, "Inode Timestamps").
pub(super) fn time((seconds, nanoseconds): (i64, u32)) -> (U32, U32) {
    let low = seconds as i32;
    let epoch = ((seconds - i64::from(low)) >> 32) as u32 & 3;
    ((low as u32).into(), (nanoseconds << 2 | epoch).into())
}

impl InodeRecord {
    /// The record's bytes, with their checksum.
    pub(super) fn sealed(mut self, seed: Seed, number: u32) -> [u8; INODE_BYTES] {
        let sum = seed.of_inode(number).checksum(self.as_bytes());
        self.checksum = (sum as u16).into();
        self.checksum_high = ((sum >> 16) as u16).into();
        zerocopy::transmute!(self)
    }
}

impl GroupDescriptor {
    /// The descriptor's bytes, with their checksum.
    pub(super) fn sealed(mut self, seed: Seed, group: u32) -> [u8; 32] {
        self.checksum = (seed.checksum_of(&[&group.to_le_bytes(), self.as_bytes()]) as u16).into();
        zerocopy::transmute!(self)
    }
}

impl Superblock {
    /// The superblock's bytes, with their checksum, which has no seed.
    pub(super) fn sealed(mut self) -> [u8; 1024] {
        self.checksum = checksum(!0, &self.as_bytes()[..1020]).into();
        zerocopy::transmute!(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_from_1901_to_2446() {
        let cases = [
            ((0, 0), (0, 0)),
            ((-1, 999_999_999), (u32::MAX, 999_999_999 << 2)),
            ((-(1 << 31), 1), (1 << 31, 1 << 2)),
            (((1 << 31) - 1, 0), ((1 << 31) - 1, 0)),
            ((1 << 31, 5), (1 << 31, 5 << 2 | 1)),
            ((4_102_444_800, 0), (4_102_444_800_u32, 1)),
            ((15_032_385_535, 7), (0x7fff_ffff, 7 << 2 | 3)),
        ];
        for (written, (low, extra)) in cases {
            assert_eq!(time(written), (low.into(), extra.into()), "{written:?}");
        }
    }
}
