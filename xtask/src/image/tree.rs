//! A root file system in memory: names, metadata, and where contents are. Contents themselves never come here.
//!
//! An image may have some hundred thousand files, so each takes about a hundred bytes, its name among them: names lie in
//! one buffer, owners and attributes that repeat are kept once, and one table finds a name in whichever directory.

use std::hash::{BuildHasher as _, RandomState};

use anyhow::{Context as _, ensure};
use hashbrown::HashTable;
use indexmap::IndexSet;

use super::layer::{Content, Metadata, Special, Xattrs};

/// An inode's number in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(u32);

/// The root directory.
pub const ROOT: InodeId = InodeId(0);

/// What a directory that no layer speaks of is made with: docker's choice of mode and owner, and a fixed time.
pub const IMPLIED: Metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };

/// What a name in a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// What it names.
    pub inode: InodeId,
    /// The last layer that set it, or something below it.
    pub layer: u32,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link and its target, of less than 64 KiB.
    Symlink(&'a [u8]),
    /// A device or a named pipe.
    Special(Special),
}

/// A file, directory, link or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode<'a> {
    /// What it is.
    pub kind: Kind<'a>,
    /// Owner, mode and time.
    pub metadata: Metadata,
    /// Extended attributes in the order of their names; most inodes have none.
    pub xattrs: &'a Xattrs,
}

/// A root file system. Inodes that lost their last name stay in the arena, and no walk meets them.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: Vec<Record>,
    entries: Vec<Entry>,
    /// The entries that are in use, by directory and name.
    index: HashTable<u32>,
    hasher: RandomState,
    /// Names, each behind a byte with its length, and links' targets.
    text: Vec<u8>,
    owners: IndexSet<Owner>,
    xattrs: IndexSet<Xattrs>,
    sparse: Vec<Content>,
    /// Bytes in `xattrs`, and parts in `sparse`.
    xattr_bytes: usize,
    segments: usize,
    /// Names that `retain` went over.
    #[cfg(test)]
    visited: usize,
}

/// Of entries and inodes alike: there is none.
const NONE: u32 = u32::MAX;

/// The most inodes, and the most names, those among them that later layers took away again. An image of a million files is a
/// large one; at the limit a tree takes a gigabyte.
const MAX_FILES: usize = 8_000_000;
/// The most bytes of names and links' targets, of attributes that differ, and the most parts of sparse files.
const MAX_TEXT: usize = 1 << 30;
const MAX_XATTRS: usize = 256 << 20;
const MAX_SEGMENTS: usize = 16_000_000;

/// Mode, owner and group.
type Owner = (u16, u32, u32);

/// An inode, in 48 bytes.
#[derive(Debug, Clone)]
struct Record {
    kind: Packed,
    seconds: i64,
    nanoseconds: u32,
    owner: u32,
    xattrs: u32,
}

#[derive(Debug, Clone, Copy)]
enum Packed {
    Directory {
        /// Its first and its last entry, used or not.
        first: u32,
        last: u32,
        parent: InodeId,
    },
    File {
        layer: u32,
        offset: u64,
        size: u64,
    },
    Sparse(u32),
    Symlink {
        target: u32,
        length: u16,
    },
    Special(Special),
}

/// A name in a directory, in 20 bytes.
#[derive(Debug, Clone)]
struct Entry {
    name: u32,
    directory: InodeId,
    /// [`NONE`] once the name is gone.
    inode: u32,
    layer: u32,
    /// The directory's next entry.
    next: u32,
}

impl Default for Tree {
    fn default() -> Tree {
        let mut tree = Tree {
            inodes: Vec::new(),
            entries: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            text: Vec::new(),
            owners: IndexSet::new(),
            xattrs: IndexSet::new(),
            sparse: Vec::new(),
            xattr_bytes: 0,
            segments: 0,
            #[cfg(test)]
            visited: 0,
        };
        let root = tree.add(Kind::Directory, IMPLIED, Xattrs::new());
        debug_assert!(root.is_ok_and(|root| root == ROOT));
        tree
    }
}

/// Errors where a tree would hold more than `most` of something.
fn within(count: usize, most: usize, what: &str) -> anyhow::Result<u32> {
    ensure!(count <= most, "the image has more than {most} {what}, which is refused");
    Ok(count as u32)
}

