//! Reads one layer: a tar, plain or GNU or PAX, as a list of [`Entry`]s whose contents stay where they are.
//!
//! The header format is `tar-core`'s business; this module feeds it, and `extended` reads what it leaves out of PAX
//! headers. What entries do to a root file system is [`super::flatten`]'s.
//!
//! Errors name the entry, or the offset where no entry can be named.

mod entry;
mod extended;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use tar_core::EntryType;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

pub use self::entry::{Content, Entry, EntryKind, Metadata, Segment, Special, Xattrs};

use self::extended::Extended;

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

/// A path for a message.
pub fn display(path: &[u8]) -> String {
    format!("`{}`", path.escape_ascii())
}

impl Layer {
    /// A whole file as one tar.
    pub fn whole(file: File, name: impl Into<String>) -> anyhow::Result<Layer> {
        let length = file.metadata().context("failed to read a layer's size")?.len();
        Ok(Layer { file: Arc::new(file), start: 0, length, name: name.into() })
    }

    /// Reads the entries in order; contents will say that they are in layer `number`.
    pub fn entries(&self, number: u32) -> Entries<'_> {
        Entries {
            layer: self,
            number,
            parser: new_parser(),
            buffer: Vec::with_capacity(READ_AHEAD),
            taken: 0,
            position: 0,
        }
    }
}

/// How much is read at a time: many small files' headers and contents in one call.
const READ_AHEAD: usize = 128 * 1024;

/// Sparse files with more parts than this are refused; a bound on memory (24 bytes each).
const MAX_SPARSE_PARTS: usize = 100_000;

/// An entry's headers, its sparse map among them, are held in memory; its parts take at most 40 bytes of text each.
const MAX_HEADERS: usize = 8 << 20;

fn new_parser() -> Parser {
    let limits = Limits { max_sparse_entries: MAX_SPARSE_PARTS, ..Limits::default() };
    let mut parser = Parser::new(limits);
    // `tar-core` reads numbers as unsigned whole ones and would fail at a time before 1970. With this it passes
    // over what it cannot read; `extended` does the reading, and fails where it must.
    parser.set_ignore_pax_errors(true);
    parser
}

/// The entries of one layer, in order.
#[derive(Debug)]
pub struct Entries<'a> {
    layer: &'a Layer,
    number: u32,
    parser: Parser,
    /// Bytes of the tar from `position` on; the first `taken` are done with.
    buffer: Vec<u8>,
    taken: usize,
    /// Offset in the tar of the buffer's first byte.
    position: u64,
}

