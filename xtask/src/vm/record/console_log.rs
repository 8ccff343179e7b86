//! What a guest's console said, in a file of bounded size: its beginning, where the boot is, and its latest part.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use camino::Utf8Path;

use crate::host::private;

/// Bytes of the beginning that stay.
const HEAD: u64 = 256 * 1024;

/// Bytes of the latest part that stay at least; there are up to twice as many.
const TAIL: u64 = 1024 * 1024;

/// What stands between the two.
const GAP: &[u8] = b"\n[... the console said more here ...]\n";

/// The most that the file takes, in bytes.
pub const LARGEST: u64 = HEAD + GAP.len() as u64 + 2 * TAIL;

/// A log that is written.
#[derive(Debug)]
pub struct ConsoleLog {
    file: File,
    length: u64,
    has_gap: bool,
}

impl ConsoleLog {
    /// Starts an empty log.
    pub fn create(path: &Utf8Path) -> io::Result<ConsoleLog> {
        let file = private::create(path)?;
        Ok(ConsoleLog { file, length: 0, has_gap: false })
    }

    /// Adds what was said. A disk that is full costs the log some of it, and the machine nothing.
    pub fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(TAIL as usize) {
            // The next piece goes to the same place, so that no gap of zeros is left.
            let _ = self.add(piece);
        }
    }

    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.length + piece.len() as u64 > LARGEST {
            self.shorten()?;
        }
        self.file.write_all_at(piece, self.length)?;
        self.length += piece.len() as u64;
        Ok(())
    }

    /// Moves the latest part to behind the beginning.
    fn shorten(&mut self) -> io::Result<()> {
        let mut tail = vec![0; TAIL as usize];
        self.file.read_exact_at(&mut tail, self.length - TAIL)?;
        if !self.has_gap {
            self.file.write_all_at(GAP, HEAD)?;
            self.has_gap = true;
        }
        let start = HEAD + GAP.len() as u64;
        self.file.write_all_at(&tail, start)?;
        self.length = start + TAIL;
        self.file.set_len(self.length)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_beginning_and_the_end_stay_and_the_file_stays_small() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("log");
        let mut log = ConsoleLog::create(&path).unwrap();
        let mut said = String::new();
        let (mut written, mut largest) = (0, 0);
        while said.len() < 3 * LARGEST as usize {
            for _ in 0..500 {
                let number = said.len();
                writeln!(said, "line {number}").unwrap();
            }
            log.write(&said.as_bytes()[written..]);
            written = said.len();
            largest = largest.max(std::fs::metadata(&path).unwrap().len());
        }
        assert!(largest <= LARGEST, "{largest} bytes");
        let kept = std::fs::read_to_string(&path).unwrap();
        let (head, tail) = kept.split_once(std::str::from_utf8(GAP).unwrap()).unwrap();
        assert_eq!(head, &said[..HEAD as usize]);
        assert!(tail.len() >= TAIL as usize);
        assert!(said.ends_with(tail));
    }

    #[test]
    fn one_huge_word_is_no_exception() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("log");
        let mut log = ConsoleLog::create(&path).unwrap();
        log.write(b"short");
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
        log.write(&vec![b'x'; 3 * LARGEST as usize]);
        let kept = std::fs::read(&path).unwrap();
        assert!(kept.len() as u64 <= LARGEST);
        assert!(kept.starts_with(b"shortx") && kept.ends_with(b"x"));
    }
}
