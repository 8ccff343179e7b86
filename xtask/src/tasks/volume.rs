//! `volume`: the named volumes that `boot -v NAME:GUEST` makes.

use clap::{Args, Subcommand};

use super::Context;
use crate::disk::volume;
use crate::out;
use crate::ui::{human_bytes, visible_word};

/// List or remove named volumes
#[derive(Debug, Args)]
pub struct VolumeArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the volumes with the space that they take
    Ls,
    /// Remove volumes with all their data
    Rm {
        /// Names as `ls` shows them
        #[arg(required = true)]
        name: Vec<String>,
    },
}

impl VolumeArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        match &self.action {
            Action::Ls => {
                out!("{:40} {:>10}  IN USE", "NAME", "ON DISK");
                for volume in volume::all(&context.workspace)? {
                    let in_use = if volume.in_use { "yes" } else { "no" };
                    out!("{:40} {:>10}  {in_use}", visible_word(&volume.name), human_bytes(volume.space));
                }
            }
            Action::Rm { name } => {
                name.iter().try_for_each(|name| volume::remove(&context.workspace, name))?
            }
        }
        Ok(0)
    }
}
