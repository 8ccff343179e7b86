//! `cp`: files between the host and a machine.

use std::ffi::OsString;
use std::path::Path;

use super::Context;
use crate::error::usage;
use crate::ui;
use crate::vm::client::copy::{self, split_machine};
use crate::vm::record::run_dir::RunDir;

/// Copy files and folders between the host and a running machine
///
/// One of the two is NAME:PATH. As docker does it: into a folder that exists, or under a new name; `FOLDER/.` means
/// what is in it. Owners (by number), modes, times and attributes are kept; on the host, owners where you are root.
#[derive(Debug, clap::Args)]
pub struct CpArgs {
    /// NAME:PATH, a path of the host, or `-` for a tar archive from standard input
    source: OsString,

    /// NAME:PATH, a path of the host, or `-` for a tar archive to standard output
    target: OsString,

    /// Copy what a symbolic link at SOURCE points to
    #[arg(short = 'L', long)]
    follow_link: bool,
}

impl CpArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let find = |name: &str| RunDir::find_running(&context.workspace, name);
        match (split_machine(&self.source), split_machine(&self.target)) {
            (Some((name, path)), None) if self.target == "-" => {
                copy::to_stream(&find(name)?, path, self.follow_link, ui::Stdout)?;
            }
            (Some((name, path)), None) => {
                copy::out_of_machine(&find(name)?, path, Path::new(&self.target), self.follow_link)?;
            }
            (None, Some((name, path))) if self.source == "-" => {
                copy::from_stream(&find(name)?, path, Box::new(std::io::stdin()))?;
            }
            (None, Some((name, path))) => {
                copy::into_machine(&find(name)?, Path::new(&self.source), path, self.follow_link)?;
            }
            (None, None) => {
                return Err(usage("one of the two has to be in a machine: write it as NAME:PATH"));
            }
            (Some(_), Some(_)) => {
                return Err(usage("only one of the two can be in a machine: copy by way of the host"));
            }
        }
        Ok(0)
    }
}
