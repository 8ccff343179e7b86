//! What a machine's main process said, with times, for `logs`: pieces as they came, byte for byte.
//!
//! The log is a chain of files of bounded size. `output.log` is written to; a full one stays as `output.log.N`, and the
//! oldest goes where there are too many. Each begins with a line `log N`, its place in the chain. A piece is a line
//! `MILLISECONDS STREAM LENGTH` (since 1970; `o` or `e`; bytes), the bytes, and a newline.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use init::protocol::Stream;
use serde::{Deserialize, Serialize};

use crate::disk::size;

/// The longest piece that is read, in bytes; those of the protocol are shorter.
const LONGEST_PIECE: u64 = 1 << 20;

/// The longest line before a piece, in bytes.
const LONGEST_HEADER: u64 = 64;

/// How much of a log is kept: docker's options of its `json-file` driver, with bounds by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBounds {
    /// Bytes after which a new file is begun.
    pub max_size: u64,
    /// How many files there are at most.
    pub max_file: u64,
}

impl Default for LogBounds {
    fn default() -> LogBounds {
        LogBounds { max_size: 10 << 20, max_file: 3 }
    }
}

/// One bound, as `--log-opt` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogOption {
    /// `max-size=10m`
    MaxSize(u64),
    /// `max-file=3`
    MaxFile(u64),
}

impl FromStr for LogOption {
    type Err = String;

    fn from_str(text: &str) -> Result<LogOption, String> {
        let complaint = || format!("`{text}` is no option of a log; write max-size=10m or max-file=3");
        let (key, value) = text.split_once('=').ok_or_else(complaint)?;
        let number = |digits: &str| digits.parse::<u64>().ok().filter(|number| *number > 0);
        match key {
            "max-file" => number(value).map(LogOption::MaxFile),
            "max-size" => size::bytes(value).ok().filter(|size| *size > 0).map(LogOption::MaxSize),
            _ => None,
        }
        .ok_or_else(complaint)
    }
}

impl LogBounds {
    /// The default ones, with these in place of some.
    pub fn of(options: &[LogOption]) -> LogBounds {
        let mut bounds = LogBounds::default();
        for option in options {
            match option {
                LogOption::MaxSize(size) => bounds.max_size = *size,
                LogOption::MaxFile(count) => bounds.max_file = *count,
            }
        }
        bounds
    }
}

/// Room on the disk that a log has ahead of what is in it, in bytes: for the last words of a machine that fills the disk.
const AHEAD: u64 = 512 << 10;

use crate::host::private;

/// A log that is written.
#[derive(Debug)]
pub struct OutputLog {
    path: Utf8PathBuf,
    bounds: LogBounds,
    file: File,
    number: u64,
    length: u64,
    reserved: u64,
}

/// A log that is read, perhaps while it is written.
#[derive(Debug)]
pub struct Reader {
    path: Utf8PathBuf,
    file: Link,
}

