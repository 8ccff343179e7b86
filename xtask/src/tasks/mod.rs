//! One module for each task: its command line and the order of its steps. The work itself is done elsewhere.

pub mod bench;
pub mod boot;
pub mod build_inside;
pub mod check;
pub mod collect;
pub mod cp;
pub mod doctor;
pub mod exec;
pub mod image;
pub mod init;
pub mod inspect;
pub mod kernel;
pub mod kill;
pub mod logs;
pub mod ps;
pub mod rm;
pub mod setup;
pub mod shell;
pub mod status;
pub mod stop;
pub mod supervise;
pub mod test;
pub mod torture;
pub mod volume;
pub mod wait;

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

/// Does something to each of several machines, as docker does: prints the names of those where it was done, complains
/// about the others, and yields 1 where there are any.
fn each(names: &[String], mut act: impl FnMut(&str) -> anyhow::Result<()>) -> u8 {
    let mut code = 0;
    for name in names {
        match act(name) {
            Ok(()) => crate::out!("{name}"),
            Err(error) => {
                crate::note!("{}", crate::error::render(&error).trim_end());
                code = 1;
            }
        }
    }
    code
}

impl Context {
    /// Removes what killed tasks have left in the cache. Called by each task that makes something.
    pub fn clear_leftovers(&self) {
        self.workspace.folders().iter().for_each(|folder| crate::artifact::remove_leftovers(folder));
    }

    /// Makes sure that the tools for some work are on this host, installing them where that is agreed.
    pub fn require(&self, purposes: &[Purpose]) -> anyhow::Result<()> {
        require(purposes, self.consent).map(drop)
    }
}
