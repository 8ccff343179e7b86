//! Extended attributes: behind an inode's fields as far as they fit there, the others in a block (`fs/ext4/xattr.h`).

use anyhow::{Context as _, bail, ensure};

use super::format::{BLOCK_BYTES, INODE_TAIL, Seed};
use crate::image::acl;
use crate::image::layer::Xattrs;

/// `EXT4_XATTR_MAGIC`.
const MAGIC: u32 = 0xea02_0000;

/// Bytes of `struct ext4_xattr_entry`, which the name follows, and of the four zeros behind the last one.
const ENTRY: usize = 16;
const END: usize = 4;

/// Bytes of `struct ext4_xattr_ibody_header` and `struct ext4_xattr_header`.
const INODE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;

/// Bytes that attributes of one inode can take in a block. What fits into the inode beside is not counted on.
const IN_BLOCK: usize = BLOCK_BYTES - BLOCK_HEADER - END;

/// The namespaces that ext4 holds, by their numbers. Those that are whole names have nothing behind.
const NAMESPACES: [(&str, u8); 5] = [
    ("user.", 1),
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("trusted.", 4),
    ("security.", 6),
];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute {
    /// In the order that a block must have: namespace, the name's length, the name.
    namespace: u8,
    length: usize,
    name: Box<[u8]>,
    value: Box<[u8]>,
}

impl Attribute {
    /// Bytes that it takes, wherever it is.
    fn bytes(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry`, with names as unsigned bytes.
    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// One inode's attributes in their places.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    in_inode: Vec<Attribute>,
    in_block: Vec<Attribute>,
}

impl Attributes {
    /// Finds their places. Errors name the attribute that ext4 does not hold.
    pub(super) fn new(xattrs: &Xattrs) -> anyhow::Result<Attributes> {
        let mut all = Vec::with_capacity(xattrs.len());
        for (name, value) in xattrs.iter() {
            let value = if acl::is_acl(name) {
                let converted = acl::to_ext4(value).with_context(|| format!("its attribute `{name}`"))?;
                if acl::only_repeats_the_mode(name, value) {
                    continue;
                }
                converted.into()
            } else {
                value.clone()
            };
            all.push(attribute(name, value)?);
        }
        all.sort();
        let total: usize = all.iter().map(Attribute::bytes).sum();
        if total > IN_BLOCK {
            let largest = xattrs.iter().max_by_key(|(_, value)| value.len()).map_or("", |(name, _)| name);
            bail!(
                "its attributes, of which `{largest}` is the largest, take {total} bytes, and ext4 holds {IN_BLOCK}"
            );
        }
        let mut places = Attributes::default();
        let mut room = INODE_TAIL - INODE_HEADER - END;
        for attribute in all {
            match room.checked_sub(attribute.bytes()) {
                Some(left) => {
                    room = left;
                    places.in_inode.push(attribute);
                }
                None => places.in_block.push(attribute),
            }
        }
        Ok(places)
    }

    /// Some need a block.
    pub(super) fn has_block(&self) -> bool {
        !self.in_block.is_empty()
    }

    /// What is behind the inode's fields.
    pub(super) fn tail(&self) -> [u8; INODE_TAIL] {
        let mut tail = [0; INODE_TAIL];
        if !self.in_inode.is_empty() {
            tail[..INODE_HEADER].copy_from_slice(&MAGIC.to_le_bytes());
            // Their hashes are 0, and their values' places count from the first entry.
            put_attributes(&mut tail, INODE_HEADER, INODE_HEADER, &self.in_inode, |_| 0);
        }
        tail
    }

    /// The block, which will be at `on_disk`.
    pub(super) fn block(&self, on_disk: u64, seed: Seed) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let hash = self.in_block.iter().fold(0_u32, |hash, one| hash.rotate_left(16) ^ one.hash());
        // `struct ext4_xattr_header`: users and blocks are one each.
        for (place, word) in block.chunks_exact_mut(4).zip([MAGIC, 1, 1, hash]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        put_attributes(&mut block, BLOCK_HEADER, 0, &self.in_block, Attribute::hash);
        let sum = seed.checksum_of(&[&on_disk.to_le_bytes(), &block]);
        block[16..20].copy_from_slice(&sum.to_le_bytes());
        block
    }
}

fn attribute(name: &str, value: Box<[u8]>) -> anyhow::Result<Attribute> {
    let known = NAMESPACES.iter().find_map(|(prefix, number)| Some((*number, name.strip_prefix(prefix)?)));
    let is_whole = |number| matches!(number, 2 | 3);
    let (namespace, rest) = known
        .filter(|(number, rest)| is_whole(*number) == rest.is_empty())
        .with_context(|| format!("its attribute `{name}` is of a namespace that ext4 does not hold"))?;
    ensure!(rest.len() <= 255, "the name of its attribute `{name}` has more than 255 bytes");
    Ok(Attribute { namespace, length: rest.len(), name: rest.as_bytes().into(), value })
}

/// Entries go upwards from `first`, values downwards from the end; their places are counted from `origin`.
fn put_attributes(
    space: &mut [u8],
    first: usize,
    origin: usize,
    attributes: &[Attribute],
    hash: impl Fn(&Attribute) -> u32,
) {
    let (mut at, mut end) = (first, space.len());
    for attribute in attributes {
        let Attribute { namespace, name, value, .. } = attribute;
        end -= value.len().next_multiple_of(4);
        space[end..end + value.len()].copy_from_slice(value);
        // An empty value has no place.
        let place = if value.is_empty() { 0 } else { (end - origin) as u16 };
        let entry = &mut space[at..at + ENTRY];
        (entry[0], entry[1]) = (name.len() as u8, *namespace);
        entry[2..4].copy_from_slice(&place.to_le_bytes());
        entry[8..12].copy_from_slice(&(value.len() as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&hash(attribute).to_le_bytes());
        space[at + ENTRY..at + ENTRY + name.len()].copy_from_slice(name);
        at += ENTRY + name.len().next_multiple_of(4);
    }
}
