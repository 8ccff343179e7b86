//! Writes a range of the disk from its beginning on: small pieces gathered into large writes, large ones straight from
//! their files, inside the kernel where it can.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::Context as _;

use super::format::BLOCK;
use crate::disk::copy;

/// How much is gathered, in bytes.
const ROOM: usize = 1 << 20;

/// From this length on, a copy inside the kernel is quicker than one through the buffer.
const LARGE: u64 = 128 << 10;

/// A place on the disk that moves upwards.
pub(super) struct Sink<'a> {
    disk: &'a File,
    gathered: Vec<u8>,
    /// Where the first gathered byte goes.
    start: u64,
}

impl<'a> Sink<'a> {
    pub(super) fn new(disk: &'a File, start: u64) -> Sink<'a> {
        Sink { disk, gathered: Vec::with_capacity(ROOM), start }
    }

    /// The offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.start + self.gathered.len() as u64
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if self.gathered.len() + bytes.len() > ROOM {
            self.flush()?;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Copies from a file. Errors where it ends before.
    pub(super) fn copy(&mut self, from: &File, offset: u64, length: u64) -> anyhow::Result<()> {
        if length >= LARGE {
            self.flush()?;
            copy::range(from, offset, self.disk, self.start, length)?;
            self.start += length;
            return Ok(());
        }
        let length = length as usize;
        if self.gathered.len() + length > ROOM {
            self.flush()?;
        }
        let have = self.gathered.len();
        self.gathered.resize(have + length, 0);
        from.read_exact_at(&mut self.gathered[have..], offset).context("failed to read")
    }

    /// Moves on, over zeros.
    pub(super) fn skip_to(&mut self, position: u64) -> anyhow::Result<()> {
        let gap = position.checked_sub(self.position()).context("a place on the disk was used twice")?;
        if gap < BLOCK && !self.gathered.is_empty() {
            self.gathered.resize(self.gathered.len() + gap as usize, 0);
        } else {
            self.flush()?;
            self.start = position;
        }
        Ok(())
    }

    /// Moves on to the beginning of a block, over zeros.
    pub(super) fn finish_block(&mut self) -> anyhow::Result<()> {
        self.skip_to(self.position().next_multiple_of(BLOCK))
    }

    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        self.disk.write_all_at(&self.gathered, self.start).context("failed to write")?;
        self.start = self.position();
        self.gathered.clear();
        Ok(())
    }
}
