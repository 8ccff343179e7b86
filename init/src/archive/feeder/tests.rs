use std::io::Cursor;

use super::*;
use crate::hostile_tar::{
    self as hostile, archive, directory, extended, file, hard_link, link, long, record,
};

/// A source that gives a few bytes at a time, as a pipe may.
struct Trickle<R>(R, usize);

impl<R: std::io::Read> std::io::Read for Trickle<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(self.1);
        self.0.read(&mut buffer[..most])
    }
}

/// Entries and their contents.
type Contents = Vec<(Entry, Vec<u8>)>;

/// All there is, and whether the end was there.
fn read<R: std::io::Read>(mut feeder: Feeder<R>) -> Result<(Contents, bool)> {
    let mut entries = Vec::new();
    while let Some(entry) = feeder.next_entry()? {
        let mut content = Vec::new();
        loop {
            let piece = feeder.content_piece(777)?;
            if piece.is_empty() {
                break;
            }
            content.extend_from_slice(piece);
        }
        entries.push((entry, content));
    }
    Ok((entries, feeder.is_complete()))
}

fn kinds(bytes: &[u8]) -> Vec<(String, Kind)> {
    let entries = read(Feeder::new(bytes)).unwrap().0;
    entries.into_iter().map(|(entry, _)| (String::from_utf8(entry.path).unwrap(), entry.kind)).collect()
}

fn refusal(bytes: &[u8]) -> String {
    format!("{:#}", read(Feeder::new(bytes)).unwrap_err())
}

#[test]
fn all_ways_of_reading_give_the_same() {
    let bytes = archive(&[
        directory("d/", 0o1750),
        file("d/empty", b""),
        file("d/block", &[7; 512]),
        file("d/large", &vec![8; 300_000]),
        [long(b'L', &[b'n'; 200]), long(b'K', b"target"), link("short", "x")].concat(),
        [extended(&[record("path", b"d/pax"), record("mtime", b"-1.5")]), file("x", b"pax")].concat(),
        hostile::sparse_1_0("sparse", b"2\n512\n100\n4096\n412\n", "5000", &[9; 512]),
        hard_link("hard", "d/block"),
    ]);
    let (entries, is_complete) = read(Feeder::new(&bytes[..])).unwrap();
    assert!(is_complete);
    let sizes: Vec<usize> = entries.iter().map(|(_, content)| content.len()).collect();
    assert_eq!(sizes, [0, 0, 512, 300_000, 0, 3, 512, 0]);
    assert!(entries[3].1.iter().all(|byte| *byte == 8));
    assert_eq!(entries[4].0.path, [b'n'; 200]);
    assert_eq!(entries[4].0.kind, Kind::Symlink((*b"target").into()));
    assert_eq!((entries[5].0.metadata.mtime, &entries[5].1[..]), ((-2, 500_000_000), &b"pax"[..]));
    let segments = [Segment { offset: 512, length: 100 }, Segment { offset: 4096, length: 412 }];
    let sparse = Content { size: 5000, stored: 512, segments: Some(segments.into()) };
    assert_eq!(entries[6].0.kind, Kind::File(sparse));
    assert_eq!(entries[0].0.metadata, Metadata { mode: 0o1750, uid: 0, gid: 0, mtime: (0o140_0000_0000, 0) });
    for step in [1, 511, 512, 513, 100_000] {
        assert_eq!(
            read(Feeder::new(Trickle(&bytes[..], step))).unwrap().0,
            entries,
            "{step} bytes at a time"
        );
    }
    assert_eq!(read(Feeder::seeking(Cursor::new(&bytes))).unwrap().0, entries);
    // Contents that nobody reads are passed over, and each entry's position is where its content begins.
    let mut jumping = Feeder::seeking(Cursor::new(&bytes));
    let mut reading = Feeder::new(Trickle(&bytes[..], 1000));
    for (entry, content) in &entries {
        assert_eq!(jumping.next_entry().unwrap().as_ref(), Some(entry));
        assert_eq!(reading.next_entry().unwrap().as_ref(), Some(entry));
        let at = jumping.position();
        assert_eq!(at, reading.position());
        assert_eq!(&bytes[at as usize..][..content.len()], content);
    }
    assert_eq!(jumping.next_entry().unwrap(), None);
    assert_eq!(reading.next_entry().unwrap(), None);
}

