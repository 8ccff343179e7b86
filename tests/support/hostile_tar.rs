//! Tar streams of an enemy, for whoever unpacks what he does not trust. Only the standard library is used, so that unit
//! tests, test programs and a guest's own agent can all include this file.
//!
//! Each stream answers a request for one name, [`ASKED`]. It must end in an error or leave everything but that name as it was.

#![allow(dead_code, reason = "each user needs a part of it")]

use std::io::{self, Read};

/// The name that was asked for.
pub(crate) const ASKED: &str = "asked";

/// A stream: bytes, and others that follow for ever.
#[derive(Debug, Clone)]
pub(crate) struct Hostile {
    /// What it tries.
    pub(crate) name: &'static str,
    /// How it begins; all of it where `endless` is empty.
    pub(crate) bytes: Vec<u8>,
    /// How it goes on, again and again.
    pub(crate) endless: Vec<u8>,
    /// It must be refused; others may also be unpacked to something harmless.
    pub(crate) is_refused: bool,
}

impl Hostile {
    /// The stream, as its reader gets it.
    pub(crate) fn reader(&self) -> impl Read {
        self.bytes.as_slice().chain(Repeat { bytes: &self.endless, at: 0 })
    }
}

struct Repeat<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Read for Repeat<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            return Ok(0);
        }
        for byte in &mut *buffer {
            *byte = self.bytes[self.at];
            self.at = (self.at + 1) % self.bytes.len();
        }
        Ok(buffer.len())
    }
}

/// A header under construction; nothing is checked.
#[derive(Debug, Clone)]
pub(crate) struct Header(pub(crate) [u8; 512]);

impl Header {
    /// Of a type (`0` a file, `5` a directory, `2` a symbolic link, ...), mode 0644, owned by root.
    pub(crate) fn new(kind: u8, path: &str) -> Header {
        let mut header = Header([0; 512]);
        header.put(0, path.as_bytes()).put(257, b"ustar\x0000").mode(0o644).size(0);
        header.put(108, b"0000000\0").put(116, b"0000000\0").put(136, b"14000000000\0");
        header.0[156] = kind;
        header
    }

    /// Puts bytes at an offset, as many as there is room for.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Header {
        let end = (at + bytes.len()).min(512);
        self.0[at..end].copy_from_slice(&bytes[..end - at]);
        self
    }

    pub(crate) fn mode(&mut self, mode: u32) -> &mut Header {
        self.put(100, format!("{mode:07o}\0").as_bytes())
    }

    pub(crate) fn owner(&mut self, id: u32) -> &mut Header {
        self.put(108, format!("{id:07o}\0").as_bytes()).put(116, format!("{id:07o}\0").as_bytes())
    }

    pub(crate) fn size(&mut self, size: u64) -> &mut Header {
        self.put(124, format!("{size:011o}\0").as_bytes())
    }

    pub(crate) fn link(&mut self, target: &str) -> &mut Header {
        self.put(157, target.as_bytes())
    }

    pub(crate) fn device(&mut self, major: u32, minor: u32) -> &mut Header {
        self.put(329, format!("{major:07o}\0").as_bytes()).put(337, format!("{minor:07o}\0").as_bytes())
    }

    /// GNU's form of a header in place of ustar's.
    pub(crate) fn gnu(&mut self) -> &mut Header {
        self.put(257, b"ustar  \0")
    }

    /// The header with a right checksum.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0;
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.to_vec()
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A regular file.
pub(crate) fn file(path: &str, content: &[u8]) -> Vec<u8> {
    [Header::new(b'0', path).size(content.len() as u64).bytes(), padded(content.to_vec())].concat()
}

/// A directory.
pub(crate) fn directory(path: &str, mode: u32) -> Vec<u8> {
    Header::new(b'5', path).mode(mode).bytes()
}

/// A symbolic link.
pub(crate) fn link(path: &str, target: &str) -> Vec<u8> {
    Header::new(b'2', path).link(target).mode(0o777).bytes()
}

/// A hard link.
pub(crate) fn hard_link(path: &str, target: &str) -> Vec<u8> {
    Header::new(b'1', path).link(target).bytes()
}

/// One record of an extended header.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

/// An extended header with records in it.
pub(crate) fn extended(records: &[Vec<u8>]) -> Vec<u8> {
    let data = records.concat();
    [Header::new(b'x', "PaxHeaders/x").size(data.len() as u64).bytes(), padded(data)].concat()
}

