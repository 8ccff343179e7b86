//! The near side: reads the header and the tar stream, and writes what was announced, nothing else.
//!
//! Names in the stream are compared, never used: a file goes where its role says. A stream that ends too early is an
//! error of its own ([`StreamError::Ended`]), since the cause is then `ssh`'s to tell.

use std::fs::File;
use std::io::{self, BufRead, Read, Write as _};

use anyhow::{Context as _, anyhow, ensure};
use camino::Utf8Path;
use indicatif::ProgressBar;
use init::archive::{Entry, Feeder, Kind, display};
use sha2::{Digest as _, Sha256};

use super::remote::MARKER;
use crate::artifacts::{DISK, IMAGE_CONFIG, INIT, KERNEL};
use crate::workspace::hex;

/// More than any header: paths of a few candidates. Also how much talk of a login script is skipped.
const HEADER_LIMIT: u64 = 256 * 1024;
/// The order in which the script sends the files.
const ROLES: [&str; 4] = [INIT, KERNEL, DISK, IMAGE_CONFIG];

/// Why a stream was given up.
#[derive(Debug)]
pub(super) enum StreamError {
    /// It ended before all was there.
    Ended,
    /// It could be read, and something is wrong.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for StreamError {
    fn from(error: anyhow::Error) -> StreamError {
        StreamError::Failed(error)
    }
}

/// One file that the far side is about to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Its name here.
    pub(super) name: &'static str,
    /// Its name in the tar stream.
    pub(super) member: String,
    /// Bytes.
    pub(super) size: u64,
    /// Hexadecimal, as the far side computed it from the file.
    pub(super) sha256: String,
}

/// What the far side found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// A program that it needs and has not.
    pub(super) lacks: Option<String>,
    /// For each candidate that will not do, by number: why.
    pub(super) findings: Vec<(usize, Finding)>,
    /// The candidate that will do.
    pub(super) found: Option<usize>,
    /// Its files; the tar stream with exactly these follows.
    pub(super) offers: Vec<Offer>,
}

/// One thing that makes a candidate incomplete.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    NoFolder,
    Missing(String),
    Unreadable(String),
}

/// Reads the header up to its empty line, skipping whatever comes before its first line.
pub(super) fn read_header(reader: &mut impl BufRead) -> Result<Header, StreamError> {
    let mut limited = reader.take(HEADER_LIMIT);
    let mut header = Header::default();
    let mut is_begun = false;
    loop {
        let mut line = Vec::new();
        limited.read_until(b'\n', &mut line).context("failed to read from `ssh`")?;
        if line.pop() != Some(b'\n') {
            if limited.limit() == 0 {
                return Err(anyhow!("the answer has no end after {HEADER_LIMIT} bytes").into());
            }
            return Err(StreamError::Ended);
        }
        match line.as_slice() {
            line if !is_begun => is_begun = line == MARKER.as_bytes(),
            b"" => return Ok(header),
            line => header
                .add(std::str::from_utf8(line).context("the answer is not text")?)
                .context("the answer cannot be understood")?,
        }
    }
}

impl Header {
    fn add(&mut self, line: &str) -> anyhow::Result<()> {
        let bad = || anyhow!("unexpected line `{line}`");
        let (word, rest) = line.split_once(' ').ok_or_else(bad)?;
        let numbered = || -> anyhow::Result<(usize, &str)> {
            let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            Ok((number.parse().map_err(|_| bad())?, rest))
        };
        match word {
            "lacks" => self.lacks = Some(rest.to_owned()),
            "no-folder" => self.findings.push((numbered()?.0, Finding::NoFolder)),
            "missing" | "unreadable" => {
                let (number, file) = numbered()?;
                let file = file.to_owned();
                let finding =
                    if word == "missing" { Finding::Missing(file) } else { Finding::Unreadable(file) };
                self.findings.push((number, finding));
            }
            "found" => self.found = Some(numbered()?.0),
            "file" => {
                let mut words = rest.splitn(3, ' ');
                let (Some(size), Some(sha256), Some(member)) = (words.next(), words.next(), words.next())
                else {
                    return Err(bad());
                };
                let name = ROLES.get(self.offers.len()).ok_or_else(bad)?;
                self.offers.push(Offer {
                    name,
                    member: member.to_owned(),
                    size: size.parse().map_err(|_| bad())?,
                    sha256: sha256.to_owned(),
                });
            }
            _ => return Err(bad()),
        }
        Ok(())
    }

    /// Bytes of all files.
    pub(super) fn total_size(&self) -> u64 {
        self.offers.iter().map(|offer| offer.size).fold(0, u64::saturating_add)
    }
}

/// Writes the offered files into `folder` under their names here, and checks each against its sha256.
pub(super) fn receive(
    reader: &mut impl Read,
    offers: &[Offer],
    folder: &Utf8Path,
    progress: &ProgressBar,
) -> Result<(), StreamError> {
    let mut source = Source { reader, has_ended: false };
    let received = receive_all(&mut Feeder::new(&mut source), offers, folder, progress);
    // `ssh` knows why.
    if source.has_ended && received.is_err() { Err(StreamError::Ended) } else { received }
}

/// What `ssh` brings; remembers whether it came to its end.
struct Source<'a, R> {
    reader: &'a mut R,
    has_ended: bool,
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.has_ended |= count == 0;
        Ok(count)
    }
}

fn receive_all(
    feeder: &mut Feeder<impl Read>,
    offers: &[Offer],
    folder: &Utf8Path,
    progress: &ProgressBar,
) -> Result<(), StreamError> {
    for offer in offers {
        let entry = feeder.next_entry().context("the tar stream is damaged")?;
        check(&entry.ok_or(StreamError::Ended)?, offer)?;
        let written = copy(feeder, &folder.join(offer.name), progress)?;
        if written != offer.sha256 {
            return Err(anyhow!(
                "`{}` arrived damaged: its sha256 is {} there and {written} here",
                offer.name,
                offer.sha256
            )
            .into());
        }
    }
    Ok(())
}

/// The entry must be the file that is due.
fn check(entry: &Entry, offer: &Offer) -> anyhow::Result<()> {
    let (size, is_plain) = match &entry.kind {
        Kind::File(content) => (content.size, content.segments.is_none()),
        _ => (0, false),
    };
    let Offer { member, size: announced, .. } = offer;
    ensure!(
        is_plain && entry.path == member.as_bytes() && size == *announced,
        "the tar stream holds {} ({size} bytes) where the file `{member}` ({announced} bytes) is due",
        display(&entry.path)
    );
    Ok(())
}

/// Copies an entry's content into a new file; returns its sha256 in hexadecimal.
fn copy(
    feeder: &mut Feeder<impl Read>,
    path: &Utf8Path,
    progress: &ProgressBar,
) -> Result<String, StreamError> {
    let mut file = File::create_new(path).with_context(|| format!("failed to create `{path}`"))?;
    let mut digest = Sha256::new();
    loop {
        let piece = feeder.content_piece(u64::MAX).context("the tar stream is damaged")?;
        if piece.is_empty() {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(piece);
        file.write_all(piece).with_context(|| format!("failed to write `{path}`"))?;
        progress.inc(piece.len() as u64);
    }
}
