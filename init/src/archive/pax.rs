//! PAX extended headers: records of `LENGTH KEY=VALUE` and a newline, and what they say of an entry.

use anyhow::{Context, Result, bail, ensure};

use super::entry::{Segment, Xattrs};
use super::sparse::MAX_SEGMENTS;
use super::{acl, display, number};

/// The longest value of an extended attribute, and its longest name (`XATTR_SIZE_MAX`, `XATTR_NAME_MAX` in
/// linux/limits.h).
const XATTR_VALUE_MOST: usize = 65_536;
const XATTR_NAME_MOST: usize = 255;

/// What an extended header says of the entry after it.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: Sparse,
}

/// What it says of a file with holes, in the three ways that GNU tar has had.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    /// The form, from 1.0 on.
    version: (Option<u64>, Option<u64>),
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// The parts, in forms 0.0 and 0.1.
    pub(super) segments: Option<Vec<Segment>>,
    /// In form 0.0, the place of a part whose length comes in the next record.
    offset: Option<u64>,
}

impl Sparse {
    /// Form 1.0, which has the map before the content.
    pub(super) fn is_in_content(&self) -> bool {
        self.version == (Some(1), Some(0))
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<()> {
        let segments = self.segments.get_or_insert_default();
        ensure!(segments.len() < MAX_SEGMENTS, "its sparse map has more than {MAX_SEGMENTS} parts");
        segments.push(Segment { offset, length });
        Ok(())
    }
}

impl Extended {
    /// Reads an entry's extended header.
    ///
    /// # Errors
    /// A record is malformed, or says what cannot be.
    pub(super) fn read(data: &[u8]) -> Result<Extended> {
        let mut read = Extended::default();
        for record in Records(data) {
            let (key, value) = record.context("its extended header is damaged")?;
            let key = std::str::from_utf8(key).context("its extended header has a name that is not text")?;
            read.take(key, value)?;
        }
        Ok(read)
    }

    fn take(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let bad = || format!("its extended header has {} for `{key}`", display(value));
        let number = || number::decimal(value).with_context(bad);
        match key {
            "path" => self.path = Some(value.into()),
            "linkpath" => self.link = Some(value.into()),
            "size" => self.size = Some(number()?),
            "uid" => self.uid = Some(number()?),
            "gid" => self.gid = Some(number()?),
            "mtime" => {
                let time = number::time(value);
                self.mtime = Some(time.with_context(|| format!("its time {} is not one", display(value)))?);
            }
            "GNU.sparse.major" => self.sparse.version.0 = Some(number()?),
            "GNU.sparse.minor" => self.sparse.version.1 = Some(number()?),
            "GNU.sparse.name" => self.sparse.name = Some(value.into()),
            "GNU.sparse.size" | "GNU.sparse.realsize" => self.sparse.size = Some(number()?),
            "GNU.sparse.offset" => self.sparse.offset = Some(number()?),
            "GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().with_context(bad)?;
                self.sparse.push(offset, number()?)?;
            }
            "GNU.sparse.map" => {
                self.sparse.segments = Some(Vec::new());
                let mut numbers = value.split(|byte| *byte == b',').filter(|number| !number.is_empty());
                while let Some(offset) = numbers.next() {
                    let offset = number::decimal(offset).with_context(bad)?;
                    let length = numbers.next().and_then(number::decimal).with_context(bad)?;
                    self.sparse.push(offset, length)?;
                }
            }
            _ => {
                if let Some(name) = xattr_name(key) {
                    ensure!(
                        (1..=XATTR_NAME_MOST).contains(&name.len()) && !name.contains('\0'),
                        "it has an attribute with a name of {} bytes; Linux allows 1 to {XATTR_NAME_MOST}",
                        name.len()
                    );
                    ensure!(
                        value.len() <= XATTR_VALUE_MOST,
                        "its attribute `{name}` has {} bytes; Linux allows {XATTR_VALUE_MOST}",
                        value.len()
                    );
                    self.xattrs.push((name.into(), value.into()));
                } else if let Some(name) = acl::attribute_of(key) {
                    self.xattrs.push((name.into(), acl::from_text(value)?.into()));
                }
            }
        }
        Ok(())
    }
}

/// `SCHILY.xattr.NAME` is star's, GNU tar's, docker's and bsdtar's form; the other is GNU tar's for SELinux.
fn xattr_name(key: &str) -> Option<&str> {
    match key {
        "RHT.security.selinux" => Some("security.selinux"),
        _ => key.strip_prefix("SCHILY.xattr."),
    }
}

/// A header for all entries that follow may only say what changes nothing; docker passes over all of it.
///
/// # Errors
/// It says something else, or a record is malformed.
pub(super) fn check_global(data: &[u8]) -> Result<()> {
    for record in Records(data) {
        let (key, _) = record.context("a global extended header is damaged")?;
        let is_harmless = matches!(key, b"comment" | b"charset" | b"hdrcharset" | b"atime" | b"ctime")
            || key.starts_with(b"VENDOR.");
        if !is_harmless {
            let key = display(key);
            bail!("a global extended header sets {key} for all entries, which is not supported");
        }
    }
    Ok(())
}

