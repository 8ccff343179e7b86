//! From what was asked and what was made to the machine and its boot settings. Pure.

use camino::Utf8PathBuf;
use init::boot_config::{
    BOOT_CONFIG_VERSION, BootConfig, Command, Mount, Network as GuestNetwork, Root, Stdio,
};

use super::request::{VolumeRequest, VolumeSource};
use crate::vm::machine::{
    Accelerator, Disk, DiskFormat, Machine, Network, PublishedPort, RECIPE_SHARE_TAG, Share, VIRTIO_SLOTS,
    disk_device, share_tag, static_address, user_network,
};

/// Where the recipe's PID 1 mounts its one share.
pub const RECIPE_SHARE_TARGET: &str = "/usr/share/nginx/html";

/// Everything that decides what a machine is, checked and made.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Kernel image.
    pub kernel: Utf8PathBuf,
    /// Where the initramfs for this boot will be; `None` boots the disk's own init.
    pub initramfs: Option<Utf8PathBuf>,
    /// The root disk.
    pub root: Disk,
    /// How instructions are run.
    pub accelerator: Accelerator,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// The guest's host name.
    pub hostname: String,
    /// Ports of the host, none of them 0 any more; `None` for no network at all.
    pub ports: Option<Vec<PublishedPort>>,
    /// `-v` mounts, with absolute host paths.
    pub volumes: Vec<VolumeRequest>,
    /// Where the disks of named volumes are.
    pub volume_disk: fn(&str) -> Utf8PathBuf,
    /// `--share`: the recipe's read-only share.
    pub recipe_share: Option<Utf8PathBuf>,
    /// `--tmpfs` mounts: path and options.
    pub tmpfs: Vec<(String, String)>,
    /// The root is not to be written.
    pub read_only: bool,
    /// The main process; `None` hands over to the image's `/sbin/init.sh`.
    pub command: Option<Command>,
    /// What its streams are.
    pub stdio: Stdio,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// PID 1 traces its steps.
    pub trace: bool,
    /// The agent's socket.
    pub agent_socket: Option<Utf8PathBuf>,
    /// QEMU waits for a debugger here.
    pub gdb_port: Option<u16>,
}

/// A machine and what its PID 1 is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For QEMU.
    pub machine: Machine,
    /// For PID 1.
    pub boot_config: BootConfig,
}

/// Puts the parts together. Errors where the machine has too few slots, saying what to drop.
pub fn plan(parts: Parts) -> Result<Plan, String> {
    let mut disks = vec![parts.root.clone()];
    let mut shares = Vec::new();
    let mut mounts = Vec::new();
    for volume in &parts.volumes {
        let (target, read_only) = (volume.target.clone(), volume.read_only);
        mounts.push(match &volume.source {
            VolumeSource::Named(name) => {
                let device = disk_device(disks.len());
                disks.push(Disk {
                    path: (parts.volume_disk)(name),
                    format: DiskFormat::Raw,
                    read_only,
                    snapshot: false,
                });
                Mount::Disk { device, fstype: "ext4".into(), target, read_only, populate: !read_only }
            }
            VolumeSource::Host(path) => {
                let tag = share_tag(shares.len());
                // 9p shares folders: a single file is mounted out of its parent.
                let (folder, file) = if path.is_dir() {
                    (path.clone(), None)
                } else {
                    (path.parent().unwrap_or(path).to_owned(), path.file_name().map(str::to_owned))
                };
                shares.push(Share { tag: tag.clone(), path: folder, read_only });
                Mount::Share { tag, target, read_only, file, required: true }
            }
        });
    }
    if let Some(path) = &parts.recipe_share {
        shares.push(Share { tag: RECIPE_SHARE_TAG.into(), path: path.clone(), read_only: true });
        mounts.push(Mount::Share {
            tag: RECIPE_SHARE_TAG.into(),
            target: RECIPE_SHARE_TARGET.into(),
            read_only: true,
            file: None,
            required: false,
        });
    }
    mounts.extend(
        parts
            .tmpfs
            .iter()
            .map(|(target, options)| Mount::Tmpfs { target: target.clone(), options: options.clone() }),
    );

    let mut kernel_arguments = Vec::new();
    if parts.ports.is_some() {
        kernel_arguments.push(static_address(&parts.hostname));
    }
    let network = parts.ports.map_or(Network::None, |ports| Network::User { ports });
    let guest_network = (network != Network::None).then(|| GuestNetwork {
        hosts: vec![(user_network::GUEST.into(), vec![parts.hostname.clone()])],
        nameservers: vec![user_network::NAMESERVER.into()],
    });
    let machine = Machine {
        kernel: parts.kernel,
        initramfs: parts.initramfs,
        kernel_arguments,
        accelerator: parts.accelerator,
        memory_mib: parts.memory_mib,
        cpus: parts.cpus,
        agent_socket: parts.agent_socket,
        disks,
        shares,
        network,
        gdb_port: parts.gdb_port,
    };
    check_slots(&machine)?;
    let boot_config = BootConfig {
        version: BOOT_CONFIG_VERSION,
        hostname: parts.hostname,
        root: Root { device: disk_device(0), fstype: "ext4".into(), read_only: parts.read_only },
        mounts,
        network: guest_network,
        command: parts.command,
        stdio: parts.stdio,
        stop_signal: parts.stop_signal,
        trace: parts.trace,
    };
    Ok(Plan { machine, boot_config })
}

