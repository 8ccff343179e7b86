//! What PAX headers say beyond `tar-core`'s reading: modification times with sign and nanoseconds, extended
//! attributes, ACLs in text form, and the refusal of what cannot be kept.

use anyhow::{Context as _, ensure};
use tar_core::PaxExtensions;

use super::{Xattrs, display};
use crate::image::acl;

/// What was read of one entry's header.
#[derive(Debug, Default)]
pub(super) struct Extended {
    /// Seconds since 1970 and nanoseconds, where the header has them.
    pub(super) mtime: Option<(i64, u32)>,
    /// In the order of the header.
    pub(super) xattrs: Xattrs,
}

/// Reads an entry's extended header, which may be empty.
pub(super) fn read(pax: &[u8]) -> anyhow::Result<Extended> {
    let mut read = Extended::default();
    for extension in PaxExtensions::new(pax) {
        let extension = extension.context("its extended header is damaged")?;
        let key = extension.key().context("its extended header has a name that is not text")?;
        let value = extension.value_bytes();
        check_number(key, value)?;
        if key == "mtime" {
            let time = time(value).with_context(|| format!("its time {} is not one", display(value)))?;
            read.mtime = Some(time);
        } else if let Some(name) = xattr_name(key) {
            read.xattrs.push((name.into(), value.into()));
        } else if let Some(name) = acl::xattr_of_text(key) {
            read.xattrs.push((name.into(), acl::from_text(value)?.into()));
        }
    }
    Ok(read)
}

/// `SCHILY.xattr.NAME` is star's, GNU tar's, docker's and bsdtar's form; the other is GNU tar's for SELinux.
fn xattr_name(key: &str) -> Option<&str> {
    match key {
        "RHT.security.selinux" => Some("security.selinux"),
        _ => key.strip_prefix("SCHILY.xattr."),
    }
}

/// Numbers that `tar-core` was told to pass over when it cannot read them.
fn check_number(key: &str, value: &[u8]) -> anyhow::Result<()> {
    let is_number = |text: &[u8]| std::str::from_utf8(text).is_ok_and(|text| text.parse::<u64>().is_ok());
    let is_good = match key {
        "uid" | "gid" | "size" => is_number(value),
        "GNU.sparse.map" => value.is_empty() || value.split(|&byte| byte == b',').all(is_number),
        _ if key.starts_with("GNU.sparse.") && key != "GNU.sparse.name" => is_number(value),
        _ => true,
    };
    ensure!(is_good, "its extended header has {} for `{key}`", display(value));
    Ok(())
}

/// Seconds and nanoseconds of a PAX time: `-1.25` is a second and a quarter before 1970.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (text, is_negative) = text.strip_prefix('-').map_or((text, false), |rest| (rest, true));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    // Digits past the ninth are cut off, as every reader of such times does.
    let nanoseconds: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(match (is_negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// A header for all entries that follow may only say what changes nothing; docker passes over all of it.
pub(super) fn check_global(pax_data: &[u8]) -> anyhow::Result<()> {
    for extension in PaxExtensions::new(pax_data) {
        let extension = extension.context("a global extended header is damaged")?;
        let key = extension.key().context("a global extended header has a name that is not text")?;
        let is_harmless = matches!(key, "comment" | "charset" | "hdrcharset" | "atime" | "ctime")
            || key.starts_with("VENDOR.");
        ensure!(is_harmless, "a global extended header sets `{key}` for all entries, which is not supported");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_sign_and_nanoseconds() {
        let cases: [(&str, Option<(i64, u32)>); 9] = [
            ("0", Some((0, 0))),
            ("1700000000.5", Some((1_700_000_000, 500_000_000))),
            ("1.000000001", Some((1, 1))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("4102444800.999999999", Some((4_102_444_800, 999_999_999))),
            ("1e9", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_number_that_is_none_is_an_error() {
        assert!(check_number("uid", b"4294967295").is_ok());
        assert!(check_number("uid", b"-1").is_err());
        assert!(check_number("GNU.sparse.map", b"0,512,4096,1").is_ok());
        assert!(check_number("GNU.sparse.map", b"0,x").is_err());
        assert!(check_number("GNU.sparse.name", b"anything").is_ok());
    }

    #[test]
    fn an_attribute_whose_name_is_not_text_is_refused() {
        let record = |name: &[u8]| [b"26 SCHILY.xattr.user.", name, b"=1\n"].concat();
        assert_eq!(read(&record(b"ab")).unwrap().xattrs.len(), 1);
        let error = read(&record(b"a\xe9")).unwrap_err();
        assert!(error.to_string().contains("a name that is not text"), "{error}");
    }
}
