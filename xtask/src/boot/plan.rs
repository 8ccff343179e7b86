//! From what was asked and what was made to the machine and its boot settings. Pure.

use camino::Utf8PathBuf;
use init::boot_config::{
    BOOT_CONFIG_VERSION, BootConfig, Command, Mount, Network as GuestNetwork, Root, Stdio,
};

use super::request::Volume;
use crate::vm::machine::{
    Accelerator, Disk, Machine, Network, PublishedPort, RECIPE_SHARE_TAG, Share, VIRTIO_SLOTS, disk_device,
    share_tag, static_address, user_network,
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
    /// `-v` mounts.
    pub volumes: Vec<Volume>,
    /// `--share`: the recipe's read-only share.
    pub recipe_share: Option<Utf8PathBuf>,
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
    let mut shares = Vec::new();
    let mut mounts = Vec::new();
    for volume in parts.volumes {
        let Volume { folder, file, target, read_only } = volume;
        let tag = share_tag(shares.len());
        shares.push(Share { tag: tag.clone(), path: folder, read_only });
        mounts.push(Mount::Share { tag, target, read_only, file, required: true });
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
        disks: vec![parts.root],
        shares,
        network,
    };
    check_slots(&machine)?;
    let boot_config = BootConfig {
        version: BOOT_CONFIG_VERSION,
        hostname: parts.hostname,
        root: Root { device: disk_device(0), fstype: "ext4".into(), read_only: false },
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
    Err(format!(
        "the machine has {VIRTIO_SLOTS} device slots and this takes {taken}: drop {} of the {} `-v` and `--share` mounts",
        taken - VIRTIO_SLOTS,
        machine.shares.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::machine::DiskFormat;

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
            recipe_share: None,
            command: None,
            stdio: Stdio::Console,
            stop_signal: 15,
            trace: false,
            agent_socket: None,
        }
    }

    fn volume(target: &str) -> Volume {
        Volume {
            folder: "/etc".into(),
            file: Some("hostname".into()),
            target: target.into(),
            read_only: true,
        }
    }

    #[test]
    fn a_volume_is_a_share_for_qemu_and_a_mount_for_pid_1() {
        let plan = plan(Parts { volumes: vec![volume("/etc/motd")], ..parts() }).unwrap();
        let share = Share { tag: "share0".into(), path: "/etc".into(), read_only: true };
        assert_eq!(plan.machine.shares, [share]);
        let mount = Mount::Share {
            tag: "share0".into(),
            target: "/etc/motd".into(),
            read_only: true,
            file: Some("hostname".into()),
            required: true,
        };
        assert_eq!(plan.boot_config.mounts, [mount]);
    }

    #[test]
    fn too_many_mounts_are_counted() {
        let volumes = (0..6).map(|n| volume(&format!("/m{n}"))).collect();
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
