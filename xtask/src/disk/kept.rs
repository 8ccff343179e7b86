//! Overlays that outlive their machine (`--persist`), each with a record of the base that it was made for: no other
//! file is read through it.

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use super::qcow2::Backing;
use super::{opened, overlay};
use crate::artifact::{create_folder, read_text, write_whole};
use crate::error::Hint as _;
use crate::vm::machine::{Base, DiskFormat};
use crate::workspace::Workspace;

/// The overlay of this name, made over `wanted` where there is none yet, and the base that it lies on.
pub fn ensure(workspace: &Workspace, name: &str, wanted: Base) -> anyhow::Result<(Utf8PathBuf, Base)> {
    let folder = workspace.persistent_disks();
    let (disk, record) = (folder.join(format!("{name}.qcow2")), folder.join(format!("{name}.base.json")));
    if !disk.exists() {
        create_folder(&folder)?;
        write(&record, &wanted)?;
        overlay(&wanted, &disk)?;
        return Ok((disk, wanted));
    }
    if record.exists() {
        return Ok((disk, read(&record)?));
    }
    // One from before there were records: over a disk of the cache, or over what is asked for now.
    let file = std::fs::File::open(&disk).with_context(|| format!("failed to open `{disk}`"))?;
    let base = match opened::header(&file, &disk)?.backing {
        Some(Backing { name, format }) if format.as_deref() == Some(DiskFormat::Raw.name()) => {
            Base { path: name.into(), format: DiskFormat::Raw }
        }
        Some(Backing { name, .. }) => Base { path: name.into(), format: DiskFormat::Qcow2 },
        None => Base { path: Utf8PathBuf::new(), format: DiskFormat::Raw },
    };
    let in_cache = base.format == DiskFormat::Raw
        && base.path.canonicalize_utf8().is_ok_and(|path| path.starts_with(workspace.disks()));
    if !in_cache && base != wanted {
        return Err(anyhow::anyhow!(
            "the kept disk `{disk}` lies on `{}`, which is not known here",
            base.path
        ))
        .hint("move it away to begin with a fresh one");
    }
    write(&record, &base)?;
    Ok((disk, base))
}

fn read(record: &Utf8Path) -> anyhow::Result<Base> {
    serde_json::from_str(&read_text(record)?).with_context(|| format!("failed to understand `{record}`"))
}

fn write(record: &Utf8Path, base: &Base) -> anyhow::Result<()> {
    write_whole(record, &serde_json::to_vec_pretty(base)?)
}
