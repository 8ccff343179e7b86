//! Layers as they are stored: found to be compressed by their first bytes, and decompressed once into a temporary
//! file that has no name, so that nothing of it is left however the task ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use super::layer::Layer;
use crate::error::hinted;
use crate::ui::human_bytes;
use crate::workspace::hex;

/// Compressed archives may unpack to this many times their size before they are taken for a bomb. The best that
/// gzip can do is 1032 times; real root file systems stay below 20.
const MAX_EXPANSION: u64 = 400;
/// Archives that unpack to less than this are never refused, in bytes.
const ALWAYS_ALLOWED: u64 = 256 << 20;

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The `.xz` file format.
    Xz,
}

impl Compression {
    /// Told by a blob's first bytes. Errors where it is compressed in a way that is not supported.
    pub fn of(magic: &[u8]) -> anyhow::Result<Compression> {
        Ok(match magic {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => {
                bail!("bzip2 is not supported; use gzip, zstd or xz")
            }
            _ => Compression::None,
        })
    }

    fn reader<'a>(self, from: impl Read + 'a) -> anyhow::Result<Box<dyn Read + 'a>> {
        let from = io::BufReader::with_capacity(128 * 1024, from);
        Ok(match self {
            Compression::None => Box::new(from),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
            // Without a bound a frame may ask for a window of gigabytes; 2^27 is what `zstd` itself allows.
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(from).context("failed to start zstd")?;
                decoder.window_log_max(27).context("failed to bound zstd's window")?;
                Box::new(decoder)
            }
            Compression::Xz => {
                let memory = 128 << 20;
                let stream =
                    liblzma::stream::Stream::new_stream_decoder(memory, liblzma::stream::CONCATENATED)
                        .context("failed to start xz")?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(from, stream))
            }
        })
    }
}

/// A blob whose bytes can be laid over a tree.
#[derive(Debug)]
pub struct Opened {
    /// The uncompressed tar.
    pub layer: Layer,
    /// SHA-256 of the uncompressed tar where it was decompressed here; of what was plain nobody has asked yet.
    pub diff_id: Option<String>,
}

/// Where blobs are unpacked, and how far.
#[derive(Debug, Clone)]
pub struct Unpacking {
    /// The folder of the files without a name.
    pub folder: Utf8PathBuf,
    /// What a blob may unpack to, in bytes, in place of [the usual rule](MAX_EXPANSION).
    pub limit: Option<u64>,
}

impl Unpacking {
    /// What all blobs of an image may unpack to together: the rule for one, for all of them as one.
    pub fn check_sum(&self, stored: u64, unpacked: u64) -> anyhow::Result<()> {
        let most = stored.saturating_mul(MAX_EXPANSION).max(ALWAYS_ALLOWED);
        if self.limit.is_some() || unpacked <= most {
            return Ok(());
        }
        let (from, to) = (human_bytes(stored), human_bytes(most));
        Err(hinted(
            anyhow!("its layers unpack from {from} to more than {to}, which is refused"),
            "if they are meant to be so large, `--unpack-limit SIZE` allows each so much",
        ))
    }

    fn limit_for(&self, blob: &Layer) -> u64 {
        self.limit.unwrap_or_else(|| blob.length.saturating_mul(MAX_EXPANSION).max(ALWAYS_ALLOWED))
    }
}

/// Makes a blob readable at any place: as it is, or decompressed into a file.
pub fn open(blob: Layer, unpacking: &Unpacking) -> anyhow::Result<Opened> {
    let mut magic = [0; 6];
    let known = blob.file.read_at(&mut magic, blob.start).context("failed to read")?;
    let compression = Compression::of(&magic[..known.min(blob.length.min(6) as usize)])
        .with_context(|| format!("failed to open {}", blob.name))?;
    if compression == Compression::None {
        return Ok(Opened { layer: blob, diff_id: None });
    }
    let (layer, diff_id) =
        unpack(&blob, compression, unpacking).with_context(|| format!("failed to unpack {}", blob.name))?;
    Ok(Opened { layer, diff_id: Some(diff_id) })
}

