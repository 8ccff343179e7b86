//! What a layer's entries say, in this project's words.

use std::sync::Arc;

/// Whom an inode belongs to, who may use it, and when it was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky (0o7777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, which may be negative, and nanoseconds.
    pub mtime: (i64, u32),
}

/// Extended attributes: full names (`security.capability`) and values as `getxattr(2)` gives them.
pub type Xattrs = Vec<(Box<str>, Box<[u8]>)>;

/// Where a regular file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The layer's number, bottom first.
    pub layer: u32,
    /// Absolute offset in the layer's file of the first stored byte.
    pub offset: u64,
    /// Length of the file as its reader sees it.
    pub size: u64,
    /// The parts that are stored, one after another at `offset`; `None` where all of it is.
    pub sparse: Option<Arc<[Segment]>>,
}

/// A stored part of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the file.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub length: u64,
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory, or new metadata for the one that is there.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// Another name for an inode that is there already.
    Hardlink(Box<[u8]>),
    /// A device or a named pipe.
    Special(Special),
}

/// A file that is a number or a name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As the tar has it; not yet cleaned.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Owner, mode and time.
    pub metadata: Metadata,
    /// Extended attributes.
    pub xattrs: Xattrs,
}
