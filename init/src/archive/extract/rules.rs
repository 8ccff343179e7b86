//! What an archive may say, and make.

use anyhow::{Result, bail};
use rustix::fs::ResolveFlags;
use rustix::process::geteuid;

use super::place::Relative;
use crate::archive::display;

/// The most inodes and names that a foreign archive makes: each costs the host space that no byte of content accounts for.
const MAX_MADE: u64 = 4_000_000;

/// How far an archive is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rules {
    /// It may say anything of anything below the target. Symbolic links on the way are followed where they stay below it. For
    /// archives of one's own, and for those that a user unpacks in a machine.
    Own,
    /// It comes from an enemy: it makes one name and what is below that, and changes nothing that was there before. No
    /// link is followed, and none is made to a file that the archive has not brought.
    Foreign {
        /// The one name, without a slash; `.` where the contents of a directory were asked for, which are named freely.
        name: Vec<u8>,
        /// Keep owners, setuid and setgid bits, devices and all attributes, as far as this user may give them. Otherwise
        /// all belongs to this user, and of the attributes only `user.*` is kept.
        keep_all: bool,
    },
}

impl Rules {
    fn is_own(&self) -> bool {
        matches!(self, Rules::Own)
    }

    fn keeps_all(&self) -> bool {
        matches!(self, Rules::Own | Rules::Foreign { keep_all: true, .. })
    }

    /// Whether an entry's path is one that the archive may have.
    pub(super) fn check_name(&self, path: &Relative) -> Result<()> {
        match self {
            Rules::Foreign { name, .. } if name != b"." && path.first() != Some(name) => {
                bail!("the archive has the name {}, and {} was asked for", path.shown(), display(name))
            }
            _ => Ok(()),
        }
    }

    /// How paths below a target are resolved; the target may be the root directory.
    pub(super) fn resolve(&self, is_root: bool) -> ResolveFlags {
        ResolveFlags::NO_MAGICLINKS
            | match self {
                // An absolute link in the root directory leads nowhere but into it.
                Rules::Own if is_root => ResolveFlags::IN_ROOT,
                Rules::Own => ResolveFlags::BENEATH,
                Rules::Foreign { .. } => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            }
    }

    /// How many inodes and names it may make.
    pub(super) fn most_made(&self) -> u64 {
        if self.is_own() { u64::MAX } else { MAX_MADE }
    }

    /// Whether a file is only begun where all of it fits into what is free.
    pub(super) fn needs_space(&self) -> bool {
        !self.is_own()
    }

    pub(super) fn makes_devices(&self) -> bool {
        self.gives_owners()
    }

    pub(super) fn gives_owners(&self) -> bool {
        self.is_own() || (self.keeps_all() && geteuid().is_root())
    }

    pub(super) fn links_to_own_only(&self) -> bool {
        !self.is_own()
    }

    pub(super) fn describes_what_was_there(&self) -> bool {
        self.is_own()
    }

    /// Whether a file that cannot be replaced, since it is mounted on its own as `/etc/hosts` is, is written to.
    pub(super) fn writes_to_what_was_there(&self) -> bool {
        self.is_own()
    }

    pub(super) fn keeps_attribute(&self, name: &str) -> bool {
        self.keeps_all() || name.starts_with("user.")
    }

    /// Whether an attribute that this user may not set is an error.
    pub(super) fn must_set_attributes(&self) -> bool {
        self.gives_owners()
    }

    pub(super) fn mode_mask(&self) -> u16 {
        if self.keeps_all() { 0o7777 } else { 0o1777 }
    }
}
