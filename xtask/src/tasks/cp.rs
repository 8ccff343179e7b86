//! `cp`: files between the host and a machine.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::Path;

use super::Context;
use crate::error::usage;
use crate::ui;
use crate::vm::client::copy::{self, split_machine};
use crate::vm::record::run_dir::RunDir;

/// Copy files and folders between the host and a running machine
///
/// One of the two is NAME:PATH. As docker does it: into a folder that exists, or under a new name; `FOLDER/.` means
/// what is in it. Into a machine all is kept: owners (by number), modes, times and attributes. On the host everything
/// belongs to you, and setuid and setgid bits, devices and attributes other than `user.*` are left out, unless `-a` says
/// otherwise; only what was asked for is made, and no link is followed on the way.
#[derive(Debug, clap::Args)]
pub struct CpArgs {
    /// NAME:PATH, a path of the host, or `-` for a tar archive from standard input
    source: OsString,

    /// NAME:PATH, a path of the host, or `-` for a tar archive to standard output
    target: OsString,

    /// Out of a machine: keep setuid and setgid bits and all attributes; as root, owners and devices too
    #[arg(short = 'a', long)]
    archive: bool,

    /// Copy what a symbolic link at SOURCE points to
    #[arg(short = 'L', long)]
    follow_link: bool,
}

impl CpArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let find = |name: &str| RunDir::find_running(&context.workspace, name);
        match (split_machine(&self.source), split_machine(&self.target)) {
            (Some(_), None) if self.target == "-" && std::io::stdout().is_terminal() => {
                return Err(usage(
                    "standard output is a terminal, which an archive could harm: write it to a file or a pipe",
                ));
            }
            (Some((name, path)), None) if self.target == "-" => {
                copy::to_stream(&find(name)?, path, self.follow_link, ui::Stdout)?;
            }
            (Some((name, path)), None) => {
                let target = Path::new(&self.target);
                copy::out_of_machine(&find(name)?, path, target, self.follow_link, self.archive)?;
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