/// One file of the chain, being read.
#[derive(Debug)]
struct Link {
    file: BufReader<File>,
    number: u64,
}

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
    pub fn create(path: &Utf8Path, bounds: LogBounds) -> io::Result<OutputLog> {
        let (file, length) = begin(path, 1)?;
        let mut log = OutputLog { path: path.to_owned(), bounds, file, number: 1, length, reserved: 0 };
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

    /// Adds a piece. Where it fails the piece is lost, and the next one may be written.
    pub fn write(&mut self, piece: &Piece) -> io::Result<()> {
        let stream = if piece.stream == Stream::Stderr { 'e' } else { 'o' };
        let mut record = format!("{} {stream} {}\n", piece.milliseconds, piece.bytes.len()).into_bytes();
        record.extend_from_slice(&piece.bytes);
        record.push(b'\n');
        if self.length + record.len() as u64 > self.bounds.max_size {
            // A disk that is full has room in this file alone.
            let _ = self.begin_next();
        }
        // One write, so that a reader sees most pieces whole.
        if let Err(error) = self.file.write_all_at(&record, self.length) {
            // What follows is not to be taken for the rest of it.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += record.len() as u64;
        self.reserve();
        Ok(())
    }

    fn begin_next(&mut self) -> io::Result<()> {
        let next = Utf8PathBuf::from(format!("{}.next", self.path));
        let (file, length) = begin(&next, self.number + 1)?;
        // The name leads to one of the two at any time.
        let full = name(&self.path, self.number);
        fs::hard_link(&self.path, &full).or_else(|_| fs::rename(&self.path, &full))?;
        fs::rename(&next, &self.path)?;
        self.give_back();
        (self.file, self.length, self.number, self.reserved) = (file, length, self.number + 1, 0);
        if let Some(oldest) = self.number.checked_sub(self.bounds.max_file) {
            // There is none where the log is short.
            let _ = fs::remove_file(name(&self.path, oldest));
        }
        Ok(())
    }

    /// Gives back the room that was not needed.
    fn give_back(&self) {
        let _ = self.file.set_len(self.length);
    }
}

impl Drop for OutputLog {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn begin(path: &Utf8Path, number: u64) -> io::Result<(File, u64)> {
    let file = private::create(path)?;
    let header = format!("log {number}\n");
    file.write_all_at(header.as_bytes(), 0)?;
    Ok((file, header.len() as u64))
}

fn name(path: &Utf8Path, number: u64) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.{number}"))
}

/// The numbers of the full files, in order.
fn full_files(path: &Utf8Path) -> io::Result<Vec<u64>> {
    let folder = path.parent().unwrap_or(Utf8Path::new("."));
    let prefix = format!("{}.", path.file_name().unwrap_or_default());
    let entries = folder.read_dir_utf8()?.flatten();
    let number = |name: &str| name.strip_prefix(&prefix)?.parse().ok();
    let mut numbers: Vec<u64> = entries.filter_map(|entry| number(entry.file_name())).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Whether a line was lost in a power cut of the host: it did not reach the disk at all, or its room alone did.
fn is_lost(line: &[u8]) -> bool {
    line.first().is_none_or(|byte| *byte == 0)
}

impl Link {
    fn open(path: &Utf8Path) -> io::Result<Link> {
        let mut file = BufReader::new(File::open(path)?);
        let mut header = String::new();
        (&mut file).take(LONGEST_HEADER).read_line(&mut header)?;
        if is_lost(header.as_bytes()) {
            // Before every other one, for it holds nothing.
            return Ok(Link { file, number: 0 });
        }
        let number = header.strip_prefix("log ").and_then(|text| text.trim_end().parse().ok());
        Ok(Link { file, number: number.ok_or_else(no_log)? })
    }

    /// The next piece; `None` where no whole one is there yet.
    fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let start = self.file.stream_position()?;
        let piece = self.whole_piece()?;
        if piece.is_none() {
            self.file.seek(SeekFrom::Start(start))?;
        }
        Ok(piece)
    }

    fn whole_piece(&mut self) -> io::Result<Option<Piece>> {
        let mut header = Vec::new();
        (&mut self.file).take(LONGEST_HEADER).read_until(b'\n', &mut header)?;
        if is_lost(&header) {
            return Ok(None);
        }
        if header.pop() != Some(b'\n') {
            return if header.len() as u64 + 1 < LONGEST_HEADER { Ok(None) } else { Err(no_log()) };
        }
        let (milliseconds, stream, length) = parse_header(&header).ok_or_else(no_log)?;
        let mut bytes = Vec::new();
        (&mut self.file).take(length + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length + 1 {
            return Ok(None);
        }
        bytes.pop();
        Ok(Some(Piece { milliseconds, stream, bytes }))
    }
}

impl Reader {
    /// Reads a log from the beginning of what is kept.
    pub fn open(path: &Utf8Path) -> io::Result<Reader> {
        Ok(Reader { path: path.to_owned(), file: oldest_after(path, 0)? })
    }

    /// Reads the last so many lines. Only the files that they are in are read.
    pub fn open_tail(path: &Utf8Path, lines: u64) -> io::Result<(Reader, TailFilter)> {
        let mut first = Link::open(path)?;
        let mut count = lines_of(&mut first)?;
        let mut files = full_files(path)?;
        // One that is full in this moment may have two names.
        files.retain(|number| *number < first.number);
        while count < lines
            && let Some(number) = files.pop()
        {
            // One that has just gone is not among the last.
            let Ok(mut link) = Link::open(&name(path, number)) else { break };
            count += lines_of(&mut link)?;
            first = link;
        }
        first.file.rewind()?;
        first.file.read_until(b'\n', &mut Vec::new())?;
        let reader = Reader { path: path.to_owned(), file: first };
        Ok((reader, TailFilter { to_skip: count.saturating_sub(lines) }))
    }

    /// The next piece; `None` where no whole one is there yet. Errors where the file is no such log.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.file.next_piece()? {
                return Ok(Some(piece));
            }
            match Link::open(&self.path) {
                // The machine was removed, and its log with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                newest if newest.as_ref().is_ok_and(|newest| newest.number <= self.file.number) => {
                    return Ok(None);
                }
                newest => drop(newest?),
            }
            // Nothing is added to this one any more; what was added last may be there by now.
            if let Some(piece) = self.file.next_piece()? {
                return Ok(Some(piece));
            }
            self.file = oldest_after(&self.path, self.file.number)?;
        }
    }
}

