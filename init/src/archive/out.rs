//! A path as a tar stream. What cannot be read is complained about and left out; the stream stays whole.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{lgetxattr, llistxattr, major, minor, statfs};
use rustix::io::Errno;
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, HEADER_SIZE, PAX_SCHILY_XATTR};

use super::format_time;

/// The largest value of an extended attribute, and the longest list of their names (`XATTR_SIZE_MAX`,
/// `XATTR_LIST_MAX` in linux/limits.h).
const XATTR_MOST: usize = 64 * 1024;

/// The largest modification time that a header itself can hold: 11 octal digits.
const HEADER_TIME_MOST: i64 = 0o777_7777_7777;

/// File systems that show the kernel and not the image's data (linux/magic.h): proc, sysfs, cgroup2, devpts,
/// mqueue, debugfs, tracefs, securityfs, bpf.
const KERNEL_FILE_SYSTEMS: [i64; 9] = [
    0x9fa0,
    0x6265_6572,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
];

/// Writes `path` and what is below it to `out`. The first entry is named `name` (`.` for a directory whose contents are
/// meant), the others below it; `follow` is for a symbolic link at the path itself. `complain` hears of what had to be
/// left out.
///
/// # Errors
/// `path` itself cannot be read, or `out` does not take the stream.
pub fn write_tree(
    out: impl Write,
    path: &Path,
    name: &[u8],
    follow: bool,
    complain: &mut dyn FnMut(String),
) -> Result<()> {
    let unread = || format!("cannot read `{}`", path.display());
    let source = if follow { fs::canonicalize(path).with_context(unread)? } else { path.to_owned() };
    let metadata = fs::symlink_metadata(&source).with_context(unread)?;
    let mut archive = Archive {
        out: BufWriter::with_capacity(64 * 1024, out),
        links: HashMap::new(),
        buffer: vec![0; XATTR_MOST],
        complain,
    };
    archive.write(source, name.to_vec(), metadata).context("cannot write the archive")
}

struct Archive<'a, W: Write> {
    out: BufWriter<W>,
    /// The first name of each file that has several: device, inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Large enough for any attribute.
    buffer: Vec<u8>,
    complain: &'a mut dyn FnMut(String),
}

