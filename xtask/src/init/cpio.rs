//! Writes cpio archives in the form that the kernel unpacks as an initramfs (`newc`, see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). Pure.
//!
//! Archives may be laid end to end: the kernel unpacks them one after the other, and a later file replaces an
//! earlier one. Each is padded to 4 bytes, as the next one's header has to be.

/// One file system object. Paths are relative to the root, without a leading slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A folder, mode 0755.
    Folder {
        /// Its parent comes before it.
        path: &'a str,
    },
    /// A regular file.
    File {
        /// Its folder comes before it.
        path: &'a str,
        /// Permission bits, for example `0o755`.
        mode: u32,
        /// Its bytes, at most 4 GiB of them.
        contents: &'a [u8],
    },
    /// A character device, mode 0600.
    CharDevice {
        /// Its folder comes before it.
        path: &'a str,
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
}

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;

/// Ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// The bytes of an archive; owner root, times 0, so that the same entries give the same bytes.
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, entry) in (1..).zip(entries) {
        match *entry {
            Entry::Folder { path } => append(&mut out, inode, path, S_IFDIR | 0o755, (0, 0), &[]),
            Entry::File { path, mode, contents } => {
                append(&mut out, inode, path, S_IFREG | mode, (0, 0), contents);
            }
            Entry::CharDevice { path, major, minor } => {
                append(&mut out, inode, path, S_IFCHR | 0o600, (major, minor), &[]);
            }
        }
    }
    append(&mut out, 0, TRAILER, 0, (0, 0), &[]);
    out
}

fn append(out: &mut Vec<u8>, inode: u32, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
    let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
    let fields = [
        inode,
        mode,
        0, // uid
        0, // gid
        links,
        0, // mtime
        contents.len() as u32,
        0, // major and minor number of the device that holds the file
        0,
        device.0,
        device.1,
        path.len() as u32 + 1,
        0, // checksum, of the `070702` form only
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(contents);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    const ENTRIES: &[Entry<'_>] = &[
        Entry::Folder { path: "dev" },
        Entry::CharDevice { path: "dev/console", major: 5, minor: 1 },
        Entry::File { path: "init", mode: 0o755, contents: b"#!/bin/sh\nexit" },
        Entry::File { path: "empty", mode: 0o644, contents: b"" },
    ];

    #[test]
    fn a_header_is_what_the_kernel_documents() {
        let bytes = archive(&[Entry::File { path: "a", mode: 0o644, contents: b"xyz" }]);
        let text = String::from_utf8(bytes[..110].to_vec()).unwrap();
        assert_eq!(
            text,
            "070701\
             00000001000081A4000000000000000000000001\
             000000000000000300000000000000000000000000000000\
             0000000200000000"
        );
        assert_eq!(&bytes[110..116], b"a\0xyz\0");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }

    #[test]
    fn archives_end_on_a_boundary_and_lie_end_to_end() {
        let both =
            [archive(ENTRIES), archive(&[Entry::File { path: "boot.json", mode: 0o600, contents: b"{}" }])];
        assert!(both.iter().all(|archive| archive.len() % 4 == 0));
        assert_eq!(&both.concat()[both[0].len()..][..6], b"070701");
    }

    /// GNU cpio reads the same entries.
    #[test]
    fn another_reader_agrees() {
        let folder = tempfile::tempdir().unwrap();
        duct::cmd!("cpio", "--extract", "--quiet")
            .stdin_bytes(archive(&ENTRIES[..1]).into_iter().collect::<Vec<_>>())
            .dir(folder.path())
            .run()
            .unwrap();
        assert!(folder.path().join("dev").is_dir());
        let listing = duct::cmd!("cpio", "--list", "--verbose", "--numeric-uid-gid", "--quiet")
            .stdin_bytes(archive(ENTRIES))
            .read()
            .unwrap();
        let lines: Vec<&str> = listing.lines().collect();
        assert!(lines[1].starts_with("crw-------") && lines[1].contains("5,   1"), "{listing}");
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 14 "), "{listing}");
        let metadata = folder.path().join("dev").metadata().unwrap();
        assert!(metadata.permissions().mode() & 0o777 == 0o755 && !metadata.file_type().is_char_device());
    }
}
