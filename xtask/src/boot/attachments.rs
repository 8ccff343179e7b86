//! What is made on the host for one machine before it starts: its root disk, links to single files, the guard's sockets,
//! a place in a private network, ports for what the image exposes.

use anyhow::{Context as _, anyhow};
use camino::Utf8PathBuf;

use super::bootable::Bootable;
use super::request::{Volume, VolumeContent};
use crate::artifact::Lock;
use crate::disk::volume::{self, Access};
use crate::disk::{self, kept, opened};
use crate::error::Hint as _;
use crate::host::private;
use crate::image::config::ImageConfig;
use crate::note;
use crate::vm::machine::{Base, Disk, DiskFormat, GuardSockets, PortProtocol, PrivateNetwork, PublishedPort};
use crate::vm::net::members::{self, Member};
use crate::vm::record::run_dir::{RunDir, SOCKETS_LEVELS};
use crate::workspace::Workspace;

/// The disk that the guest writes to: an overlay over the image's, made for this machine.
pub fn fresh_root(bootable: &Bootable, run_dir: &RunDir) -> anyhow::Result<Disk> {
    let mut base = Base { path: bootable.disk.clone(), format: bootable.disk_format };
    if !is_ours_alone(&base)? {
        note!("`{}` can be changed by other users: the machine gets a copy", base.path);
        disk::copy::sparse(&base.path, &run_dir.base())?;
        base.path = run_dir.base();
    }
    disk::overlay(&base, &run_dir.overlay())?;
    Ok(root(run_dir.overlay(), base))
}

/// The same, [kept](kept) under a name from boot to boot: the disk, and the lock on it. With `discarded` it begins anew.
pub fn kept_root(
    workspace: &Workspace,
    bootable: &Bootable,
    name: &str,
    discarded: bool,
) -> anyhow::Result<(Disk, Lock)> {
    let wanted = bootable.origin(workspace)?;
    if !is_ours_alone(&wanted.base)? {
        let path = &wanted.base.path;
        return Err(anyhow!("`{path}` can be changed by other users, and `--persist` builds on it"))
            .hint("copy it, and boot the copy");
    }
    let (lock, base) = kept::take(workspace, name, &wanted, discarded)?;
    Ok((root(kept::disk(workspace, name), base), lock))
}

fn is_ours_alone(base: &Base) -> anyhow::Result<bool> {
    let metadata = base.path.metadata().with_context(|| format!("failed to look at `{}`", base.path))?;
    Ok(opened::is_ours_alone(&metadata))
}

fn root(path: Utf8PathBuf, base: Base) -> Disk {
    Disk { path, format: DiskFormat::Qcow2, read_only: false, snapshot: false, base: Some(base) }
}

/// Takes the named volumes for one machine, and makes those that are not there yet.
pub fn take_volumes(workspace: &Workspace, volumes: &[Volume]) -> anyhow::Result<Vec<Lock>> {
    let named = volumes.iter().filter_map(|volume| match &volume.content {
        VolumeContent::Disk(disk) => Some((disk, Access::of(volume.read_only))),
        _ => None,
    });
    named.map(|(disk, access)| volume::take(workspace, disk, access)).collect()
}

/// The image's own disk, with what the guest writes thrown away by QEMU.
pub fn discarding_root(bootable: &Bootable) -> Disk {
    Disk {
        path: bootable.disk.clone(),
        format: bootable.disk_format,
        read_only: false,
        snapshot: true,
        base: None,
    }
}

/// Puts each single file into a folder of the machine's own, so that root in the guest sees none of those beside it.
pub fn with_files_alone(volumes: Vec<Volume>, run_dir: &RunDir) -> Vec<Volume> {
    let alone = |(number, volume): (usize, Volume)| {
        let VolumeContent::File { folder, name } = &volume.content else { return volume };
        let kind = if volume.read_only { "read-only" } else { "writable" };
        let (own_folder, own_name) = (run_dir.files().join(kind), number.to_string());
        match volume::link_file(&folder.join(name), &own_folder, &own_name) {
            Some(()) => {
                Volume { content: VolumeContent::File { folder: own_folder, name: own_name }, ..volume }
            }
            None => {
                note!("note: root in the guest can reach all of `{folder}`, which `{name}` is mounted from");
                volume
            }
        }
    };
    volumes.into_iter().enumerate().map(alone).collect()
}

/// The sockets of the guard before QEMU's user network.
pub fn guard(run_dir: &RunDir, ports: &[PublishedPort], allows_host: bool) -> Option<GuardSockets> {
    let folder = run_dir.agent_socket().parent()?.to_owned();
    // The guard answers datagrams of published ports alone; a guest that may send to all needs no memory of them.
    let with_arriving = !allows_host && ports.iter().any(|port| port.protocol == PortProtocol::Udp);
    Some(GuardSockets { folder, with_arriving, allows_host })
}

/// Takes a place in a private network; those that have one already are named.
pub fn join(
    workspace: &Workspace,
    network: &str,
    run_dir: &RunDir,
) -> anyhow::Result<(PrivateNetwork, Vec<Member>)> {
    let folder = workspace.networks().join(network);
    private::make_folder(&folder, SOCKETS_LEVELS).hint(private::SOCKETS_HINT)?;
    let is_running = |machine: &str| RunDir::named(workspace, machine).is_running();
    let (number, members) = members::join(&folder, run_dir.name(), &run_dir.lock_file(), is_running)?;
    Ok((PrivateNetwork { folder, number }, members))
}

/// The ports, and free ones for those that the image exposes and nobody has published yet.
pub fn with_exposed(
    mut ports: Vec<PublishedPort>,
    image: &ImageConfig,
) -> anyhow::Result<Vec<PublishedPort>> {
    for exposed in image.config.exposed_ports.keys() {
        let port: PublishedPort = exposed
            .parse()
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("the image has a wrong EXPOSE, `{exposed}`"))?;
        if !ports.iter().any(|known| (known.guest, known.protocol) == (port.guest, port.protocol)) {
            ports.push(port);
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_ports_that_nobody_published_get_free_ones() {
        let mut image = ImageConfig::default();
        image.config.exposed_ports =
            ["53/udp", "53/tcp", "80"].map(|port| (port.into(), Default::default())).into();
        let published = vec!["8080:80".parse().unwrap()];
        let ports = with_exposed(published, &image).unwrap();
        let ports: Vec<String> = ports.iter().map(PublishedPort::to_string).collect();
        assert_eq!(ports, ["127.0.0.1:8080->80/tcp", "127.0.0.1:0->53/tcp", "127.0.0.1:0->53/udp"]);
        image.config.exposed_ports = [("http".into(), Default::default())].into();
        assert_eq!(
            with_exposed(vec![], &image).unwrap_err().to_string(),
            "the image has a wrong EXPOSE, `http`"
        );
    }
}
