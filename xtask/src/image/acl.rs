//! POSIX ACLs in two forms: the attribute that `getxattr(2)` gives (version 2), and ext4's own on-disk form (version 1),
//! which is smaller. See `linux/posix_acl_xattr.h` and `fs/ext4/acl.h`.

use anyhow::{Context as _, bail, ensure};

const XATTR_VERSION: u32 = 2;
const EXT4_VERSION: u32 = 1;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// True for the two attributes that hold ACLs.
pub fn is_acl(name: &str) -> bool {
    matches!(name, "system.posix_acl_access" | "system.posix_acl_default")
}

/// True for an ACL that says no more than the file's mode does. The kernel keeps none then (`posix_acl_equiv_mode`),
/// and `tar --acls` writes one for every file.
pub fn only_repeats_the_mode(name: &str, value: &[u8]) -> bool {
    let mut entries = value.get(4..).unwrap_or_default().chunks_exact(8);
    let says_more = |entry: &[u8]| matches!(u16::from_le_bytes([entry[0], entry[1]]), USER | GROUP | MASK);
    name == "system.posix_acl_access" && !entries.any(says_more)
}

/// Turns the xattr's form into ext4's. Errors where the value is not an ACL.
pub fn to_ext4(value: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (version, entries) = value.split_first_chunk::<4>().context("an ACL without a version")?;
    ensure!(u32::from_le_bytes(*version) == XATTR_VERSION, "an ACL of an unknown version");
    ensure!(entries.len().is_multiple_of(8), "an ACL that ends in the middle of an entry");
    let mut out = EXT4_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        match u16::from_le_bytes([entry[0], entry[1]]) {
            USER | GROUP => out.extend_from_slice(entry),
            USER_OBJ | GROUP_OBJ | MASK | OTHER => out.extend_from_slice(&entry[..4]),
            tag => bail!("an ACL with an unknown tag {tag:#x}"),
        }
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
    fn ext4_leaves_out_ids_that_are_none() {
        assert_eq!(
            to_ext4(XATTR).unwrap(),
            [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 6, 0, 232, 3, 0, 0, 4, 0, 4, 0, 16, 0, 6, 0, 32, 0, 4, 0]
        );
    }

    #[test]
    fn an_acl_that_only_repeats_the_mode_is_none() {
        let entry = |tag: u16, bits: u16| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &[255; 4]].concat();
        let short = [vec![2, 0, 0, 0], entry(USER_OBJ, 7), entry(GROUP_OBJ, 5), entry(OTHER, 5)].concat();
        assert!(only_repeats_the_mode("system.posix_acl_access", &short));
        assert!(!only_repeats_the_mode("system.posix_acl_default", &short));
        assert!(!only_repeats_the_mode("system.posix_acl_access", XATTR));
    }

    #[test]
    fn what_is_no_acl_is_an_error() {
        assert!(to_ext4(b"").is_err());
        assert!(to_ext4(&XATTR[..10]).is_err());
        assert!(to_ext4(&[1, 0, 0, 0]).is_err());
    }
}
