//! Which of a guest's frames may go to QEMU's user network: a list of what is allowed. Pure; time is a parameter.
//!
//! That network (libslirp) opens sockets of this host for what a guest sends, and takes many destinations for the host's
//! own loopback: its whole network but the name server, multicast, and loopback addresses that a guest's root routes to
//! the gateway. The name server can be the loopback's too. QEMU has no option against it. So these pass, and nothing else:
//!
//! - TCP, UDP and ping to addresses outside, this host's other ones included;
//! - DNS to the name server;
//! - what libslirp answers by itself: ARP, DHCP, neighbour discovery, and ping to the gateway and the name server;
//! - answers to those who came in through a published port, which the guest sees coming from the gateway.
//!
//! A connection that is refused is not left waiting, see [`refusal`]; a packet in pieces is judged as a whole, see
//! [`pieces`]: libslirp 4.7 follows pointers that a guest writes into them. So this is true of a guest that may reach the
//! loopback, too, and all its whole packets pass.

mod correspondents;
mod pieces;
mod refusal;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use super::packet::{self, ICMP, ICMP_V6, Packet, TCP, UDP, V4, V6, is_arp, ports};
use correspondents::Correspondents;
use pieces::Pieces;

/// The longest frame that a virtio network device sends.
pub const LONGEST_FRAME: usize = 128 * 1024;

/// libslirp's own addresses (`user_network`, and QEMU's `-netdev user`, `ipv6-prefix`).
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
const NAMESERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);

const DNS: u16 = 53;
/// Where DHCP's servers listen (RFC 2131, RFC 8415), and whom a client of IPv6's asks.
const DHCP: u16 = 67;
const DHCP_V6: u16 = 547;
const DHCP_V6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// ICMP's echo request (RFC 792).
const ECHO: u8 = 8;

/// What decides about frames; it learns from those that arrive.
#[derive(Debug, Default)]
pub struct Guard {
    allows_host: bool,
    correspondents: Correspondents,
    pieces: Pieces,
}

impl Guard {
    /// A guard before the loopback, or one that lets whole packets pass to it.
    pub fn new(allows_host: bool) -> Guard {
        Guard { allows_host, ..Guard::default() }
    }

    /// What of a frame of the guest's may go on: the frame as it is, or what this made of it; `None` for nothing.
    pub fn leaves(&mut self, mut frame: Vec<u8>, now: Instant) -> Option<Vec<u8>> {
        if let Some(Packet::V4(packet)) = Packet::read(&frame)
            && packet.is_fragment()
        {
            frame = self.pieces.put(&frame, &packet)?;
        }
        (self.is_allowed(&frame, now) || refusal::refuse_connection(&mut frame).is_some()).then_some(frame)
    }

    /// Sees a frame on its way to the guest.
    pub fn arrives(&mut self, frame: &[u8], now: Instant) {
        if let Some(Packet::V4(packet)) = Packet::read(frame)
            && (packet.protocol, packet.source, packet.offset) == (UDP, GATEWAY, 0)
            && let Some((from, to)) = ports(packet.payload)
        {
            self.correspondents.heard(from, to, now);
        }
    }

    fn is_allowed(&mut self, frame: &[u8], now: Instant) -> bool {
        match Packet::read(frame) {
            Some(Packet::V4(packet)) if self.allows_host => !packet.is_fragment(),
            Some(_) if self.allows_host => true,
            Some(Packet::Arp(packet)) => is_arp(packet),
            Some(Packet::V4(packet)) => !packet.is_fragment() && self.is_allowed_v4(&packet, now),
            Some(Packet::V6(packet)) => is_allowed_v6(&packet),
            // Other types, VLAN tags among them, and what is no whole packet to us but may be one to others.
            None => false,
        }
    }

    fn is_allowed_v4(&mut self, packet: &V4<'_>, now: Instant) -> bool {
        match (packet.destination, packet.protocol, ports(packet.payload)) {
            (to, ICMP | TCP | UDP, _) if is_outside(to) => true,
            // They are of no use within one network, and one header less to read alike.
            _ if packet.has_options => false,
            (GATEWAY | Ipv4Addr::BROADCAST, UDP, Some((_, DHCP))) => true,
            (GATEWAY, UDP, Some((from, to))) => self.correspondents.knows(to, from, now),
            (GATEWAY, TCP, _) => packet::tcp_flags(packet.payload).is_some_and(|flags| !may_begin(flags)),
            (NAMESERVER, TCP | UDP, Some((_, DNS))) => true,
            (GATEWAY | NAMESERVER, ICMP, _) => packet.payload.first() == Some(&ECHO),
            _ => false,
        }
    }
}

/// Whether a segment could lead to a new connection on the host. All segments of one that is there have ACK, but for
/// some resets.
fn may_begin(tcp_flags: u8) -> bool {
    use packet::{ACK, RST, SYN};
    tcp_flags & ACK == 0 && tcp_flags & (RST | SYN) != RST
}

fn is_allowed_v6(packet: &V6<'_>) -> bool {
    let to = packet.destination;
    match (packet.protocol, ports(packet.payload)) {
        (TCP | UDP, Some(_)) if is_outside_v6(to) => true,
        (TCP | UDP, Some((_, DNS))) => to == NAMESERVER_V6,
        (UDP, Some((_, DHCP_V6))) => [GATEWAY_V6, DHCP_V6_SERVERS].contains(&to),
        // libslirp answers or ignores it; it carries none outside.
        (ICMP_V6, _) => {
            to.is_unicast_link_local()
                || to.segments()[0] == 0xff02
                || to.segments()[..4] == [0xfec0, 0, 0, 0]
        }
        _ => false,
    }
}

/// Addresses of single hosts outside libslirp's network and this host's loopback.
fn is_outside(to: Ipv4Addr) -> bool {
    let [first, second, third, _] = to.octets();
    // 0 is this host to Linux, 224 and above are multicast, reserved and broadcast.
    (1..224).contains(&first) && first != 127 && [first, second, third] != [10, 0, 2]
}

/// The same for IPv6: global addresses, unique local ones, and the well-known prefix for IPv4 addresses (RFC 6052), which
/// name servers of networks without IPv4 make.
fn is_outside_v6(to: Ipv6Addr) -> bool {
    let segments = to.segments();
    match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_outside(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        [first, ..] => first & 0xe000 == 0x2000 || first & 0xfe00 == 0xfc00,
    }
}

#[cfg(test)]
pub(super) mod frames;
#[cfg(test)]
mod tests;
