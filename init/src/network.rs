//! What of the network is left to user space: the loopback interface, the files that resolve names, and the kernel
//! settings that docker gives a container. The kernel itself has configured `eth0` (`ip=` on its command line).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use init::boot_config::Network;
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};

use crate::log;
use crate::mounts::mount_type;
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
    let exchange = || -> rustix::io::Result<i32> {
        // Protocol 0 of this family is `NETLINK_ROUTE`.
        let kernel = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
        send(&kernel, &interface_up(LOOPBACK), SendFlags::empty())?;
        let mut answer = [0; 256];
        let (count, _) = recv(&kernel, &mut answer, RecvFlags::empty())?;
        Ok(netlink_error(&answer[..count.min(answer.len())]).unwrap_or(0))
    };
    match exchange().context("cannot bring up the loopback interface")? {
        0 => Ok(()),
        code => {
            Err(std::io::Error::from_raw_os_error(-code)).context("cannot bring up the loopback interface")
        }
    }
}

/// The loopback's index, which is 1 in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: i32 = 1;

/// An `RTM_NEWLINK` request that sets `IFF_UP` (rtnetlink(7)): `struct nlmsghdr`, then `struct ifinfomsg`.
fn interface_up(index: i32) -> Vec<u8> {
    const LENGTH: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_AND_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_AND_ACK.to_ne_bytes());
    // Sequence number and sender.
    message.extend([0; 8]);
    // Address family, padding and device type: any.
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message
}

/// The error number, negative or 0, in an `NLMSG_ERROR` answer.
fn netlink_error(answer: &[u8]) -> Option<i32> {
    const NLMSG_ERROR: u16 = 2;
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(code)
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
    text
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
        };
        assert!(hosts(&network).starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost "));
        assert!(hosts(&network).ends_with("\n10.0.2.15\tweb web.local\n"));
        assert_eq!(resolv_conf(&network), "nameserver 10.0.2.3\nnameserver 1.1.1.1\n");
    }

    #[test]
    fn netlink_messages_have_the_kernels_layout() {
        let request = interface_up(LOOPBACK);
        assert_eq!(request.len(), 32);
        assert_eq!(request[..8], [32, 0, 0, 0, 16, 0, 5, 0]);
        assert_eq!(request[20..], [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);

        let mut answer = vec![36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        answer.extend((-1_i32).to_ne_bytes());
        assert_eq!(netlink_error(&answer), Some(-1));
        assert_eq!(netlink_error(&answer[..18]), None);
    }
}
