//! The header of a qcow2 file, read and judged before QEMU sees the file (QEMU's `docs/interop/qcow2.txt`).
//!
//! A qcow2 names other files: one that it lies on, one that holds its data. QEMU opens them with the rights of whoever
//! runs it, so a disk from elsewhere would bring any file of this host into the guest. [`parse`] is pure: bytes to a
//! [`Header`], or an error that says what is wrong. Tables that QEMU reads as a whole are within QEMU's own limits.

use anyhow::{Context as _, bail, ensure};

/// As much of a file's beginning as [`parse`] wants: QEMU's own headers are a few hundred bytes.
pub const HEAD: usize = 64 * 1024;

const MAGIC: &[u8] = b"QFI\xfb";

/// Incompatible features that are known to be harmless: dirty (refcounts are repaired), compression type, extended L2
/// entries.
const HARMLESS: u64 = 1 << 0 | 1 << 3 | 1 << 4;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;

/// Autoclear: the external data file is a raw disk.
const RAW_EXTERNAL_DATA: u64 = 1 << 1;

/// Header extensions, by their type.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const ENCRYPTION: u32 = 0x0537_BE77;
const DATA_FILE: u32 = 0x4441_5441;

/// `QCOW_MAX_L1_SIZE` and `QCOW_MAX_REFTABLE_SIZE` of QEMU's `block/qcow2.h`, in bytes.
const LARGEST_L1: u64 = 32 << 20;
const LARGEST_REFCOUNT_TABLE: u64 = 8 << 20;

/// `QCOW_MAX_SNAPSHOTS`.
const MOST_SNAPSHOTS: u32 = 65536;

/// A backing file's name is at most so long.
const LONGEST_NAME: u64 = 1023;

/// What a header says, its sizes checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the disk that the guest sees.
    pub size: u64,
    /// The file that this one lies on.
    pub backing: Option<Backing>,
}

/// The file that an overlay lies on, as its header names it. QEMU takes such a name for a path or for a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The name.
    pub name: String,
    /// Its format; `None` leaves QEMU to guess.
    pub format: Option<String>,
}

/// Reads the header of a file of `length` bytes from its first bytes: [`HEAD`] of them, or all there are.
///
/// Errors where it is none, where it is encrypted, keeps its data in another file, has a feature that is not known
/// here, or claims tables that QEMU would not read or that are not in the file. A backing file is no error.
pub fn parse(head: &[u8], length: u64) -> anyhow::Result<Header> {
    ensure!(head.starts_with(MAGIC), "it is no qcow2 file");
    let head = Bytes(&head[..head.len().min(HEAD)]);
    let version = head.u32(4)?;
    ensure!(matches!(version, 2 | 3), "its version is {version}, and 2 and 3 are known");
    let cluster_bits = head.u32(20)?;
    ensure!((9..=21).contains(&cluster_bits), "its clusters have 2^{cluster_bits} bytes");
    let cluster = 1_u64 << cluster_bits;
    ensure!(head.u32(32)? == 0, "it is encrypted");

    let (incompatible, header_length) = if version == 2 {
        (0, 72)
    } else {
        let incompatible = head.u64(72)?;
        ensure!(incompatible & EXTERNAL_DATA == 0, "its data is in another file");
        ensure!(incompatible & CORRUPT == 0, "it is marked as corrupt");
        let unknown = incompatible & !HARMLESS;
        ensure!(unknown == 0, "it has features that are not known here ({unknown:#x})");
        ensure!(head.u64(88)? & RAW_EXTERNAL_DATA == 0, "its data is in another file");
        let order = head.u32(96)?;
        ensure!(order <= 6, "its refcounts have 2^{order} bits");
        (incompatible, u64::from(head.u32(100)?))
    };
    let least = if version == 2 { 72 } else { 104 };
    ensure!(
        header_length >= least && header_length.is_multiple_of(8) && header_length <= cluster,
        "its header has {header_length} bytes"
    );

    let size = head.u64(24)?;
    // An L2 table is a cluster, and an entry of it 8 bytes, or 16.
    let entry_bits = if incompatible & EXTENDED_L2 == 0 { 3 } else { 4 };
    let least_entries = size.div_ceil(1 << (2 * cluster_bits - entry_bits));
    let l1_entries = u64::from(head.u32(36)?);
    ensure!(l1_entries >= least_entries, "its first table is too small for a disk of {size} bytes");
    table("first table", head.u64(40)?, l1_entries * 8, LARGEST_L1, cluster, length)?;
    let refcount_table = u64::from(head.u32(56)?) * cluster;
    ensure!(refcount_table > 0, "it has no refcounts");
    table("refcount table", head.u64(48)?, refcount_table, LARGEST_REFCOUNT_TABLE, cluster, length)?;
    let snapshots = head.u32(60)?;
    ensure!(snapshots <= MOST_SNAPSHOTS, "it has {snapshots} snapshots");

    let backing_offset = head.u64(8)?;
    // Extensions end where the name begins, or with the first cluster.
    let end = if backing_offset == 0 { cluster } else { backing_offset };
    let backing_format = extensions(head, header_length, end.min(cluster))?;
    let backing = match (backing_offset, u64::from(head.u32(16)?)) {
        (0, _) => None,
        (offset, name_length) => {
            ensure!(name_length <= LONGEST_NAME, "its backing file's name has {name_length} bytes");
            let in_header = offset >= header_length && offset.saturating_add(name_length) <= cluster;
            ensure!(in_header, "its backing file's name is not in its header");
            Some(Backing { name: text(head.bytes(offset, name_length)?)?, format: backing_format })
        }
    };
    Ok(Header { size, backing })
}

