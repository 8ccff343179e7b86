//! What of the network is left to user space: the loopback interface, the files that resolve names, and the kernel
//! settings that docker gives a container. The kernel itself has configured `eth0` (`ip=` on its command line).

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use init::boot_config::{Network, PrivateNetwork};
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};

use crate::log;
use crate::mounts::mount_type;
use crate::netlink;
use crate::volumes::{bind_file, on_stage};

/// What a container may do without privileges: ports below 1024, and ping.
const KERNEL_SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Gives the kernel's network settings docker's values. A kernel without one of them is no worse for it.
pub(crate) fn apply_kernel_settings() {
    for (path, value) in KERNEL_SETTINGS {
        if let Err(e) = fs::write(path, value) {
            log::say(format_args!("cannot set `{path}` to `{value}`: {e}"));
        }
    }
}

/// Brings the loopback interface up; the kernel then gives it its addresses.
///
/// # Errors
/// The kernel has no network, or refuses.
pub(crate) fn bring_up_loopback() -> Result<()> {
    ask_kernel(&netlink::interface_up(LOOPBACK)).context("cannot bring up the loopback interface")
}

/// Gives the interface to other machines its address and brings it up.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub(crate) fn bring_up_private(network: &PrivateNetwork) -> Result<()> {
    let PrivateNetwork { mac, address, prefix_length, .. } = network;
    let index = interface(mac).with_context(|| format!("there is no interface with the address {mac}"))?;
    let name = || format!("cannot bring up the interface with the address {mac}");
    ask_kernel(&netlink::add_address(index, *address, *prefix_length)).with_context(name)?;
    ask_kernel(&netlink::interface_up(index)).with_context(name)
}

/// The loopback's index, which is 1 in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// The index of the interface with this hardware address.
fn interface(mac: &str) -> Option<u32> {
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let read = |path: &Path, name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
    let found =
        interfaces.map(|interface| interface.path()).find(|path| read(path, "address").trim() == mac)?;
    read(&found, "ifindex").trim().parse().ok()
}

/// Sends one request over `NETLINK_ROUTE` and takes the answer.
fn ask_kernel(request: &[u8]) -> Result<()> {
    // Protocol 0 of this family is `NETLINK_ROUTE`.
    let kernel = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    send(&kernel, request, SendFlags::empty())?;
    let mut answer = [0; 256];
    let (count, _) = recv(&kernel, &mut answer, RecvFlags::empty())?;
    match netlink::error(&answer[..count.min(answer.len())]).unwrap_or(0) {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(-code).into()),
    }
}

/// Puts `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` in place as docker writes them: bound over the image's,
/// from a tmpfs of their own, so that the image is not changed. What fails is reported.
///
/// # Errors
/// The tmpfs cannot be made.
pub(crate) fn bind_files(hostname: &str, network: &Network) -> Result<()> {
    let files = [
        ("hosts", hosts(network)),
        ("resolv.conf", resolv_conf(network)),
        ("hostname", format!("{hostname}\n")),
    ];
    on_stage(|stage| {
        mount_type("tmpfs", stage, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755")?;
        for (name, contents) in &files {
            let file = stage.join(name);
            let bound = fs::write(&file, contents)
                .with_context(|| format!("cannot write {name}"))
                .and_then(|()| bind_file(&file, &Path::new("/etc").join(name)));
            if let Err(e) = bound {
                log::say(format_args!("{e:#}"));
            }
        }
        Ok(())
    })
}

fn hosts(network: &Network) -> String {
    // docker's own first lines.
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for (address, names) in &network.hosts {
        text += &format!("{address}\t{}\n", names.join(" "));
    }
    match &network.private {
        Some(private) => with_machines(&text, &private.hosts),
        None => text,
    }
}

/// Begins the part of `/etc/hosts` that follows the private network; what stands above is the user's.
const MACHINES: &str = "# machines of the private network, kept up to date\n";

fn with_machines(hosts: &str, lines: &str) -> String {
    let own = hosts.find(MACHINES).map_or(hosts, |at| &hosts[..at]);
    format!("{own}{MACHINES}{lines}")
}

/// Writes the private network's machines into `/etc/hosts`. What fails is reported.
pub(crate) fn update_hosts(lines: &str) {
    const PATH: &str = "/etc/hosts";
    let write = || -> std::io::Result<()> {
        let text = with_machines(&fs::read_to_string(PATH)?, lines);
        // In place, since it is a mount of its own, and never empty for those who read meanwhile.
        let mut file = fs::File::options().write(true).open(PATH)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    };
    if let Err(e) = write() {
        log::say(format_args!("cannot update `{PATH}`: {e}"));
    }
}

fn resolv_conf(network: &Network) -> String {
    network.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_as_docker_writes_them() {
        let network = Network {
            hosts: vec![("10.0.2.15".into(), vec!["web".into(), "web.local".into()])],
            nameservers: vec!["10.0.2.3".into(), "1.1.1.1".into()],
            private: None,
        };
        assert!(hosts(&network).starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost "));
        assert!(hosts(&network).ends_with("\n10.0.2.15\tweb web.local\n"));
        assert_eq!(resolv_conf(&network), "nameserver 10.0.2.3\nnameserver 1.1.1.1\n");
    }

    #[test]
    fn the_private_networks_machines_follow_the_users_own_lines() {
        let first = with_machines("127.0.0.1\tlocalhost\n1.2.3.4\tmine\n", "10.0.3.2\tweb\n");
        let second = with_machines(&first, "10.0.3.3\tdb\n");
        assert_eq!(second, format!("127.0.0.1\tlocalhost\n1.2.3.4\tmine\n{MACHINES}10.0.3.3\tdb\n"));
    }
}
