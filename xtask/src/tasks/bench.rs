//! `bench`: side-by-side measurements, all sides in one run.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

use super::Context;
use crate::bench;
use crate::host::tools::Purpose;
use crate::out;

/// Measure this workbench beside other ways to do the same
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From a root file system's tar to a disk that boots
    Image {
        /// How often each side does its work
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
        runs: u16,
        /// Leave out the recipe's way, which takes half a minute each time
        #[arg(long)]
        no_guestfs: bool,
    },
    #[command(hide = true)]
    Prepare { tar: Utf8PathBuf, overlay: Utf8PathBuf },
}

impl BenchArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        match &self.what {
            What::Image { runs, no_guestfs } => {
                context.require(&[Purpose::Image, Purpose::Build, Purpose::Test])?;
                if !no_guestfs {
                    context.require(&[Purpose::Guestfs])?;
                }
                bench::image::run(
                    context,
                    bench::image::Plan { runs: (*runs).into(), guestfs: !no_guestfs },
                )?;
            }
            What::Prepare { tar, overlay } => out!("{}", bench::image::prepare(context, tar, overlay)?),
        }
        Ok(0)
    }
}
