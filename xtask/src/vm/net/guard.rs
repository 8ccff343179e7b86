//! Which of a guest's frames may go to QEMU's user network. Pure.
//!
//! That network (libslirp) takes some destinations for this host's own loopback: its gateway, broadcasts, and loopback
//! addresses that a guest's root routes to the gateway. QEMU has no option against it. Here such frames are refused,
//! but for what the gateway itself answers (DHCP, ping) and for answers to who came in through a published port, which
//! the guest sees coming from the gateway.
//!
//! A connection that is refused is not left waiting: its first segment goes on as one that begins nothing, and which
//! libslirp, knowing of no such connection, answers with a reset.
//!
//! Everything else passes: the gateway's name server, and addresses outside, this host's other ones included.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest frame that a virtio network device sends.
pub const LONGEST_FRAME: usize = 128 * 1024;

/// The gateway, which stands for this host (`user_network::GATEWAY`), and its name server.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const NAMESERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;

/// More senders than this at one time are not answered.
const MOST_CORRESPONDENTS: usize = 4096;

/// What decides about frames; it learns from those that arrive.
#[derive(Debug, Default)]
pub struct Guard {
    /// Who sent datagrams through published ports: the gateway's port and the guest's.
    correspondents: HashSet<(u16, u16)>,
}

impl Guard {
    /// Whether a frame of the guest's may go on, as it is or as what this made of it.
    pub fn leaves(&self, frame: &mut [u8]) -> bool {
        self.may_leave(frame) || refuse_connection(frame).is_some()
    }

    fn may_leave(&self, frame: &[u8]) -> bool {
        match ethernet(frame) {
            Some((0x0800, packet)) => self.may_leave_v4(packet),
            Some((0x86dd, packet)) => may_leave_v6(packet),
            // ARP, and what nobody answers.
            _ => true,
        }
    }

    /// Sees a frame on its way to the guest.
    pub fn arrives(&mut self, frame: &[u8]) {
        let Some((0x0800, packet)) = ethernet(frame) else { return };
        let Some(packet) = V4::read(packet) else { return };
        if let (UDP, GATEWAY, Some((from, to))) = (packet.protocol, packet.source, packet.ports())
            && self.correspondents.len() < MOST_CORRESPONDENTS
        {
            self.correspondents.insert((from, to));
        }
    }

    fn may_leave_v4(&self, packet: &[u8]) -> bool {
        // What is no packet to us may be one to others.
        let Some(packet) = V4::read(packet) else { return false };
        let to = packet.destination;
        let [first, second, third, _] = to.octets();
        let is_gateways = [first, second, third] == [10, 0, 2];
        if to == NAMESERVER || !(is_gateways || first == 0 || first == 127 || to.is_broadcast()) {
            return true;
        }
        // The part of a packet that this looks at could come in the second fragment.
        if packet.fragmented {
            return false;
        }
        match (packet.protocol, packet.ports()) {
            (ICMP, _) => to == GATEWAY,
            // DHCP.
            (UDP, Some((_, 67))) => true,
            (UDP, Some((from, port))) => to == GATEWAY && self.correspondents.contains(&(port, from)),
            // Only a connection that the guest begins leads to a new one on the host.
            (TCP, Some(_)) => is_gateways && packet.tcp_flags().is_some_and(|flags| !begins(flags)),
            _ => false,
        }
    }
}

/// A frame's type and what it carries.
fn ethernet(frame: &[u8]) -> Option<(u16, &[u8])> {
    let (header, packet) = frame.split_at_checked(14)?;
    Some((u16::from_be_bytes([header[12], header[13]]), packet))
}

/// Flags of TCP (RFC 9293).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// SYN without ACK.
fn begins(tcp_flags: u8) -> bool {
    tcp_flags & (SYN | ACK) == SYN
}

/// Turns the beginning of a connection to the gateway into an end, of the number that is next after it: what is reset
/// then is what the guest has just begun. `None` for any other frame, which is left as it is.
fn refuse_connection(frame: &mut [u8]) -> Option<()> {
    let (0x0800, packet) = ethernet(frame)? else { return None };
    let V4 { protocol: TCP, destination: GATEWAY, fragmented: false, payload, .. } = V4::read(packet)? else {
        return None;
    };
    let segment = frame.len() - payload.len();
    let header: &mut [u8; 20] = frame[segment..].first_chunk_mut()?;
    if !begins(header[13]) {
        return None;
    }
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]).wrapping_add(1);
    let changed = *header;
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[13] = FIN;
    // The checksum follows what has changed (RFC 1624).
    let words = |bytes: &[u8; 20]| {
        bytes[..16].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>()
    };
    let checksum = u16::from_be_bytes([header[16], header[17]]);
    let mut sum = u32::from(!checksum) + words(header) + 16 * 0xffff - words(&changed);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    header[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    Some(())
}

