//! What a layer's entries say, in this project's words.

use std::sync::Arc;

use init::archive::{Metadata, Segment, Special, Xattrs};

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
