//! `volume`: the disks that outlive machines: named volumes of `boot -v NAME:GUEST`, and what `boot --persist` keeps.

use clap::{Args, Subcommand};

use super::Context;
use crate::disk::volume::{self, Kind};
use crate::ui::{human_bytes, visible_word};
use crate::{name, out};

/// List or remove the disks that outlive machines: named volumes, and what `boot --persist` keeps
#[derive(Debug, Args)]
pub struct VolumeArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them with the space that they take
    Ls,
    /// Remove them with all their data
    Rm {
        /// Names as `ls` shows them
        #[arg(required = true, value_parser = name::parse)]
        name: Vec<String>,

        /// Which, where a volume and a kept disk have one name
        #[arg(long, value_enum)]
        kind: Option<Kind>,
    },
}

impl VolumeArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        match &self.action {
            Action::Ls => {
                out!("{:40} {:8} {:>10}  IN USE", "NAME", "KIND", "ON DISK");
                for volume in volume::all(&context.workspace)? {
                    let (kind, in_use) = (volume.kind.word(), if volume.in_use { "yes" } else { "no" });
                    let (name, space) = (visible_word(&volume.name), human_bytes(volume.space));
                    out!("{name:40} {kind:8} {space:>10}  {in_use}");
                }
            }
            Action::Rm { name, kind } => {
                name.iter().try_for_each(|name| volume::remove(&context.workspace, name, *kind))?
            }
        }
        Ok(0)
    }
}
