//! A path as a tar stream. What cannot be read is complained about and left out; the stream stays whole.
//!
//! Somebody else may be at work in the tree, such as a guest that shares it. So each inode is opened once, below the
//! path and through no link, and all that is said of it is read from that descriptor: a name that becomes a link to elsewhere
//! brings nothing of what is there.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{
    FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, getxattr, listxattr, major, minor, open,
    openat2, readlinkat,
};
use rustix::io::Errno;
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, HEADER_SIZE, PAX_SCHILY_XATTR};

use super::{display, format_time};

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
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = open(&source, flags, Mode::empty()).map_err(io::Error::from).and_then(Inode::of);
    let mut archive = Archive {
        out: BufWriter::with_capacity(64 * 1024, out),
        links: HashMap::new(),
        buffer: vec![0; XATTR_MOST],
        complain,
    };
    archive.write(&source, &top.with_context(unread)?, name).context("cannot write the archive")
}

/// An inode and what was known of it when it was opened.
struct Inode {
    descriptor: OwnedFd,
    stat: Stat,
}

impl Inode {
    fn of(descriptor: OwnedFd) -> io::Result<Inode> {
        Ok(Inode { stat: fstat(&descriptor)?, descriptor })
    }

    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// What is below a directory, itself and not what it points to, by a way that has no links in it.
    fn below(&self, way: &Path) -> io::Result<Inode> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Inode::of(openat2(&self.descriptor, way, flags, Mode::empty(), resolve)?)
    }

    /// A path that leads to this inode whatever names it has. The kernel follows it to the inode and no further.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.descriptor.as_raw_fd())
    }

    fn id(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }
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
    fn write(&mut self, source: &Path, top: &Inode, name: &[u8]) -> io::Result<()> {
        self.entry(source, name, top)?;
        // Kept as a list and not as recursion: trees may be as deep as names are long.
        let mut to_do = Vec::new();
        if top.kind() == FileType::Directory {
            self.add_children(source, Path::new(""), top, &mut to_do);
        }
        while let Some(way) = to_do.pop() {
            let path = source.join(&way);
            let inode = match top.below(&way) {
                Ok(inode) => inode,
                // It was there a moment ago; a tree in use changes.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    self.left_out(&path, &e);
                    continue;
                }
            };
            self.entry(&path, &[name, b"/", way.as_os_str().as_bytes()].concat(), &inode)?;
            if inode.kind() == FileType::Directory && !is_kernels(&inode) {
                self.add_children(&path, &way, &inode, &mut to_do);
            }
        }
        self.out.write_all(&[0; 2 * HEADER_SIZE])?;
        self.out.flush()
    }

    /// Adds what a directory holds, last name first, so that the stream is in order.
    fn add_children(&mut self, path: &Path, way: &Path, directory: &Inode, to_do: &mut Vec<PathBuf>) {
        let begin = to_do.len();
        let listed = fs::read_dir(directory.path()).and_then(|mut entries| {
            entries.try_for_each(|entry| {
                to_do.push(way.join(entry?.file_name()));
                Ok(())
            })
        });
        if let Err(e) = listed {
            to_do.truncate(begin);
            self.left_out(path, &e);
        }
        to_do[begin..].sort_unstable_by(|a, b| b.cmp(a));
    }

    fn left_out(&mut self, path: &Path, error: &dyn std::fmt::Display) {
        (self.complain)(format!("cannot read {}: {error}", display(path.as_os_str().as_bytes())));
    }

    fn entry(&mut self, path: &Path, name: &[u8], inode: &Inode) -> io::Result<()> {
        let (kind, stat) = (inode.kind(), &inode.stat);
        let mut header = EntryBuilder::new_ustar();
        let mut content = None;
        if kind == FileType::Directory {
            header.entry_type(EntryType::Directory).path([name, b"/"].concat());
        } else {
            header.path(name);
            let earlier = self.links.get(&inode.id());
            if let Some(earlier) = earlier.filter(|_| stat.st_nlink > 1) {
                header.entry_type(EntryType::Link).link_name(earlier);
                return self.finish(header, stat);
            }
            match kind {
                FileType::Symlink => match readlinkat(&inode.descriptor, "", Vec::new()) {
                    Ok(target) => {
                        header.entry_type(EntryType::Symlink).link_name(target.as_bytes());
                    }
                    Err(e) => {
                        self.left_out(path, &e);
                        return Ok(());
                    }
                },
                FileType::RegularFile => {
                    match File::open(inode.path()) {
                        Ok(file) => content = Some(file),
                        Err(e) => {
                            self.left_out(path, &e);
                            return Ok(());
                        }
                    }
                    header.entry_type(EntryType::Regular);
                    header.size(size_of_file(stat)).map_err(io::Error::other)?;
                }
                FileType::Fifo => {
                    header.entry_type(EntryType::Fifo);
                }
                FileType::BlockDevice | FileType::CharacterDevice => {
                    let is_block = kind == FileType::BlockDevice;
                    header.entry_type(if is_block { EntryType::Block } else { EntryType::Char });
                    let device = stat.st_rdev;
                    header.device(major(device), minor(device)).map_err(io::Error::other)?;
                }
                // A socket without its listener is nothing; tar has no form for it.
                _ => return Ok(()),
            }
            if stat.st_nlink > 1 {
                self.links.insert(inode.id(), name.to_vec());
            }
        }
        self.add_xattrs(&mut header, path, inode);
        self.finish(header, stat)?;
        match content {
            Some(file) => self.content(path, file, size_of_file(stat)),
            None => Ok(()),
        }
    }

    fn finish(&mut self, mut header: EntryBuilder, stat: &Stat) -> io::Result<()> {
        let (seconds, nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec as u32);
        let in_header = seconds.clamp(0, HEADER_TIME_MOST);
        if in_header != seconds || nanoseconds != 0 {
            header.add_pax("mtime", format_time((seconds, nanoseconds)));
        }
        header.mode(stat.st_mode & 0o7777).map_err(io::Error::other)?;
        header.uid(stat.st_uid.into()).map_err(io::Error::other)?;
        header.gid(stat.st_gid.into()).map_err(io::Error::other)?;
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

    fn add_xattrs(&mut self, header: &mut EntryBuilder, path: &Path, inode: &Inode) {
        let by_descriptor = inode.path();
        let names = match listxattr(&*by_descriptor, &mut self.buffer[..]) {
            Ok(count) => self.buffer[..count].to_vec(),
            Err(Errno::NOTSUP) => return,
            Err(e) => return self.left_out(path, &e),
        };
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            match (std::str::from_utf8(name), getxattr(&*by_descriptor, name, &mut self.buffer[..])) {
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

fn size_of_file(stat: &Stat) -> u64 {
    stat.st_size.unsigned_abs()
}

/// Whether a directory shows the kernel: by its file system's type, or as devtmpfs, whose type is tmpfs's, by being
/// where devtmpfs is.
fn is_kernels(directory: &Inode) -> bool {
    let is_on = |path: &str| fs::metadata(path).is_ok_and(|there| there.dev() == directory.stat.st_dev);
    fstatfs(&directory.descriptor).is_ok_and(|system| KERNEL_FILE_SYSTEMS.contains(&system.f_type))
        || (is_on("/dev") && !is_on("/"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, RenameFlags, mknodat, renameat_with};

    use super::*;

    #[test]
    fn a_way_has_no_links_in_it_and_names_come_in_order() {
        let scratch = std::env::temp_dir().join(format!("init-archive-way-{}", std::process::id()));
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(scratch.join("real")).unwrap();
        for name in ["b", "a", "c"] {
            fs::write(scratch.join("real").join(name), name).unwrap();
        }
        symlink("real", scratch.join("link")).unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let top = Inode::of(open(&scratch, flags, Mode::empty()).unwrap()).unwrap();
        assert!(top.below(Path::new("real/a")).is_ok());
        assert_eq!(top.below(Path::new("link")).unwrap().kind(), FileType::Symlink);
        assert!(top.below(Path::new("link/a")).is_err());
        assert!(top.below(Path::new("../x")).is_err());
        let mut bytes = Vec::new();
        write_tree(&mut bytes, &scratch, b"x", false, &mut |complaint| panic!("{complaint}")).unwrap();
        let mut feeder = crate::archive::Feeder::new(&bytes[..]);
        let mut names = Vec::new();
        while let Some(entry) = feeder.next_entry().unwrap() {
            names.push(String::from_utf8(entry.path).unwrap());
        }
        assert_eq!(names, ["x/", "x/link", "x/real/", "x/real/a", "x/real/b", "x/real/c"]);
        fs::remove_dir_all(&scratch).unwrap();
    }

    /// Somebody swaps a file and a folder for links to elsewhere, and a file for a pipe that nobody writes to, over and over.
    #[test]
    fn what_becomes_a_link_brings_nothing_of_elsewhere() {
        let scratch = std::env::temp_dir().join(format!("init-archive-swap-{}", std::process::id()));
        let _ = fs::remove_dir_all(&scratch);
        for folder in ["tree/folder", "outside"] {
            fs::create_dir_all(scratch.join(folder)).unwrap();
        }
        fs::write(scratch.join("outside/file"), b"precious").unwrap();
        fs::write(scratch.join("tree/folder/file"), b"plain").unwrap();
        fs::write(scratch.join("tree/file"), b"plain").unwrap();
        fs::write(scratch.join("tree/pipe"), b"plain").unwrap();
        symlink(scratch.join("outside"), scratch.join("folder")).unwrap();
        symlink(scratch.join("outside/file"), scratch.join("file")).unwrap();
        mknodat(CWD, scratch.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for name in ["folder", "file", "pipe"] {
                        let (ours, theirs) = (scratch.join(name), scratch.join("tree").join(name));
                        renameat_with(CWD, &ours, CWD, &theirs, RenameFlags::EXCHANGE).unwrap();
                    }
                }
            });
            for _ in 0..500 {
                let mut bytes = Vec::new();
                write_tree(&mut bytes, &scratch.join("tree"), b"tree", false, &mut |_| {}).unwrap();
                let content = bytes.windows(8).any(|window| window == b"precious");
                if content {
                    is_over.store(true, Ordering::Relaxed);
                }
                assert!(!content);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        fs::remove_dir_all(&scratch).unwrap();
    }
}