/// What counts of an IPv4 packet (RFC 791).
struct V4<'a> {
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    fragmented: bool,
    payload: &'a [u8],
}

impl V4<'_> {
    fn read(packet: &[u8]) -> Option<V4<'_>> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        if length < header.len() {
            return None;
        }
        let more_or_offset = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(V4 {
            protocol: header[9],
            source: address(12),
            destination: address(16),
            fragmented: more_or_offset != 0,
            payload: packet.get(length..)?,
        })
    }

    /// Source and destination.
    fn ports(&self) -> Option<(u16, u16)> {
        let ports: &[u8; 4] = self.payload.first_chunk()?;
        Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
    }

    fn tcp_flags(&self) -> Option<u8> {
        self.payload.get(13).copied()
    }
}

fn may_leave_v6(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<40>() else { return false };
    let Some(to) = header[24..].first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes)) else { return false };
    let [first, second, third, fourth, ..] = to.segments();
    let is_gateways = [first, second, third, fourth] == [0xfec0, 0, 0, 0] && to != NAMESERVER_V6;
    // `::1`, `::`, and IPv4 addresses in IPv6's form.
    let is_special = [first, second, third, fourth] == [0; 4];
    let is_link_local = first & 0xffc0 == 0xfe80;
    !(is_gateways || is_special || is_link_local) || header[6] == ICMP_V6
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 4] = [10, 0, 2, 15];

    fn v4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(from);
        frame.extend(to);
        frame.extend(payload);
        frame
    }

    fn ports(from: u16, to: u16) -> Vec<u8> {
        [from.to_be_bytes(), to.to_be_bytes()].concat()
    }

    fn tcp(to: [u8; 4], flags: u8) -> Vec<u8> {
        let mut segment = ports(40000, 22);
        segment.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        v4(TCP, GUEST, to, &segment)
    }

    const SYN_ACK: u8 = 18;

    /// The sum of a segment with its pseudo header, which is all ones where the checksum is right (RFC 9293).
    fn sum(frame: &[u8]) -> u32 {
        let segment = &frame[34..];
        let pseudo = [&frame[26..34], &[0, TCP], &(segment.len() as u16).to_be_bytes()].concat();
        let words = pseudo.chunks(2).chain(segment.chunks(2));
        let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        (sum >> 16) + (sum & 0xffff)
    }

    #[test]
    fn a_refused_connection_goes_on_as_the_end_of_one() {
        for sequence in [0_u32, 7, 0xffff, 0xffff_ffff, 0x1234_ffff] {
            let mut frame = tcp([10, 0, 2, 2], SYN);
            frame[34 + 4..34 + 8].copy_from_slice(&sequence.to_be_bytes());
            let checksum = !(sum(&frame) as u16);
            frame[34 + 16..34 + 18].copy_from_slice(&checksum.to_be_bytes());
            assert_eq!(sum(&frame), 0xffff);
            assert!(Guard::default().leaves(&mut frame));
            assert_eq!((frame[34 + 13], sum(&frame)), (FIN, 0xffff), "{sequence:x}");
            assert_eq!(frame[34 + 4..34 + 8], sequence.wrapping_add(1).to_be_bytes());
        }
        for mut frame in [tcp([127, 0, 0, 1], SYN), v4(UDP, GUEST, [10, 0, 2, 2], &ports(1, 2))] {
            let before = frame.clone();
            assert!(!Guard::default().leaves(&mut frame));
            assert_eq!(frame, before);
        }
    }

    #[test]
    fn connections_to_what_stands_for_the_host_are_refused_and_others_pass() {
        let guard = Guard::default();
        for host in [[10, 0, 2, 2], [10, 0, 2, 4], [127, 0, 0, 1], [127, 9, 9, 9], [0, 0, 0, 0], [255; 4]] {
            assert!(!guard.may_leave(&tcp(host, SYN)), "{host:?}");
            assert!(!guard.may_leave(&v4(UDP, GUEST, host, &ports(40000, 53))), "{host:?}");
        }
        for outside in [[10, 0, 2, 3], [192, 0, 2, 1], [10, 0, 3, 2]] {
            assert!(guard.may_leave(&tcp(outside, SYN)), "{outside:?}");
            assert!(guard.may_leave(&v4(UDP, GUEST, outside, &ports(40000, 53))), "{outside:?}");
        }
    }

    #[test]
    fn who_came_in_through_a_published_port_is_answered() {
        let mut guard = Guard::default();
        assert!(guard.may_leave(&tcp([10, 0, 2, 2], SYN_ACK)));
        let answer = v4(UDP, GUEST, [10, 0, 2, 2], &ports(53, 50001));
        assert!(!guard.may_leave(&answer));
        guard.arrives(&v4(UDP, [10, 0, 2, 2], GUEST, &ports(50001, 53)));
        assert!(guard.may_leave(&answer));
        assert!(!guard.may_leave(&v4(UDP, GUEST, [10, 0, 2, 2], &ports(53, 50002))));
    }

    #[test]
    fn the_gateway_itself_answers_dhcp_and_ping() {
        let guard = Guard::default();
        assert!(guard.may_leave(&v4(UDP, [0; 4], [255; 4], &ports(68, 67))));
        assert!(guard.may_leave(&v4(ICMP, GUEST, [10, 0, 2, 2], &[8, 0])));
        assert!(!guard.may_leave(&v4(ICMP, GUEST, [127, 0, 0, 1], &[8, 0])));
        let arp = [&[0xff; 12][..], &[0x08, 0x06, 0, 1]].concat();
        assert!(guard.may_leave(&arp));
    }

    #[test]
    fn what_hides_its_ports_is_refused() {
        let guard = Guard::default();
        let mut fragment = tcp([10, 0, 2, 2], SYN_ACK);
        fragment[14 + 6] = 0x20;
        assert!(!guard.may_leave(&fragment));
        let mut options = tcp([10, 0, 2, 2], SYN_ACK);
        options[14] = 0x4f;
        assert!(!guard.may_leave(&options), "its ports are beyond its end");
        assert!(!guard.may_leave(&tcp([10, 0, 2, 2], SYN_ACK)[..40]));
        assert!(!guard.may_leave(&v4(47, GUEST, [10, 0, 2, 2], &[0; 20])));
    }

    proptest::proptest! {
        #[test]
        fn no_frame_is_too_odd(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let mut guard = Guard::default();
            for kind in [[0x08, 0x00], [0x86, 0xdd]] {
                let mut frame = bytes.clone();
                frame.splice(12.min(bytes.len())..14.min(bytes.len()), kind);
                guard.arrives(&frame);
                guard.leaves(&mut frame);
            }
        }

        #[test]
        fn no_way_of_writing_a_connection_to_the_host_passes(
            options in 0..=10_usize,
            other_flags in proptest::num::u8::ANY,
            rest in proptest::collection::vec(proptest::num::u8::ANY, 20..60),
        ) {
            let mut segment = rest;
            segment[13] = (other_flags | SYN) & !ACK;
            let mut frame = v4(TCP, GUEST, [10, 0, 2, 2], &[]);
            frame[14] = 0x45 + options as u8;
            frame.extend(vec![1; options * 4]);
            frame.extend(segment);
            let guard = Guard::default();
            proptest::prop_assert!(!guard.may_leave(&frame));
            proptest::prop_assert!(guard.leaves(&mut frame));
            proptest::prop_assert!(guard.may_leave(&frame), "what goes on begins nothing");
        }
    }

    #[test]
    fn ipv6_reaches_the_host_as_little() {
        let v6 = |next: u8, to: &str| {
            let mut frame = [&[0; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, next, 64]].concat();
            frame.extend([0; 16]);
            frame.extend(to.parse::<Ipv6Addr>().unwrap().octets());
            frame.extend([0; 20]);
            frame
        };
        let guard = Guard::default();
        for host in ["fec0::2", "::1", "::", "::ffff:127.0.0.1", "fe80::2"] {
            assert!(!guard.may_leave(&v6(TCP, host)) && !guard.may_leave(&v6(0, host)), "{host}");
        }
        for passes in
            [v6(TCP, "2001:db8::1"), v6(UDP, "fec0::3"), v6(ICMP_V6, "ff02::2"), v6(UDP, "ff02::1:2")]
        {
            assert!(guard.may_leave(&passes));
        }
    }
}
