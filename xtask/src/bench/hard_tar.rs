//! An archive that is hard on whoever makes a disk of it: many small files in large folders, and everything that
//! tools are known to lose. It is the same every time.

use std::io::Write;

use anyhow::Context as _;
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

/// Ordinary files, in folders of 6,000 and of 50.
const SMALL_FILES: u32 = 28_000;

/// Files that are large, in bytes each and in number: most of the archive's half gigabyte.
const LARGE: (u64, u32) = (8 << 20, 48);

/// Writes the archive.
pub fn write(to: &mut impl Write) -> anyhow::Result<()> {
    let mut archive = Archive { to, noise: 1 };
    for folder in ["./", "many/", "large/", "odd/", "deep/"] {
        archive.entry(EntryType::Directory, folder, 0, |_| {})?;
    }
    for number in 0..SMALL_FILES {
        let path = if number < 6000 {
            format!("many/file-with-a-long-name-{number:06}")
        } else {
            let folder = format!("deep/{}/", number / 50);
            if number % 50 == 0 {
                archive.entry(EntryType::Directory, &folder, 0, |_| {})?;
            }
            format!("{folder}file-{number}")
        };
        archive.entry(EntryType::Regular, &path, u64::from(number * 37 % 9000), |entry| {
            entry.add_pax("mtime", format!("{}.{:09}", i64::from(number) * 100_000 - 2_000_000_000, number));
        })?;
    }
    for number in 0..LARGE.1 {
        archive.entry(EntryType::Regular, &format!("large/{number}"), LARGE.0, |_| {})?;
    }
    for number in 0..10_u32 {
        archive.entry(EntryType::Regular, &format!("odd/capable-{number}"), 100, |entry| {
            // A capability that holds a newline's byte.
            entry.add_pax(
                "SCHILY.xattr.security.capability",
                [1, 0, 0, 2, 0x0a, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            );
        })?;
        archive.entry(EntryType::Link, &format!("odd/again-{number}"), 0, |entry| {
            entry.link_name(format!("odd/capable-{number}"));
        })?;
        archive.entry(EntryType::Symlink, &format!("odd/link-{number}"), 0, |entry| {
            entry.link_name("../".repeat(20 * number as usize) + "many");
        })?;
        archive.entry(EntryType::Fifo, &format!("odd/fifo-{number}"), 0, |_| {})?;
        archive.entry(EntryType::Block, &format!("odd/device-{number}"), 0, |entry| {
            // In range for ustar's fields, which a builder's error would otherwise be about.
            let _ = entry.device(255, 100_000 + number);
        })?;
    }
    archive.to.write_all(&[0; 1024]).context("failed to end the archive")
}

struct Archive<'a, W> {
    to: &'a mut W,
    noise: u64,
}

impl<W: Write> Archive<'_, W> {
    fn entry(
        &mut self,
        kind: EntryType,
        path: &str,
        size: u64,
        more: impl FnOnce(&mut EntryBuilder),
    ) -> anyhow::Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path).entry_type(kind).size(size)?.mtime(1_700_000_000)?.uid(1000)?.gid(3_000_000)?;
        entry.mode(if kind == EntryType::Directory { 0o755 } else { 0o6755 })?;
        more(&mut entry);
        self.to.write_all(&entry.finish_bytes()).context("failed to write the archive")?;
        let mut left = size.next_multiple_of(512);
        let mut block = [0; 4096];
        while left > 0 {
            for word in block.chunks_exact_mut(8) {
                // Marsaglia's xorshift: cheap, and nothing can compress it away.
                self.noise ^= self.noise << 13;
                self.noise ^= self.noise >> 7;
                self.noise ^= self.noise << 17;
                word.copy_from_slice(&self.noise.to_le_bytes());
            }
            let length = left.min(block.len() as u64);
            self.to.write_all(&block[..length as usize]).context("failed to write the archive")?;
            left -= length;
        }
        Ok(())
    }
}