fn check_slots(machine: &Machine) -> Result<(), String> {
    let taken = machine.virtio_slots();
    if taken <= VIRTIO_SLOTS {
        return Ok(());
    }
    let volumes = machine.disks.len() - 1 + machine.shares.len();
    Err(format!(
        "the machine has {VIRTIO_SLOTS} device slots and this takes {taken}: drop {} of the {volumes} `-v` and `--share` mounts",
        taken - VIRTIO_SLOTS
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        Parts {
            kernel: "/k".into(),
            initramfs: Some("/i".into()),
            root: Disk { path: "/d".into(), format: DiskFormat::Qcow2, read_only: false, snapshot: false },
            accelerator: Accelerator::Tcg,
            memory_mib: 256,
            cpus: 1,
            hostname: "web".into(),
            ports: Some(vec![]),
            volumes: vec![],
            volume_disk: |name| format!("/volumes/{name}").into(),
            recipe_share: None,
            tmpfs: vec![],
            read_only: false,
            command: None,
            stdio: Stdio::Console,
            stop_signal: 15,
            trace: false,
            agent_socket: None,
            gdb_port: None,
        }
    }

    fn volume(text: &str) -> VolumeRequest {
        super::super::request::parse_volume(text).unwrap()
    }

    #[test]
    fn a_single_file_is_shared_by_its_folder() {
        let volumes = vec![volume("/etc/hostname:/etc/motd:ro"), volume("data:/var/lib/data")];
        let plan = plan(Parts { volumes, ..parts() }).unwrap();
        assert_eq!(
            plan.machine.shares,
            [Share { tag: "share0".into(), path: "/etc".into(), read_only: true }]
        );
        assert_eq!(
            plan.boot_config.mounts,
            [
                Mount::Share {
                    tag: "share0".into(),
                    target: "/etc/motd".into(),
                    read_only: true,
                    file: Some("hostname".into()),
                    required: true
                },
                Mount::Disk {
                    device: "/dev/vdb".into(),
                    fstype: "ext4".into(),
                    target: "/var/lib/data".into(),
                    read_only: false,
                    populate: true
                }
            ]
        );
        assert_eq!(plan.machine.disks[1].path, "/volumes/data");
    }

    #[test]
    fn too_many_mounts_are_counted() {
        let volumes = (0..6).map(|n| volume(&format!("/tmp:/m{n}"))).collect();
        assert_eq!(
            plan(Parts { volumes, ..parts() }).unwrap_err(),
            "the machine has 8 device slots and this takes 10: drop 2 of the 6 `-v` and `--share` mounts"
        );
    }

    #[test]
    fn without_a_network_the_kernel_configures_none() {
        let plan = plan(Parts { ports: None, ..parts() }).unwrap();
        assert_eq!(plan.machine.kernel_arguments, [""; 0]);
        assert_eq!(plan.boot_config.network, None);
    }
}
