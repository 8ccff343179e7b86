//! One layer: a tar as a list of [`Entry`]s whose contents stay where they are.
//!
//! The tar itself is read by [`Feeder`], which checks what it says. What entries do to a root file system is
//! [`super::flatten`]'s.
//!
//! Errors name the entry, or the offset where no entry can be named.

mod entry;

use std::fs::File;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use init::archive::{self, Feeder};

pub use self::entry::{Content, Entry, EntryKind};
pub use init::archive::{Metadata, Segment, Special, Xattrs, display};

use super::blob::RangeReader;

/// An uncompressed tar: a range of a file that stays open.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The archive that holds the tar.
    pub file: Arc<File>,
    /// Where the tar begins in it.
    pub start: u64,
    /// The tar's length in bytes.
    pub length: u64,
    /// What the tar is called in errors: a digest or a file name.
    pub name: String,
}

impl Layer {
    /// A whole file as one tar.
    pub fn whole(file: File, name: impl Into<String>) -> anyhow::Result<Layer> {
        let length = file.metadata().context("failed to read a layer's size")?.len();
        Ok(Layer { file: Arc::new(file), start: 0, length, name: name.into() })
    }

    /// Reads the entries in order; contents will say that they are in layer `number`.
    pub fn entries(&self, number: u32) -> Entries<'_> {
        Entries { layer: self, number, feeder: Feeder::seeking(RangeReader::new(self)) }
    }
}

/// The entries of one layer, in order.
#[derive(Debug)]
pub struct Entries<'a> {
    layer: &'a Layer,
    number: u32,
    feeder: Feeder<RangeReader<'a>>,
}

impl Entries<'_> {
    /// The next entry, or `None` at the end. Errors where the tar is damaged or holds what cannot be kept.
    pub fn next_entry(&mut self) -> anyhow::Result<Option<Entry>> {
        let at = self.feeder.position();
        self.advance().with_context(|| format!("failed to read {} at byte {at}", self.layer.name))
    }

    fn advance(&mut self) -> anyhow::Result<Option<Entry>> {
        let Some(archive::Entry { path, kind, metadata, xattrs }) = self.feeder.next_entry()? else {
            return Ok(None);
        };
        let kind = match kind {
            archive::Kind::Directory => EntryKind::Directory,
            archive::Kind::File(archive::Content { size, stored, segments: sparse }) => {
                let at = self.feeder.position();
                ensure!(
                    at.checked_add(stored).is_some_and(|end| end <= self.layer.length),
                    "the archive ends in the middle of {}",
                    display(&path)
                );
                let offset = self.layer.start + at;
                EntryKind::File(Content { layer: self.number, offset, size, sparse })
            }
            archive::Kind::Symlink(target) => EntryKind::Symlink(target),
            archive::Kind::Hardlink(target) => EntryKind::Hardlink(target),
            archive::Kind::Special(special) => EntryKind::Special(special),
        };
        Ok(Some(Entry { path, kind, metadata, xattrs }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use tar_core::EntryType;
    use tar_core::builder::EntryBuilder;

    fn layer(bytes: &[u8]) -> Layer {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Layer::whole(file, "`layer`").unwrap()
    }

    /// A header and the contents after it, in whole blocks.
    fn entry(path: &str, contents: &[u8], more: impl FnOnce(&mut EntryBuilder)) -> Vec<u8> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path).entry_type(EntryType::Regular).size(contents.len() as u64).unwrap();
        entry.mode(0o644).unwrap().uid(0).unwrap().gid(0).unwrap().mtime(0).unwrap();
        more(&mut entry);
        let mut bytes = entry.finish_bytes();
        bytes.extend(contents);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn sparse(map: &str, stored: usize) -> Vec<u8> {
        let mut contents = map.as_bytes().to_vec();
        contents.resize(contents.len().next_multiple_of(512) + stored, 0);
        entry("GNUSparseFile.0/sparse", &contents, |entry| {
            for (key, value) in [("major", "1"), ("minor", "0"), ("name", "sparse"), ("realsize", "9000000")]
            {
                entry.add_pax(&format!("GNU.sparse.{key}"), value);
            }
        })
    }

    #[test]
    fn a_sparse_map_may_be_longer_than_what_is_read_ahead() {
        let parts = 20_000;
        let map: String = (0..parts).map(|part| format!("{}\n1\n", part * 100)).collect();
        assert!(map.len() > 128 * 1024);
        let tar = [sparse(&format!("{parts}\n{map}"), parts), entry("after", b"1", |_| {})].concat();
        let layer = layer(&tar);
        let mut entries = layer.entries(0);
        let EntryKind::File(content) = entries.next_entry().unwrap().unwrap().kind else { panic!() };
        assert_eq!((content.size, content.sparse.unwrap().len()), (9_000_000, parts));
        assert_eq!(entries.next_entry().unwrap().unwrap().path, b"after");
        assert_eq!(entries.next_entry().unwrap(), None);
    }

    #[test]
    fn a_sparse_map_without_an_end_is_an_error() {
        for (map, stored) in [("1\n0", 0), ("1", 0), ("7", 20 << 20)] {
            let map = map.to_owned() + &"7".repeat(stored);
            let layer = layer(&sparse(&map, 0));
            let error = format!("{:#}", layer.entries(0).next_entry().unwrap_err());
            assert!(error.starts_with("failed to read `layer` at byte 0: "), "{error}");
        }
    }
}
