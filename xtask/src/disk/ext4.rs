//! Writes a [`Tree`] as an ext4 file system. With `contents`, the one place that knows the crate `mkext4`.
//!
//! Metadata is laid out and written first; contents are then copied from their layers straight to their blocks,
//! in ascending order, by the kernel where it can. The same tree gives the same bytes.
//!
//! What ext4 cannot hold is refused with the entry's name: attributes of unknown namespaces or larger than a block,
//! times outside 1901 to 2446.

use std::collections::HashMap;
use std::fs::File;

use anyhow::{Context as _, ensure};
use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options, SpecialKind};
use sha2::{Digest as _, Sha256};

use super::contents::{block_segments, copy_content, sparse_declaration};
use crate::error::hinted;
use crate::image::acl;
use crate::image::layer::{Content, Layer, Metadata, Special, display};
use crate::image::tree::{Inode, InodeId, Kind, ROOT, Tree};

/// ext4's block here, in bytes.
pub const BLOCK: u64 = 4096;

/// `i_mtime` has 34 bits, counted from 2^31 seconds before 1970 (ext4 documentation, "Inode Timestamps").
const TIMES: std::ops::Range<i64> = -(1 << 31)..(1 << 34) - (1 << 31);

/// One inode for this many bytes, as mke2fs has it.
const BYTES_PER_INODE: u64 = 16384;

/// What e2fsck expects in every root; the crate makes it.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Writes the file system into `file`, which becomes `size` bytes long and sparse. `progress` is given bytes copied.
pub fn write(
    tree: Tree,
    layers: &[Layer],
    file: &File,
    size: u64,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<()> {
    let demand = demand(&tree);
    if demand.minimum_size() > size {
        let error = anyhow::anyhow!(
            "the image's contents take {} and do not fit into a disk of {}",
            crate::ui::human_bytes(demand.minimum_size()),
            crate::ui::human_bytes(size)
        );
        let step = format!("give it more with `--size {}`", super::size::at_least(demand.minimum_size()));
        return Err(hinted(error, step));
    }
    let Declared { builder, files } = declare(&tree, size, &demand)?;
    // The crate has it all now, and laying out takes memory of its own.
    drop(tree);
    let layout = builder.seal().map_err(explain).context("failed to lay out the file system")?;
    file.set_len(size).context("failed to set the disk's size")?;
    // Writes every block that is not a file's contents. Its own way of filling files is not used: it would move
    // every byte through this program's memory.
    layout.writer(Positioned { file }).map_err(explain).context("failed to write the file system")?;
    for (handle, content) in files {
        let layer = &layers[content.layer as usize];
        copy_content(&content, layer, file, &layout.extents(handle))
            .with_context(|| format!("failed to copy a file out of {}", layer.name))?;
        progress(content.size);
    }
    Ok(())
}

/// The space that a tree needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demand {
    inodes: u64,
    blocks: u64,
}

impl Demand {
    /// The smallest disk that surely holds the tree, in bytes: contents, inode tables, journal, bitmaps.
    pub fn minimum_size(&self) -> u64 {
        let inode_tables = self.inodes.div_ceil(16) * BLOCK;
        let data = self.blocks * BLOCK;
        let overhead = (data + inode_tables) / 64 + (8 << 20);
        data + inode_tables + overhead
    }

    /// Bytes of contents and directories.
    pub fn data_bytes(&self) -> u64 {
        self.blocks * BLOCK
    }
}

/// Adds up what a tree needs.
pub fn demand(tree: &Tree) -> Demand {
    let mut demand = Demand::default();
    let mut seen = std::collections::HashSet::new();
    walk(tree, |_, _, id| {
        if !seen.insert(id) {
            return Ok(());
        }
        let inode = tree.inode(id);
        demand.inodes += 1;
        demand.blocks += inode.xattrs.is_some() as u64
            + match &inode.kind {
                Kind::Directory(entries) => {
                    entries.keys().map(|name| name.len() as u64 + 12).sum::<u64>().div_ceil(BLOCK / 2).max(1)
                }
                Kind::File(content) => {
                    block_segments(content).iter().map(|part| part.length.div_ceil(BLOCK)).sum()
                }
                Kind::Symlink(target) => u64::from(target.len() > 59),
                _ => 0,
            };
        Ok(())
    })
    .unwrap_or_default();
    demand
}

struct Declared {
    builder: FsBuilder,
    /// Regular files with contents, in the order of their blocks.
    files: Vec<(InodeHandle, Content)>,
}