/// A GNU long name (`L`) or long target (`K`).
pub(crate) fn long(kind: u8, text: &[u8]) -> Vec<u8> {
    let header = Header::new(kind, "././@LongLink").gnu().size(text.len() as u64 + 1).bytes();
    [header, padded([text, b"\0"].concat())].concat()
}

/// The end of an archive.
pub(crate) fn end() -> Vec<u8> {
    vec![0; 1024]
}

/// A whole archive.
pub(crate) fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), end()].concat()
}

/// A file with holes in form 1.0: the map as text, then what is stored.
pub(crate) fn sparse_1_0(path: &str, map: &[u8], size: &str, stored: &[u8]) -> Vec<u8> {
    let content = [padded(map.to_vec()), stored.to_vec()].concat();
    let records = [
        record("GNU.sparse.major", b"1"),
        record("GNU.sparse.minor", b"0"),
        record("GNU.sparse.name", path.as_bytes()),
        record("GNU.sparse.realsize", size.as_bytes()),
    ];
    [extended(&records), file("GNUSparseFile.0/x", &content)].concat()
}

/// A folder so deep, by one entry.
fn deep(depth: usize) -> Vec<u8> {
    let path = format!("{ASKED}/{}", "d/".repeat(depth));
    [extended(&[record("path", path.as_bytes())]), directory(ASKED, 0o755)].concat()
}

/// All that has been thought of. `outside` is a file beside the target that exists, as an absolute path.
pub(crate) fn all(outside: &str) -> Vec<Hostile> {
    let beside = outside.rsplit('/').next().unwrap_or(outside).to_owned();
    let folder = outside.rsplit_once('/').map_or("/", |(folder, _)| folder);
    let mut all = Vec::new();
    let mut refused = |name, entries: &[Vec<u8>]| {
        all.push(Hostile { name, bytes: archive(entries), endless: Vec::new(), is_refused: true });
    };
    let root = || directory("asked/", 0o755);
    let inside = |name: &str| format!("{ASKED}/{name}");
    refused("another name", &[file(".bashrc", b"x")]);
    refused("another name after the one", &[file(ASKED, b"x"), file(".bashrc", b"x")]);
    refused(
        "a folder of another name",
        &[root(), directory(".ssh/", 0o700), file(".ssh/authorized_keys", b"x")],
    );
    refused("a name that only begins like it", &[file("asked.txt", b"x")]);
    refused("the folder above, by `./`", &[directory("./", 0o777)]);
    refused("the folder above, by `/`", &[directory("/", 0o777)]);
    refused("the folder above, by `asked/..`", &[root(), directory("asked/..", 0o777)]);
    refused("the folder above, replaced by a link", &[link(".", "/etc")]);
    refused("a way up", &[file(&format!("../{beside}"), b"x")]);
    refused("a way up from below", &[root(), file(&inside(&format!("../../{beside}")), b"x")]);
    refused("an absolute name", &[file(outside, b"x")]);
    refused("a long name that leads up", &[long(b'L', format!("../{beside}").as_bytes()), file(ASKED, b"x")]);
    refused(
        "a record that leads up",
        &[extended(&[record("path", format!("{ASKED}/../../{beside}").as_bytes())]), file(ASKED, b"x")],
    );
    refused(
        "a sparse name that leads up",
        &[sparse_1_0(&format!("../{beside}"), b"1\n0\n1\n", "1", &[b'x'; 512])],
    );
    for target in [folder, "..", "../..", "/", "."] {
        refused(
            "a link, and a file below it",
            &[root(), link("asked/d", target), file(&format!("asked/d/{beside}"), b"x")],
        );
        refused(
            "a link, and the same name as a folder",
            &[root(), link("asked/d", target), directory("asked/d", 0o777)],
        );
        refused(
            "a link, and the same name with a slash",
            &[root(), link("asked/d", target), directory("asked/d/", 0o777)],
        );
        refused(
            "a link as the name itself, and a file below",
            &[link(ASKED, target), file(&inside(&beside), b"x")],
        );
        refused(
            "a link as the name itself, and it as a folder",
            &[link(ASKED, target), directory("asked/", 0o777)],
        );
        refused(
            "a folder made below a link",
            &[root(), link("asked/d", target), directory("asked/d/new", 0o777)],
        );
        refused(
            "a hard link through a link",
            &[root(), link("asked/d", target), hard_link("asked/h", &format!("asked/d/{beside}"))],
        );
    }
    refused(
        "a link to a link",
        &[root(), link("asked/a", ".."), link("asked/b", "a"), directory("asked/b/x/", 0o777)],
    );
    refused("a hard link to what was there", &[root(), hard_link("asked/h", outside)]);
    refused("a hard link to what lies beside", &[root(), hard_link("asked/h", &beside)]);
    refused("a hard link up", &[root(), hard_link("asked/h", &format!("../{beside}"))]);
    refused(
        "a hard link to a folder",
        &[root(), directory("asked/d/", 0o755), hard_link("asked/h", "asked/d")],
    );
    refused("a hard link to the target", &[root(), hard_link("asked/h", ".")]);
    refused("a hard link to nothing", &[root(), hard_link("asked/h", "")]);
    refused("a folder in a file's place", &[file(ASKED, b"x"), directory("asked/", 0o755)]);
    refused("a file below a file", &[file(ASKED, b"x"), file("asked/x", b"x")]);
    refused("a link in a folder's place", &[root(), link(ASKED, "..")]);
    refused("a type that nobody knows", &[Header::new(b'V', ASKED).bytes()]);
    refused(
        "a name of 256 bytes",
        &[
            root(),
            extended(&[record("path", format!("asked/{}", "n".repeat(256)).as_bytes())]),
            file(ASKED, b""),
        ],
    );
    refused(
        "a path of 500,000 names",
        &[
            extended(&[record("path", format!("asked/{}", "d/".repeat(500_000)).as_bytes())]),
            directory(ASKED, 0o755),
        ],
    );
    refused(
        "a path of 4096 bytes",
        &[
            extended(&[record("path", &format!("asked/{}/", "d".repeat(245)).repeat(17).as_bytes()[..4096])]),
            directory(ASKED, 0o755),
        ],
    );
    refused("a zero byte in a name", &[extended(&[record("path", b"asked/a\0b")]), file(ASKED, b"x")]);
    refused("a zero byte in a link", &[extended(&[record("linkpath", b"a\0b")]), link(ASKED, "a")]);
    refused("a link to nothing", &[link(ASKED, "")]);
    refused("a link of 4096 bytes", &[extended(&[record("linkpath", &[b'a'; 4096])]), link(ASKED, "a")]);
    refused("no name", &[file("", b"x")]);
    refused("no entry at all", &[]);
    refused("headers and no entry", &[extended(&[record("path", b"asked")])]);
    refused(
        "two extended headers",
        &[extended(&[record("path", b"asked")]), extended(&[record("path", b"other")]), file(ASKED, b"x")],
    );
    refused("two long names", &[long(b'L', b"asked"), long(b'L', b"other"), file(ASKED, b"x")]);
    refused(
        "a name for all that follow",
        &[
            Header::new(b'g', "g").size(17).bytes(),
            padded(b"17 path=.bashrc\n\n".to_vec()),
            file(ASKED, b"x"),
        ],
    );
    numbers(&mut all);
    all
}

