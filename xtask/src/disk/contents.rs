//! Where a file's contents go: its stored parts as whole blocks, and those blocks' places on the disk.

use std::fs::File;

use anyhow::Context as _;
use mkext4::SparseSeg;

use super::copy;
use super::ext4::BLOCK;
use crate::image::layer::{Content, Layer, Segment};

/// The stored parts of a file, rounded out to whole blocks and merged; the last may end inside a block.
pub(super) fn block_segments(content: &Content) -> Vec<Segment> {
    let Some(parts) = &content.sparse else {
        let whole = Segment { offset: 0, length: content.size };
        return if content.size > 0 { vec![whole] } else { Vec::new() };
    };
    let mut rounded: Vec<Segment> = Vec::with_capacity(parts.len());
    for part in parts {
        let start = part.offset / BLOCK * BLOCK;
        let end = (part.offset + part.length).next_multiple_of(BLOCK).min(content.size);
        match rounded.last_mut() {
            Some(last) if last.offset + last.length >= start => {
                last.length = last.length.max(end - last.offset);
            }
            _ => rounded.push(Segment { offset: start, length: end - start }),
        }
    }
    rounded
}

pub(super) fn sparse_declaration(content: &Content) -> Vec<SparseSeg> {
    let mut declaration = Vec::new();
    let mut at = 0;
    for part in block_segments(content) {
        if part.offset > at {
            declaration.push(SparseSeg::Hole(part.offset - at));
        }
        declaration.push(SparseSeg::Data(part.length));
        at = part.offset + part.length;
    }
    if content.size > at {
        declaration.push(SparseSeg::Hole(content.size - at));
    }
    declaration
}

/// Copies a file's stored parts to its blocks. `extents` are the disk's ranges for [`block_segments`], in order.
pub(super) fn copy_content(
    content: &Content,
    layer: &Layer,
    disk: &File,
    extents: &[(u64, u64)],
) -> anyhow::Result<()> {
    let whole = [Segment { offset: 0, length: content.size }];
    let places = places(&block_segments(content), extents);
    let mut places = places.iter().peekable();
    let mut stored_at = content.offset;
    for part in content.sparse.as_deref().unwrap_or(&whole) {
        let (mut at, mut left) = (part.offset, part.length);
        while left > 0 {
            // Both go upwards: what lies before this part is done with.
            let place = places.peek().context("a file's blocks and its contents disagree")?;
            let Some(into) = at.checked_sub(place.offset).filter(|&into| into < place.length) else {
                places.next();
                continue;
            };
            let length = left.min(place.length - into);
            copy::range(&layer.file, stored_at, disk, place.on_disk + into, length)?;
            (at, left, stored_at) = (at + length, left - length, stored_at + length);
        }
    }
    Ok(())
}

/// A range of a file that is in one piece on the disk.
struct Place {
    offset: u64,
    length: u64,
    on_disk: u64,
}

fn places(segments: &[Segment], extents: &[(u64, u64)]) -> Vec<Place> {
    let mut places = Vec::with_capacity(extents.len());
    let mut extents = extents.iter().copied();
    let mut extent = extents.next();
    for segment in segments {
        let (mut offset, end) = (segment.offset, segment.offset + segment.length);
        while let Some((on_disk, room)) = extent.filter(|_| offset < end) {
            let length = room.min(end - offset);
            places.push(Place { offset, length, on_disk });
            offset += length;
            extent = if room > length { Some((on_disk + length, room - length)) } else { extents.next() };
        }
    }
    places
}