impl<W: Write> Archive<'_, W> {
    fn write(&mut self, path: PathBuf, name: Vec<u8>, metadata: Metadata) -> io::Result<()> {
        // Kept as a list and not as recursion: trees may be as deep as names are long.
        let mut to_do = vec![(path, name, metadata)];
        let mut first = true;
        while let Some((path, name, metadata)) = to_do.pop() {
            self.entry(&path, &name, &metadata)?;
            if metadata.is_dir() && (first || !is_kernels(&path, &metadata)) {
                for child in self.children(&path) {
                    match fs::symlink_metadata(&child) {
                        Ok(metadata) => {
                            let base = child.file_name().unwrap_or_default().as_bytes();
                            to_do.push((child.clone(), [&name, &b"/"[..], base].concat(), metadata));
                        }
                        // It was there a moment ago; a tree in use changes.
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => self.left_out(&child, &e),
                    }
                }
            }
            first = false;
        }
        self.out.write_all(&[0; 2 * HEADER_SIZE])?;
        self.out.flush()
    }

    /// What a directory holds, last name first, so that the stream is in order.
    fn children(&mut self, directory: &Path) -> Vec<PathBuf> {
        let list = fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
        let mut children = list.unwrap_or_else(|e| {
            self.left_out(directory, &e);
            Vec::new()
        });
        children.sort_unstable_by(|a, b| b.cmp(a));
        children
    }

    fn left_out(&mut self, path: &Path, error: &dyn std::fmt::Display) {
        (self.complain)(format!("cannot read `{}`: {error}", path.display()));
    }

    fn entry(&mut self, path: &Path, name: &[u8], metadata: &Metadata) -> io::Result<()> {
        let kind = metadata.file_type();
        let mut header = EntryBuilder::new_ustar();
        let mut content = None;
        if kind.is_dir() {
            header.entry_type(EntryType::Directory).path([name, b"/"].concat());
        } else {
            header.path(name);
            let earlier = self.links.get(&(metadata.dev(), metadata.ino()));
            if let Some(earlier) = earlier.filter(|_| metadata.nlink() > 1) {
                header.entry_type(EntryType::Link).link_name(earlier);
                return self.finish(header, metadata);
            }
            if kind.is_symlink() {
                match fs::read_link(path) {
                    Ok(target) => {
                        header.entry_type(EntryType::Symlink).link_name(target.as_os_str().as_bytes())
                    }
                    Err(e) => {
                        self.left_out(path, &e);
                        return Ok(());
                    }
                };
            } else if kind.is_file() {
                match File::open(path) {
                    Ok(file) => content = Some(file),
                    Err(e) => {
                        self.left_out(path, &e);
                        return Ok(());
                    }
                }
                header.entry_type(EntryType::Regular);
                header.size(metadata.len()).map_err(io::Error::other)?;
            } else if kind.is_socket() {
                // A socket without its listener is nothing; tar has no form for it.
                return Ok(());
            } else if kind.is_fifo() {
                header.entry_type(EntryType::Fifo);
            } else {
                header.entry_type(if kind.is_block_device() { EntryType::Block } else { EntryType::Char });
                let device = metadata.rdev();
                header.device(major(device), minor(device)).map_err(io::Error::other)?;
            }
            if metadata.nlink() > 1 {
                self.links.insert((metadata.dev(), metadata.ino()), name.to_vec());
            }
        }
        self.add_xattrs(&mut header, path);
        self.finish(header, metadata)?;
        match content {
            Some(file) => self.content(path, file, metadata.len()),
            None => Ok(()),
        }
    }

    fn finish(&mut self, mut header: EntryBuilder, metadata: &Metadata) -> io::Result<()> {
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec() as u32);
        let in_header = seconds.clamp(0, HEADER_TIME_MOST);
        if in_header != seconds || nanoseconds != 0 {
            header.add_pax("mtime", format_time((seconds, nanoseconds)));
        }
        header.mode(metadata.mode() & 0o7777).map_err(io::Error::other)?;
        header.uid(metadata.uid().into()).map_err(io::Error::other)?;
        header.gid(metadata.gid().into()).map_err(io::Error::other)?;
        header.mtime(in_header.unsigned_abs()).map_err(io::Error::other)?;
        self.out.write_all(&header.finish_bytes())
    }

    /// Writes exactly `size` bytes, whatever happens to the file meanwhile: that is what the header says.
    fn content(&mut self, path: &Path, mut file: File, size: u64) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut self.buffer[..most]) {
                Ok(count) if count > 0 => {
                    self.out.write_all(&self.buffer[..count])?;
                    left -= count as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    let cause =
                        result.err().map_or("it shrank while it was read".to_owned(), |e| e.to_string());
                    self.left_out(path, &cause);
                    io::copy(&mut io::repeat(0).take(left), &mut self.out)?;
                    left = 0;
                }
            }
        }
        let padding = size.next_multiple_of(HEADER_SIZE as u64) - size;
        self.out.write_all(&[0; HEADER_SIZE][..padding as usize])
    }

    fn add_xattrs(&mut self, header: &mut EntryBuilder, path: &Path) {
        let names = match llistxattr(path, &mut self.buffer[..]) {
            Ok(count) => self.buffer[..count].to_vec(),
            Err(Errno::NOTSUP) => return,
            Err(e) => return self.left_out(path, &e),
        };
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            match (std::str::from_utf8(name), lgetxattr(path, name, &mut self.buffer[..])) {
                (Ok(name), Ok(count)) => {
                    header.add_pax(&format!("{PAX_SCHILY_XATTR}{name}"), &self.buffer[..count]);
                }
                // Gone again, or not to be had through this file system.
                (_, Err(Errno::NODATA | Errno::NOTSUP)) => {}
                (_, Err(e)) => self.left_out(path, &e),
                (Err(_), _) => self.left_out(path, &"an extended attribute's name is not UTF-8"),
            }
        }
    }
}

/// Whether a directory shows the kernel: by its file system's type, or as devtmpfs, whose type is tmpfs's, by being
/// where devtmpfs is.
fn is_kernels(directory: &Path, metadata: &Metadata) -> bool {
    let device_nodes = || fs::metadata("/dev").is_ok_and(|nodes| nodes.dev() == metadata.dev());
    let root = || fs::metadata("/").is_ok_and(|root| root.dev() == metadata.dev());
    statfs(directory).is_ok_and(|file_system| KERNEL_FILE_SYSTEMS.contains(&file_system.f_type))
        || (device_nodes() && !root())
}