/// The records of a header: key and value, or nothing where one is malformed, after which none follows.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Option<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        self.0 = record.map_or(&[], |(_, rest)| rest);
        Some(record.map(|(record, _)| record))
    }
}

/// The first record, and what comes after it.
#[expect(clippy::type_complexity, reason = "a record and a rest")]
fn split_record(data: &[u8]) -> Option<((&[u8], &[u8]), &[u8])> {
    let digits = data.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(number::decimal(&data[..digits])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let pair = record.get(digits + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some(((&pair[..equals], &pair[equals + 1..]), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let length =
            (1..).map(|digits| digits + rest.len()).find(|all| all.to_string().len() + rest.len() == *all);
        [length.unwrap().to_string().as_bytes(), &rest].concat()
    }

    fn refusal(data: &[u8]) -> String {
        format!("{:#}", Extended::read(data).unwrap_err())
    }

    #[test]
    fn records_are_read_in_full() {
        let data = [
            record("path", b"a\nb=\0c"),
            record("comment", b""),
            record("size", b"7"),
            record("uid", b"4294967295"),
            record("mtime", b"-1.25"),
            record("SCHILY.xattr.user.a", b"1\n2"),
            record("RHT.security.selinux", b"x"),
            record("SCHILY.acl.access", b"user::rwx,group::r-x,other::r-x"),
        ];
        let read = Extended::read(&data.concat()).unwrap();
        assert_eq!(read.path.as_deref(), Some(&b"a\nb=\0c"[..]));
        assert_eq!((read.size, read.uid, read.gid), (Some(7), Some(4_294_967_295), None));
        assert_eq!(read.mtime, Some((-2, 750_000_000)));
        let names: Vec<&str> = read.xattrs.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["user.a", "security.selinux", "system.posix_acl_access"]);
        assert_eq!(&*read.xattrs[0].1, b"1\n2");
        assert!(!read.sparse.is_in_content());
    }

    #[test]
    fn a_record_that_is_malformed_is_an_error() {
        for data in [
            &b"x"[..],
            b"0 path=x\n",
            b"9 path=x\n9 ",
            b"+9 path=x\n",
            b"8 path=x\n",
            b"11 path=x\n",
            b"99999999999999999999999 path=x\n",
            b"18446744073709551615 path=x\n",
            b"2147483647 path=x\n",
            b"2 \n",
            b"3 \n\n",
            b"8 pathx\n",
            b"\0\0\0",
        ] {
            assert_eq!(refusal(data), "its extended header is damaged", "{}", data.escape_ascii());
        }
        assert!(Extended::read(b"9 path=x\n").is_ok());
        assert!(refusal(b"6 \xe9=1\n").starts_with("its extended header has a name that is not text: "));
    }

    #[test]
    fn values_that_cannot_be_are_errors() {
        for (key, value) in [
            ("size", &b"-1"[..]),
            ("size", b"18446744073709551616"),
            ("size", b""),
            ("uid", b"-1"),
            ("gid", b"x"),
            ("GNU.sparse.major", b"one"),
            ("GNU.sparse.map", b"0,x"),
            ("GNU.sparse.map", b"0,1,2"),
            ("GNU.sparse.numbytes", b"1"),
            ("GNU.sparse.realsize", b"1e3"),
        ] {
            let said = refusal(&record(key, value));
            assert!(
                said.starts_with("its extended header has `") && said.ends_with(&format!("for `{key}`")),
                "{said}"
            );
        }
        assert_eq!(refusal(&record("mtime", b"soon")), "its time `soon` is not one");
        assert!(refusal(&record("SCHILY.xattr.", b"1")).contains("a name of 0 bytes"));
        assert!(
            refusal(&record(&format!("SCHILY.xattr.user.{}", "n".repeat(251)), b"")).contains("256 bytes")
        );
        assert!(Extended::read(&record(&format!("SCHILY.xattr.user.{}", "n".repeat(250)), b"")).is_ok());
        assert!(refusal(&record("SCHILY.xattr.user.v", &[0; 65_537])).contains("65537 bytes"));
        assert!(Extended::read(&record("SCHILY.xattr.user.v", &[0; 65_536])).is_ok());
        assert!(refusal(&record("SCHILY.acl.access", b"user:joe:r--")).contains("by name alone"));
        let too_many = "0,0,".repeat(MAX_SEGMENTS + 1);
        assert!(refusal(&record("GNU.sparse.map", too_many.as_bytes())).contains("more than 100000 parts"));
    }

    #[test]
    fn global_headers_change_nothing() {
        assert!(check_global(&record("comment", b"0123456789abcdef")).is_ok());
        let said = check_global(&record("path", b"x")).unwrap_err().to_string();
        assert!(said.contains("sets `path` for all entries"), "{said}");
        assert!(check_global(b"nonsense").is_err());
    }
}
