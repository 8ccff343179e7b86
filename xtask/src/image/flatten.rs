//! Applies layers, bottom first, to a [`Tree`], by the rules of the OCI image spec (`layer.md`): whiteouts, opaque
//! directories, hard links across layers, a file that replaces a directory and the other way round.
//!
//! A path is always inside the image: a leading `/` is the image's root, links in the middle of a path are followed
//! as inside a `chroot`, and a `..` that would leave the root is an error that names the entry.

use std::collections::HashSet;

use anyhow::{Context as _, bail, ensure};

use super::layer::{Entry, EntryKind, Layer, Metadata, Xattrs, display};
use super::tree::{IMPLIED, InodeId, Kind, ROOT, Slot, Tree};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS's own bookkeeping, which old layers still carry; docker passes over it.
const AUFS_METADATA: &[u8] = b".wh..wh.";

/// The kernel's own bound on links in one path (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// An image has at most so many layers; docker's storage takes 127.
pub const MAX_LAYERS: usize = 1000;

/// Directories are at most so deep: the names that fit into `PATH_MAX`.
const MAX_DEPTH: usize = 2048;

/// The most entries of all layers together: a layer that comes again costs its image a line.
const MAX_ENTRIES: u64 = 20_000_000;

/// How many names of paths are looked up in all, for each entry and at the least. A short entry can ask for thousands,
/// through links; images have ten.
const NAMES_FOR_EACH: u64 = 100;
const NAMES_AT_LEAST: u64 = 1_000_000;

/// What names that begin with `.wh.` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// Layers of an image: they hide what lower layers have.
    Apply,
    /// A plain archive of a root file system: they are files like any other.
    Ignore,
}

/// Lays the layers over each other.
pub fn flatten(layers: &[Layer], whiteouts: Whiteouts) -> anyhow::Result<Tree> {
    check_layers(layers.len())?;
    let mut tree = Tree::default();
    let mut work = Work::default();
    for (number, layer) in (0..).zip(layers) {
        let mut entries = layer.entries(number);
        let mut applied =
            Applied { tree: &mut tree, work: &mut work, layer: number, is_upper_only: HashSet::new() };
        while let Some(entry) = entries.next_entry()? {
            let Entry { path, kind, metadata, xattrs } = entry;
            applied
                .entry(&path, kind, metadata, in_order(xattrs), whiteouts)
                .with_context(|| format!("failed to apply the entry {} of {}", display(&path), layer.name))?;
        }
    }
    Ok(tree)
}

/// Refuses an image of more layers than any has, before anything is done for one of them.
pub fn check_layers(count: usize) -> anyhow::Result<()> {
    ensure!(count <= MAX_LAYERS, "the image has {count} layers; more than {MAX_LAYERS} are refused");
    Ok(())
}

/// What has been done: entries, and names that were looked up for them.
#[derive(Debug, Default)]
struct Work {
    entries: u64,
    names: u64,
}

impl Work {
    fn begin_entry(&mut self) -> anyhow::Result<()> {
        self.entries += 1;
        ensure!(
            self.entries <= MAX_ENTRIES,
            "the layers have more than {MAX_ENTRIES} entries, which is refused"
        );
        Ok(())
    }

    fn look_up(&mut self) -> anyhow::Result<()> {
        self.names += 1;
        let most = NAMES_AT_LEAST + NAMES_FOR_EACH * self.entries;
        ensure!(
            self.names <= most,
            "the paths of the image have more than {NAMES_FOR_EACH} names on average, links followed; that is refused"
        );
        Ok(())
    }
}

/// The tree while one layer is laid over it.
struct Applied<'a> {
    tree: &'a mut Tree,
    work: &'a mut Work,
    layer: u32,
    /// Directories in which nothing is of a lower layer, at any depth: so it stays while this layer is applied.
    is_upper_only: HashSet<InodeId>,
}

/// Cleans a path: its names without `.` and empty ones, `..` resolved in the text as docker does.
fn components(path: &[u8]) -> anyhow::Result<Vec<&[u8]>> {
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => ensure!(names.pop().is_some(), "its path leaves the image's root"),
            _ => {
                ensure!(!name.contains(&0), "its path holds a zero byte");
                ensure!(name.len() <= 255, "a name of {} bytes; Linux allows 255", name.len());
                names.push(name);
            }
        }
    }
    Ok(names)
}

