//! Writes each inode with all its blocks.

use std::fs::File;

use anyhow::Context as _;
use zerocopy::FromZeros as _;

use super::attributes::Attributes;
use super::contents::{copy, runs};
use super::directory::{Directory, Name, TYPE_DIRECTORY};
use super::extents::{Run, tree, tree_blocks};
use super::format::{
    BLOCK, EXTENTS_FLAG, EXTRA_SIZE, FIRST_INODE, INDEX_FLAG, InodeRecord, JOURNAL_INODE, ROOT_INODE, SECTOR,
    SHORT_TARGET, Seed, time,
};
use super::geometry::Geometry;
use super::groups::{self, Usage};
use super::plan::Plan;
use super::sink::Sink;
use crate::error::hinted;
use crate::image::layer::{Layer, Metadata, Special};
use crate::image::tree::{Inode, InodeId, Kind, ROOT};

/// What an inode is, above the bits of its mode (stat(2)), and in a directory's entry (`EXT4_FT_UNKNOWN` and its kin).
fn types(kind: &Kind<'_>) -> (u16, u8) {
    match kind {
        Kind::File(_) => (0o100_000, 1),
        Kind::Directory => (0o040_000, TYPE_DIRECTORY),
        Kind::Special(Special::CharDevice { .. }) => (0o020_000, 3),
        Kind::Special(Special::BlockDevice { .. }) => (0o060_000, 4),
        Kind::Special(Special::Fifo) => (0o010_000, 5),
        Kind::Symlink(_) => (0o120_000, 7),
    }
}

impl Plan {
    /// Writes the file system into `file`, which becomes `size` bytes long and sparse. `progress` is given the
    /// bytes that were written, [`Plan::data_bytes`] at most in all.
    ///
    /// Errors where it does not fit, and where the layers or the file cannot be read or written.
    pub fn write(
        &self,
        layers: &[Layer],
        file: &File,
        size: u64,
        mut progress: impl FnMut(u64),
    ) -> anyhow::Result<()> {
        let geometry = Geometry::new(size, self.inodes()).filter(|it| it.room() >= self.blocks());
        let geometry = geometry.ok_or_else(|| {
            let least = self.minimum_size();
            let error = anyhow::anyhow!(
                "the image's contents take {} and do not fit into a disk of {}",
                crate::ui::human_bytes(least),
                crate::ui::human_bytes(size)
            );
            hinted(error, format!("give it more with `--size {}`", crate::disk::size::at_least(least)))
        })?;
        file.set_len(size).context("failed to set the disk's size")?;
        let uuid = self.identifier(size);
        let mut writer = Writer {
            plan: self,
            layers,
            uuid,
            seed: Seed::new(&uuid),
            inodes: Sink::new(file, geometry.inode_table() * BLOCK),
            blocks: Sink::new(file, geometry.contents() * BLOCK),
            directories: vec![0; geometry.groups as usize],
            inodes_per_group: geometry.inodes_per_group,
        };
        let journal_map = writer.reserved(&geometry)?;
        for (id, number) in self.named() {
            let blocks = writer.inode(id, number).with_context(|| self.describe(id))?;
            progress(blocks * BLOCK);
        }
        writer.inodes.flush()?;
        writer.blocks.flush()?;
        let usage = Usage {
            blocks: writer.blocks.position() / BLOCK,
            inodes: u64::from(FIRST_INODE - 1) + self.inodes(),
            directories: writer.directories,
            journal_map,
        };
        groups::write(file, &geometry, &usage, &uuid)
    }
}

struct Writer<'a> {
    plan: &'a Plan,
    layers: &'a [Layer],
    uuid: [u8; 16],
    seed: Seed,
    /// The inode tables, which are one array.
    inodes: Sink<'a>,
    blocks: Sink<'a>,
    /// Each group's directories.
    directories: Vec<u16>,
    inodes_per_group: u64,
}

