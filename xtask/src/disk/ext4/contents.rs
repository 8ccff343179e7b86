//! A file's stored parts as whole blocks, and their way to the disk.

use super::extents::Run;
use super::format::BLOCK;
use super::sink::Sink;
use crate::image::layer::{Content, Layer, Segment};

/// The blocks that hold stored parts; those that touch are one run.
pub(super) fn runs(content: &Content) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for part in parts(content) {
        let block = part.offset / BLOCK;
        let end = (part.offset + part.length).div_ceil(BLOCK);
        match runs.last_mut() {
            Some(last) if last.block + last.length >= block => {
                last.length = last.length.max(end - last.block);
            }
            _ => runs.push(Run { block, length: end - block }),
        }
    }
    runs
}

fn parts(content: &Content) -> impl Iterator<Item = Segment> {
    let whole = Some(Segment { offset: 0, length: content.size }).filter(|it| it.length > 0);
    let (whole, stored) = match &content.sparse {
        None => (whole, &[][..]),
        Some(stored) => (None, &stored[..]),
    };
    whole.into_iter().chain(stored.iter().copied())
}

/// Copies a file's stored parts to the blocks of its runs, which begin at the sink's position, one behind the other.
pub(super) fn copy(content: &Content, runs: &[Run], layer: &Layer, to: &mut Sink<'_>) -> anyhow::Result<()> {
    let mut stored_at = content.offset;
    let mut parts = parts(content).peekable();
    for run in runs {
        let on_disk = to.position();
        let (start, end) = (run.block * BLOCK, (run.block + run.length) * BLOCK);
        while let Some(part) = parts.next_if(|part| part.offset < end) {
            to.skip_to(on_disk + (part.offset - start))?;
            to.copy(&layer.file, stored_at, part.length)?;
            stored_at += part.length;
        }
        to.finish_block()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_share_a_block_are_one_run() {
        let content = |parts: &[(u64, u64)]| Content {
            layer: 0,
            offset: 0,
            size: 1 << 30,
            sparse: Some(parts.iter().map(|&(offset, length)| Segment { offset, length }).collect()),
        };
        let runs = |parts: &[(u64, u64)]| {
            runs(&content(parts)).iter().map(|run| (run.block, run.length)).collect::<Vec<_>>()
        };
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[(0, 1), (5, 1), (4096, 1)]), [(0, 2)]);
        assert_eq!(runs(&[(4000, 200), (8192, 1), (20_000, 10_000)]), [(0, 3), (4, 4)]);
        assert_eq!(runs(&[(4095, 1), (8192, 4096)]), [(0, 1), (2, 1)]);
    }
}