#[test]
fn a_file_alone_has_content() {
    // A size means nothing for these, even the largest; the next header comes at once.
    for (kind, link) in [(b'5', ""), (b'1', "x"), (b'2', "x"), (b'3', ""), (b'4', ""), (b'6', "")] {
        for size in ["512", "18446744073709551615"] {
            let mut header = hostile::Header::new(kind, "odd");
            let odd = [extended(&[record("size", size.as_bytes())]), header.link(link).bytes()].concat();
            let names: Vec<String> =
                kinds(&archive(&[odd, file("next", b"x")])).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["odd", "next"], "{} {size}", char::from(kind));
        }
    }
    // Before POSIX a directory was a file.
    let old = kinds(&archive(&[file("old/", b"content"), file("next", b"")]));
    assert_eq!(old[0], ("old/".into(), Kind::Directory));
    assert_eq!(old[1].0, "next");
}

#[test]
fn devices_have_numbers() {
    let mut header = hostile::Header::new(b'3', "null");
    let device = header.device(1, 3).bytes();
    let of = |bytes: &[u8]| kinds(bytes).remove(0).1;
    assert_eq!(of(&archive(&[device])), Kind::Special(Special::CharDevice { major: 1, minor: 3 }));
    let large = hostile::Header::new(b'4', "x").put(329, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).bytes();
    assert_eq!(of(&archive(&[large])), Kind::Special(Special::BlockDevice { major: u32::MAX, minor: 0 }));
    let larger = hostile::Header::new(b'4', "x").put(329, &[0x80, 0, 0, 1, 0, 0, 0, 0]).bytes();
    assert_eq!(refusal(&archive(&[larger])), "entry `x`: its major number is out of range");
    // Of a file's headers nobody reads them.
    let file = hostile::Header::new(b'0', "x").put(329, b"garbage").bytes();
    assert!(matches!(of(&archive(&[file])), Kind::File(_)));
}

#[test]
fn what_is_wrong_is_said() {
    let whole = file("name", &[1; 600]);
    for (bytes, expected) in [
        (archive(&[file("a", b""), vec![b'x'; 512]]), "an entry's header is damaged: its checksum is wrong"),
        (vec![b'x'; 512], "it does not begin like a tar archive: its checksum is wrong"),
        (whole[..700].to_vec(), "the archive ends in the middle of an entry"),
        (whole[..100].to_vec(), "the archive ends in the middle of an entry"),
        (extended(&[record("path", b"x")]), "the archive ends in the middle of an entry"),
        (
            archive(&[extended(&[record("path", b"x")])]),
            "the archive ends before the entry that a header announces",
        ),
        (archive(&[extended(&[]), extended(&[])]), "an entry has two extended headers"),
        (archive(&[file("", b"")]), "a path of 0 bytes"),
        (archive(&[hostile::Header::new(b'Z', "odd").bytes()]), "entry `odd`: its type 'Z' is not known"),
        (
            archive(&[hostile::Header::new(b'0', "odd").put(108, &[0xff; 8]).bytes()]),
            "entry `odd`: its owner is out of range",
        ),
        (
            archive(&[hostile::Header::new(b'0', "odd").put(116, b"9").bytes()]),
            "entry `odd`: its group is out of range",
        ),
        (
            archive(&[hostile::Header::new(b'0', "odd").put(136, b"9").bytes()]),
            "entry `odd`: its time is none",
        ),
        (
            archive(&[hostile::Header::new(b'0', "odd").put(100, b"9").bytes()]),
            "entry `odd`: its mode is none",
        ),
        (
            archive(&[hostile::Header::new(b'0', "odd").put(124, b"9").bytes()]),
            "it does not begin like a tar archive: its size is none",
        ),
        (
            archive(&[long(b'L', &[b'n'; 300]), file("x", b"")]),
            &format!("the path `{}…` has a name of 300 bytes; Linux allows 255", "n".repeat(160)),
        ),
        (
            archive(&[long(b'L', &b"n/".repeat(2048)), file("x", b"")]),
            &format!("the path `{}…` of 4096 bytes; Linux allows 4095", "n/".repeat(80)),
        ),
    ] {
        assert_eq!(refusal(&bytes), expected);
    }
    let most = [&b"n/".repeat(2047)[..], b"n"].concat();
    assert_eq!(kinds(&archive(&[long(b'L', &most), file("x", b"")]))[0].0.len(), 4095);
}

#[test]
fn an_end_may_be_missing_and_is_told() {
    for (bytes, complete) in [
        (archive(&[file("x", b"1")]), true),
        (file("x", b"1"), false),
        ([file("x", b"1"), vec![0; 512]].concat(), false),
        ([file("x", b"1"), vec![0; 100]].concat(), false),
        (vec![], false),
        (vec![0; 1024], true),
    ] {
        assert_eq!(read(Feeder::new(&bytes[..])).unwrap().1, complete, "{} bytes", bytes.len());
    }
    // A lone block of zeros is passed over; behind the end nothing counts.
    let odd = [file("x", b"1"), vec![0; 512], archive(&[file("y", b"2")]), file("z", b"3")].concat();
    let names: Vec<String> = kinds(&odd).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["x", "y"]);
}