/// Reads the extensions up to `end`, and gives the backing file's format.
fn extensions(head: Bytes<'_>, mut at: u64, end: u64) -> anyhow::Result<Option<String>> {
    let mut backing_format = None;
    while at.saturating_add(8) <= end {
        let (kind, length) = (head.u32(at)?, u64::from(head.u32(at + 4)?));
        if kind == END {
            break;
        }
        ensure!(length <= end - at - 8, "an extension of its header has {length} bytes");
        match kind {
            DATA_FILE => bail!("its data is in another file"),
            ENCRYPTION => bail!("it is encrypted"),
            BACKING_FORMAT => backing_format = Some(text(head.bytes(at + 8, length)?)?),
            // Names of features, bitmaps: nothing outside the file.
            _ => {}
        }
        at += 8 + length.next_multiple_of(8);
    }
    Ok(backing_format)
}

/// A table that QEMU reads as a whole.
fn table(what: &str, offset: u64, size: u64, limit: u64, cluster: u64, length: u64) -> anyhow::Result<()> {
    ensure!(size <= limit, "its {what} has {size} bytes");
    ensure!(
        size == 0
            || (offset >= cluster
                && offset.is_multiple_of(cluster)
                && offset.checked_add(size).is_some_and(|end| end <= length)),
        "its {what} is not in the file"
    );
    Ok(())
}

fn text(bytes: &[u8]) -> anyhow::Result<String> {
    ensure!(!bytes.is_empty() && !bytes.contains(&0), "a name in its header is no name");
    Ok(str::from_utf8(bytes).context("a name in its header is no text")?.to_owned())
}

