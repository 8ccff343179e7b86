//! What counts of a frame, read as libslirp reads it: no header between IPv6's and the transport's, no VLAN tag.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Protocols (IANA's numbers).
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP_V6: u8 = 58;

/// Flags of TCP (RFC 9293).
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// Bytes of Ethernet's header, and of IPv4's without options.
pub(super) const ETHERNET_HEADER: usize = 14;
pub(super) const IPV4_HEADER: usize = 20;

/// What a frame carries.
#[derive(Debug)]
pub(super) enum Packet<'a> {
    /// ARP's bytes.
    Arp(&'a [u8]),
    V4(V4<'a>),
    V6(V6<'a>),
}

impl Packet<'_> {
    /// `None` for what is neither of them, or not whole.
    pub(super) fn read(frame: &[u8]) -> Option<Packet<'_>> {
        let (header, packet) = frame.split_at_checked(ETHERNET_HEADER)?;
        match [header[12], header[13]] {
            [0x08, 0x06] => Some(Packet::Arp(packet)),
            [0x08, 0x00] => V4::read(packet).map(Packet::V4),
            [0x86, 0xdd] => V6::read(packet).map(Packet::V6),
            _ => None,
        }
    }
}

/// A whole ARP packet about IPv4 on Ethernet, a request or a reply (RFC 826). libslirp does not look at its length.
pub(super) fn is_arp(packet: &[u8]) -> bool {
    packet.len() >= 28 && matches!(packet[..8], [0, 1, 0x08, 0x00, 6, 4, 0, 1 | 2])
}

/// An IPv4 packet (RFC 791).
#[derive(Debug)]
pub(super) struct V4<'a> {
    pub(super) protocol: u8,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) has_options: bool,
    /// Where in its datagram it begins, in units of 8 bytes.
    pub(super) offset: u16,
    pub(super) more_fragments: bool,
    pub(super) payload: &'a [u8],
}

impl V4<'_> {
    fn read(packet: &[u8]) -> Option<V4<'_>> {
        let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || length < header.len() {
            return None;
        }
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(V4 {
            protocol: header[9],
            source: address(12),
            destination: address(16),
            has_options: length > header.len(),
            offset: fragment & 0x1fff,
            more_fragments: fragment & 0x2000 != 0,
            payload: packet.get(length..total)?,
        })
    }

    /// Whether it is a piece of a datagram.
    pub(super) fn is_fragment(&self) -> bool {
        self.more_fragments || self.offset > 0
    }
}

/// An IPv6 packet (RFC 8200).
#[derive(Debug)]
pub(super) struct V6<'a> {
    /// The first header's: extensions are protocols like others here, and none that libslirp knows.
    pub(super) protocol: u8,
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
    pub(super) payload: &'a [u8],
}

impl V6<'_> {
    fn read(packet: &[u8]) -> Option<V6<'_>> {
        let (header, rest) = packet.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        Some(V6 {
            protocol: header[6],
            source: Ipv6Addr::from(*header[8..].first_chunk::<16>()?),
            destination: Ipv6Addr::from(*header.last_chunk::<16>()?),
            payload: rest.get(..length)?,
        })
    }
}

/// Source and destination of TCP and UDP alike.
pub(super) fn ports(payload: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = payload.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// The flags of a segment whose header is whole.
pub(super) fn tcp_flags(payload: &[u8]) -> Option<u8> {
    payload.first_chunk::<20>().map(|header| header[13])
}
