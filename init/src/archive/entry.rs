//! What an archive's entry says, checked.

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

/// A stored part of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the file.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub length: u64,
}

/// How much a regular file holds, and how much of that is in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Length of the file as its reader sees it; at most `i64::MAX`.
    pub size: u64,
    /// Bytes in the archive.
    pub stored: u64,
    /// The parts that are stored, one after another, in order and without overlap; together they have `stored` bytes.
    /// `None` where all of the file is stored.
    pub segments: Option<Arc<[Segment]>>,
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

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory, or new metadata for the one that is there.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link and its target of 1 to 4095 bytes, none of them zero.
    Symlink(Box<[u8]>),
    /// Another name for an inode that is there already.
    Hardlink(Box<[u8]>),
    /// A device or a named pipe.
    Special(Special),
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As the archive has it, not yet cleaned: it may be absolute or hold `..`. 1 to 4095 bytes, none of them zero, and
    /// no name in it is longer than 255 bytes.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: Kind,
    /// Owner, mode and time.
    pub metadata: Metadata,
    /// Extended attributes, in the archive's order.
    pub xattrs: Xattrs,
}