fn declare(tree: &Tree, size: u64, demand: &Demand) -> anyhow::Result<Declared> {
    let mut options = Options::new(size, identifier(tree, size), 0);
    let inodes = (size / BYTES_PER_INODE).max(demand.inodes + demand.inodes / 8 + 64);
    options.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    // A container sees all the space there is.
    options.reserved_percent = 0;
    let mut builder = FsBuilder::new(options).map_err(explain)?;
    let mut handles: HashMap<InodeId, InodeHandle> = HashMap::with_capacity(tree.len());
    let mut files = Vec::new();
    handles.insert(ROOT, mkext4::ROOT);
    builder.set_meta(mkext4::ROOT, meta(&tree.inode(ROOT).metadata)?).map_err(explain)?;
    set_xattrs(&mut builder, mkext4::ROOT, tree.inode(ROOT))?;
    walk(tree, |parent, name, id| {
        let refuse = || format!("failed to put {} into the disk", path_of(tree, parent, name));
        let Some(&directory) = handles.get(&parent) else { return Ok(()) };
        if parent == ROOT && name == LOST_AND_FOUND {
            let is_empty = tree.directory(id).is_some_and(|entries| entries.is_empty());
            ensure!(is_empty, "`/lost+found` can only be an empty directory in an ext4 file system");
            return Ok(());
        }
        let text = as_text(name);
        if let Some(&handle) = handles.get(&id) {
            return builder.hardlink(directory, text, handle).map_err(explain).with_context(refuse);
        }
        let inode = tree.inode(id);
        let handle = add(&mut builder, directory, text, inode).with_context(refuse)?;
        set_xattrs(&mut builder, handle, inode).with_context(refuse)?;
        handles.insert(id, handle);
        if let Kind::File(content) = &inode.kind
            && content.size > 0
        {
            files.push((handle, content.clone()));
        }
        Ok(())
    })?;
    Ok(Declared { builder, files })
}

fn add(
    builder: &mut FsBuilder,
    directory: InodeHandle,
    name: &str,
    inode: &Inode,
) -> anyhow::Result<InodeHandle> {
    let meta = meta(&inode.metadata)?;
    let handle = match &inode.kind {
        Kind::Directory(_) => builder.mkdir(directory, name, meta),
        Kind::File(content) if content.sparse.is_none() || content.size == 0 => {
            builder.file(directory, name, meta, content.size)
        }
        Kind::File(content) => builder.file_sparse(directory, name, meta, &sparse_declaration(content)),
        Kind::Symlink(target) => {
            // A link's own mode counts for nothing and reads as this on every Linux.
            builder.symlink(directory, name, as_text(target), Meta { mode: 0o777, ..meta })
        }
        &Kind::Special(special) => builder.mknod(directory, name, meta, special_kind(special)),
    };
    handle.map_err(explain)
}

fn special_kind(special: Special) -> SpecialKind {
    match special {
        Special::CharDevice { major, minor } => SpecialKind::Char { major, minor },
        Special::BlockDevice { major, minor } => SpecialKind::Block { major, minor },
        Special::Fifo => SpecialKind::Fifo,
    }
}

/// Names and links' targets are any bytes, and the crate wants text. It writes what it is given.
fn as_text(bytes: &[u8]) -> &str {
    #[expect(unsafe_code, reason = "the crate has no other way for names that are not UTF-8")]
    // SAFETY: bytes that are not UTF-8 in a `str` are no undefined behaviour by themselves (`str`, "Invariant"), only
    // in what relies on them. mkext4, pinned to 0.0.3, compares and copies the text's bytes (`FsBuilder::intern`,
    // `add_entry`, `symlink`); it prints a name where that is `.` or `..`, has a `/` or a zero byte, or is there
    // twice, all of which `image::flatten` has ruled out, and never prints a target.
    unsafe {
        std::str::from_utf8_unchecked(bytes)
    }
}

fn meta(metadata: &Metadata) -> anyhow::Result<Meta> {
    let (seconds, _) = metadata.mtime;
    ensure!(TIMES.contains(&seconds), "its time {seconds} is outside what ext4 holds, 1901 to 2446");
    Ok(Meta::new(metadata.mode, metadata.uid, metadata.gid, metadata.mtime))
}

