//! Ports of this host: whether one is free, who has it, and a free one.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use anyhow::Context as _;

use crate::error::Hint as _;
use crate::vm::machine::{PortProtocol, PublishedPort};

/// Gives every port 0 a free port of the host, and makes sure that the others are free.
///
/// Errors name the port that is taken, and by whom where that can be told.
pub fn settle(ports: &[PublishedPort]) -> anyhow::Result<Vec<PublishedPort>> {
    // All stay bound until all are settled, so that no two get the same.
    let mut held = Vec::new();
    let mut settled = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let is_same = |earlier: &PublishedPort| {
            port.host != 0
                && (earlier.host, earlier.protocol, earlier.address)
                    == (port.host, port.protocol, port.address)
        };
        if ports[..index].iter().any(is_same) {
            return Err(crate::error::usage(format!("port {} of this host is published twice", port.host)));
        }
        let address = SocketAddr::new(port.address, port.host);
        match Held::bind(address, port.protocol) {
            Ok(listener) => {
                let host = listener.port().context("failed to pick a free port")?;
                settled.push(PublishedPort { host, ..*port });
                held.push(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let owner =
                    owner(port.host, port.protocol).map(|owner| format!(" by {owner}")).unwrap_or_default();
                return Err(anyhow::anyhow!("port {} is in use{owner}", port.host)).hint(format!(
                    "publish another one, such as `-p {}:{}`, or let a free one be picked with `-p 0:{}`",
                    port.host.checked_add(1).unwrap_or(8080),
                    port.guest,
                    port.guest
                ));
            }
            Err(error) => return Err(error).with_context(|| format!("failed to listen at {address}")),
        }
    }
    Ok(settled)
}

enum Held {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Held {
    fn bind(address: SocketAddr, protocol: PortProtocol) -> io::Result<Held> {
        match protocol {
            PortProtocol::Tcp => TcpListener::bind(address).map(Held::Tcp),
            PortProtocol::Udp => UdpSocket::bind(address).map(Held::Udp),
        }
    }

    fn port(&self) -> io::Result<u16> {
        match self {
            Held::Tcp(listener) => listener.local_addr(),
            Held::Udp(socket) => socket.local_addr(),
        }
        .map(|address| address.port())
    }
}

/// True where nothing listens at this TCP port.
pub fn is_free(address: IpAddr, port: u16) -> bool {
    TcpListener::bind((address, port)).is_ok()
}

/// The program that has a port, as `nginx (process 123)`; `None` where it is another user's.
fn owner(port: u16, protocol: PortProtocol) -> Option<String> {
    let inode = ["", "6"].iter().find_map(|family| {
        let table = fs::read_to_string(format!("/proc/net/{protocol}{family}")).ok()?;
        listening_inode(&table, port, protocol)
    })?;
    let wanted = format!("socket:[{inode}]");
    let holds_it = |process: &fs::DirEntry| {
        fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()))
    };
    let is_process = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit();
    let process = fs::read_dir("/proc").ok()?.flatten().filter(is_process).find(holds_it)?;
    let pid = process.file_name().into_string().ok()?;
    let name = fs::read_to_string(process.path().join("comm")).ok()?;
    Some(format!("{} (process {pid})", name.trim()))
}

/// The inode of the socket that is bound to a port, from `/proc/net/tcp` or `/proc/net/udp` (proc_pid_net(5)).
fn listening_inode(table: &str, port: u16, protocol: PortProtocol) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        // 0A is TCP_LISTEN.
        let is_open = protocol == PortProtocol::Udp || *fields.get(3)? == "0A";
        let is_it = is_open && u16::from_str_radix(local_port, 16) == Ok(port);
        if is_it { fields.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap().port();
        let port: PublishedPort = format!("{taken}:80").parse().unwrap();
        let error = settle(&[port]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("port {taken} is in use by ")), "{error}");
        assert!(error.ends_with(&format!("(process {})", std::process::id())), "{error}");
    }

    #[test]
    fn a_port_that_is_published_twice_is_the_users_mistake() {
        let ports = ["8080:80", "8080:81"].map(|port| port.parse().unwrap());
        assert_eq!(settle(&ports).unwrap_err().to_string(), "port 8080 of this host is published twice");
    }

    #[test]
    fn free_ports_are_picked_and_differ() {
        let port: PublishedPort = "0:80".parse().unwrap();
        let settled = settle(&[port, port]).unwrap();
        assert!(settled[0].host != 0 && settled[1].host != 0 && settled[0].host != settled[1].host);
    }
}
