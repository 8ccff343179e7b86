//! Files and trees as tar streams, in and out, with no program of the image: what `cp` and volumes are made of.
//!
//! Host and guest use the same. Both ways keep owners, modes, times to the nanosecond, symbolic and hard links, device nodes, extended attributes
//! and names that are not UTF-8, in the POSIX `pax` form. [`write_tree`] reads files, [`extract()`] writes them.

mod acl;
mod entry;
mod extract;
mod feeder;
mod number;
mod out;
mod path;
mod pax;
mod sparse;

pub use entry::{Content, Entry, Kind, Metadata, Segment, Special, Xattrs};
pub use extract::{Rules, extract};
pub use feeder::Feeder;
pub use number::format_time;
pub use out::write_tree;

use std::path::Path;

use anyhow::{Context, Result};

/// Copies what is below one directory into another, everything kept.
///
/// # Errors
/// Something could not be read or written, named.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    std::thread::scope(|threads| {
        let writing = threads.spawn(move || {
            let mut complaints = Vec::new();
            write_tree(writer, from, b".", false, &mut |complaint| complaints.push(complaint))?;
            match complaints.into_iter().next() {
                Some(complaint) => Err(anyhow::Error::msg(complaint)),
                None => Ok(()),
            }
        });
        let extracted = extract(reader, to, &Rules::Own, &mut |_| {});
        let written = writing.join().unwrap_or_else(|_| Err(anyhow::Error::msg("reading stopped")));
        // Reading is the cause where both failed.
        written.and(extracted).with_context(|| format!("cannot copy `{}`", from.display()))
    })
}

/// A path or another text of an archive's for a message: shortened, with what a terminal would act on made visible.
pub fn display(text: &[u8]) -> String {
    const MOST: usize = 160;
    let (shown, rest) = text.split_at(text.len().min(MOST));
    let mut words = String::from("`");
    for chunk in shown.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() || INVISIBLE.contains(&letter) {
                words.extend(letter.escape_default());
            } else {
                words.push(letter);
            }
        }
        words.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    words.push_str(if rest.is_empty() { "`" } else { "…`" });
    words
}

/// Marks of the writing's direction, which change how the text around them reads, and separators of lines.
const INVISIBLE: [char; 14] = [
    '\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{202a}', '\u{202b}', '\u{202c}',
    '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_archives_are_harmless_in_messages() {
        assert_eq!(display("a b/é".as_bytes()), "`a b/é`");
        assert_eq!(display(b"\x1b[2J\r\n\0\x9b\xff"), r"`\u{1b}[2J\r\n\u{0}\x9b\xff`");
        assert_eq!(display("\u{9b}\u{202e}".as_bytes()), r"`\u{9b}\u{202e}`");
        assert_eq!(display(&[b'a'; 160]).len(), 162);
        assert_eq!(display(&[b'a'; 500_000]), format!("`{}…`", "a".repeat(160)));
    }
}