impl Tree {
    /// Puts an inode into the arena; it has no name yet. Errors where the arena is full.
    pub fn add(&mut self, kind: Kind<'_>, metadata: Metadata, xattrs: Xattrs) -> anyhow::Result<InodeId> {
        let id = InodeId(within(self.inodes.len(), MAX_FILES, "files")?);
        let kind = match kind {
            Kind::Directory => Packed::Directory { first: NONE, last: NONE, parent: id },
            Kind::File(Content { layer, offset, size, sparse: None }) => Packed::File { layer, offset, size },
            Kind::File(content) => {
                self.segments += content.sparse.as_deref().map_or(0, <[_]>::len);
                within(self.segments, MAX_SEGMENTS, "parts of sparse files")?;
                self.sparse.push(content);
                Packed::Sparse(within(self.sparse.len() - 1, MAX_FILES, "files")?)
            }
            Kind::Symlink(target) => {
                let length = u16::try_from(target.len()).context("a link's target is too long")?;
                Packed::Symlink { target: self.keep(&[target])?, length }
            }
            Kind::Special(special) => Packed::Special(special),
        };
        let (owner, (seconds, nanoseconds)) = self.intern(&metadata)?;
        let xattrs = self.intern_xattrs(xattrs)?;
        self.inodes.push(Record { kind, seconds, nanoseconds, owner, xattrs });
        Ok(id)
    }

    /// Gives an inode other metadata.
    pub fn set_metadata(&mut self, id: InodeId, metadata: Metadata, xattrs: Xattrs) -> anyhow::Result<()> {
        let (owner, (seconds, nanoseconds)) = self.intern(&metadata)?;
        let xattrs = self.intern_xattrs(xattrs)?;
        let record = &mut self.inodes[id.0 as usize];
        *record = Record { kind: record.kind, seconds, nanoseconds, owner, xattrs };
        Ok(())
    }

    fn intern(&mut self, metadata: &Metadata) -> anyhow::Result<(u32, (i64, u32))> {
        let &Metadata { mode, uid, gid, mtime } = metadata;
        Ok((within(self.owners.insert_full((mode, uid, gid)).0, MAX_FILES, "owners")?, mtime))
    }

    fn intern_xattrs(&mut self, xattrs: Xattrs) -> anyhow::Result<u32> {
        let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let (index, is_new) = self.xattrs.insert_full(xattrs);
        self.xattr_bytes += if is_new { bytes } else { 0 };
        within(self.xattr_bytes, MAX_XATTRS, "bytes of attributes")?;
        within(index, MAX_FILES, "sets of attributes")
    }

    /// Puts bytes into the buffer; gives their place.
    fn keep(&mut self, parts: &[&[u8]]) -> anyhow::Result<u32> {
        let at = within(self.text.len(), MAX_TEXT, "bytes of names")?;
        parts.iter().for_each(|part| self.text.extend_from_slice(part));
        Ok(at)
    }

