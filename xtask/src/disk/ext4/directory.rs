//! Directories: names in a list in one block, or in leaves under an index by their hashes (ext4 documentation,
//! "Directory Entries" and "Hash Tree Directories"; `fs/ext4/namei.c`).

use anyhow::ensure;

use super::format::{BLOCK_BYTES, Seed};
use super::hash;

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    /// At most 255 bytes.
    pub(super) bytes: &'a [u8],
    /// The inode that it names.
    pub(super) inode: u32,
    /// What that is, by the codes of `EXT4_FT_UNKNOWN` and its kin.
    pub(super) file_type: u8,
}

/// `EXT4_FT_DIR`, and what marks a leaf's checksum.
pub(super) const TYPE_DIRECTORY: u8 = 2;
const TYPE_CHECKSUM: u8 = 0xde;

/// Bytes of an entry before its name.
const HEADER: usize = 8;

/// The checksum at a block's end, dressed as an entry without a name.
const TAIL: usize = 12;

/// Bytes for entries in a leaf.
const IN_LEAF: usize = BLOCK_BYTES - TAIL;

/// Bytes of the entries `.` and `..`.
const DOTS: usize = 24;

/// Where the list of blocks begins, in the index's root (behind the dots and `struct dx_root_info`) and in its nodes.
const ROOT_LIST: usize = DOTS + 8;
const NODE_LIST: usize = HEADER;

/// Blocks that an index's root and a node can list. The last eight bytes are a checksum, `struct dx_tail`.
const IN_ROOT: usize = (BLOCK_BYTES - ROOT_LIST - 8) / 8;
const IN_NODE: usize = (BLOCK_BYTES - NODE_LIST - 8) / 8;

/// Bytes of a name's entry.
pub(super) fn entry_bytes(name: &[u8]) -> usize {
    HEADER + name.len().next_multiple_of(4)
}

/// Blocks that a directory takes at most, whose names' [entries](entry_bytes) take so many bytes.
pub(super) fn most_blocks(entries: u64) -> u64 {
    if entries <= (IN_LEAF - DOTS) as u64 {
        return 1;
    }
    // A leaf is left with less room than the longest name takes.
    let leaves = entries.div_ceil((IN_LEAF - entry_bytes(&[0; 255]) + 1) as u64);
    1 + leaves + nodes_above(leaves as usize) as u64
}

/// Nodes between an index's root and its leaves.
fn nodes_above(leaves: usize) -> usize {
    if leaves <= IN_ROOT { 0 } else { leaves.div_ceil(IN_NODE) }
}

/// A directory, laid out.
#[derive(Debug)]
pub(super) struct Directory<'a> {
    /// In the order of the disk.
    names: Vec<Name<'a>>,
    /// Each leaf's hash and the place of its first name; none in a directory of one block.
    leaves: Vec<(u32, usize)>,
}

