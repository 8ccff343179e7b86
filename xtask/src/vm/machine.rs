//! What to run: a microvm machine as data. [`super::qemu`] turns it into words for QEMU.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

/// Slots for virtio-mmio devices on a microvm machine without ACPI (QEMU's `docs/system/i386/microvm.rst`).
pub const VIRTIO_SLOTS: usize = 8;

/// The least memory that a guest boots with, in MiB: 40 was seen to work and 32 not, with the lean kernel.
pub const LEAST_MEMORY_MIB: u32 = 48;

/// A machine, ready to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel image: `vmlinux` (PVH) or `bzImage`.
    pub kernel: Utf8PathBuf,
    /// Initramfs with PID 1 and its settings; without one the kernel mounts the first disk and runs its `/sbin/init`.
    pub initramfs: Option<Utf8PathBuf>,
    /// Further words for the kernel command line.
    pub kernel_arguments: Vec<String>,
    /// How instructions are run.
    pub accelerator: Accelerator,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// What the connection with the agent is called; `None` leaves the agent's port out.
    pub agent_socket: Option<Utf8PathBuf>,
    /// Disks in order: `/dev/vda`, `/dev/vdb`, …
    pub disks: Vec<Disk>,
    /// Host folders over virtio-9p.
    pub shares: Vec<Share>,
    /// The way outside.
    pub network: Network,
    /// The network of this and other machines, on a second interface.
    pub private_network: Option<PrivateNetwork>,
    /// QEMU waits for a debugger at this socket.
    pub gdb_socket: Option<Utf8PathBuf>,
}

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's virtualisation.
    Kvm,
    /// QEMU's translation of instructions; works anywhere.
    Tcg,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// File on the host.
    pub path: Utf8PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
    /// The guest may not write.
    pub read_only: bool,
    /// Writes go to a temporary file that is thrown away.
    pub snapshot: bool,
    /// The file that this one lies on, whatever its header says; `None` where it stands alone.
    pub base: Option<Base>,
}

/// A file that an overlay lies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// File on the host.
    pub path: Utf8PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
}

/// Format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// One host folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// What the guest mounts it by.
    pub tag: String,
    /// Folder on the host.
    pub path: Utf8PathBuf,
    /// The guest may not write.
    pub read_only: bool,
}

/// What the guest is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Nothing but its own loopback interface.
    None,
    /// QEMU's user networking.
    User {
        /// Ports of the host that lead into the guest.
        ports: Vec<PublishedPort>,
        /// Where the guest's frames pass on their way out; `None` for a command line without a supervisor.
        guard: Option<GuardSockets>,
    },
}

/// The sockets that a guest's frames pass through ([`super::net::guard`]). QEMU inherits its ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardSockets {
    /// A folder of the machine's own.
    pub folder: Utf8PathBuf,
    /// Frames to the guest pass as well.
    pub with_arriving: bool,
    /// The guest may reach this host's loopback.
    pub allows_host: bool,
}

impl GuardSockets {
    /// Out of QEMU, and back into it: what the guest sends.
    pub fn leaving(&self) -> [Utf8PathBuf; 2] {
        ["leave-out", "leave-back"].map(|name| self.folder.join(name))
    }

    /// The same for what it is sent.
    pub fn arriving(&self) -> [Utf8PathBuf; 2] {
        ["arrive-out", "arrive-back"].map(|name| self.folder.join(name))
    }
}

/// A machine's place in a private network: 10.0.3.0/24 in each, since they never meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateNetwork {
    /// The network's folder, with a socket for each member and the list of their names.
    pub folder: Utf8PathBuf,
    /// The last byte of the machine's addresses.
    pub number: u8,
}

impl PrivateNetwork {
    /// Bits of the network's address.
    pub const PREFIX_LENGTH: u8 = 24;