    /// The inode of a number that this tree gave out.
    pub fn inode(&self, id: InodeId) -> Inode<'_> {
        let record = &self.inodes[id.0 as usize];
        let kind = match record.kind {
            Packed::Directory { .. } => Kind::Directory,
            Packed::File { layer, offset, size } => Kind::File(Content { layer, offset, size, sparse: None }),
            Packed::Sparse(index) => Kind::File(self.sparse[index as usize].clone()),
            Packed::Symlink { target, length } => {
                Kind::Symlink(&self.text[target as usize..][..length.into()])
            }
            Packed::Special(special) => Kind::Special(special),
        };
        let (mode, uid, gid) = self.owners[record.owner as usize];
        let metadata = Metadata { mode, uid, gid, mtime: (record.seconds, record.nanoseconds) };
        Inode { kind, metadata, xattrs: &self.xattrs[record.xattrs as usize] }
    }

    /// The inode is a directory.
    pub fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.inodes[id.0 as usize].kind, Packed::Directory { .. })
    }

    /// The directory that a directory is in; the root is in itself.
    pub fn parent(&self, directory: InodeId) -> InodeId {
        match self.inodes[directory.0 as usize].kind {
            Packed::Directory { parent, .. } => parent,
            _ => ROOT,
        }
    }

    /// What a directory holds, in the order in which the names came. Nothing where the inode is no directory.
    pub fn entries(&self, directory: InodeId) -> impl Iterator<Item = (&[u8], Slot)> {
        let mut next = match self.inodes[directory.0 as usize].kind {
            Packed::Directory { first, .. } => first,
            _ => NONE,
        };
        let mut all = std::iter::from_fn(move || {
            let entry = self.entries.get(next as usize)?;
            next = entry.next;
            Some(entry)
        });
        std::iter::from_fn(move || {
            let entry = all.find(|entry| entry.inode != NONE)?;
            Some((self.name(entry), Slot { inode: InodeId(entry.inode), layer: entry.layer }))
        })
    }

    /// The same, in the order of names' bytes.
    pub fn sorted_entries(&self, directory: InodeId) -> Vec<(&[u8], Slot)> {
        let mut entries: Vec<_> = self.entries(directory).collect();
        entries.sort_unstable_by_key(|(name, _)| *name);
        entries
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        let at = entry.name as usize;
        &self.text[at + 1..][..self.text[at].into()]
    }

    fn hash(&self, directory: InodeId, name: &[u8]) -> u64 {
        self.hasher.hash_one((directory, name))
    }

    fn find(&self, directory: InodeId, name: &[u8]) -> Option<u32> {
        let is_it = |&index: &u32| {
            let entry = &self.entries[index as usize];
            entry.directory == directory && self.name(entry) == name
        };
        self.index.find(self.hash(directory, name), is_it).copied()
    }

    /// What a name in a directory stands for.
    pub fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<Slot> {
        let entry = &self.entries[self.find(directory, name)? as usize];
        Some(Slot { inode: InodeId(entry.inode), layer: entry.layer })
    }

    /// Gives an inode a name of 1 to 255 bytes, in place of what had it. Errors where the arena is full.
    pub fn link(&mut self, directory: InodeId, name: &[u8], slot: Slot) -> anyhow::Result<()> {
        if let Packed::Directory { parent, .. } = &mut self.inodes[slot.inode.0 as usize].kind {
            *parent = directory;
        }
        if let Some(index) = self.find(directory, name) {
            let entry = &mut self.entries[index as usize];
            (entry.inode, entry.layer) = (slot.inode.0, slot.layer);
            return Ok(());
        }
        let length = u8::try_from(name.len()).context("a name is longer than 255 bytes")?;
        let index = within(self.entries.len(), MAX_FILES, "names")?;
        let name_at = self.keep(&[&[length], name])?;
        let Packed::Directory { first, last, .. } = &mut self.inodes[directory.0 as usize].kind else {
            anyhow::bail!("its parent is not a directory");
        };
        match self.entries.get_mut(*last as usize) {
            Some(before) => before.next = index,
            None => *first = index,
        }
        *last = index;
        let Slot { inode, layer } = slot;
        self.entries.push(Entry { name: name_at, directory, inode: inode.0, layer, next: NONE });
        let hash = self.hash(directory, name);
        let (entries, text, hasher) = (&self.entries, &self.text, &self.hasher);
        self.index.insert_unique(hash, index, |&index| {
            let entry = &entries[index as usize];
            let at = entry.name as usize;
            hasher.hash_one((entry.directory, &text[at + 1..][..text[at].into()]))
        });
        Ok(())
    }

    /// Takes away a name, if it is there.
    pub fn unlink(&mut self, directory: InodeId, name: &[u8]) {
        if let Some(index) = self.find(directory, name) {
            self.forget(index);
        }
    }

    /// Takes away a directory's names for which `keep` is false. What is left is one list without gaps, so that names that are
    /// gone are passed over once and no more.
    pub fn retain(&mut self, directory: InodeId, keep: impl Fn(Slot) -> bool) {
        let Packed::Directory { first, parent, .. } = self.inodes[directory.index()].kind else { return };
        let (mut first_kept, mut last_kept) = (NONE, NONE);
        let mut next = first;
        while let Some(&Entry { inode, layer, next: following, .. }) = self.entries.get(next as usize) {
            if inode != NONE && keep(Slot { inode: InodeId(inode), layer }) {
                match self.entries.get_mut(last_kept as usize) {
                    Some(before) => before.next = next,
                    None => first_kept = next,
                }
                last_kept = next;
            } else if inode != NONE {
                self.forget(next);
            }
            next = following;
            #[cfg(test)]
            {
                self.visited += 1;
            }
        }
        if let Some(last) = self.entries.get_mut(last_kept as usize) {
            last.next = NONE;
        }
        self.inodes[directory.index()].kind =
            Packed::Directory { first: first_kept, last: last_kept, parent };
    }

    /// How many names [`Tree::retain`] went over.
    #[cfg(test)]
    pub(super) fn visited(&self) -> usize {
        self.visited
    }

    fn forget(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        let hash = self.hash(entry.directory, self.name(entry));
        if let Ok(found) = self.index.find_entry(hash, |&other| other == index) {
            found.remove();
        }
        self.entries[index as usize].inode = NONE;
    }

    /// All inodes of the arena, named or not, in the order in which they came.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = InodeId> + use<> {
        (0..self.inodes.len() as u32).map(InodeId)
    }

    /// What a path with no links in it names. Only for reading: layers go through `flatten`.
    pub fn get(&self, path: &[u8]) -> Option<InodeId> {
        path.split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(ROOT, |here, name| Some(self.lookup(here, name)?.inode))
    }
}

impl InodeId {
    /// Its place among [`Tree::ids`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests;
