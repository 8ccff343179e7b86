//! `image`: makes a bootable disk of a container image, and keeps the cache of such disks.

#![allow(rustdoc::broken_intra_doc_links, reason = "brackets in the help are no links")]

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

use super::Context;
use crate::image::builder::Builder;
use crate::image::store::Store;
use crate::image::{self, ImageRequest, Mkfs, Source, cleanup, export};
use crate::ui::{human_age, human_bytes, visible_word};
use crate::{disk, note, out};

/// Make a bootable disk of a container image, or look after the cache of such disks
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ImageArgs {
    #[command(subcommand)]
    action: Option<Action>,

    /// Where the image comes from: a Dockerfile or its folder, NAME[:TAG] or docker://NAME,
    /// docker-archive:FILE, oci-archive:FILE, oci:FOLDER, containers-storage:NAME, docker-daemon:NAME,
    /// rootfs:FILE, or `-` for an archive on standard input
    #[arg(required = true)]
    source: Option<Source>,

    /// Call it this
    #[arg(long)]
    name: Option<String>,

    /// Write the disk to this file too
    #[arg(short, long, value_name = "FILE")]
    output: Option<Utf8PathBuf>,

    /// What the file is written as
    #[arg(long, value_enum, default_value_t, requires = "output")]
    format: export::Format,

    #[command(flatten)]
    options: ImageOptions,
}

/// How an image is made into a disk; the same for every task that takes one.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "How the disk is made")]
pub struct ImageOptions {
    /// The disk's size as the guest sees it; it takes only the space that is written to [default: at least 8G]
    #[arg(long, value_name = "SIZE", value_parser = disk::size::parse)]
    pub size: Option<u64>,

    /// A value for the Dockerfile's ARG
    #[arg(long, value_name = "NAME=VALUE")]
    pub build_arg: Vec<String>,

    /// Which program builds a Dockerfile [default: the first that works here]
    #[arg(long, value_enum)]
    pub builder: Option<Builder>,

    /// What one compressed layer may unpack to, a guard against bombs [default: 400 times its size, at least 256M]
    #[arg(long, value_name = "SIZE", value_parser = disk::size::bytes)]
    pub unpack_limit: Option<u64>,

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
            name: None,
            size: self.size,
            build_args: self.build_arg.clone(),
            builder: self.builder,
            unpack_limit: self.unpack_limit,
            mkfs: self.mkfs,
            refresh: self.pull,
            tls_verify: self.tls_verify,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the disks in the cache
    Ls,
    /// Remove disks from the cache
    Rm {
        /// Names as `ls` shows them, or the first digits of digests
        #[arg(required = true)]
        name: Vec<String>,
    },
    /// Remove replaced disks, and what killed tasks have left
    Prune {
        /// Remove every disk and every pulled layer that no machine uses
        #[arg(long)]
        all: bool,
    },
}

impl Action {
    fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let freed = match self {
            Action::Ls => {
                list(context);
                return Ok(0);
            }
            Action::Rm { name } => cleanup::remove(&context.workspace, name)?,
            Action::Prune { all } => cleanup::prune(&context.workspace, *all)?,
        };
        note!("freed {}", human_bytes(freed));
        Ok(0)
    }
}

fn list(context: &Context) {
    out!("{:20} {:14} {:>10} {:>10}  {:12} SOURCE", "NAME", "DIGEST", "SIZE", "ON DISK", "AGE");
    for disk in Store::new(&context.workspace).disks() {
        let record = &disk.record;
        out!(
            "{:20} {:14} {:>10} {:>10}  {:12} {}",
            visible_word(&record.name),
            record.digest.trim_start_matches("sha256:").get(..12).unwrap_or(&record.digest),
            human_bytes(record.size),
            human_bytes(cleanup::space(&disk.folder)),
            human_age(disk.age()),
            visible_word(&record.source)
        );
    }
}

impl ImageArgs {
    /// Runs the task.
    pub fn run(self, context: &Context) -> anyhow::Result<u8> {
        let Some(source) = self.source else {
            return self.action.map_or(Ok(0), |action| action.run(context));
        };
        context.clear_leftovers();
        let init_binary = if image::copies_init(context, &source)? {
            crate::init::ensure(context)?.binary
        } else {
            Utf8PathBuf::new()
        };
        let request = ImageRequest { name: self.name, ..self.options.request(source) };
        let image = image::ensure(context, &request, &init_binary)?;
        if let Some(output) = &self.output {
            export::write(&image, output, self.format)?;
            note!("wrote `{output}`");
            return Ok(0);
        }
        let published = export::publish(context, &image)?;
        out!("{}", image.disk);
        note!("{} is ready: {} ({})", image.name, published, image.digest);
        Ok(0)
    }
}
