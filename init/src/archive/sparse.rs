//! Maps of files with holes. GNU tar has had four forms of them; all end here as one list that was checked.

use anyhow::{Context, Result, ensure};

use super::entry::{Content, Segment};
use super::number;

/// Maps with more parts are refused; a bound on memory, of 16 bytes each.
pub(super) const MAX_SEGMENTS: usize = 100_000;

/// Sizes beyond this are none to Linux (`loff_t`).
const LARGEST: u64 = i64::MAX as u64;

/// A file's content as an archive describes it, checked.
///
/// # Errors
/// The size is none to Linux; or the parts overlap, are out of order, lie beyond the size, or are not what is stored.
pub(super) fn content(size: u64, stored: u64, map: Option<Vec<Segment>>) -> Result<Content> {
    ensure!(size <= LARGEST && stored <= LARGEST, "its size {} is out of range", size.max(stored));
    let Some(mut map) = map else {
        return Ok(Content { size, stored, segments: None });
    };
    map.retain(|segment| segment.length != 0);
    let mut end_of_last = 0;
    let mut total = 0;
    for segment in &map {
        let end = segment.offset.checked_add(segment.length).filter(|end| *end <= size);
        let end = end.filter(|_| segment.offset >= end_of_last).context("its sparse map is damaged")?;
        end_of_last = end;
        // No more than `size`, since nothing overlaps.
        total += segment.length;
    }
    ensure!(total == stored, "its sparse map speaks of {total} bytes, and {stored} are stored");
    Ok(Content { size, stored, segments: Some(map.into()) })
}

/// Reads the map that form 1.0 has before the content: how many parts, then offset and length of each, a line each, in
/// whole blocks. A block at a time, so that nothing is read twice.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    /// How many numbers are still to come; unknown before the first line.
    left: Option<usize>,
    line: Vec<u8>,
    offset: Option<u64>,
    pub(super) segments: Vec<Segment>,
}

/// The longest line: the digits of the largest number.
const LONGEST_LINE: usize = 20;

impl MapReader {
    /// Takes the next block; true when the map has ended in it.
    ///
    /// # Errors
    /// A line is no number, or there are too many.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<bool> {
        for byte in block {
            if self.left == Some(0) {
                break;
            }
            if *byte != b'\n' {
                ensure!(self.line.len() < LONGEST_LINE, "its sparse map has a line that is too long");
                self.line.push(*byte);
                continue;
            }
            let number =
                number::decimal(&self.line).context("its sparse map has a line that is no number")?;
            self.line.clear();
            self.number(number)?;
        }
        Ok(self.left == Some(0))
    }

    fn number(&mut self, number: u64) -> Result<()> {
        let Some(left) = &mut self.left else {
            let count = usize::try_from(number).ok().filter(|count| *count <= MAX_SEGMENTS);
            let count = count.with_context(|| {
                format!("its sparse map has {number} parts; more than {MAX_SEGMENTS} are refused")
            })?;
            self.left = Some(2 * count);
            return Ok(());
        };
        *left -= 1;
        match self.offset.take() {
            None => self.offset = Some(number),
            Some(offset) => self.segments.push(Segment { offset, length: number }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(parts: &[(u64, u64)]) -> Option<Vec<Segment>> {
        Some(parts.iter().map(|&(offset, length)| Segment { offset, length }).collect())
    }

    #[test]
    fn maps_are_in_order_and_fit() {
        let good = content(100, 30, map(&[(0, 10), (10, 0), (10, 10), (90, 10), (100, 0)])).unwrap();
        assert_eq!((good.size, good.stored, good.segments.unwrap().len()), (100, 30, 3));
        assert!(content(0, 0, map(&[])).is_ok());
        for (size, stored, parts) in [
            (100, 20, &[(10, 10), (0, 10)][..]),
            (100, 20, &[(0, 10), (9, 10)]),
            (100, 10, &[(91, 10)]),
            (100, 1, &[(u64::MAX, 1)]),
            (100, 2, &[(u64::MAX - 1, 2)]),
            (100, 11, &[(0, 10)]),
            (100, 9, &[(0, 10)]),
        ] {
            assert!(content(size, stored, map(parts)).is_err(), "{parts:?}");
        }
        for (size, stored) in [(u64::MAX, 0), (LARGEST + 1, 0), (0, u64::MAX)] {
            let said = content(size, stored, None).unwrap_err().to_string();
            assert_eq!(said, format!("its size {} is out of range", size.max(stored)));
        }
        assert!(content(LARGEST, LARGEST, None).is_ok());
    }

    #[test]
    fn a_map_before_the_content_is_read_by_blocks() {
        let text = b"2\n0\n5\n4096\n7\n";
        for cut in 1..text.len() {
            let mut reader = MapReader::default();
            assert!(!reader.block(&text[..cut]).unwrap());
            assert!(reader.block(&[&text[cut..], &[0; 20]].concat()).unwrap());
            assert_eq!(Some(reader.segments), map(&[(0, 5), (4096, 7)]));
        }
        assert!(MapReader::default().block(b"0\n\0\0").unwrap());
        for text in [
            &[0; 513][..],
            b"\n",
            b"1\n-1\n",
            b"1\nx\n",
            b"100001\n",
            b"18446744073709551616\n",
            b"99999999999999999999999999",
        ] {
            assert!(MapReader::default().block(text).is_err(), "{}", text.escape_ascii());
        }
    }
}
