//! `collect`: the recipe's last step, from the machine where the artifacts were built.

use camino::Utf8PathBuf;

use super::Context;
use crate::artifacts::Set;
use crate::collect::{self, Request, SshOptions, Target};
use crate::host::tools::Purpose;
use crate::note;

/// Fetch init, kernel and disk from the machine where they were built, over SSH
///
/// They arrive as `init`, `kernel`, `hda.qcow2` (and `image.json`, the image's config) in a folder that
/// `cargo xtask boot --from` runs. Checksums are compared end to end, and a connection that breaks leaves the folder
/// as it was. The other machine needs sh, tar and sha256sum.
///
/// A set is looked for in a checkout of this workbench in the home folder and then
/// in `~/work`, in each as this workbench leaves it, as `collect` does, and as the hand-made recipe does.
#[derive(Debug, clap::Args)]
pub struct CollectArgs {
    /// The other machine, as ssh takes it
    #[arg(value_name = "[USER@]HOST[:PORT]")]
    target: Target,

    /// Look in this folder over there; a relative one starts at the home folder
    #[arg(long, value_name = "DIR")]
    remote_dir: Option<Utf8PathBuf>,

    /// Put the files into this folder [default: `collected/HOST` in the checkout]
    #[arg(long, value_name = "DIR")]
    dest: Option<Utf8PathBuf>,

    #[command(flatten)]
    ssh: SshOptions,
}

impl CollectArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        context.require(&[Purpose::Collect])?;
        let workspace = &context.workspace;
        let destination = match &self.dest {
            Some(folder) => camino::absolute_utf8(folder)?,
            None => workspace.collected().join(self.target.host_name()),
        };
        let candidates = match &self.remote_dir {
            Some(folder) => collect::candidates_below(folder),
            None => collect::usual_candidates(workspace.root()),
        };
        collect::collect(&Request {
            target: &self.target,
            ssh: &self.ssh,
            candidates: &candidates,
            destination: &destination,
            lock: &Set::lock(workspace, &destination)?,
        })?;
        note!("boot it with `cargo xtask boot --from {destination}`");
        Ok(0)
    }
}