fn set_xattrs(builder: &mut FsBuilder, handle: InodeHandle, inode: &Inode) -> anyhow::Result<()> {
    let mut sizes = Vec::new();
    for (name, value) in inode.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
        let refuse = || format!("its attribute `{name}`");
        let is_held = ["user.", "trusted.", "security."].iter().any(|prefix| name.starts_with(prefix))
            || acl::is_acl(name);
        ensure!(is_held, "its attribute `{name}` is of a namespace that ext4 does not hold");
        let converted;
        let value = if acl::is_acl(name) {
            converted = acl::to_ext4(value).with_context(refuse)?;
            if acl::only_repeats_the_mode(name, value) {
                continue;
            }
            &converted
        } else {
            &value[..]
        };
        builder.set_xattr(handle, name, value).map_err(explain).with_context(refuse)?;
        sizes.push((&**name, value.len()));
    }
    check_xattr_space(&sizes)
}

/// Attributes have one block, and what an inode has left (92 bytes), which is not counted on here. The crate notices
/// too, but late and without a name. An entry takes 16 bytes and its name, the block a header and an end
/// (`fs/ext4/xattr.h`).
fn check_xattr_space(sizes: &[(&str, usize)]) -> anyhow::Result<()> {
    const IN_BLOCK: usize = BLOCK as usize - 36;
    let entry = |name: &str, value: usize| {
        // The namespace is one byte of the entry, not part of the name.
        let name = if acl::is_acl(name) { "" } else { name.split_once('.').map_or(name, |(_, rest)| rest) };
        16 + name.len().next_multiple_of(4) + value.next_multiple_of(4)
    };
    let total: usize = sizes.iter().map(|(name, value)| entry(name, *value)).sum();
    if total <= IN_BLOCK {
        return Ok(());
    }
    let largest = sizes.iter().max_by_key(|(_, value)| *value).map_or("", |(name, _)| *name);
    anyhow::bail!(
        "its attributes, of which `{largest}` is the largest, take {total} bytes, and ext4 holds {}",
        IN_BLOCK
    )
}

/// Calls `visit` with parent, name and inode of everything below the root, parents first, names in order.
fn walk(
    tree: &Tree,
    mut visit: impl FnMut(InodeId, &[u8], InodeId) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut ahead = vec![ROOT];
    while let Some(directory) = ahead.pop() {
        let Some(entries) = tree.directory(directory) else { continue };
        let children_from = ahead.len();
        for (name, slot) in entries {
            visit(directory, name, slot.inode)?;
            if tree.directory(slot.inode).is_some() {
                ahead.push(slot.inode);
            }
        }
        ahead[children_from..].reverse();
    }
    Ok(())
}

/// The path of an entry, found again from the root; for messages only.
fn path_of(tree: &Tree, parent: InodeId, name: &[u8]) -> String {
    let mut ahead = vec![(ROOT, Vec::new())];
    while let Some((directory, path)) = ahead.pop() {
        if directory == parent {
            return display(&[&path[..], b"/", name].concat());
        }
        for (name, slot) in tree.directory(directory).into_iter().flatten() {
            if tree.directory(slot.inode).is_some() {
                ahead.push((slot.inode, [&path[..], b"/", name].concat()));
            }
        }
    }
    display(name)
}

/// The file system's UUID: a hash of everything but contents, so that it is the same for the same image.
fn identifier(tree: &Tree, size: u64) -> [u8; 16] {
    let mut hash = Sha256::new_with_prefix(size.to_le_bytes());
    // Visiting cannot fail here.
    let _ = walk(tree, |_, name, id| {
        let Inode { metadata, kind, .. } = tree.inode(id);
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(metadata.mtime.0.to_le_bytes());
        hash.update(metadata.mode.to_le_bytes());
        if let Kind::File(content) = kind {
            hash.update(content.size.to_le_bytes());
        }
        Ok(())
    });
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash.finalize()[..16]);
    // RFC 9562: version 8 is for such home-made ones.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Positioned writes; zeros are what a sparse file has anyway.
struct Positioned<'a> {
    file: &'a File,
}

impl mkext4::RegionSink for Positioned<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self.file, bytes, offset)
    }
    fn zeros(&mut self, _offset: u64, _length: u64) -> std::io::Result<()> {
        Ok(())
    }
}

/// The crate's errors without its own prefix words.
fn explain(error: mkext4::Error) -> anyhow::Error {
    match error {
        mkext4::Error::Io(error) => error.into(),
        mkext4::Error::Invalid(why) | mkext4::Error::Unsupported(why) => anyhow::anyhow!(why),
        other => other.into(),
    }
}