/// Big-endian numbers at offsets.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn bytes(self, at: u64, length: u64) -> anyhow::Result<&'a [u8]> {
        let range = usize::try_from(at).ok().zip(usize::try_from(length).ok());
        let range = range.and_then(|(at, length)| self.0.get(at..at.checked_add(length)?));
        range.context("its header is cut off")
    }

    fn u32(self, at: u64) -> anyhow::Result<u32> {
        self.bytes(at, 4).map(|bytes| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn u64(self, at: u64) -> anyhow::Result<u64> {
        self.bytes(at, 8).map(|bytes| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// What must hold for any input at all: the body of the fuzz target `qcow2`. What passes names nothing outside that is
/// not in [`Header::backing`], and is judged alike with nothing behind the part that is read.
pub fn fuzz(input: &[u8]) {
    let length = input.len() as u64;
    let Ok(header) = parse(input, length) else { return };
    assert!(input.starts_with(MAGIC) && length >= 72);
    assert_eq!(parse(&input[..input.len().min(HEAD)], length).ok(), Some(header.clone()));
    let names_one = input[8..16].iter().any(|byte| *byte != 0);
    assert_eq!(header.backing.is_some(), names_one);
    if let Some(backing) = header.backing {
        assert!(backing.name.len() as u64 <= LONGEST_NAME && !backing.name.contains('\0'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 3 with clusters of 64 KiB and a disk of 1 GiB, in a file of four clusters.
    fn good() -> Vec<u8> {
        let mut bytes = vec![0; 4 << 16];
        bytes[..4].copy_from_slice(MAGIC);
        for (at, value) in [(4, 3_u32), (20, 16), (36, 2), (56, 1), (96, 4), (100, 112)] {
            put(&mut bytes, at, value);
        }
        for (at, value) in [(24, 1_u64 << 30), (40, 3 << 16), (48, 1 << 16)] {
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    fn put(bytes: &mut [u8], at: usize, value: u32) {
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn extension(bytes: &mut [u8], at: usize, kind: u32, data: &[u8]) {
        put(bytes, at, kind);
        put(bytes, at + 4, data.len() as u32);
        bytes[at + 8..at + 8 + data.len()].copy_from_slice(data);
    }

    fn judge(bytes: &[u8]) -> String {
        match parse(bytes, bytes.len() as u64) {
            Ok(header) => format!("{header:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_good_header_is_read_in_both_versions() {
        let alone = Header { size: 1 << 30, backing: None };
        assert_eq!(parse(&good(), 4 << 16).unwrap(), alone);
        let mut version_2 = good();
        put(&mut version_2, 4, 2);
        version_2[72..112].fill(0);
        assert_eq!(parse(&version_2, 4 << 16).unwrap(), alone);
    }

    #[test]
    fn a_backing_file_is_named_with_its_format() {
        let mut bytes = good();
        extension(&mut bytes, 112, BACKING_FORMAT, b"raw");
        bytes[512..523].copy_from_slice(b"/etc/shadow");
        put(&mut bytes, 12, 512);
        put(&mut bytes, 16, 11);
        let backing = Backing { name: "/etc/shadow".into(), format: Some("raw".into()) };
        assert_eq!(parse(&bytes, 4 << 16).unwrap().backing, Some(backing));
    }

    /// One field changed, and what is said of it.
    #[test]
    fn what_is_wrong_is_named() {
        let changes: [(usize, u32, &str); 22] = [
            (0, 0x4b44_4d56, "it is no qcow2 file"),
            (4, 1, "its version is 1, and 2 and 3 are known"),
            (4, 4, "its version is 4, and 2 and 3 are known"),
            (20, 8, "its clusters have 2^8 bytes"),
            (20, 22, "its clusters have 2^22 bytes"),
            (32, 1, "it is encrypted"),
            (32, 2, "it is encrypted"),
            (36, 1, "its first table is too small for a disk of 1073741824 bytes"),
            (36, u32::MAX, "its first table has 34359738360 bytes"),
            (36, 8193, "its first table is not in the file"),
            (40, 1, "its first table is not in the file"),
            (52, 0, "its refcount table is not in the file"),
            (52, 0x1234, "its refcount table is not in the file"),
            (56, 0, "it has no refcounts"),
            (56, 200, "its refcount table has 13107200 bytes"),
            (60, u32::MAX, "it has 4294967295 snapshots"),
            (76, 2, "it is marked as corrupt"),
            (76, 4, "its data is in another file"),
            (76, 0x20, "it has features that are not known here (0x20)"),
            (92, 2, "its data is in another file"),
            (100, 16, "its header has 16 bytes"),
            (12, 0x7fff_ffff, "its backing file's name is not in its header"),
        ];
        for (at, value, said) in changes {
            let mut bytes = good();
            put(&mut bytes, at, value);
            assert_eq!(judge(&bytes), said, "{value:#x} at {at}");
        }
        for length in [0, 3, 4, 71, 103] {
            assert!(parse(&good()[..length], 4 << 16).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn extensions_that_lead_outside_are_found_behind_others() {
        for (kind, said) in [(DATA_FILE, "its data is in another file"), (ENCRYPTION, "it is encrypted")] {
            let mut bytes = good();
            extension(&mut bytes, 112, 0x6803_f857, &[1; 45]);
            extension(&mut bytes, 112 + 8 + 48, kind, b"nbd://host/secret");
            assert_eq!(judge(&bytes), said);
        }
        let mut bytes = good();
        extension(&mut bytes, 112, 0x1234, b"");
        put(&mut bytes, 116, u32::MAX);
        assert_eq!(judge(&bytes), "an extension of its header has 4294967295 bytes");
        // Nothing but extensions, to the end of what is read.
        let mut bytes = good();
        for at in (112..1 << 16).step_by(16) {
            extension(&mut bytes, at, 0x1234, b"12345678");
        }
        assert!(judge(&bytes).starts_with("Header"), "{}", judge(&bytes));
    }

    #[test]
    fn names_are_bounded_and_text() {
        let named = |length: u32, name: &[u8]| {
            let mut bytes = good();
            bytes[512..512 + name.len()].copy_from_slice(name);
            put(&mut bytes, 12, 512);
            put(&mut bytes, 16, length);
            judge(&bytes)
        };
        assert_eq!(named(1024, b"x"), "its backing file's name has 1024 bytes");
        assert_eq!(named(0, b""), "a name in its header is no name");
        assert_eq!(named(3, b"a\0b"), "a name in its header is no name");
        assert_eq!(named(2, b"\xff\xfe"), "a name in its header is no text");
    }

    #[test]
    fn the_fuzz_target_holds_for_its_seeds() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/qcow2");
        for seed in std::fs::read_dir(seeds).unwrap() {
            let bytes = std::fs::read(seed.unwrap().path()).unwrap();
            fuzz(&bytes);
            assert!(parse(&bytes, 1 << 30).is_ok());
        }
    }
}