/// Numbers that do not fit, overflow, or announce what never comes.
fn numbers(all: &mut Vec<Hostile>) {
    let mut add = |name, is_refused, bytes: Vec<u8>, endless: Vec<u8>| {
        all.push(Hostile { name, bytes, endless, is_refused });
    };
    let mut refused = |name, entries: &[Vec<u8>]| add(name, true, archive(entries), Vec::new());
    let sized = |kind: u8, size: &[u8]| Header::new(kind, ASKED).put(124, size).bytes();
    let base_256 = |value: u128| {
        let mut field = value.to_be_bytes()[4..].to_vec();
        field[0] |= 0x80;
        field
    };
    let pax = |key: &str, value: &str, kind: u8| {
        [extended(&[record(key, value.as_bytes())]), Header::new(kind, ASKED).bytes()].concat()
    };
    for value in [1 << 63, (1 << 64) - 1, 1 << 64, (1 << 64) + 5, (1 << 94) - 1] {
        refused("a size beyond all", &[sized(b'0', &base_256(value))]);
    }
    refused("a size of 2^63-1", &[sized(b'0', &base_256((1 << 63) - 1))]);
    refused("a size below zero", &[sized(b'0', &[0xff; 12])]);
    refused("a size that is none", &[sized(b'0', b"0000000008 \0")]);
    refused("a size with a sign", &[sized(b'0', b"-0000000001\0")]);
    for size in ["18446744073709551615", "18446744073709551104", "9223372036854775808", "9223372036854775807"]
    {
        refused("a record's size", &[pax("size", size, b'0')]);
        refused(
            "a record's size, of an old folder",
            &[[extended(&[record("size", size.as_bytes())]), file("asked/", b"")].concat()],
        );
    }
    for size in ["-1", "", "x", "1.5", "+1", "18446744073709551616", "99999999999999999999999999"] {
        refused("a record's size that is none", &[pax("size", size, b'0')]);
    }
    for kind in [b'x', b'L', b'K', b'g'] {
        for size in [1 << 31, (1 << 63) - 1, (1 << 64) - 1024, (1 << 64) - 1] {
            let header = Header::new(kind, "long").put(124, &base_256(size)).bytes();
            refused("a header of gigabytes", &[header.clone(), vec![b'a'; 4096]]);
            refused(
                "a header of gigabytes after another",
                &[long(b'K', &[b'a'; 1000]), header, vec![b'a'; 4096]],
            );
        }
    }
    for data in [
        "99999999999999999999999999 path=x\n",
        "18446744073709551615 path=x\n",
        "0 path=x\n",
        "x\n",
        "9 path=x",
        "12 path=x\n",
    ] {
        let data = data.as_bytes().to_vec();
        let header = Header::new(b'x', "x").size(data.len() as u64).bytes();
        refused("a record that is malformed", &[header, padded(data), file(ASKED, b"x")]);
    }
    for id in ["-1", "4294967296", "18446744073709551615", "x"] {
        refused("an owner that is none", &[pax("uid", id, b'0')]);
        refused("a group that is none", &[pax("gid", id, b'0')]);
    }
    refused("an owner below zero", &[Header::new(b'0', ASKED).put(108, &[0xff; 8]).bytes()]);
    for time in ["99999999999999999999", "now", "1e9", "--1", "1.2.3"] {
        refused("a time that is none", &[pax("mtime", time, b'0')]);
    }
    refused("an attribute without a name", &[pax("SCHILY.xattr.", "x", b'0')]);
    refused(
        "an attribute of 64 KiB and more",
        &[[extended(&[record("SCHILY.xattr.user.x", &[b'x'; 65_537])]), file(ASKED, b"")].concat()],
    );

    let map = |map: &[u8]| sparse_1_0(ASKED, map, "100000", &[b'x'; 512]);
    refused("a sparse map of 513 zeros", &[map(&[b'0'; 513])]);
    refused("a sparse map of nothing", &[map(b"")]);
    refused("a sparse map without an end", &[map(b"2\n0\n1\n")]);
    refused("a sparse map of too many parts", &[map(b"18446744073709551615\n")]);
    refused("a sparse map with a sign", &[map(b"1\n-1\n1\n")]);
    refused("a sparse map that overlaps", &[map(b"2\n0\n256\n255\n256\n")]);
    refused("a sparse map out of order", &[map(b"2\n4096\n256\n0\n256\n")]);
    refused("a sparse map beyond the size", &[map(b"1\n99999\n512\n")]);
    refused("a sparse map that overflows", &[map(b"1\n18446744073709551615\n512\n")]);
    refused("a sparse map of more than is stored", &[map(b"1\n0\n513\n")]);
    refused("a sparse map of less than is stored", &[map(b"1\n0\n511\n")]);
    refused(
        "a sparse file of 2^62 bytes",
        &[sparse_1_0(ASKED, b"1\n0\n512\n", "4611686018427387904", &[b'x'; 512])],
    );
    refused(
        "a sparse file of 2^63 bytes",
        &[sparse_1_0(ASKED, b"1\n0\n512\n", "9223372036854775808", &[b'x'; 512])],
    );
    for records in [
        &[("GNU.sparse.map", "0,1,2")][..],
        &[("GNU.sparse.map", "0,x")],
        &[("GNU.sparse.map", "0,18446744073709551615"), ("GNU.sparse.size", "5")],
        &[("GNU.sparse.numbytes", "1")],
        &[("GNU.sparse.offset", "18446744073709551615"), ("GNU.sparse.numbytes", "18446744073709551615")],
        &[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")],
    ] {
        let records: Vec<_> = records.iter().map(|(key, value)| record(key, value.as_bytes())).collect();
        refused("records of a sparse map", &[extended(&records), file(ASKED, b"x")]);
    }
    let gnu_sparse = |offset: &[u8], length: &[u8], more: bool| {
        let mut header = Header::new(b'S', ASKED);
        header.gnu().put(386, offset).put(398, length).put(483, b"00000000100\0");
        header.0[482] = u8::from(more);
        header.bytes()
    };
    refused(
        "a GNU sparse map that overflows",
        &[gnu_sparse(&base_256((1 << 64) - 1), b"00000000100\0", false)],
    );
    refused("a GNU sparse map beyond the size", &[gnu_sparse(b"00000000100\0", b"00000000100\0", false)]);
    refused("a GNU sparse map in another's header", &[Header::new(b'S', ASKED).bytes()]);
    refused("a GNU sparse map that is cut off", &[gnu_sparse(b"00000000000\0", b"00000000000\0", true)]);

    // What comes to no end, or ends too early.
    let mut more = vec![0; 512];
    more[504] = 1;
    let digits = |count: usize| sparse_1_0(ASKED, &vec![b'0'; count], "1", &[]);
    add("a GNU sparse map without an end", true, gnu_sparse(b"00000000000\0", b"00000000000\0", true), more);
    let huge = [
        extended(&[
            record("GNU.sparse.major", b"1"),
            record("GNU.sparse.minor", b"0"),
            record("GNU.sparse.realsize", b"1"),
            record("size", b"9223372036854775807"),
        ]),
        Header::new(b'0', ASKED).bytes(),
    ]
    .concat();
    add("a sparse map of endless zeros", true, huge.clone(), vec![b'0'; 512]);
    add("a sparse map of endless lines", true, [huge, b"100000\n".to_vec()].concat(), b"0\n".to_vec());
    add("a file without an end", true, sized(b'0', &base_256((1 << 63) - 1)), vec![0; 4096]);
    add("headers without an end", true, Vec::new(), extended(&[record("comment", b"x")]));
    add("long names without an end", true, Vec::new(), long(b'L', b"asked"));
    add("no archive", true, Vec::new(), b"nonsense".to_vec());
    for length in [0, 1, 511, 512, 513, 1023, 1024, 1535] {
        let whole = file(ASKED, &[b'x'; 1000]);
        add("an archive that is cut off", true, whole[..length].to_vec(), Vec::new());
    }
    add("an archive without its end", true, file(ASKED, b"x"), Vec::new());
    add("digits that are cut off", true, digits(600)[..2000].to_vec(), Vec::new());

    // What may be unpacked, and must do no harm then.
    let mut harmless = |name, entries: &[Vec<u8>]| add(name, false, archive(entries), Vec::new());
    for size in ["18446744073709551615", "9223372036854775807", "512"] {
        harmless("a folder with a size", &[pax("size", size, b'5')]);
    }
    harmless("a pipe with a size", &[Header::new(b'6', ASKED).size(512).bytes()]);
    harmless("a link with a size", &[Header::new(b'2', ASKED).link("x").size(512).bytes()]);
    for time in ["9223372036854775807.999999999", "-9223372036854775807.999999999", "-0.5", "0"] {
        harmless("a time far away", &[pax("mtime", time, b'0')]);
    }
    harmless("a time below zero", &[Header::new(b'0', ASKED).put(136, &[0xff; 12]).bytes()]);
    harmless(
        "setuid, of somebody else",
        &[{
            let mut header = Header::new(b'0', ASKED);
            header.mode(0o6777).owner(12345);
            header.bytes()
        }],
    );
    harmless(
        "devices",
        &[
            directory("asked/", 0o755),
            Header::new(b'3', "asked/mem").device(1, 1).bytes(),
            Header::new(b'4', "asked/disk").device(8, 0).bytes(),
        ],
    );
    harmless(
        "capabilities",
        &[[
            extended(&[
                record(
                    "SCHILY.xattr.security.capability",
                    &[1, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ),
                record("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                record("SCHILY.xattr.system.posix_acl_access", b"nonsense"),
            ]),
            file(ASKED, b"x"),
        ]
        .concat()],
    );
    harmless("a link that leads out", &[link(ASKED, "/etc/passwd")]);
    harmless("a file in a link's place", &[link(ASKED, "../sentinel"), file(ASKED, b"x")]);
    harmless(
        "a hard link to itself",
        &[directory("asked/", 0o755), file("asked/x", b"x"), hard_link("asked/x", "asked/x")],
    );
    harmless("a folder closed to its owner", &[directory("asked/", 0), file("asked/x", b"x")]);
    harmless("300 folders at once", &[deep(300)]);
    harmless(
        "a name of control characters",
        &[directory("asked/", 0o755), file("asked/\u{1b}[2J\r\n", b"x")],
    );
}
