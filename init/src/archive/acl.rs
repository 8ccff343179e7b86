//! POSIX ACLs as GNU tar writes them, in text, turned into the attribute that `setxattr(2)` takes (version 2; see
//! linux/posix_acl_xattr.h).

use anyhow::{Context, Result, bail};

use super::display;

const VERSION: u32 = 2;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// The attribute that a PAX record of `tar --acls` stands for.
pub(super) fn attribute_of(key: &str) -> Option<&'static str> {
    match key {
        "SCHILY.acl.access" => Some("system.posix_acl_access"),
        "SCHILY.acl.default" => Some("system.posix_acl_default"),
        _ => None,
    }
}

/// Turns `user::rw-,user:1000:r--,…` into the attribute's value. Ids must be numbers, in the name's or in the fourth place.
///
/// # Errors
/// The text cannot be read, or names somebody.
pub(super) fn from_text(text: &[u8]) -> Result<Vec<u8>> {
    let malformed = || format!("its ACL {} cannot be read", display(text));
    let mut entries = Vec::new();
    for line in std::str::from_utf8(text).with_context(malformed)?.split([',', '\n']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let mut fields = line.split(':');
        let kind = fields.next().with_context(malformed)?;
        let name = fields.next().with_context(malformed)?;
        // `mask` and `other` may leave their empty name out.
        let (name, permissions) = match fields.next() {
            Some(permissions) => (name, permissions),
            None => ("", name),
        };
        let id = match (name, fields.next()) {
            ("", _) => NO_ID,
            (name, id) => id.unwrap_or(name).parse().with_context(|| {
                format!(
                    "its ACL speaks of {} by name alone; archive it with numeric owners",
                    display(name.as_bytes())
                )
            })?,
        };
        let tag = match (kind, name.is_empty()) {
            ("user" | "u", true) => USER_OBJ,
            ("user" | "u", false) => USER,
            ("group" | "g", true) => GROUP_OBJ,
            ("group" | "g", false) => GROUP,
            ("mask" | "m", true) => MASK,
            ("other" | "o", true) => OTHER,
            _ => bail!(malformed()),
        };
        let mut bits = 0;
        for letter in permissions.bytes() {
            bits |= match letter {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => bail!(malformed()),
            };
        }
        entries.push((tag, id, bits));
    }
    // The kernel wants them in the order of tag, then id.
    entries.sort_unstable();
    let mut out = VERSION.to_le_bytes().to_vec();
    for (tag, id, bits) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&u16::to_le_bytes(bits));
        out.extend_from_slice(&id.to_le_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `setfacl -m u:1000:rw` leaves in `getfattr -e hex` on a file of mode 0644.
    const XATTR: &[u8] = &[
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
        16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
    ];

    #[test]
    fn text_becomes_the_attribute() {
        for text in [
            "user::rw-,user:1000:rw-,group::r--,mask::rw-,other::r--",
            "other::r--\nmask::rw-\ngroup::r--\nuser:joe:rw-:1000\nuser::rw-\n",
        ] {
            assert_eq!(from_text(text.as_bytes()).unwrap(), XATTR, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_acl_is_an_error() {
        assert!(from_text(b"user:joe:rw-").unwrap_err().to_string().contains("by name alone"));
        for text in [&b"friend::rw-"[..], b"user::rwz", b"user", b"\xff", b"user:-1:r--"] {
            assert!(from_text(text).is_err(), "{}", text.escape_ascii());
        }
    }
}