fn unpack(blob: &Layer, compression: Compression, unpacking: &Unpacking) -> anyhow::Result<(Layer, String)> {
    let limit = unpacking.limit_for(blob);
    let mut file = scratch_file(&unpacking.folder)?;
    let mut reader = compression.reader(RangeReader::new(blob))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut length = 0;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("its compressed data is damaged or cut short"),
        };
        length += read as u64;
        if length > limit {
            let (from, to) = (human_bytes(blob.length), human_bytes(limit));
            return Err(hinted(
                anyhow!("it unpacks from {from} to more than {to}, which is refused"),
                "if it is meant to be so large, `--unpack-limit SIZE` allows it",
            ));
        }
        hash.update(&buffer[..read]);
        file.write_all(&buffer[..read])
            .with_context(|| format!("failed to write to a file in `{}`", unpacking.folder))?;
    }
    let layer = Layer { file: file.into(), start: 0, length, name: blob.name.clone() };
    Ok((layer, format!("sha256:{}", hex(&hash.finalize()))))
}

/// A file without a name.
pub fn scratch_file(folder: &Utf8Path) -> anyhow::Result<File> {
    crate::artifact::create_folder(folder)?;
    tempfile::tempfile_in(folder).with_context(|| format!("failed to make a temporary file in `{folder}`"))
}

/// SHA-256 of a layer's bytes as they are, in the form of a digest.
pub fn digest(layer: &Layer) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let mut reader = RangeReader::new(layer);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = reader.read(&mut buffer).with_context(|| format!("failed to read {}", layer.name))?;
        if read == 0 {
            return Ok(format!("sha256:{}", hex(&hash.finalize())));
        }
        hash.update(&buffer[..read]);
    }
}

/// Reads a layer from its start to its end, leaving the file's own position alone.
#[derive(Debug)]
pub struct RangeReader<'a> {
    layer: &'a Layer,
    at: u64,
}

impl<'a> RangeReader<'a> {
    /// At the layer's start.
    pub fn new(layer: &'a Layer) -> RangeReader<'a> {
        RangeReader { layer, at: 0 }
    }
}

impl Read for RangeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.layer.length.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        let read = self.layer.file.read_at(&mut buffer[..wanted], self.layer.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for RangeReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.layer.length.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn blob(bytes: &[u8]) -> Layer {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"junk before").unwrap();
        file.write_all(bytes).unwrap();
        file.write_all(b"and after").unwrap();
        Layer { file: Arc::new(file), start: 11, length: bytes.len() as u64, name: "`blob`".into() }
    }

    fn unpacking(limit: Option<u64>) -> Unpacking {
        Unpacking { folder: "/tmp".into(), limit }
    }

    #[test]
    fn all_blobs_of_an_image_share_one_limit() {
        let usual = unpacking(None);
        assert!(usual.check_sum(0, ALWAYS_ALLOWED).is_ok());
        assert!(usual.check_sum(1 << 20, 400 << 20).is_ok());
        let said = usual.check_sum(1 << 20, (400 << 20) + 1).unwrap_err().to_string();
        assert_eq!(said, "its layers unpack from 1.00 MiB to more than 400.00 MiB, which is refused");
        assert!(usual.check_sum(u64::MAX, u64::MAX).is_ok());
        assert!(unpacking(Some(1)).check_sum(1 << 20, u64::MAX).is_ok());
    }

    fn compressed(bytes: &[u8]) -> [Vec<u8>; 3] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(bytes).unwrap();
        [gzip.finish().unwrap(), zstd::encode_all(bytes, 1).unwrap(), xz.finish().unwrap()]
    }

    #[test]
    fn each_compression_is_seen_and_undone() {
        let text = b"a layer ".repeat(1000);
        let plain = open(blob(&text), &unpacking(None)).unwrap();
        assert_eq!(plain.diff_id, None);
        let expected = digest(&plain.layer).unwrap();
        for bytes in compressed(&text) {
            let opened = open(blob(&bytes), &unpacking(None)).unwrap();
            assert_eq!(opened.diff_id.as_ref(), Some(&expected));
            assert_eq!(digest(&opened.layer).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        for bytes in compressed(&b"a layer ".repeat(1000)) {
            let cut = blob(&bytes[..bytes.len() - 5]);
            let error = format!("{:#}", open(cut, &unpacking(None)).unwrap_err());
            assert!(error.starts_with("failed to unpack `blob`: its compressed data"), "{error}");
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        for bytes in compressed(&vec![0; 1 << 20]) {
            let error = format!("{:#}", open(blob(&bytes), &unpacking(Some(1 << 19))).unwrap_err());
            assert!(error.contains("to more than 512"), "{error}");
        }
    }
}
