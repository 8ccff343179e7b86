//! The one reader of tar archives: plain, ustar, GNU and PAX, as a stream or in a file, as entries that were checked.
//!
//! Archives come from images, guests and remotes, which may be hostile. So an entry's headers are bounded in number and size,
//! each block is read once, every number is checked, and nothing is allocated because a header announces it.
//! An archive that says something twice or in a way that its readers disagree on is an error.

use std::io::{ErrorKind, Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail, ensure};
use tar_core::{EntryType, HEADER_SIZE, Header};

use super::entry::{Content, Entry, Kind, Metadata, Segment, Special, Xattrs};
use super::path::{self, PATH_MOST, until_zero};
use super::pax::{self, Extended};
use super::sparse::{self, MAX_SEGMENTS, MapReader};
use super::{display, number};

/// How much is read at a time, in bytes: many small files' headers and contents in one call.
const READ_AHEAD: usize = 128 * 1024;

/// The headers of one entry beside its own, long names and PAX records together, take at most so many bytes.
const MAX_EXTENDED: u64 = 1 << 20;

/// Where the map is in the header of a GNU sparse entry; the parts in each block that continues it, and how many such
/// blocks there may be (`struct sparse_header` of GNU tar's tar.h).
const GNU_MAP: std::ops::Range<usize> = 386..482;
const MAP_BLOCK_PARTS: usize = 21;
const MAX_MAP_BLOCKS: usize = MAX_SEGMENTS / MAP_BLOCK_PARTS;

/// An archive, entry by entry.
#[derive(Debug)]
pub struct Feeder<R> {
    source: R,
    /// Passes over bytes of the source that are not in the buffer, where it can do so without reading them.
    jump: Option<fn(&mut R, u64) -> std::io::Result<()>>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are done with, and where what was read ends.
    start: usize,
    end: usize,
    /// Offset in the archive of the buffer's first byte.
    offset: u64,
    /// Bytes of the present entry's content that are still to come, and of the padding after it.
    content: u64,
    padding: u64,
    is_done: bool,
}

/// Headers that come before an entry's own.
#[derive(Debug, Default)]
struct Before {
    bytes: u64,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Extended>,
}

impl<R: Read> Feeder<R> {
    /// Reads an archive that comes as a stream. What lies behind its end is left in the stream or in the feeder.
    pub fn new(source: R) -> Feeder<R> {
        Feeder {
            source,
            jump: None,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            content: 0,
            padding: 0,
            is_done: false,
        }
    }

    /// How many bytes of the archive are done with. Behind an entry's headers, this is where its content begins.
    pub fn position(&self) -> u64 {
        self.offset + self.start as u64
    }

