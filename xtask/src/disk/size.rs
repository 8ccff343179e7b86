//! Disk sizes as people write them.

use anyhow::{Context as _, ensure};

/// The largest disk: 2^32 blocks of ext4 without its 64-bit feature.
const LARGEST: u64 = (u32::MAX as u64 - 1) * 4096;

/// Room to install packages and keep data; measured to cost the same as a smaller one.
const SMALLEST_DEFAULT: u64 = 8 << 30;

/// Bytes of `512M`, `16G`, `1T` or a plain number of bytes; units are powers of 1024, as docker's and QEMU's are.
pub fn bytes(text: &str) -> anyhow::Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => anyhow::bail!("`{}` is not a unit of size; use K, M, G or T", &text[digits.len()..]),
    };
    let number: u64 =
        digits.parse().with_context(|| format!("`{text}` is not a size such as `512M` or `16G`"))?;
    Ok(number.saturating_mul(1 << shift))
}

/// The [bytes] of a disk, rounded up to a block.
///
/// Errors where it is below 16 MiB (a file system needs its journal) or above 16 TiB.
pub fn parse(text: &str) -> anyhow::Result<u64> {
    let bytes = bytes(text)?;
    ensure!(bytes <= LARGEST, "`{text}` is more than a disk can have, 16T");
    ensure!(bytes >= 16 << 20, "`{text}` is less than a disk can have, 16M");
    Ok(bytes.next_multiple_of(4096))
}

/// The size of a disk where nobody says one, for an image that needs `least` bytes: room to work in, at no cost, since
/// the disk is sparse.
pub fn default_for(least: u64) -> u64 {
    least.saturating_mul(2).next_multiple_of(1 << 30).max(SMALLEST_DEFAULT)
}

/// What one may give to `--size` for at least so many bytes.
pub fn at_least(bytes: u64) -> String {
    format!("{}M", bytes.div_ceil(1 << 20).next_multiple_of(16).max(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse("16M").unwrap(), 16 << 20);
        assert_eq!(parse("2g").unwrap(), 2 << 30);
        assert_eq!(parse("16777217").unwrap(), (16 << 20) + 4096);
        for wrong in ["", "M", "1M", "12X", "-3G", "1.5G", "17T", "99999999999999999999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