/// Leaves out what comes before the last lines.
#[derive(Debug, Default)]
pub struct TailFilter {
    to_skip: u64,
}

impl TailFilter {
    /// What of the next bytes is among the last lines.
    pub fn keep<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while self.to_skip > 0 && !bytes.is_empty() {
            match bytes.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.to_skip -= 1;
                    bytes = &bytes[end + 1..];
                }
                None => bytes = &[],
            }
        }
        bytes
    }
}

/// How many lines end in the rest of a file.
fn lines_of(link: &mut Link) -> io::Result<u64> {
    let mut count = 0;
    while let Some(piece) = link.next_piece()? {
        count += piece.bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    Ok(count)
}

/// The oldest file of the chain behind this number.
fn oldest_after(path: &Utf8Path, number: u64) -> io::Result<Link> {
    loop {
        let oldest = full_files(path)?.into_iter().find(|full| *full > number);
        let Some(oldest) = oldest else {
            let newest = Link::open(path)?;
            // Files may have been added since; then the first of them comes before this one.
            if newest.number == number + 1 || full_files(path)?.iter().all(|full| *full <= number) {
                return Ok(newest);
            }
            continue;
        };
        match Link::open(&name(path, oldest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            link => return link,
        }
    }
}

fn no_log() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a log of a machine's output")
}

fn parse_header(header: &[u8]) -> Option<(i64, Stream, u64)> {
    let mut words = std::str::from_utf8(header).ok()?.split(' ');
    let milliseconds = words.next()?.parse().ok()?;
    let stream = match words.next()? {
        "o" => Stream::Stdout,
        "e" => Stream::Stderr,
        _ => return None,
    };
    let length = words.next()?.parse().ok().filter(|length| *length <= LONGEST_PIECE)?;
    Some((milliseconds, stream, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Folder {
            Folder(tempfile::tempdir().unwrap())
        }

        fn log(&self) -> Utf8PathBuf {
            Utf8Path::from_path(self.0.path()).unwrap().join("output.log")
        }

        fn bytes(&self) -> u64 {
            fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
        }
    }

    fn line(number: i64) -> Piece {
        Piece { milliseconds: number, stream: Stream::Stdout, bytes: format!("line {number}\n").into_bytes() }
    }

    fn rest(reader: &mut Reader) -> Vec<i64> {
        std::iter::from_fn(|| reader.next_piece().unwrap()).map(|piece| piece.milliseconds).collect()
    }

    #[test]
    fn pieces_come_back_as_they_were_and_only_when_whole() {
        let folder = Folder::new();
        let path = folder.log();
        let pieces = [
            Piece { milliseconds: 1, stream: Stream::Stdout, bytes: b"1 o 3\nno \xff newline".to_vec() },
            Piece { milliseconds: 2, stream: Stream::Stderr, bytes: Vec::new() },
            Piece { milliseconds: -3, stream: Stream::Stdout, bytes: b"\n\n".to_vec() },
        ];
        let mut log = OutputLog::create(&path, LogBounds::default()).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.next_piece().unwrap(), None);
        for piece in &pieces {
            log.write(piece).unwrap();
            assert_eq!(reader.next_piece().unwrap().as_ref(), Some(piece));
        }
        assert_eq!(reader.next_piece().unwrap(), None);

        let whole = fs::read(&path).unwrap();
        for length in "log 1\n".len()..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut reader = Reader::open(&path).unwrap();
            let mut count = 0;
            while let Some(piece) = reader.next_piece().unwrap() {
                assert_eq!(piece, pieces[count]);
                count += 1;
            }
            assert!(count < pieces.len(), "{length} bytes are not the whole");
        }
        for nonsense in ["something else\n".to_owned(), format!("log 1\n1 o {}\n", u64::MAX), "x".repeat(100)]
        {
            fs::write(&path, &nonsense).unwrap();
            assert!(Reader::open(&path).and_then(|mut log| log.next_piece()).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_log_that_a_power_cut_took_ends_where_it_was_lost() {
        let folder = Folder::new();
        let path = folder.log();
        let piece = Piece { milliseconds: 1, stream: Stream::Stdout, bytes: b"said".to_vec() };
        let mut log = OutputLog::create(&path, LogBounds::default()).unwrap();
        log.write(&piece).unwrap();
        drop(log);
        let whole = fs::read(&path).unwrap();
        for lost in [Vec::new(), vec![0; 4096]] {
            fs::write(&path, &lost).unwrap();
            assert_eq!(Reader::open(&path).unwrap().next_piece().unwrap(), None);

            fs::write(&path, [whole.clone(), lost].concat()).unwrap();
            let mut reader = Reader::open(&path).unwrap();
            assert_eq!(reader.next_piece().unwrap().as_ref(), Some(&piece));
            assert_eq!(reader.next_piece().unwrap(), None);
        }
    }

    #[test]
    fn a_log_keeps_its_bounds_and_its_latest_part() {
        let folder = Folder::new();
        let bounds = LogBounds { max_size: 1000, max_file: 3 };
        let mut log = OutputLog::create(&folder.log(), bounds).unwrap();
        for number in 0..1000 {
            log.write(&line(number)).unwrap();
            assert!(folder.bytes() <= 3000, "{}", folder.bytes());
        }
        let kept = rest(&mut Reader::open(&folder.log()).unwrap());
        assert!(kept.len() > 80, "{}", kept.len());
        assert_eq!(kept, (1000 - kept.len() as i64..1000).collect::<Vec<i64>>());

        let one = Folder::new();
        let mut log = OutputLog::create(&one.log(), LogBounds { max_size: 1000, max_file: 1 }).unwrap();
        (0..200).for_each(|number| log.write(&line(number)).unwrap());
        assert!(one.bytes() <= 1000);
        assert_eq!(rest(&mut Reader::open(&one.log()).unwrap()).last(), Some(&199));
    }

    #[test]
    fn who_follows_loses_nothing_at_a_change_of_files_and_skips_what_has_gone() {
        let folder = Folder::new();
        let bounds = LogBounds { max_size: 300, max_file: 4 };
        let mut log = OutputLog::create(&folder.log(), bounds).unwrap();
        let mut reader = Reader::open(&folder.log()).unwrap();
        let mut read = Vec::new();
        for number in 0..1000 {
            log.write(&line(number)).unwrap();
            if number % 7 == 0 {
                read.extend(rest(&mut reader));
            }
        }
        read.extend(rest(&mut reader));
        assert_eq!(read, (0..1000).collect::<Vec<i64>>());

        (1000..2000).for_each(|number| log.write(&line(number)).unwrap());
        let late = rest(&mut reader);
        // First what is left of the file that it had open, then what is kept.
        let kept = rest(&mut Reader::open(&folder.log()).unwrap());
        assert!(late.ends_with(&kept) && kept.ends_with(&[1998, 1999]));
        assert!(late.is_sorted() && late.len() < 200, "{late:?}");
    }

    #[test]
    fn a_reader_keeps_up_with_a_writer_in_another_thread() {
        let folder = Folder::new();
        let path = folder.log();
        let mut log = OutputLog::create(&path, LogBounds { max_size: 500, max_file: 2 }).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        let writing = std::thread::spawn(move || (0..20_000).for_each(|n| log.write(&line(n)).unwrap()));
        let mut last = -1;
        while last < 19_999 {
            // Whatever is skipped, the order stays and the end is reached.
            for number in rest(&mut reader) {
                assert!(number > last);
                last = number;
            }
        }
        writing.join().unwrap();
    }

    #[test]
    fn the_last_lines_are_found_across_files() {
        let folder = Folder::new();
        let mut log = OutputLog::create(&folder.log(), LogBounds { max_size: 200, max_file: 9 }).unwrap();
        (0..40).for_each(|number| log.write(&line(number)).unwrap());
        for (lines, first) in [(0, 40), (1, 39), (17, 23), (40, 0), (1000, 0)] {
            let (mut reader, mut filter) = Reader::open_tail(&folder.log(), lines).unwrap();
            let mut text = Vec::new();
            while let Some(piece) = reader.next_piece().unwrap() {
                text.extend_from_slice(filter.keep(&piece.bytes));
            }
            let wanted: String = (first..40).map(|number| format!("line {number}\n")).collect();
            assert_eq!(String::from_utf8(text).unwrap(), wanted, "{lines}");
        }
        let mut filter = TailFilter { to_skip: 2 };
        let kept: Vec<&[u8]> = [&b"a\nb"[..], b"b", b"\nc\nd", b"e"].map(|bytes| filter.keep(bytes)).to_vec();
        assert_eq!(kept.concat(), b"c\nde");
    }

    #[test]
    fn bounds_are_written_as_docker_has_them() {
        let options = ["max-size=10m", "max-file=5", "max-size=2KB"].map(|text| text.parse().unwrap());
        assert_eq!(LogBounds::of(&options), LogBounds { max_size: 2048, max_file: 5 });
        for nonsense in [
            "",
            "max-size",
            "max-size=",
            "max-size=0",
            "max-size=1x",
            "max-file=0",
            "max-file=1m",
            "compress=true",
        ] {
            assert!(nonsense.parse::<LogOption>().is_err(), "{nonsense}");
        }
    }
}
