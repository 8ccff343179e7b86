//! What a machine's main process said, with times, for `logs`: pieces as they came, byte for byte.
//!
//! Each piece is a line `MILLISECONDS STREAM LENGTH` (since 1970; `o` or `e`; bytes), the bytes, and a newline.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};

use camino::Utf8Path;
use init::protocol::Stream;

/// Room on the disk that a log has ahead of what is in it, in bytes: for the last words of a machine that fills the disk.
const AHEAD: u64 = 512 << 10;

/// A log that is written.
#[derive(Debug)]
pub struct OutputLog {
    file: File,
    length: u64,
    reserved: u64,
}

/// A log that is read, perhaps while it is written.
#[derive(Debug)]
pub struct Reader(BufReader<File>);

/// What the main process said at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Milliseconds since 1970.
    pub milliseconds: i64,
    /// On which stream: standard output or standard error.
    pub stream: Stream,
    /// What.
    pub bytes: Vec<u8>,
}

impl OutputLog {
    /// Starts an empty log.
    pub fn create(path: &Utf8Path) -> io::Result<OutputLog> {
        let mut log = OutputLog { file: File::create(path)?, length: 0, reserved: 0 };
        log.reserve();
        Ok(log)
    }

    /// Takes room where less than half of it is left.
    fn reserve(&mut self) {
        if self.reserved < self.length + AHEAD / 2 {
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            // Not every file system can, and a full one cannot either: what is written says so itself.
            let _ = rustix::fs::fallocate(&self.file, flags, self.length, AHEAD);
            self.reserved = self.length + AHEAD;
        }
    }

    /// Adds a piece.
    pub fn write(&mut self, piece: &Piece) -> io::Result<()> {
        let stream = if piece.stream == Stream::Stderr { 'e' } else { 'o' };
        let mut record = format!("{} {stream} {}\n", piece.milliseconds, piece.bytes.len()).into_bytes();
        record.extend_from_slice(&piece.bytes);
        record.push(b'\n');
        // One write, so that a reader sees most pieces whole.
        self.file.write_all(&record)?;
        self.length += record.len() as u64;
        self.reserve();
        Ok(())
    }
}

impl Drop for OutputLog {
    fn drop(&mut self) {
        // Gives back what was not needed.
        let _ = self.file.set_len(self.length);
    }
}

impl Reader {
    /// Reads a log from its beginning.
    pub fn open(path: &Utf8Path) -> io::Result<Reader> {
        Ok(Reader(BufReader::new(File::open(path)?)))
    }

    /// The next piece; `None` where no whole one is there yet. Errors where the file is no such log.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let start = self.0.stream_position()?;
        let piece = self.whole_piece()?;
        if piece.is_none() {
            self.0.seek(SeekFrom::Start(start))?;
        }
        Ok(piece)
    }

    fn whole_piece(&mut self) -> io::Result<Option<Piece>> {
        let mut header = Vec::new();
        self.0.read_until(b'\n', &mut header)?;
        if header.pop() != Some(b'\n') {
            return Ok(None);
        }
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a log of a machine's output");
        let (milliseconds, stream, length) = parse_header(&header).ok_or_else(wrong)?;
        let mut bytes = Vec::new();
        (&mut self.0).take(length + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length + 1 {
            return Ok(None);
        }
        bytes.pop();
        Ok(Some(Piece { milliseconds, stream, bytes }))
    }
}

fn parse_header(header: &[u8]) -> Option<(i64, Stream, u64)> {
    let mut words = std::str::from_utf8(header).ok()?.split(' ');
    let milliseconds = words.next()?.parse().ok()?;
    let stream = match words.next()? {
        "o" => Stream::Stdout,
        "e" => Stream::Stderr,
        _ => return None,
    };
    Some((milliseconds, stream, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_as_they_were_and_only_when_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("log");
        let pieces = [
            Piece { milliseconds: 1, stream: Stream::Stdout, bytes: b"1 o 3\nno \xff newline".to_vec() },
            Piece { milliseconds: 2, stream: Stream::Stderr, bytes: Vec::new() },
            Piece { milliseconds: -3, stream: Stream::Stdout, bytes: b"\n\n".to_vec() },
        ];
        let mut log = OutputLog::create(&path).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.next_piece().unwrap(), None);
        for piece in &pieces {
            log.write(piece).unwrap();
            assert_eq!(reader.next_piece().unwrap().as_ref(), Some(piece));
        }
        assert_eq!(reader.next_piece().unwrap(), None);

        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut reader = Reader::open(&path).unwrap();
            let mut count = 0;
            while let Some(piece) = reader.next_piece().unwrap() {
                assert_eq!(piece, pieces[count]);
                count += 1;
            }
            assert!(count < pieces.len(), "{length} bytes are not the whole");
        }
        std::fs::write(&path, "something else\n").unwrap();
        assert!(Reader::open(&path).unwrap().next_piece().is_err());
    }
}
