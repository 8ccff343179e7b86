//! A root file system in memory: names, metadata, and where contents are. Contents themselves never come here.

use std::collections::BTreeMap;

use super::layer::{Content, Metadata, Special, Xattrs};

/// An inode's number in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(u32);

/// The root directory.
pub const ROOT: InodeId = InodeId(0);

/// What a directory that no layer speaks of is made with: docker's choice of mode and owner, and a fixed time.
pub const IMPLIED: Metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// What it names.
    pub inode: InodeId,
    /// The last layer that set it, or something below it.
    pub layer: u32,
}

/// What a directory holds, in the order of names' bytes.
pub type Directory = BTreeMap<Box<[u8]>, Slot>;

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(Content),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A device or a named pipe.
    Special(Special),
}

/// A file, directory, link or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Owner, mode and time.
    pub metadata: Metadata,
    /// Extended attributes in the order of their names; most inodes have none.
    pub xattrs: Option<Box<Xattrs>>,
}

/// A root file system. Inodes that lost their last name stay in the arena, and no walk meets them.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { inodes: vec![Inode::implied_directory()] }
    }
}

impl Inode {
    /// A directory that no layer speaks of.
    pub fn implied_directory() -> Inode {
        Inode { kind: Kind::Directory(Directory::new()), metadata: IMPLIED, xattrs: None }
    }
}

impl Tree {
    /// Puts an inode into the arena; it has no name yet.
    pub fn add(&mut self, inode: Inode) -> anyhow::Result<InodeId> {
        let number = u32::try_from(self.inodes.len())
            .map_err(|_| anyhow::anyhow!("the image has more than {} files", u32::MAX))?;
        self.inodes.push(inode);
        Ok(InodeId(number))
    }

    /// The inode of a number that this tree gave out.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// The same, to change it.
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.0 as usize]
    }

    /// What a directory holds, or `None` where the inode is no directory.
    pub fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// The same, to change it.
    pub fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inode_mut(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// How many inodes the arena holds, named or not.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// A tree always has its root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What a path with no links in it names. Only for reading: layers go through `flatten`.
    pub fn get(&self, path: &[u8]) -> Option<InodeId> {
        path.split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(ROOT, |here, name| self.directory(here)?.get(name).map(|slot| slot.inode))
    }
}
