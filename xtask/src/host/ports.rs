//! Ports of this host: whether one is free, who has it, a free one, and promises of them.
//!
//! A port is seen to be free long before QEMU binds it. Until then it is promised: by a name that is bound in the
//! kernel's abstract namespace (unix(7)), which is this host's as ports are, and goes with the process. So two machines
//! never count on one port. Another program may still take it: [`lost`] reads that off QEMU's complaint.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

use crate::error::usage;
use crate::vm::machine::{PortProtocol, PublishedPort};

/// How long another machine may take until it has a port that it was promised, and this one wants.
const PATIENCE: Duration = Duration::from_secs(30);
/// Free ports that were promised to others before one is had that was not.
const MOST_PICKS: u32 = 100;

/// Ports that no other machine is promised for as long as this lives.
#[derive(Debug, Default)]
pub struct Promises(HashMap<(PortProtocol, u16), UnixListener>);

impl Promises {
    /// Gives every port 0 a free port of the host, and makes sure that the others are free.
    ///
    /// Errors name the port that is taken, and by whom where that can be told.
    pub fn settle(&mut self, ports: &[PublishedPort]) -> anyhow::Result<Vec<PublishedPort>> {
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
                return Err(usage(format!("port {} of this host is published twice", port.host)));
            }
            let (host, socket) = self.hold(port)?;
            settled.push(PublishedPort { host, ..*port });
            held.push(socket);
        }
        Ok(settled)
    }

    /// Takes a port if that can be done without a wait.
    pub fn take(&mut self, port: &PublishedPort) -> bool {
        let is_taken =
            self.promise(port.protocol, port.host).is_ok_and(|made| made) && Held::bind(port).is_ok();
        if !is_taken {
            self.0.remove(&(port.protocol, port.host));
        }
        is_taken
    }

    /// A port's number, and a socket that keeps it from others while more are settled.
    fn hold(&mut self, port: &PublishedPort) -> anyhow::Result<(u16, Held)> {
        let listening = || format!("failed to listen at {}", SocketAddr::new(port.address, port.host));
        if port.host == 0 {
            for _ in 0..MOST_PICKS {
                let socket = Held::bind(port).with_context(listening)?;
                let host = socket.port().context("failed to pick a free port")?;
                if self.promise(port.protocol, host).with_context(listening)? {
                    return Ok((host, socket));
                }
            }
            bail!("failed to pick a free port: {MOST_PICKS} were promised to other machines");
        }
        let deadline = Instant::now() + PATIENCE;
        // The promise comes first: what is bound here for a moment is not to be in the way of another machine's QEMU.
        while !self.promise(port.protocol, port.host).with_context(listening)? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(taken(port));
            }
            // Its machine has the port then, or has failed.
            wait_for_promise(port.protocol, port.host, left);
        }
        Held::bind(port).map(|socket| (port.host, socket)).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => taken(port),
            _ => anyhow::Error::new(error).context(listening()),
        })
    }

    /// False where somebody else has the promise.
    fn promise(&mut self, protocol: PortProtocol, port: u16) -> io::Result<bool> {
        if self.0.contains_key(&(protocol, port)) {
            return Ok(true);
        }
        match UnixListener::bind_addr(&promise_name(protocol, port)?) {
            Ok(promise) => {
                self.0.insert((protocol, port), promise);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn promise_name(protocol: PortProtocol, port: u16) -> io::Result<unix::SocketAddr> {
    unix::SocketAddr::from_abstract_name(format!("microvm-workbench/{protocol}/{port}"))
}

/// Waits until a promise is over: whoever has it never accepts, and the connection ends with it.
fn wait_for_promise(protocol: PortProtocol, port: u16, limit: Duration) {
    let wait = || -> io::Result<()> {
        let mut stream = UnixStream::connect_addr(&promise_name(protocol, port)?)?;
        stream.set_read_timeout(Some(limit))?;
        stream.read(&mut [0]).map(drop)
    };
    // However it ends: the port is looked at again.
    let _ = wait();
}

/// The error for a port that somebody else has.
pub fn taken(port: &PublishedPort) -> anyhow::Error {
    let owner = owner(port.host, port.protocol).map(|owner| format!(" by {owner}")).unwrap_or_default();
    crate::error::hinted(
        anyhow!("port {} is in use{owner}", port.host),
        format!(
            "publish another one, such as `-p {}:{}`, or let a free one be picked with `-p 0:{}`",
            port.host.checked_add(1).unwrap_or(8080),
            port.guest,
            port.guest
        ),
    )
}

/// The one of these ports that QEMU could not have, from its complaint (`net_slirp_hostfwd` in net/slirp.c).
pub fn lost<'a>(ports: &'a [PublishedPort], complaint: &str) -> Option<&'a PublishedPort> {
    let (_, rule) = complaint.split_once("Could not set up host forwarding rule '")?;
    ports.iter().find(|port| {
        let own = format!("{}:{}:{}-", port.protocol, port.address, port.host);
        rule.starts_with(&own)
    })
}

/// True where a process has all these ports; `None` where it has ended.
pub fn are_held_by(process: u32, ports: &[PublishedPort]) -> Option<bool> {
    // One that has ended and waits for its parent to take notice has no open files.
    let files: Vec<_> = fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten().collect();
    if files.is_empty() {
        return None;
    }
    let open: Vec<_> = files.iter().filter_map(|file| fs::read_link(file.path()).ok()).collect();
    let is_open = |inode: u64| open.iter().any(|link| link.as_os_str() == socket_link(inode).as_str());
    let is_held = |port: &PublishedPort| inodes(port.host, port.protocol).into_iter().any(is_open);
    Some(ports.iter().all(is_held))
}

enum Held {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Held {
    fn bind(port: &PublishedPort) -> io::Result<Held> {
        let address = SocketAddr::new(port.address, port.host);
        match port.protocol {
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

/// The program that has a port, as `nginx (process 123)`; `None` where it is another user's.
fn owner(port: u16, protocol: PortProtocol) -> Option<String> {
    let wanted: Vec<String> = inodes(port, protocol).into_iter().map(socket_link).collect();
    let holds_it = |process: &fs::DirEntry| {
        fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| wanted.iter().any(|link| target.as_os_str() == link.as_str()))
    };
    let is_process = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit();
    let process = fs::read_dir("/proc").ok()?.flatten().filter(is_process).find(holds_it)?;
    let pid = process.file_name().into_string().ok()?;
    let name = fs::read_to_string(process.path().join("comm")).ok()?;
    Some(format!("{} (process {pid})", name.trim()))
}

/// What `/proc/PID/fd` shows of a socket.
fn socket_link(inode: u64) -> String {
    format!("socket:[{inode}]")
}

/// The sockets that are bound to a port, at whichever address.
fn inodes(port: u16, protocol: PortProtocol) -> Vec<u64> {
    let tables = ["", "6"].map(|family| fs::read_to_string(format!("/proc/net/{protocol}{family}")));
    tables.iter().flatten().flat_map(|table| bound_inodes(table, port, protocol)).collect()
}

/// The inodes of the sockets that are bound to a port, from `/proc/net/tcp` or `/proc/net/udp` (proc_pid_net(5)).
fn bound_inodes(table: &str, port: u16, protocol: PortProtocol) -> Vec<u64> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        // 0A is TCP_LISTEN.
        let is_open = protocol == PortProtocol::Udp || *fields.get(3)? == "0A";
        let is_it = is_open && u16::from_str_radix(local_port, 16) == Ok(port);
        if is_it { fields.get(9)?.parse().ok() } else { None }
    };
    table.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap().port();
        let port: PublishedPort = format!("{taken}:80").parse().unwrap();
        let error = Promises::default().settle(&[port]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("port {taken} is in use by ")), "{error}");
        assert!(error.ends_with(&format!("(process {})", std::process::id())), "{error}");
    }

    #[test]
    fn a_port_that_is_published_twice_is_the_users_mistake() {
        let ports = ["8080:80", "8080:81"].map(|port| port.parse().unwrap());
        assert_eq!(
            Promises::default().settle(&ports).unwrap_err().to_string(),
            "port 8080 of this host is published twice"
        );
    }

    #[test]
    fn free_ports_are_picked_and_differ() {
        let port: PublishedPort = "0:80".parse().unwrap();
        let settled = Promises::default().settle(&[port, port]).unwrap();
        assert!(settled[0].host != 0 && settled[1].host != 0 && settled[0].host != settled[1].host);
    }

    #[test]
    fn a_port_is_promised_once_until_the_promise_is_over() {
        for protocol in ["", "/udp"] {
            let free: PublishedPort = format!("0:80{protocol}").parse().unwrap();
            let mut first = Promises::default();
            let port = first.settle(&[free]).unwrap()[0];
            // Again for oneself, and not for another.
            assert_eq!(first.settle(&[port]).unwrap(), [port]);
            let mut second = Promises::default();
            assert!(!second.take(&port));
            let waiting = std::thread::spawn(move || second.settle(&[port]).map(|settled| settled[0].host));
            // It is over, and nobody has the port.
            drop(first);
            assert_eq!(waiting.join().unwrap().unwrap(), port.host);
        }
    }

    #[test]
    fn many_that_pick_at_once_pick_differently() {
        let free: PublishedPort = "0:80".parse().unwrap();
        let mut all: Vec<Promises> = (0..50).map(|_| Promises::default()).collect();
        let picked: std::collections::HashSet<u16> =
            all.iter_mut().map(|promises| promises.settle(&[free]).unwrap()[0].host).collect();
        assert_eq!(picked.len(), 50);
    }

    #[test]
    fn a_port_that_was_lost_is_read_off_qemus_complaint() {
        let ports = ["8080:80", "53:53/udp"].map(|port| port.parse().unwrap());
        let complaint =
            "QEMU failed: -netdev user,id=net0: Could not set up host forwarding rule 'udp:127.0.0.1:53-:53'";
        assert_eq!(lost(&ports, complaint), Some(&ports[1]));
        assert_eq!(lost(&ports[..1], complaint), None);
        assert_eq!(lost(&ports, "QEMU failed: no kernel"), None);
    }

    #[test]
    fn a_process_is_seen_to_hold_its_ports() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp: PublishedPort = format!("{}:80", listener.local_addr().unwrap().port()).parse().unwrap();
        let udp: PublishedPort = format!("{}:80/udp", socket.local_addr().unwrap().port()).parse().unwrap();
        assert_eq!(are_held_by(std::process::id(), &[tcp, udp]), Some(true));
        drop(socket);
        assert_eq!(are_held_by(std::process::id(), &[tcp, udp]), Some(false));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while are_held_by(child.id(), &[tcp]).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