    /// The next entry; `None` at the archive's end. What was left of the last one's content is passed over.
    ///
    /// # Errors
    /// The archive is damaged or cut off, or says what cannot be.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let rest = self.content + std::mem::take(&mut self.padding);
        self.pass_over(rest)?;
        self.content = 0;
        let mut before = Before::default();
        while let Some(header) = self.header(&before)? {
            let is_first = self.offset == 0 && self.start == HEADER_SIZE;
            let of_header = || {
                if is_first { "it does not begin like a tar archive" } else { "an entry's header is damaged" }
            };
            let checksum = number::field(&header.as_ustar().cksum).and_then(|sum| u64::try_from(sum).ok());
            let is_right = checksum == Some(header.compute_checksum());
            is_right.then_some(()).context("its checksum is wrong").with_context(of_header)?;
            let size = number::field(&header.as_ustar().size).and_then(|size| u64::try_from(size).ok());
            let size = size.context("its size is none").with_context(of_header)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    ensure!(before.pax.is_none(), "an entry has two extended headers");
                    let data = self.extended(size, &mut before.bytes)?;
                    before.pax = Some(Extended::read(&data)?);
                }
                EntryType::GnuLongName => {
                    ensure!(before.long_name.is_none(), "an entry has two long names");
                    before.long_name = Some(until_zero(&self.extended(size, &mut before.bytes)?).to_vec());
                }
                EntryType::GnuLongLink => {
                    ensure!(before.long_link.is_none(), "an entry has two long targets");
                    before.long_link = Some(until_zero(&self.extended(size, &mut before.bytes)?).to_vec());
                }
                EntryType::XGlobalHeader => {
                    let data = self.extended(size, &mut 0)?;
                    pax::check_global(&data)?;
                }
                _ => return self.entry(&header, size, before).map(Some),
            }
        }
        Ok(None)
    }

    /// The next bytes of the present entry's content, at most `most`; none at its end.
    ///
    /// # Errors
    /// The archive is cut off, or cannot be read.
    pub fn content_piece(&mut self, most: u64) -> Result<&[u8]> {
        let most = most.min(self.content);
        if most == 0 {
            return Ok(&[]);
        }
        ensure!(self.fill(1)?, "the archive ends in the middle of an entry");
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.end - self.start);
        let piece = self.start..self.start + count;
        self.start += count;
        self.content -= count as u64;
        Ok(&self.buffer[piece])
    }

    /// The next block that is a header; `None` at the end.
    fn header(&mut self, before: &Before) -> Result<Option<Header>> {
        let is_between = before.pax.is_none() && before.long_name.is_none() && before.long_link.is_none();
        while !self.is_done {
            if !self.fill(HEADER_SIZE)? {
                // Some writers leave out the blocks of zeros at the end; who needs them asks `is_complete`.
                let is_rest_empty = self.buffer[self.start..self.end].iter().all(|byte| *byte == 0);
                ensure!(is_between && is_rest_empty, "the archive ends in the middle of an entry");
                return Ok(None);
            }
            let block = *self.buffer[self.start..].first_chunk::<HEADER_SIZE>().context("no block")?;
            self.start += HEADER_SIZE;
            if block.iter().any(|byte| *byte != 0) {
                return Ok(Some(*Header::from_bytes(&block)));
            }
            // A lone block of zeros is passed over, as GNU tar does.
            if self.fill(HEADER_SIZE)? {
                let second = &self.buffer[self.start..][..HEADER_SIZE];
                self.is_done = second.iter().all(|byte| *byte == 0);
                self.start += if self.is_done { HEADER_SIZE } else { 0 };
            }
        }
        ensure!(is_between, "the archive ends before the entry that a header announces");
        Ok(None)
    }

    /// Whether the archive's end was there, two blocks of zeros, and not only the source's.
    pub fn is_complete(&self) -> bool {
        self.is_done
    }

    /// The data of a header that says more of the next entry. `total` counts the bytes of all of them.
    fn extended(&mut self, size: u64, total: &mut u64) -> Result<Vec<u8>> {
        *total = total.saturating_add(size);
        ensure!(*total <= MAX_EXTENDED, "the headers of one entry take more than {MAX_EXTENDED} bytes");
        let size = size as usize;
        let padded = size.next_multiple_of(HEADER_SIZE);
        ensure!(self.fill(padded)?, "the archive ends in the middle of an entry");
        let data = self.buffer[self.start..][..size].to_vec();
        self.start += padded;
        Ok(data)
    }

    fn entry(&mut self, header: &Header, size: u64, before: Before) -> Result<Entry> {
        let Before { long_name, long_link, pax, .. } = before;
        let mut pax = pax.unwrap_or_default();
        let path = pax.sparse.name.take().or(pax.path.take()).or(long_name);
        let path = path.unwrap_or_else(|| path::in_header(header));
        path::check(&path)?;
        let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link_name_bytes().to_vec());
        self.kind_and_metadata(header, pax.size.unwrap_or(size), &path, link, pax)
            .map(|(kind, metadata, xattrs)| Entry { path: path.clone(), kind, metadata, xattrs })
            .with_context(|| format!("entry {}", display(&path)))
    }

    fn kind_and_metadata(
        &mut self,
        header: &Header,
        size: u64,
        path: &[u8],
        link: Vec<u8>,
        mut pax: Extended,
    ) -> Result<(Kind, Metadata, Xattrs)> {
        let fields = header.as_ustar();
        let id = |record: Option<u64>, field: &[u8], what: &str| {
            let value = record.map_or_else(|| number::field(field).map(i128::from), |id| Some(id.into()));
            let id = value.and_then(|value| u32::try_from(value).ok());
            id.with_context(|| format!("its {what} is out of range"))
        };
        let metadata = Metadata {
            mode: (number::field(&fields.mode).context("its mode is none")? & 0o7777) as u16,
            uid: id(pax.uid, &fields.uid, "owner")?,
            gid: id(pax.gid, &fields.gid, "group")?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => (number::field(&fields.mtime).context("its time is none")?, 0),
            },
        };
        let device = || -> Result<(u32, u32)> {
            if !header.is_ustar() && !header.is_gnu() {
                return Ok((0, 0));
            }
            Ok((id(None, &fields.dev_major, "major number")?, id(None, &fields.dev_minor, "minor number")?))
        };
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Directory,
            // Before POSIX, a directory was a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
                Kind::File(self.file(header, size, &mut pax)?)
            }
            EntryType::Symlink => {
                ensure!(
                    (1..=PATH_MOST).contains(&link.len()) && !link.contains(&0),
                    "a link's target of {} bytes; Linux allows 1 to {PATH_MOST}, none of them zero",
                    link.len()
                );
                Kind::Symlink(link.into())
            }
            EntryType::Link => {
                path::check(&link).context("its target")?;
                Kind::Hardlink(link.into())
            }
            EntryType::Char => {
                let (major, minor) = device()?;
                Kind::Special(Special::CharDevice { major, minor })
            }
            EntryType::Block => {
                let (major, minor) = device()?;
                Kind::Special(Special::BlockDevice { major, minor })
            }
            EntryType::Fifo => Kind::Special(Special::Fifo),
            other => bail!("its type {:?} is not known", char::from(other.to_byte())),
        };
        // Only a file has content. Of what else has a size, docker and the rest say that it means nothing, save for the
        // directories of before POSIX.
        self.content = match &kind {
            Kind::File(content) => content.stored,
            _ if header.entry_type().is_file() => sparse::content(size, size, None)?.stored,
            _ => 0,
        };
        self.padding = self.content.wrapping_neg() % HEADER_SIZE as u64;
        Ok((kind, metadata, pax.xattrs))
    }

    /// What a file holds, in whichever form the archive says it; reads the map of holes that comes before the content.
    fn file(&mut self, header: &Header, size: u64, pax: &mut Extended) -> Result<Content> {
        if header.entry_type().is_gnu_sparse() {
            let (map, size_of_all) = self.gnu_map(header)?;
            return sparse::content(size_of_all, size, Some(map));
        }
        if pax.sparse.is_in_content() {
            let of_all = pax.sparse.size.context("its extended header lacks `GNU.sparse.realsize`")?;
            let mut map = MapReader::default();
            let mut stored = size;
            loop {
                stored = stored.checked_sub(HEADER_SIZE as u64).context("its sparse map has no end")?;
                ensure!(self.fill(HEADER_SIZE)?, "the archive ends in the middle of an entry");
                let is_over = map.block(&self.buffer[self.start..][..HEADER_SIZE])?;
                self.start += HEADER_SIZE;
                if is_over {
                    return sparse::content(of_all, stored, Some(map.segments));
                }
            }
        }
        let map = pax.sparse.segments.take();
        let of_all = pax.sparse.size.filter(|_| map.is_some()).unwrap_or(size);
        sparse::content(of_all, size, map)
    }

    /// The map of a GNU sparse entry, in its header and the blocks behind it, and the file's size.
    fn gnu_map(&mut self, header: &Header) -> Result<(Vec<Segment>, u64)> {
        let gnu = header.try_as_gnu().context("it is sparse in GNU's way and has not GNU's header")?;
        let number = |field: &[u8]| {
            let number = number::field(field).and_then(|number| u64::try_from(number).ok());
            number.context("its sparse map has a number that is out of range")
        };
        // Each part is two fields of 12 bytes; one that begins with a zero byte ends the list.
        let add = |map: &mut Vec<Segment>, parts: &[u8]| -> Result<()> {
            let parts = parts.chunks_exact(24).map(|part| part.split_at(12));
            for (offset, length) in parts.take_while(|(offset, length)| offset[0] != 0 && length[0] != 0) {
                map.push(Segment { offset: number(offset)?, length: number(length)? });
            }
            Ok(())
        };
        let size = number(&gnu.realsize)?;
        let mut map = Vec::new();
        add(&mut map, &header.as_bytes()[GNU_MAP])?;
        let mut is_extended = gnu.is_extended();
        let mut blocks = 0;
        while is_extended {
            blocks += 1;
            ensure!(blocks <= MAX_MAP_BLOCKS, "its sparse map has more than {MAX_SEGMENTS} parts");
            ensure!(self.fill(HEADER_SIZE)?, "the archive ends in the middle of an entry");
            let block = &self.buffer[self.start..][..HEADER_SIZE];
            add(&mut map, &block[..24 * MAP_BLOCK_PARTS])?;
            is_extended = block[24 * MAP_BLOCK_PARTS] == 1;
            self.start += HEADER_SIZE;
        }
        Ok((map, size))
    }

    /// Moves on by so many bytes.
    fn pass_over(&mut self, count: u64) -> Result<()> {
        let mut left = count;
        loop {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.end - self.start);
            self.start += here;
            left -= here as u64;
            if left == 0 {
                return Ok(());
            }
            if let Some(jump) = self.jump {
                jump(&mut self.source, left).context("cannot read the archive")?;
                self.offset = (self.offset + self.end as u64)
                    .checked_add(left)
                    .context("an entry's size is out of range")?;
                (self.start, self.end) = (0, 0);
                return Ok(());
            }
            ensure!(self.fill(1)?, "the archive ends in the middle of an entry");
        }
    }

    /// Reads on until at least `wanted` bytes are there; false where the source ends before.
    fn fill(&mut self, wanted: usize) -> Result<bool> {
        if self.end - self.start >= wanted {
            return Ok(true);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.offset += self.start as u64;
        self.end -= self.start;
        self.start = 0;
        let room = wanted.next_multiple_of(READ_AHEAD);
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        while self.end < wanted {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read the archive"),
            }
        }
        Ok(true)
    }
}

impl<R: Read + Seek> Feeder<R> {
    /// Reads an archive in a file, in which contents that nobody asks for are jumped over. Whether they are there is the
    /// caller's to check.
    pub fn seeking(source: R) -> Feeder<R> {
        let jump = |source: &mut R, count: u64| {
            let count = i64::try_from(count).map_err(std::io::Error::other)?;
            source.seek(SeekFrom::Current(count)).map(drop)
        };
        Feeder { jump: Some(jump), ..Feeder::new(source) }
    }
}

#[cfg(test)]
mod tests;
