//! The entries of an archive as it arrives: parsed, checked, with their content in pieces.

use std::io::Read;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Gid, Mode, Timespec, Uid};
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, HEADER_SIZE, PaxExtensions, SparseEntry};

use super::parse_time;

/// Bytes that are read at a time.
const READ: usize = 64 * 1024;

/// A path as its parts, without `.` and empty ones; nothing for the directory that the archive is about.
pub(crate) type Parts = Vec<Vec<u8>>;

/// An entry of the archive, checked.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryType,
    pub(crate) path: Parts,
    /// What a link points to.
    pub(crate) link: Vec<u8>,
    pub(crate) mode: Mode,
    pub(crate) owner: (Uid, Gid),
    pub(crate) time: Timespec,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content goes in a file with holes, and its size.
    pub(crate) sparse: Option<(Vec<SparseEntry>, u64)>,
}

impl Entry {
    fn new(entry: &ParsedEntry<'_>, sparse: Option<(Vec<SparseEntry>, u64)>) -> Result<Entry> {
        let shown = || String::from_utf8_lossy(&entry.path).into_owned();
        let id = |id: u64| {
            // The highest one means "no change" to the kernel.
            let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| anyhow!("`{}` has an owner that is out of range", shown()))
        };
        let records = entry.pax.map(PaxExtensions::new).into_iter().flatten().flatten();
        let time = records.filter(|record| record.key_bytes() == b"mtime").last();
        let time = time.and_then(|record| parse_time(record.value().ok()?));
        Ok(Entry {
            kind: entry.entry_type,
            path: parts(&entry.path)?,
            link: entry.link_target.as_deref().unwrap_or_default().to_vec(),
            mode: Mode::from_raw_mode(entry.mode & 0o7777),
            owner: (Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?)),
            time: time.unwrap_or(Timespec { tv_sec: entry.mtime.cast_signed(), tv_nsec: 0 }),
            device: (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0)),
            xattrs: entry.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
            sparse,
        })
    }
}

/// The parts of a name in an archive, which is relative whatever it says.
///
/// # Errors
/// It has a part `..`.
pub(crate) fn parts(name: &[u8]) -> Result<Parts> {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Parts = parts.map(<[u8]>::to_vec).collect();
    if parts.iter().any(|part| part == b"..") {
        bail!(
            "the archive has the name `{}`, which leads out of the directory",
            String::from_utf8_lossy(name)
        );
    }
    Ok(parts)
}

/// An archive as it arrives.
pub(crate) struct Stream<R> {
    source: R,
    parser: Parser,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are done with.
    at: usize,
    /// Bytes of the present entry's content that are still to come, and of the padding after it.
    content: u64,
    padding: u64,
}

impl<R: Read> Stream<R> {
    pub(crate) fn new(source: R) -> Stream<R> {
        let mut parser = Parser::new(Limits { max_path_len: Some(4096), ..Limits::default() });
        // Negative times are errors to the parser; they are read from the records here.
        parser.set_ignore_pax_errors(true);
        Stream { source, parser, buffer: Vec::new(), at: 0, content: 0, padding: 0 }
    }

    /// The next entry; `None` at the archive's end. What was left of the last one's content is passed over.
    ///
    /// # Errors
    /// The archive is damaged or cut off, or says what cannot be.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.content += std::mem::take(&mut self.padding);
        while self.content > 0 {
            self.content_piece()?;
        }
        loop {
            let event = self.parser.parse(&self.buffer[self.at..]).context("the archive is damaged")?;
            let (entry, size, consumed) = match event {
                ParseEvent::NeedData { min_bytes } => {
                    self.fill(min_bytes)?;
                    continue;
                }
                ParseEvent::GlobalExtensions { consumed, .. } => {
                    self.at += consumed;
                    continue;
                }
                ParseEvent::End { .. } => return Ok(None),
                ParseEvent::Entry { consumed, entry } => (Entry::new(&entry, None)?, entry.size, consumed),
                ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                    (Entry::new(&entry, Some((sparse_map, real_size)))?, entry.size, consumed)
                }
            };
            self.at += consumed;
            self.content = size;
            self.padding = size.wrapping_neg() % HEADER_SIZE as u64;
            return Ok(Some(entry));
        }
    }

    /// The next bytes of the present entry's content; empty at its end.
    ///
    /// # Errors
    /// The archive is cut off, or cannot be read.
    pub(crate) fn content_piece(&mut self) -> Result<&[u8]> {
        self.content_piece_of(u64::MAX)
    }

    /// The same, at most `most` bytes.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn content_piece_of(&mut self, most: u64) -> Result<&[u8]> {
        if self.content > 0 && self.at == self.buffer.len() {
            self.fill(1)?;
        }
        let start = self.at;
        let count =
            (self.buffer.len() - start).min(usize::try_from(self.content.min(most)).unwrap_or(usize::MAX));
        self.at += count;
        self.content -= count as u64;
        Ok(&self.buffer[start..start + count])
    }

    /// Reads on until at least `needed` bytes are there.
    fn fill(&mut self, needed: usize) -> Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        while self.buffer.len() < needed {
            let length = self.buffer.len();
            self.buffer.resize(length + READ, 0);
            let count = self.source.read(&mut self.buffer[length..]);
            self.buffer.truncate(length + *count.as_ref().unwrap_or(&0));
            match count {
                Ok(0) => bail!("the archive is cut off"),
                Err(e) if e.kind() != std::io::ErrorKind::Interrupted => {
                    return Err(e).context("cannot read the archive");
                }
                _ => {}
            }
        }
        Ok(())
    }
}
