//! Writes a [`Tree`](crate::image::tree::Tree) as an ext4 file system.
//!
//! A [`Plan`] counts what the tree needs and refuses, with the entry's name, what ext4 cannot hold: attributes of unknown
//! namespaces or larger than a block, times outside 1901 to 2446. The `writer` then goes once through the inodes, in the
//! order in which their layers brought them, and writes each with all its blocks, so that memory holds the tree and
//! little else. `groups` writes what follows from how far that went. The same tree gives the same bytes.
//!
//! The structures are in `format`, what lies where in `geometry`; `sink` gathers small pieces into large writes.

mod attributes;
mod contents;
mod directory;
mod extents;
mod format;
mod geometry;
mod groups;
mod hash;
mod plan;
mod sink;
mod writer;

pub use self::plan::Plan;