#[test]
fn the_first_of_three_names_counts() {
    let three = |more: &[Vec<u8>]| {
        let all = [extended(&[more.concat()]), long(b'L', b"long"), file("short", b"")].concat();
        kinds(&archive(&[all])).remove(0).0
    };
    assert_eq!(three(&[]), "long");
    assert_eq!(three(&[record("path", b"pax")]), "pax");
    assert_eq!(three(&[record("path", b"pax"), record("GNU.sparse.name", b"sparse")]), "sparse");
    let mut prefixed = hostile::Header::new(b'0', "name");
    assert_eq!(kinds(&archive(&[prefixed.put(345, b"prefix").bytes()]))[0].0, "prefix/name");
    // GNU has other fields there.
    assert_eq!(kinds(&archive(&[prefixed.gnu().bytes()]))[0].0, "name");
}

#[test]
fn maps_of_holes_in_all_forms() {
    let content = |segments: &[(u64, u64)]| {
        let segments = segments.iter().map(|&(offset, length)| Segment { offset, length });
        Kind::File(Content { size: 10_000, stored: 3, segments: Some(segments.collect()) })
    };
    let expected = content(&[(0, 1), (5000, 2)]);
    let with = |records: &[(&str, &str)]| {
        let records: Vec<_> = records.iter().map(|(key, value)| record(key, value.as_bytes())).collect();
        kinds(&archive(&[extended(&records), file("x", b"abc")])).remove(0).1
    };
    let size = ("GNU.sparse.size", "10000");
    assert_eq!(with(&[size, ("GNU.sparse.map", "0,1,5000,2,10000,0")]), expected);
    let pairs = [
        ("GNU.sparse.offset", "0"),
        ("GNU.sparse.numbytes", "1"),
        ("GNU.sparse.offset", "5000"),
        ("GNU.sparse.numbytes", "2"),
    ];
    assert_eq!(with(&[&[size][..], &pairs].concat()), expected);
    // The old form, continued in a block of its own.
    let mut header = hostile::Header::new(b'S', "x");
    header.gnu().size(3).put(386, b"00000000000\0").put(398, b"00000000001\0").put(483, b"00000023420\0");
    header.0[482] = 1;
    let mut block = vec![0; 512];
    block[..24].copy_from_slice(b"00000011610\x0000000000002\0");
    let old = [header.bytes(), block, b"abc".to_vec(), vec![0; 509]].concat();
    assert_eq!(kinds(&archive(&[old]))[0].1, expected);
}

/// Every stream of an enemy's ends, in entries or in an error, and takes no more than its limits allow.
#[test]
fn no_stream_is_read_for_ever() {
    for stream in hostile::all("/nowhere/beside") {
        for step in [usize::MAX, 512] {
            let mut counted = Trickle(stream.reader().take(8 << 20), step);
            let mut feeder = Feeder::new(&mut counted);
            let mut largest = 0;
            while let Ok(Some(_)) = feeder.next_entry() {
                largest = largest.max(feeder.buffer.capacity());
            }
            assert!(largest <= 2 << 20, "{}: {largest} bytes are held", stream.name);
        }
    }
}

#[test]
fn the_headers_of_one_entry_share_a_limit() {
    let comment = extended(&[record("comment", &[b'x'; 700_000])]);
    assert!(
        read(Feeder::new(&archive(&[comment.clone(), file("a", b""), comment.clone(), file("b", b"")])[..]))
            .is_ok()
    );
    let two = archive(&[comment, long(b'K', &[b'x'; 700_000]), link("a", "b")]);
    assert_eq!(refusal(&two), "the headers of one entry take more than 1048576 bytes");
    let zero = archive(&[extended(&[record("linkpath", b"a\0b")]), link("a", "b")]);
    let expected = "entry `a`: a link's target of 3 bytes; Linux allows 1 to 4095, none of them zero";
    assert_eq!(refusal(&zero), expected);
}

#[test]
fn what_is_said_of_all_entries_is_passed_over_or_refused() {
    let said = |keyword| {
        let data = record(keyword, b"said");
        let header = hostile::Header::new(b'g', "GlobalHead").size(data.len() as u64).bytes();
        let mut global = [header, data].concat();
        global.resize(1024, 0);
        [global, file("a", b"")].concat()
    };
    assert_eq!(kinds(&archive(&[said("comment")])).len(), 1);
    assert!(refusal(&archive(&[said("path")])).contains("sets `path` for all entries"));
}