    /// A member's address.
    pub fn address_of(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 3, number)
    }

    /// A member's hardware address, from its IPv4 address as docker makes them.
    pub fn mac_of(number: u8) -> [u8; 6] {
        let [a, b, c, d] = PrivateNetwork::address_of(number).octets();
        [0x02, 0x42, a, b, c, d]
    }

    /// The inverse of [`PrivateNetwork::mac_of`].
    pub fn number_of(mac: [u8; 6]) -> Option<u8> {
        (PrivateNetwork::mac_of(mac[5]) == mac).then_some(mac[5])
    }

    /// The machine's hardware address as QEMU and Linux write it.
    pub fn mac(&self) -> String {
        PrivateNetwork::mac_of(self.number).map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address on the host.
    pub address: IpAddr,
    /// Port on the host; 0 until one is picked.
    pub host: u16,
    /// Port in the guest.
    pub guest: u16,
    /// Transport.
    pub protocol: PortProtocol,
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl DiskFormat {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        })
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PortProtocol::Tcp => "tcp",
            PortProtocol::Udp => "udp",
        })
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}->{}/{}", self.address, self.host, self.guest, self.protocol)
    }
}

/// docker's `-p`: `[[IP:]HOST:]GUEST[/tcp|udp]`. Published on 127.0.0.1 unless an address is named.
impl FromStr for PublishedPort {
    type Err = String;

    fn from_str(text: &str) -> Result<PublishedPort, String> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, PortProtocol::Tcp),
            Some((ports, "tcp")) => (ports, PortProtocol::Tcp),
            Some((ports, "udp")) => (ports, PortProtocol::Udp),
            Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp")),
        };
        let (rest, guest) = ports.rsplit_once(':').map_or((None, ports), |(rest, guest)| (Some(rest), guest));
        let (address, host) = match rest.map(|rest| rest.rsplit_once(':').ok_or(rest)) {
            None => (None, ""),
            Some(Err(host)) => (None, host),
            Some(Ok((address, host))) => (Some(address.trim_matches(['[', ']'])), host),
        };
        let guest = parse_port(guest)?;
        if guest == 0 {
            return Err("the guest's port must be 1 to 65535".into());
        }
        Ok(PublishedPort {
            address: match address {
                None => IpAddr::V4(Ipv4Addr::LOCALHOST),
                Some(address) => match address.parse() {
                    Ok(IpAddr::V6(_)) => {
                        return Err(format!("`{address}`: QEMU publishes on IPv4 addresses only"));
                    }
                    Ok(address) => address,
                    Err(_) => return Err(format!("`{address}` is not an IP address")),
                },
            },
            host: if host.is_empty() { 0 } else { parse_port(host)? },
            guest,
            protocol,
        })
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| match text.parse::<u128>() {
        Ok(_) => format!("port {text} is out of range, 0 to 65535"),
        Err(_) => format!("`{text}` is not a port number"),
    })
}

/// docker's `-m`: a number of bytes with an optional unit `b`, `k`, `m` or `g`; the result is in MiB.
pub fn parse_memory_mib(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let trimmed = lower.trim_end_matches("ib").trim_end_matches('b');
    let (digits, unit) = match trimmed.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => trimmed.split_at(at),
        None => (trimmed, ""),
    };
    let bytes_per_unit: u64 = match unit {
        "" | "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return Err(format!("`{text}` is not a size; write 256M or 1G")),
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(bytes_per_unit))
        .ok_or_else(|| format!("`{text}` is not a size; write 256M or 1G"))?;
    let mib = bytes >> 20;
    if mib < u64::from(LEAST_MEMORY_MIB) {
        return Err(format!("{text} is less than a guest boots with; give at least {LEAST_MEMORY_MIB}M"));
    }
    u32::try_from(mib).map_err(|_| format!("`{text}` is more than any host has"))
}

impl Machine {
    /// How many virtio-mmio slots the machine takes: one for each device, all serial ports share one.
    pub fn virtio_slots(&self) -> usize {
        let serial_and_rng = 2;
        let network = usize::from(self.network != Network::None);
        let private_network = usize::from(self.private_network.is_some());
        serial_and_rng + network + private_network + self.disks.len() + self.shares.len()
    }
}

