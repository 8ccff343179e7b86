//! From what was asked and what was made to the machine and its boot settings. Pure.

use camino::Utf8PathBuf;
use init::boot_config::{
    BOOT_CONFIG_VERSION, BootConfig, Command, Mount, Network as GuestNetwork,
    PrivateNetwork as GuestPrivateNetwork, Root, Stdio,
};
use serde::{Deserialize, Serialize};

use super::request::{TmpfsRequest, Volume, VolumeContent};
use crate::vm::machine::{
    Accelerator, Disk, DiskFormat, GuardSockets, Machine, Network, PrivateNetwork, PublishedPort,
    RECIPE_SHARE_TAG, Share, VIRTIO_SLOTS, disk_device, share_tag, static_address, user_network,
};
use crate::vm::net::members::{Member, host_lines};

/// Where the recipe's PID 1 mounts its one share.
pub const RECIPE_SHARE_TARGET: &str = "/usr/share/nginx/html";

/// The image's VOLUME on a read-only root: in memory, and otherwise like any directory of the image.
const IMAGE_VOLUME: &str = "exec,dev,suid,tmpcopyup";

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
    /// Where the guest's frames pass on their way out; `None` lets it reach this host's loopback.
    pub guard: Option<GuardSockets>,
    /// The network of this and other machines, and those that are in it.
    pub private_network: Option<(PrivateNetwork, Vec<Member>)>,
    /// Wait for a debugger at this socket.
    pub gdb_socket: Option<Utf8PathBuf>,
    /// `-v` mounts.
    pub volumes: Vec<Volume>,
    /// `--tmpfs` mounts.
    pub tmpfs: Vec<TmpfsRequest>,
    /// Mount the root read-only.
    pub read_only: bool,
    /// The image's VOLUME paths, which stay writable on a read-only root.
    pub image_volumes: Vec<String>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// For QEMU.
    pub machine: Machine,
    /// For PID 1.
    pub boot_config: BootConfig,
}

/// Puts the parts together. Errors where the machine has too few slots, saying what to drop.
pub fn plan(parts: Parts) -> Result<Plan, String> {
    let mut shares: Vec<Share> = Vec::new();
    let mut disks = vec![parts.root];
    let mut mounts = Vec::new();
    for Volume { content, target, read_only } in parts.volumes {
        let (folder, file) = match content {
            VolumeContent::Folder(folder) => (folder, None),
            VolumeContent::File { folder, name } => (folder, Some(name)),
            VolumeContent::Disk(path) => {
                let device = disk_device(disks.len());
                disks.push(Disk {
                    path,
                    format: DiskFormat::Raw,
                    read_only: false,
                    snapshot: false,
                    base: None,
                });
                mounts.push(Mount::Volume { device, fstype: "ext4".into(), target, read_only });
                continue;
            }
        };
        let same = |share: &&Share| share.path == folder && share.read_only == read_only;
        let tag = match shares.iter().find(same) {
            Some(share) => share.tag.clone(),
            None => {
                let tag = share_tag(shares.len());
                shares.push(Share { tag: tag.clone(), path: folder, read_only });
                tag
            }
        };
        mounts.push(Mount::Share { tag, target, read_only, file, required: true });
    }
    let asked_for = parts.tmpfs.into_iter().map(|TmpfsRequest { target, options }| (target, options));
    mounts.extend(asked_for.map(|(target, options)| Mount::Tmpfs { target, options }));
    if parts.read_only {
        let left = |path: &&String| !mounts.iter().any(|mount| target(mount) == path.trim_end_matches('/'));
        let image_volumes: Vec<String> = parts.image_volumes.iter().filter(left).cloned().collect();
        mounts.extend(
            image_volumes.into_iter().map(|target| Mount::Tmpfs { target, options: IMAGE_VOLUME.into() }),
        );
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
    // As docker does: what lies inside another mount is mounted after it.
    mounts.sort_by_key(|mount| target(mount).matches('/').count());
    let mut kernel_arguments = Vec::new();
    if parts.ports.is_some() {
        kernel_arguments.push(static_address(&parts.hostname));
    }
    if parts.gdb_socket.is_some() {
        // Symbols are where the kernel's file says.
        kernel_arguments.push("nokaslr".into());
    }
    let guard = parts.guard;
    let network = parts.ports.map_or(Network::None, |ports| Network::User { ports, guard });
    let (private_network, members) = parts.private_network.unzip();
    let private = private_network.as_ref().map(|network| GuestPrivateNetwork {
        mac: network.mac(),
        address: PrivateNetwork::address_of(network.number),
        prefix_length: PrivateNetwork::PREFIX_LENGTH,
        hosts: host_lines(&members.unwrap_or_default()),
    });
    let guest_network = match network {
        Network::None => GuestNetwork { hosts: vec![], nameservers: vec![], private },
        Network::User { .. } => GuestNetwork {
            hosts: vec![(user_network::GUEST.into(), vec![parts.hostname.clone()])],
            nameservers: vec![user_network::NAMESERVER.into()],
            private,
        },
    };
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
        private_network,
        gdb_socket: parts.gdb_socket,
    };
    check_slots(&machine)?;
    let boot_config = BootConfig {
        version: BOOT_CONFIG_VERSION,
        hostname: parts.hostname,
        root: Root { device: disk_device(0), fstype: "ext4".into(), read_only: parts.read_only },
        mounts,
        network: Some(guest_network),
        command: parts.command,
        stdio: parts.stdio,
        stop_signal: parts.stop_signal,
        trace: parts.trace,
    };
    Ok(Plan { machine, boot_config })
}

