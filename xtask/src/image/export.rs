//! Disks for use elsewhere: as files of the user's, and as the set that `collect` fetches.

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use super::BootImage;
use crate::artifact::{Lock, Staged, create_folder, publish_link, require_space};
use crate::disk;
use crate::error::usage;
use crate::host::tools::Purpose;
use crate::tasks::Context;
use crate::ui;

/// A form of disk file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// QEMU's own, sparse everywhere
    #[default]
    Qcow2,
    /// The bytes as the guest sees them, sparse where the file system allows
    Raw,
    /// QEMU's own, compressed: a third of the size, and slower to make
    Qcow2Zstd,
}

/// Writes the disk to a file, whole or not at all.
pub fn write(image: &BootImage, output: &Utf8Path, format: Format) -> anyhow::Result<()> {
    let output = camino::absolute_utf8(output).context("failed to name the output file")?;
    if output.is_dir() {
        return Err(usage(format!("`{output}` is a folder: name a file")));
    }
    let staged = Staged::new(&output)?;
    let folder = staged.path().parent().context("a file without a folder")?;
    require_space(folder, super::cleanup::space(&image.disk), "the file")?;
    let spinner = ui::spinner(&format!("writing `{output}`"));
    let written = match format {
        Format::Qcow2 => disk::to_qcow2(&image.disk, staged.path(), false),
        Format::Qcow2Zstd => disk::to_qcow2(&image.disk, staged.path(), true),
        Format::Raw => disk::copy::sparse(&image.disk, staged.path()),
    };
    spinner.finish_and_clear();
    written?;
    staged.publish()
}

/// Makes the standalone `hda.qcow2` beside the base disk where it is not there yet, and links it and the config into
/// the workspace's artifacts. Gives the link's path.
pub fn publish(context: &Context, image: &BootImage) -> anyhow::Result<Utf8PathBuf> {
    context.require(&[Purpose::Image])?;
    let folder = image.disk.parent().context("a disk without a folder")?;
    let standalone = folder.join("hda.qcow2");
    if !standalone.exists() {
        let _lock = Lock::hold(&folder.join(".lock"), &format!("`{standalone}`"))?;
        if !standalone.exists() {
            write(image, &standalone, Format::Qcow2)?;
        }
    }
    let artifacts = context.workspace.artifacts();
    create_folder(&artifacts)?;
    let config = folder.join("config.json");
    for (target, name) in [(&config, "image.json"), (&standalone, "hda.qcow2")] {
        publish_link(target, &artifacts.join(name))?;
    }
    Ok(artifacts.join("hda.qcow2"))
}