impl Entries<'_> {
    /// The next entry, or `None` at the end. Errors where the tar is damaged or holds what cannot be kept.
    pub fn next_entry(&mut self) -> anyhow::Result<Option<Entry>> {
        let at = self.position + self.taken as u64;
        self.advance().with_context(|| format!("failed to read {} at byte {at}", self.layer.name))
    }

    fn advance(&mut self) -> anyhow::Result<Option<Entry>> {
        loop {
            let is_first = self.position == 0 && self.taken == 0;
            let event = self.parser.parse(&self.buffer[self.taken..]).with_context(|| {
                if is_first { "it does not begin like a tar archive" } else { "an entry's header is damaged" }
            })?;
            let (consumed, entry, sparse) = match event {
                ParseEvent::NeedData { min_bytes } => {
                    // Of a sparse map the parser does not know how long it is, and asks for what is there already.
                    let wanted = min_bytes.max(self.buffer.len() - self.taken + 1);
                    ensure!(
                        wanted <= MAX_HEADERS,
                        "the headers of one entry take more than {MAX_HEADERS} bytes"
                    );
                    if self.fill(wanted)? {
                        continue;
                    }
                    // Some writers leave out the two blocks of zeros at the end.
                    if self.buffer[self.taken..].iter().all(|&byte| byte == 0) {
                        return Ok(None);
                    }
                    bail!("the archive ends in the middle of an entry");
                }
                ParseEvent::End { .. } => return Ok(None),
                ParseEvent::GlobalExtensions { consumed, pax_data } => {
                    extended::check_global(pax_data)?;
                    self.taken += consumed;
                    continue;
                }
                ParseEvent::Entry { consumed, entry } => (consumed, entry, None),
                ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                    (consumed, entry, Some((sparse_map, real_size)))
                }
            };
            let data = self.position + self.taken as u64 + consumed as u64;
            let stored = stored_size(&entry);
            let padded = stored.checked_next_multiple_of(512).context("an entry's size is out of range")?;
            let next = data.checked_add(padded).context("an entry's size is out of range")?;
            ensure!(
                data.checked_add(stored).is_some_and(|end| end <= self.layer.length),
                "the archive ends in the middle of {}",
                display(&entry.path)
            );
            let place = Place { layer: self.number, offset: self.layer.start + data, stored };
            let entry =
                convert(&entry, sparse, place).with_context(|| format!("entry {}", display(&entry.path)))?;
            self.skip_to(next);
            return Ok(Some(entry));
        }
    }

    /// Moves on to an offset in the tar, keeping what is read ahead where that reaches it.
    fn skip_to(&mut self, offset: u64) {
        match usize::try_from(offset - self.position) {
            Ok(taken) if taken <= self.buffer.len() => self.taken = taken,
            _ => {
                self.buffer.clear();
                self.taken = 0;
                self.position = offset;
            }
        }
    }

    /// Makes at least `wanted` bytes available; false where the tar ends before.
    fn fill(&mut self, wanted: usize) -> anyhow::Result<bool> {
        self.buffer.drain(..self.taken);
        self.position += self.taken as u64;
        self.taken = 0;
        while self.buffer.len() < wanted {
            let at = self.position + self.buffer.len() as u64;
            let room = wanted.next_multiple_of(READ_AHEAD) - self.buffer.len();
            let rest = self.layer.length.saturating_sub(at).min(room as u64) as usize;
            if rest == 0 {
                return Ok(false);
            }
            let have = self.buffer.len();
            self.buffer.resize(have + rest, 0);
            let read = self
                .layer
                .file
                .read_at(&mut self.buffer[have..], self.layer.start + at)
                .context("failed to read the archive")?;
            self.buffer.truncate(have + read);
            if read == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

struct Place {
    layer: u32,
    offset: u64,
    stored: u64,
}

fn is_header_only(kind: EntryType) -> bool {
    kind.is_hard_link()
        || kind.is_symlink()
        || kind.is_dir()
        || kind.is_character_special()
        || kind.is_block_special()
        || kind.is_fifo()
}

/// Bytes that follow the header. Links and the like have none, whatever their size field says (docker's reading).
fn stored_size(entry: &ParsedEntry<'_>) -> u64 {
    if is_header_only(entry.entry_type) { 0 } else { entry.size }
}

fn convert(
    entry: &ParsedEntry<'_>,
    sparse: Option<(Vec<tar_core::SparseEntry>, u64)>,
    place: Place,
) -> anyhow::Result<Entry> {
    let target = || -> anyhow::Result<Box<[u8]>> {
        entry.link_target.as_deref().map(Into::into).context("a link without a target")
    };
    let (major, minor) = (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
    let kind = entry.entry_type;
    // Before POSIX, a directory was a file whose name ends in a slash.
    let is_old_directory = kind.is_file() && entry.path.ends_with(b"/");
    let kind = if kind.is_dir() || is_old_directory {
        EntryKind::Directory
    } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
        EntryKind::File(content(sparse, place)?)
    } else if kind.is_symlink() {
        EntryKind::Symlink(target()?)
    } else if kind.is_hard_link() {
        EntryKind::Hardlink(target()?)
    } else if kind.is_character_special() {
        EntryKind::Special(Special::CharDevice { major, minor })
    } else if kind.is_block_special() {
        EntryKind::Special(Special::BlockDevice { major, minor })
    } else if kind.is_fifo() {
        EntryKind::Special(Special::Fifo)
    } else {
        bail!("its type {:?} is not known", char::from(kind.to_byte()));
    };

    let Extended { mtime, xattrs } = extended::read(entry.pax.unwrap_or_default())?;
    let mtime = mtime.unwrap_or((entry.mtime.cast_signed(), 0));
    let id = |value: u64, what: &str| {
        u32::try_from(value).with_context(|| format!("its {what} {value} is out of range"))
    };
    let metadata = Metadata {
        mode: (entry.mode & 0o7777) as u16,
        uid: id(entry.uid, "owner")?,
        gid: id(entry.gid, "group")?,
        mtime,
    };
    Ok(Entry { path: entry.path.to_vec(), kind, metadata, xattrs })
}

fn content(sparse: Option<(Vec<tar_core::SparseEntry>, u64)>, place: Place) -> anyhow::Result<Content> {
    let Place { layer, offset, stored } = place;
    let Some((map, size)) = sparse else {
        return Ok(Content { layer, offset, size: stored, sparse: None });
    };
    let mut segments = Vec::with_capacity(map.len());
    let mut end_of_last = 0;
    let mut total = 0;
    for part in map.iter().filter(|part| part.length != 0) {
        let end = part.offset.checked_add(part.length).filter(|&end| end <= size);
        ensure!(part.offset >= end_of_last && end.is_some(), "its sparse map is damaged");
        end_of_last = end.unwrap_or_default();
        total += part.length;
        segments.push(Segment { offset: part.offset, length: part.length });
    }
    ensure!(total == stored, "its sparse map speaks of {total} bytes, and {stored} are stored");
    Ok(Content { layer, offset, size, sparse: Some(segments.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
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
        assert!(map.len() > READ_AHEAD);
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
