//! `doctor`: what is on this host, what is not, and what follows from it.

use super::Context;
use crate::host::tools::TOOLS;

/// Show which tools and which accelerator this host has, and what follows from it
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {}

impl DoctorArgs {
    /// Runs the task.
    pub fn run(&self, _context: &Context) -> anyhow::Result<u8> {
        for tool in TOOLS {
            match tool.locate() {
                Some(path) => println!("  ok       {:34} {path}", tool.name()),
                None => println!("  missing  {:34} package {}", tool.name(), tool.package),
            }
        }
        Ok(0)
    }
}