impl Writer<'_> {
    /// Writes the inodes below the first free one: zeros, but for the root's and the journal's. Gives the journal's map.
    fn reserved(&mut self, geometry: &Geometry) -> anyhow::Result<[u8; 60]> {
        let run = Run { block: 0, length: geometry.journal_blocks };
        // It is short enough for extents in the inode alone.
        let (map, _) = tree(&[run], geometry.journal(), 0, self.seed);
        for number in 1..FIRST_INODE {
            if number == ROOT_INODE {
                self.inode(ROOT, number).with_context(|| self.plan.describe(ROOT))?;
                continue;
            }
            let mut record = InodeRecord::new_zeroed();
            record.extra_size = EXTRA_SIZE.into();
            if number == JOURNAL_INODE {
                record.mode = 0o100_600.into();
                record.links = 1.into();
                record.flags = EXTENTS_FLAG.into();
                record.block = map;
                record.set_size(geometry.journal_blocks * BLOCK, geometry.journal_blocks);
            }
            self.inodes.put(&record.sealed(self.seed, number))?;
        }
        Ok(map)
    }

    /// Writes an inode and its blocks; gives their number.
    fn inode(&mut self, id: InodeId, number: u32) -> anyhow::Result<u64> {
        let Inode { kind, metadata, xattrs } = self.plan.tree().inode(id);
        let attributes = Attributes::new(xattrs)?;
        let mut record = InodeRecord::new_zeroed();
        record.set_metadata(&metadata);
        // A link's own mode counts for nothing and reads as this on every Linux.
        let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { metadata.mode };
        record.mode = (types(&kind).0 | mode).into();
        record.links = self.plan.links(id).into();
        record.tail = attributes.tail();
        let first = self.next_block();
        if attributes.has_block() {
            record.attributes_block = (first as u32).into();
            self.blocks.put(&attributes.block(first, self.seed))?;
        }
        let size = match kind {
            Kind::Directory => {
                self.directories[(u64::from(number - 1) / self.inodes_per_group) as usize] += 1;
                self.directory(id, number, &mut record)?
            }
            Kind::File(content) => {
                let runs = runs(&content);
                self.map(&runs, number, &mut record)?;
                let layer = &self.layers[content.layer as usize];
                copy(&content, &runs, layer, &mut self.blocks)
                    .with_context(|| format!("failed to copy it out of {}", layer.name))?;
                content.size
            }
            Kind::Symlink(target) if target.len() < SHORT_TARGET => {
                record.block[..target.len()].copy_from_slice(target);
                target.len() as u64
            }
            Kind::Symlink(target) => {
                self.map(&[Run { block: 0, length: 1 }], number, &mut record)?;
                self.blocks.put(target)?;
                self.blocks.finish_block()?;
                target.len() as u64
            }
            Kind::Special(special) => {
                record.block[..8].copy_from_slice(&device(special));
                0
            }
        };
        let blocks = self.next_block() - first;
        record.set_size(size, blocks);
        self.inodes.put(&record.sealed(self.seed, number))?;
        Ok(blocks)
    }

    /// Writes a directory's blocks; gives its size.
    fn directory(&mut self, id: InodeId, number: u32, record: &mut InodeRecord) -> anyhow::Result<u64> {
        let tree = self.plan.tree();
        let names = tree.entries(id).filter_map(|(bytes, slot)| {
            let (_, file_type) = types(&tree.inode(slot.inode).kind);
            Some(Name { bytes, inode: self.plan.number(slot.inode)?, file_type })
        });
        let directory = Directory::new(names.collect(), &self.uuid)?;
        let parent = self.plan.number(tree.parent(id)).context("its parent has no number")?;
        self.map(&[Run { block: 0, length: directory.blocks() }], number, record)?;
        if directory.is_indexed() {
            record.flags = (record.flags.get() | INDEX_FLAG).into();
        }
        directory.write(number, parent, self.seed, |block| self.blocks.put(block))?;
        Ok(directory.blocks() * BLOCK)
    }

    /// Puts the tree of extents for the blocks that come next into the inode, and writes the tree's own blocks.
    fn map(&mut self, runs: &[Run], number: u32, record: &mut InodeRecord) -> anyhow::Result<()> {
        let own = self.next_block();
        let data = own + tree_blocks(runs);
        let (root, blocks) = tree(runs, data, own, self.seed.of_inode(number));
        (record.block, record.flags) = (root, EXTENTS_FLAG.into());
        self.blocks.put(&blocks)
    }

    /// The number of the block that is written next.
    fn next_block(&self) -> u64 {
        self.blocks.position() / BLOCK
    }
}

/// The first words of `i_block`: small numbers in the first, in the old encoding, others in the second, in the new one
/// (`ext4_iget`, linux/kdev_t.h).
fn device(special: Special) -> [u8; 8] {
    let (old, new) = match special {
        Special::CharDevice { major, minor } | Special::BlockDevice { major, minor } => {
            if major < 256 && minor < 256 {
                (major << 8 | minor, 0)
            } else {
                (0, (minor & 0xff) | major << 8 | (minor & !0xff) << 12)
            }
        }
        Special::Fifo => (0, 0),
    };
    (u64::from(new) << 32 | u64::from(old)).to_le_bytes()
}

impl InodeRecord {
    fn set_metadata(&mut self, metadata: &Metadata) {
        let &Metadata { uid, gid, mtime, .. } = metadata;
        (self.uid, self.uid_high) = ((uid as u16).into(), ((uid >> 16) as u16).into());
        (self.gid, self.gid_high) = ((gid as u16).into(), ((gid >> 16) as u16).into());
        let (low, extra) = time(mtime);
        (self.modify_time, self.modify_time_extra) = (low, extra);
        (self.change_time, self.change_time_extra) = (low, extra);
        (self.access_time, self.access_time_extra) = (low, extra);
        (self.birth_time, self.birth_time_extra) = (low, extra);
        self.extra_size = EXTRA_SIZE.into();
    }

    fn set_size(&mut self, size: u64, blocks: u64) {
        (self.size, self.size_high) = ((size as u32).into(), ((size >> 32) as u32).into());
        let sectors = blocks * (BLOCK / SECTOR);
        (self.sectors, self.sectors_high) = ((sectors as u32).into(), ((sectors >> 32) as u16).into());
    }
}
