//! `image`: makes a bootable disk of a container image, and keeps the cache of such disks.

use camino::Utf8PathBuf;
use clap::Args;

use super::Context;
use crate::image::builder::Builder;
use crate::image::{self, ImageRequest, Mkfs, Source, export};
use crate::{disk, note};

/// Make a bootable disk of a container image
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Where the image comes from: a Dockerfile or its folder, NAME[:TAG] or docker://NAME,
    /// docker-archive:FILE, oci-archive:FILE, oci:FOLDER, containers-storage:NAME, docker-daemon:NAME,
    /// rootfs:FILE, or `-` for an archive on standard input
    source: Source,

    #[command(flatten)]
    options: ImageOptions,

    /// Write the disk to this file too
    #[arg(short, long, value_name = "FILE")]
    output: Option<Utf8PathBuf>,

    /// What the file is written as
    #[arg(long, value_enum, default_value_t, requires = "output")]
    format: export::Format,
}

/// How an image is made into a disk; the same for every task that takes one.
#[derive(Debug, Clone, Args)]
pub struct ImageOptions {
    /// Call it this
    #[arg(long)]
    pub name: Option<String>,

    /// The disk's size as the guest sees it; it takes only the space that is written to [default: at least 8G]
    #[arg(long, value_name = "SIZE", value_parser = disk::size::parse)]
    pub size: Option<u64>,

    /// A value for the Dockerfile's ARG
    #[arg(long, value_name = "NAME=VALUE")]
    pub build_arg: Vec<String>,

    /// Which program builds a Dockerfile [default: the first that works here]
    #[arg(long, value_enum)]
    pub builder: Option<Builder>,

    /// How the file system is made
    #[arg(long, value_enum, default_value_t)]
    pub mkfs: Mkfs,

    /// Look at the source again even where it seems unchanged
    #[arg(long)]
    pub pull: bool,

    /// Check registries' certificates; `false` allows plain HTTP too
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true)]
    pub tls_verify: bool,
}

impl ImageOptions {
    /// The request for a source.
    pub fn request(&self, source: Source) -> ImageRequest {
        ImageRequest {
            source,
            name: self.name.clone(),
            size: self.size,
            build_args: self.build_arg.clone(),
            builder: self.builder,
            mkfs: self.mkfs,
            refresh: self.pull,
            tls_verify: self.tls_verify,
        }
    }
}

impl ImageArgs {
    /// Runs the task.
    pub fn run(self, context: &Context) -> anyhow::Result<u8> {
        // Only a Dockerfile can copy it.
        let init_binary = match self.source {
            Source::Dockerfile(_) => crate::init::ensure(context)?.binary,
            _ => Utf8PathBuf::new(),
        };
        let image = image::ensure(context, &self.options.request(self.source), &init_binary)?;
        if let Some(output) = &self.output {
            export::write(&image, output, self.format)?;
            note!("wrote `{output}`");
            return Ok(0);
        }
        let published = export::publish(context, &image)?;
        println!("{}", image.disk);
        note!("{} is ready: {} ({})", image.name, published, image.digest);
        Ok(0)
    }
}