/// What the guest mounts the share with this index by.
pub fn share_tag(index: usize) -> String {
    format!("share{index}")
}

/// The guest's name of the disk with this index: `/dev/vda` is 0.
pub fn disk_device(index: usize) -> String {
    // VIRTIO_SLOTS is far below the 26 letters.
    format!("/dev/vd{}", char::from(b'a' + index as u8))
}

/// The recipe's name for its one share.
pub const RECIPE_SHARE_TAG: &str = "myMountTag";

/// QEMU's user network is fixed: guest 10.0.2.15/24, gateway 10.0.2.2, DNS 10.0.2.3 (QEMU's `-netdev user`).
pub mod user_network {
    /// The guest's own address.
    pub const GUEST: &str = "10.0.2.15";
    /// The host, seen from the guest.
    pub const GATEWAY: &str = "10.0.2.2";
    /// The name server.
    pub const NAMESERVER: &str = "10.0.2.3";
    /// The network mask.
    pub const NETMASK: &str = "255.255.255.0";
}

/// Kernel command line words that configure the first interface without a DHCP client
/// (`Documentation/admin-guide/nfs/nfsroot.rst`).
pub fn static_address(hostname: &str) -> String {
    use user_network::{GATEWAY, GUEST, NAMESERVER, NETMASK};
    format!("ip={GUEST}::{GATEWAY}:{NETMASK}:{hostname}:eth0:off:{NAMESERVER}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> Result<String, String> {
        text.parse::<PublishedPort>().map(|port| port.to_string())
    }

    #[test]
    fn ports_are_written_as_for_docker() {
        assert_eq!(port("8080:80").unwrap(), "127.0.0.1:8080->80/tcp");
        assert_eq!(port("80").unwrap(), "127.0.0.1:0->80/tcp");
        assert_eq!(port("0:80").unwrap(), "127.0.0.1:0->80/tcp");
        assert_eq!(port("0.0.0.0:53:53/udp").unwrap(), "0.0.0.0:53->53/udp");
        assert_eq!(port("127.0.0.1::80").unwrap(), "127.0.0.1:0->80/tcp");
    }

    #[test]
    fn ports_that_are_none_are_refused_by_name() {
        assert_eq!(port("70000:80").unwrap_err(), "port 70000 is out of range, 0 to 65535");
        assert_eq!(port("8080:0").unwrap_err(), "the guest's port must be 1 to 65535");
        assert_eq!(port("http:80").unwrap_err(), "`http` is not a port number");
        assert_eq!(port("8080:80/sctp").unwrap_err(), "`sctp` is neither tcp nor udp");
        assert_eq!(port("localhost:8080:80").unwrap_err(), "`localhost` is not an IP address");
        assert_eq!(port("[::1]:8080:80").unwrap_err(), "`::1`: QEMU publishes on IPv4 addresses only");
        assert_eq!(port("").unwrap_err(), "`` is not a port number");
    }

    #[test]
    fn memory_is_written_as_for_docker() {
        assert_eq!(parse_memory_mib("256M"), Ok(256));
        assert_eq!(parse_memory_mib("256m"), Ok(256));
        assert_eq!(parse_memory_mib("1g"), Ok(1024));
        assert_eq!(parse_memory_mib("1GiB"), Ok(1024));
        assert_eq!(parse_memory_mib("131072k"), Ok(128));
        assert_eq!(parse_memory_mib("268435456"), Ok(256));
        assert_eq!(
            parse_memory_mib("16M").unwrap_err(),
            "16M is less than a guest boots with; give at least 48M"
        );
        assert_eq!(parse_memory_mib("lots").unwrap_err(), "`lots` is not a size; write 256M or 1G");
        assert_eq!(parse_memory_mib("-1").unwrap_err(), "`-1` is not a size; write 256M or 1G");
    }
}
