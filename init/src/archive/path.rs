//! Paths as archives write them: where a header has its own, and what one may be.

use anyhow::{Result, ensure};
use tar_core::Header;

use super::display;

/// The longest path, without its zero byte, and the longest name in one (`PATH_MAX`, `NAME_MAX` in linux/limits.h).
pub(super) const PATH_MOST: usize = 4095;
const NAME_MOST: usize = 255;

/// A text in a field or a long name, which a zero byte ends.
pub(super) fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The path in a header itself: its name, with the prefix before it that ustar has.
pub(super) fn in_header(header: &Header) -> Vec<u8> {
    let name = header.path_bytes();
    match header.prefix() {
        Some(prefix) if !prefix.is_empty() => [prefix, b"/", name].concat(),
        _ => name.to_vec(),
    }
}

/// Errors where a path is none to Linux, or none at all.
pub(super) fn check(path: &[u8]) -> Result<()> {
    ensure!(!path.is_empty(), "a path of 0 bytes");
    let shown = || display(path);
    ensure!(
        path.len() <= PATH_MOST,
        "the path {} of {} bytes; Linux allows {PATH_MOST}",
        shown(),
        path.len()
    );
    ensure!(!path.contains(&0), "the path {} holds a zero byte", shown());
    let longest = path.split(|byte| *byte == b'/').map(<[u8]>::len).max().unwrap_or(0);
    ensure!(
        longest <= NAME_MOST,
        "the path {} has a name of {longest} bytes; Linux allows {NAME_MOST}",
        shown()
    );
    Ok(())
}