impl<'a> Directory<'a> {
    /// Lays out the names. Errors where there are too many for an index of two levels, some millions.
    pub(super) fn new(names: Vec<Name<'a>>, hash_seed: &[u8; 16]) -> anyhow::Result<Directory<'a>> {
        let bytes: usize = names.iter().map(|name| entry_bytes(name.bytes)).sum();
        if bytes <= IN_LEAF - DOTS {
            return Ok(Directory { names, leaves: Vec::new() });
        }
        let mut hashed: Vec<(u32, Name<'a>)> =
            names.into_iter().map(|name| (hash::hash(hash_seed, name.bytes), name)).collect();
        hashed.sort_by_key(|(hash, name)| (*hash, name.bytes));
        let mut leaves: Vec<(u32, usize)> = Vec::new();
        let mut room = 0;
        let mut last = 0;
        for (place, (hash, name)) in hashed.iter().enumerate() {
            let bytes = entry_bytes(name.bytes);
            if bytes > room {
                // The first leaf is for all lower hashes. One that goes on with the last one's hash says so.
                let from = if place == 0 { 0 } else { hash | u32::from(*hash == last) };
                leaves.push((from, place));
                room = IN_LEAF;
            }
            room -= bytes;
            last = *hash;
        }
        ensure!(nodes_above(leaves.len()) <= IN_ROOT, "it has more names than ext4 holds in one directory");
        Ok(Directory { names: hashed.into_iter().map(|(_, name)| name).collect(), leaves })
    }

    /// The directory has an index.
    pub(super) fn is_indexed(&self) -> bool {
        !self.leaves.is_empty()
    }

    /// Blocks that it takes.
    pub(super) fn blocks(&self) -> u64 {
        1 + (nodes_above(self.leaves.len()) + self.leaves.len()) as u64
    }

    /// Gives `put` one block after the other. The directory's own inode and its parent's are its dots.
    pub(super) fn write(
        &self,
        own: u32,
        parent: u32,
        hash_seed: Seed,
        mut put: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let seed = hash_seed.of_inode(own);
        let dots = [(&b"."[..], own), (b"..", parent)].map(|(bytes, inode)| Name {
            bytes,
            inode,
            file_type: TYPE_DIRECTORY,
        });
        if !self.is_indexed() {
            return put(&leaf(dots.iter().chain(&self.names), seed));
        }
        let nodes = nodes_above(self.leaves.len());
        let first_leaf = 1 + nodes as u32;
        let listed: Vec<(u32, u32)> =
            self.leaves.iter().zip(first_leaf..).map(|((hash, _), block)| (*hash, block)).collect();
        let root: Vec<(u32, u32)> = if nodes == 0 {
            listed.clone()
        } else {
            listed.chunks(IN_NODE).zip(1..).map(|(list, block)| (list[0].0, block)).collect()
        };
        put(&index_root(&dots, u8::from(nodes > 0), &root, seed))?;
        if nodes > 0 {
            listed.chunks(IN_NODE).try_for_each(|list| put(&index_node(list, seed)))?;
        }
        let ends = self.leaves.iter().skip(1).map(|(_, place)| *place).chain([self.names.len()]);
        for ((_, start), end) in self.leaves.iter().zip(ends) {
            put(&leaf(self.names[*start..end].iter(), seed))?;
        }
        Ok(())
    }
}

/// Writes an entry that reaches over `length` bytes.
fn put_entry(place: &mut [u8], name: &Name<'_>, length: usize) {
    place[..4].copy_from_slice(&name.inode.to_le_bytes());
    place[4..6].copy_from_slice(&(length as u16).to_le_bytes());
    place[6] = name.bytes.len() as u8;
    place[7] = name.file_type;
    place[HEADER..HEADER + name.bytes.len()].copy_from_slice(name.bytes);
}

fn leaf<'a>(names: impl Iterator<Item = &'a Name<'a>>, seed: Seed) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut at = 0;
    let mut last = 0;
    for name in names {
        let length = entry_bytes(name.bytes);
        put_entry(&mut block[at..], name, length);
        (last, at) = (at, at + length);
    }
    // The last entry has what is left.
    block[last + 4..last + 6].copy_from_slice(&((IN_LEAF - last) as u16).to_le_bytes());
    put_entry(&mut block[IN_LEAF..], &Name { bytes: b"", inode: 0, file_type: TYPE_CHECKSUM }, TAIL);
    let sum = seed.checksum(&block[..IN_LEAF]);
    block[BLOCK_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    block
}

fn index_root(dots: &[Name<'_>; 2], levels: u8, list: &[(u32, u32)], seed: Seed) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    put_entry(&mut block, &dots[0], 12);
    // To who knows no index, the rest of the block belongs to this name.
    put_entry(&mut block[12..], &dots[1], BLOCK_BYTES - 12);
    // `struct dx_root_info`: four zeros, the hash, this structure's length, levels of nodes, no flags.
    block[DOTS + 4..ROOT_LIST].copy_from_slice(&[hash::VERSION, 8, levels, 0]);
    put_list(&mut block, ROOT_LIST, IN_ROOT, list, seed);
    block
}

fn index_node(list: &[(u32, u32)], seed: Seed) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    // One unused entry, for who knows no index.
    put_entry(&mut block, &Name { bytes: b"", inode: 0, file_type: 0 }, BLOCK_BYTES);
    put_list(&mut block, NODE_LIST, IN_NODE, list, seed);
    block
}

/// Writes a list of blocks and its checksum. The first one's hash has its place taken by room and length.
fn put_list(block: &mut [u8; BLOCK_BYTES], at: usize, room: usize, list: &[(u32, u32)], seed: Seed) {
    for (place, (hash, number)) in block[at..].chunks_exact_mut(8).zip(list) {
        place[..4].copy_from_slice(&hash.to_le_bytes());
        place[4..].copy_from_slice(&number.to_le_bytes());
    }
    block[at..at + 2].copy_from_slice(&(room as u16).to_le_bytes());
    block[at + 2..at + 4].copy_from_slice(&(list.len() as u16).to_le_bytes());
    // `ext4_dx_csum`: the list as far as it is used, then the tail with zeros for the checksum.
    let sum = seed.checksum_of(&[&block[..at + list.len() * 8], &[0; 8]]);
    block[BLOCK_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
}
