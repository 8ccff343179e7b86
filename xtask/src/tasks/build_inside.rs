//! `build-inside`: a builder's own side of its namespaces. Not for people.

use crate::image::sandbox;

/// Confine a builder; `image` starts this
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct BuildInsideArgs {}

impl BuildInsideArgs {
    /// Becomes the builder.
    pub fn run(&self) -> anyhow::Result<u8> {
        Err(sandbox::enter())
    }
}