/// Where a mount is in the guest.
fn target(mount: &Mount) -> &str {
    match mount {
        Mount::Share { target, .. } | Mount::Tmpfs { target, .. } | Mount::Volume { target, .. } => target,
    }
}

fn check_slots(machine: &Machine) -> Result<(), String> {
    let taken = machine.virtio_slots();
    if taken <= VIRTIO_SLOTS {
        return Ok(());
    }
    let volumes = machine.disks.len() - 1 + machine.shares.len();
    Err(format!(
        "the machine has {VIRTIO_SLOTS} device slots and this takes {taken}: drop {} of the {volumes} `-v` and `--share` \
         mounts{}, or share one folder that holds several of them",
        taken - VIRTIO_SLOTS,
        if machine.private_network.is_some() { " or the private network" } else { "" },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        Parts {
            kernel: "/k".into(),
            initramfs: Some("/i".into()),
            root: Disk {
                path: "/d".into(),
                format: DiskFormat::Qcow2,
                read_only: false,
                snapshot: false,
                base: None,
            },
            accelerator: Accelerator::Tcg,
            memory_mib: 256,
            cpus: 1,
            hostname: "web".into(),
            ports: Some(vec![]),
            guard: None,
            private_network: None,
            gdb_socket: None,
            volumes: vec![],
            tmpfs: vec![],
            read_only: false,
            image_volumes: vec![],
            recipe_share: None,
            command: None,
            stdio: Stdio::Console,
            stop_signal: 15,
            trace: false,
            agent_socket: None,
        }
    }

    fn file(name: &str, target: &str) -> Volume {
        let content = VolumeContent::File { folder: "/etc".into(), name: name.into() };
        Volume { content, target: target.into(), read_only: true }
    }

    fn disk(target: &str) -> Volume {
        let path = format!("/volumes{target}");
        Volume { content: VolumeContent::Disk(path.into()), target: target.into(), read_only: false }
    }

    #[test]
    fn files_of_one_folder_are_one_share_for_qemu_and_a_mount_each_for_pid_1() {
        let volumes = vec![file("hostname", "/etc/motd"), file("hosts", "/srv/hosts")];
        let plan = plan(Parts { volumes, ..parts() }).unwrap();
        let share = Share { tag: "share0".into(), path: "/etc".into(), read_only: true };
        assert_eq!(plan.machine.shares, [share]);
        let mount = |name: &str, target: &str| Mount::Share {
            tag: "share0".into(),
            target: target.into(),
            read_only: true,
            file: Some(name.into()),
            required: true,
        };
        assert_eq!(plan.boot_config.mounts, [mount("hostname", "/etc/motd"), mount("hosts", "/srv/hosts")]);
    }

    #[test]
    fn mounts_inside_others_come_after_them() {
        let volumes = vec![disk("/srv/data/deep"), file("hosts", "/srv/data")];
        let tmpfs = vec![TmpfsRequest { target: "/srv".into(), options: String::new() }];
        let plan = plan(Parts { volumes, tmpfs, ..parts() }).unwrap();
        let targets: Vec<&str> = plan.boot_config.mounts.iter().map(target).collect();
        assert_eq!(targets, ["/srv", "/srv/data", "/srv/data/deep"]);
        let Some(Mount::Volume { device, .. }) = plan.boot_config.mounts.last() else { panic!() };
        assert_eq!(
            (device.as_str(), plan.machine.disks[1].path.as_str()),
            ("/dev/vdb", "/volumes/srv/data/deep")
        );
    }

    #[test]
    fn the_images_volumes_stay_writable_on_a_read_only_root() {
        let image_volumes = vec!["/data/".to_owned(), "/var/lib/x".to_owned()];
        let with = |read_only| {
            let parts = Parts {
                volumes: vec![disk("/data")],
                image_volumes: image_volumes.clone(),
                read_only,
                ..parts()
            };
            let config = plan(parts).unwrap().boot_config;
            assert_eq!(config.root.read_only, read_only);
            config.mounts.iter().map(|mount| target(mount).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(with(false), ["/data"]);
        assert_eq!(with(true), ["/data", "/var/lib/x"]);
    }

    #[test]
    fn too_many_mounts_are_counted() {
        let volumes = (0..6).map(|n| disk(&format!("/m{n}"))).collect();
        assert_eq!(
            plan(Parts { volumes, ..parts() }).unwrap_err(),
            "the machine has 8 device slots and this takes 10: drop 2 of the 6 `-v` and `--share` mounts, or share one \
             folder that holds several of them"
        );
    }

    #[test]
    fn a_private_network_is_a_second_interface_with_the_names_of_those_in_it() {
        let network = PrivateNetwork { folder: "/lan".into(), number: 3 };
        let members = vec![Member { number: 2, machine: "db".into(), lock: "/db/lock".into() }];
        let plan = plan(Parts { private_network: Some((network.clone(), members)), ..parts() }).unwrap();
        assert_eq!((plan.machine.virtio_slots(), plan.machine.private_network), (5, Some(network)));
        let private = plan.boot_config.network.unwrap().private.unwrap();
        assert_eq!((private.mac.as_str(), private.hosts.as_str()), ("02:42:0a:00:03:03", "10.0.3.2\tdb\n"));
        assert_eq!(private.address.to_string(), "10.0.3.3");
    }

    #[test]
    fn without_a_network_the_kernel_configures_none() {
        let plan = plan(Parts { ports: None, ..parts() }).unwrap();
        assert_eq!(plan.machine.kernel_arguments, [""; 0]);
        let network = plan.boot_config.network.unwrap();
        assert!(network.hosts.is_empty() && network.nameservers.is_empty());
    }
}
