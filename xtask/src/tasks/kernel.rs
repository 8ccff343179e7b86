//! `kernel`: builds the kernel, or finds it built.

use camino::Utf8PathBuf;

use super::Context;
use crate::kernel::{self, ConfigChoice, KernelRequest, SourceChoice};
use crate::{note, out};

/// Build the kernel: `vmlinux` and `bzImage`
///
/// A kernel that was built before is found in the cache, which `cargo clean` does not touch. What is printed on
/// standard output are the paths of the two images.
#[derive(Debug, clap::Args)]
pub struct KernelArgs {
    /// What to configure: `microvm` (lean, boots fast), `recipe` (the recipe's own) or a config file
    #[arg(long, value_name = "microvm|recipe|PATH", default_value = "microvm")]
    pub config: ConfigChoice,

    /// Options on top of the config, from a file; may be given several times, later ones win
    #[arg(long, value_name = "PATH")]
    pub fragment: Vec<Utf8PathBuf>,

    /// One option on top of the config and the fragments; may be given several times
    #[arg(long, value_name = "CONFIG_X=y")]
    pub set: Vec<String>,

    /// Version to download, pinned in kernel/sources.toml; with `--source debian` the package's series
    #[arg(long, value_name = "V")]
    pub version: Option<String>,

    /// Where the source comes from: `upstream` is kernel.org, `debian` the package linux-source, `auto` the first
    /// of them that can be had; or a tarball, or the folder of an unpacked kernel, which is only read and whose
    /// build is kept to build on
    #[arg(long, value_name = "auto|upstream|debian|TARBALL|DIR", default_value = "auto")]
    pub source: SourceChoice,
}

impl KernelArgs {
    /// Runs the task.
    pub fn run(self, context: &Context) -> anyhow::Result<u8> {
        context.clear_leftovers();
        let request = KernelRequest {
            config: self.config,
            fragments: self.fragment,
            sets: self.set,
            version: self.version,
            source: self.source,
        };
        let kernel = kernel::ensure(context, &request)?;
        note!("kernel {}", kernel.description);
        out!("{}\n{}", kernel.vmlinux, kernel.bz_image);
        Ok(0)
    }
}