impl Applied<'_> {
    fn entry(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        metadata: Metadata,
        xattrs: Xattrs,
        whiteouts: Whiteouts,
    ) -> anyhow::Result<()> {
        self.work.begin_entry()?;
        let names = components(path)?;
        let Some((&name, parents)) = names.split_last() else {
            ensure!(kind == EntryKind::Directory, "the root can only be a directory");
            return self.tree.set_metadata(ROOT, metadata, xattrs);
        };
        if whiteouts == Whiteouts::Apply && name.starts_with(WHITEOUT) {
            return self.whiteout(parents, name);
        }
        let parent = self.make_parents(parents)?;
        let existing = self.lookup(parent, name);
        let kind = match kind {
            EntryKind::Directory => {
                if let Some(there) = existing
                    && self.tree.is_directory(there)
                {
                    self.tree.set_metadata(there, metadata, xattrs)?;
                    return self.link(parent, name, there);
                }
                Kind::Directory
            }
            EntryKind::Hardlink(target) => {
                let there = self
                    .find(&target)
                    .with_context(|| format!("failed to follow its target {}", display(&target)))?
                    .with_context(|| format!("its target {} does not exist", display(&target)))?;
                ensure!(!self.tree.is_directory(there), "its target {} is a directory", display(&target));
                return self.link(parent, name, there);
            }
            EntryKind::File(content) => Kind::File(content),
            EntryKind::Symlink(ref target) => {
                // symlink(2): PATH_MAX with its zero byte.
                ensure!(
                    (1..4096).contains(&target.len()) && !target.contains(&0),
                    "a link's target of {} bytes; Linux allows 1 to 4095, none of them zero",
                    target.len()
                );
                Kind::Symlink(target)
            }
            EntryKind::Special(special) => Kind::Special(special),
        };
        let inode = self.tree.add(kind, metadata, xattrs)?;
        self.link(parent, name, inode)
    }

    fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.tree.lookup(directory, name).map(|slot| slot.inode)
    }

    /// Gives an inode a name, in place of what had it.
    fn link(&mut self, directory: InodeId, name: &[u8], inode: InodeId) -> anyhow::Result<()> {
        self.tree.link(directory, name, Slot { inode, layer: self.layer })
    }

    /// Finds the directory that a new entry goes into, making what is missing on the way.
    fn make_parents(&mut self, names: &[&[u8]]) -> anyhow::Result<InodeId> {
        self.walk(names, Missing::Make)?.context("its parent does not exist")
    }

    /// What a path names; its last component is not followed where it is a link.
    fn find(&mut self, path: &[u8]) -> anyhow::Result<Option<InodeId>> {
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else { return Ok(Some(ROOT)) };
        let parent = self.walk(parents, Missing::Stop)?;
        Ok(parent.and_then(|parent| self.lookup(parent, name)))
    }

    /// Goes down a path of directories, following links as inside a `chroot`.
    fn walk(&mut self, names: &[&[u8]], missing: Missing) -> anyhow::Result<Option<InodeId>> {
        let mut way = vec![ROOT];
        let mut links = 0;
        let mut ahead: Vec<Box<[u8]>> = names.iter().rev().map(|&name| name.into()).collect();
        while let Some(name) = ahead.pop() {
            self.work.look_up()?;
            ensure!(way.len() <= MAX_DEPTH, "directories more than {MAX_DEPTH} deep");
            let here = way.last().copied().unwrap_or(ROOT);
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    // The root is its own parent.
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(next) = self.lookup(here, &name) else {
                if missing == Missing::Stop {
                    return Ok(None);
                }
                let made = self.tree.add(Kind::Directory, IMPLIED, Xattrs::new())?;
                self.link(here, &name, made)?;
                way.push(made);
                continue;
            };
            match self.tree.inode(next).kind {
                Kind::Directory => {
                    if missing == Missing::Make {
                        // This layer is about to put something below: an opaque marker must not take it away.
                        self.link(here, &name, next)?;
                    }
                    way.push(next);
                }
                Kind::Symlink(target) => {
                    links += 1;
                    ensure!(links <= MAX_LINKS, "more than {MAX_LINKS} links in its path");
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    ahead.extend(target.split(|&byte| byte == b'/').rev().map(Into::into));
                }
                _ if missing == Missing::Stop => return Ok(None),
                _ => bail!("its parent {} is not a directory", display(&name)),
            }
        }
        Ok(way.last().copied())
    }

    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> anyhow::Result<()> {
        if name.starts_with(AUFS_METADATA) && name != OPAQUE {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        ensure!(!matches!(hidden, b"" | b"." | b".."), "a whiteout of nothing");
        let Some(directory) = self.walk(parents, Missing::Stop)? else { return Ok(()) };
        if name == OPAQUE {
            self.hide_lower(directory);
            return Ok(());
        }
        let layer = self.layer;
        let Some(slot) = self.tree.lookup(directory, hidden) else { return Ok(()) };
        // Whiteouts speak of lower layers alone, wherever in the layer they stand.
        if slot.layer == layer {
            self.hide_lower(slot.inode);
        } else {
            self.tree.unlink(directory, hidden);
        }
        Ok(())
    }

    /// Takes away what lower layers put into a directory, at any depth.
    fn hide_lower(&mut self, directory: InodeId) {
        let layer = self.layer;
        let mut ahead = vec![directory];
        while let Some(here) = ahead.pop() {
            if !self.tree.is_directory(here) || !self.is_upper_only.insert(here) {
                continue;
            }
            self.tree.retain(here, |slot| slot.layer == layer);
            ahead.extend(self.tree.entries(here).map(|(_, slot)| slot.inode));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Make directories that are not there.
    Make,
    /// There is nothing to find.
    Stop,
}

fn in_order(mut xattrs: Xattrs) -> Xattrs {
    // Of two values for one name the later counts, as in every PAX header.
    xattrs.reverse();
    xattrs.sort_by(|a, b| a.0.cmp(&b.0));
    xattrs.dedup_by(|later, first| later.0 == first.0);
    xattrs
}

#[cfg(test)]
mod tests;
