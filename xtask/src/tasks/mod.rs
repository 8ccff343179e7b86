//! One module for each task: its command line and the order of its steps. The work itself is done elsewhere.

pub mod bench;
pub mod boot;
pub mod collect;
pub mod doctor;
pub mod image;
pub mod init;
pub mod kernel;
pub mod setup;
pub mod status;
pub mod test;
pub mod volume;

use crate::host::setup::{Consent, require};
use crate::host::tools::Purpose;
use crate::workspace::Workspace;

/// What every task is given.
#[derive(Debug)]
pub struct Context {
    /// Paths.
    pub workspace: Workspace,
    /// Whether packages may be installed.
    pub consent: Consent,
}

impl Context {
    /// Makes sure that the tools for some work are on this host, installing them where that is agreed.
    pub fn require(&self, purposes: &[Purpose]) -> anyhow::Result<()> {
        require(purposes, self.consent)
    }
}
