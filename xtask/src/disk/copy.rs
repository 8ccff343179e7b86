//! Copies ranges between files, inside the kernel where it can.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Copies `length` bytes. Errors where the source ends before.
pub fn range(from: &File, mut start: u64, to: &File, mut place: u64, length: u64) -> anyhow::Result<()> {
    let mut left = length;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut start), to, Some(&mut place), wanted) {
            // The offsets have moved on by themselves.
            Ok(copied) if copied > 0 => left -= copied as u64,
            Err(Errno::INTR) => {}
            // Other file systems, pipes, old kernels: by hand. It says so itself where the source has ended.
            Ok(_) | Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return by_hand(from, start, to, place, left);
            }
            Err(error) => return Err(error).context("failed to copy"),
        }
    }
    Ok(())
}

fn by_hand(from: &File, mut start: u64, to: &File, mut place: u64, mut left: u64) -> anyhow::Result<()> {
    let mut buffer = vec![0; left.min(256 * 1024) as usize];
    while left > 0 {
        let wanted = left.min(buffer.len() as u64) as usize;
        let read = from.read_at(&mut buffer[..wanted], start).context("failed to read")?;
        ensure!(read > 0, "the source ends too early");
        to.write_all_at(&buffer[..read], place).context("failed to write")?;
        (start, place, left) = (start + read as u64, place + read as u64, left - read as u64);
    }
    Ok(())
}

/// Copies a file with its holes.
pub fn sparse(from: &Utf8Path, to: &Utf8Path) -> anyhow::Result<()> {
    let source = File::open(from).with_context(|| format!("failed to open `{from}`"))?;
    let copy = File::create(to).with_context(|| format!("failed to create `{to}`"))?;
    let length = source.metadata().with_context(|| format!("failed to read `{from}`"))?.len();
    copy.set_len(length).with_context(|| format!("failed to write `{to}`"))?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at, length)? {
        range(&source, start, &copy, start, end - start)
            .with_context(|| format!("failed to write `{to}`"))?;
        at = end;
    }
    Ok(())
}

/// The next range that is not a hole.
fn next_data(file: &File, from: u64, length: u64) -> anyhow::Result<Option<(u64, u64)>> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => {
            let end = rustix::fs::seek(file, SeekFrom::Hole(start)).context("failed to look for a hole")?;
            Ok(Some((start, end)))
        }
        Err(Errno::NXIO) => Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL) => Ok((from < length).then_some((from, length))),
        Err(error) => Err(error).context("failed to look for data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn both_ways_copy_the_same_and_see_a_short_source() {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(b"0123456789").unwrap();
        for copy in [range, by_hand] {
            let to = tempfile::tempfile().unwrap();
            copy(&from, 2, &to, 5, 6).unwrap();
            let mut read = [0xff; 11];
            to.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(&read, b"\0\0\0\0\x00234567");
            assert!(copy(&from, 8, &to, 0, 3).is_err());
        }
    }
}
