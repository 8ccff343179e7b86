//! Whether a machine speaks for itself on a private network: what it sends must name it, and no other, as its sender. Pure.
//!
//! A member has one hardware address, one IPv4 address and the link-local IPv6 address that follows from the former. Frames
//! that do not say so, or that could teach others another's address, go nowhere. So a member is no router, no bridge and
//! no proxy for others.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::packet::{ICMP_V6, Packet, TCP, UDP, V6, is_arp};
use crate::vm::machine::PrivateNetwork;

/// IPv6's header of options for every hop (RFC 8200), in front of what a host says of its groups.
const HOP_BY_HOP: u8 = 0;

/// Messages of ICMPv6 (RFC 4861, RFC 2710, RFC 3810).
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ECHO_AND_ERRORS: [u8; 6] = [1, 2, 3, 4, 128, 129];
const GROUPS: [u8; 4] = [130, 131, 132, 143];

/// Whether a frame says that it is from the member with this number.
pub(super) fn speaks_for_itself(frame: &[u8], number: u8) -> bool {
    let mac = PrivateNetwork::mac_of(number);
    let address = PrivateNetwork::address_of(number);
    if frame.get(6..12) != Some(&mac[..]) {
        return false;
    }
    match Packet::read(frame) {
        Some(Packet::Arp(packet)) => {
            // Without an address a machine asks whether one is taken (RFC 5227).
            is_arp(packet)
                && packet[8..14] == mac
                && [address.octets(), [0; 4]].iter().any(|own| packet[14..18] == *own)
        }
        Some(Packet::V4(packet)) => [address, Ipv4Addr::UNSPECIFIED].contains(&packet.source),
        Some(Packet::V6(packet)) => {
            let own = link_local(mac);
            [own, Ipv6Addr::UNSPECIFIED].contains(&packet.source) && is_harmless(&packet, own, mac)
        }
        None => false,
    }
}

/// The address that Linux gives an interface by its hardware address (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Whether it teaches nobody an address but the sender's own.
fn is_harmless(packet: &V6<'_>, own: Ipv6Addr, mac: [u8; 6]) -> bool {
    match (packet.protocol, packet.payload) {
        (TCP | UDP, _) => true,
        (ICMP_V6, [NEIGHBOUR_ADVERTISEMENT, _, _, _, _, _, _, _, rest @ ..]) => {
            rest.starts_with(&own.octets()) && names_own(&rest[16..], mac)
        }
        (ICMP_V6, [NEIGHBOUR_SOLICITATION, _, _, _, _, _, _, _, rest @ ..]) => {
            rest.len() >= 16 && names_own(&rest[16..], mac)
        }
        (ICMP_V6, [ROUTER_SOLICITATION, _, _, _, _, _, _, _, rest @ ..]) => names_own(rest, mac),
        (ICMP_V6, [kind, ..]) => ECHO_AND_ERRORS.contains(kind) || GROUPS.contains(kind),
        // One header of eight bytes, and what follows it.
        (HOP_BY_HOP, [ICMP_V6, 0, _, _, _, _, _, _, kind, ..]) => GROUPS.contains(kind),
        _ => false,
    }
}

/// Whether the hardware addresses among the options of a neighbour's message are this one (RFC 4861, section 4.6).
fn names_own(mut options: &[u8], mac: [u8; 6]) -> bool {
    const SOURCE_ADDRESS: u8 = 1;
    const TARGET_ADDRESS: u8 = 2;
    while let [kind, units, ..] = *options {
        let Some((option, rest)) = options.split_at_checked(usize::from(units) * 8) else { return false };
        if option.is_empty() || matches!(kind, SOURCE_ADDRESS | TARGET_ADDRESS) && option[2..] != mac {
            return false;
        }
        options = rest;
    }
    options.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u8 = 7;
    const OTHER: u8 = 8;

    fn frame(from: [u8; 6], kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&PrivateNetwork::mac_of(OTHER)[..], &from, &kind, packet].concat()
    }

    fn own(kind: [u8; 2], packet: &[u8]) -> bool {
        speaks_for_itself(&frame(PrivateNetwork::mac_of(OWN), kind, packet), OWN)
    }

    fn v4(source: [u8; 4]) -> Vec<u8> {
        let rest = [0, 0, 0, 0, 64, 17, 0, 0];
        [&[0x45, 0, 0, 28][..], &rest, &source, &[10, 0, 3, OTHER], &[0; 8]].concat()
    }

    fn arp(mac: [u8; 6], address: [u8; 4], operation: u8) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &address, &[0; 6], &[10, 0, 3, OTHER]].concat()
    }

    fn v6(source: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let head = [0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 255];
        [&head[..], &source.octets(), &[0xff; 16], payload].concat()
    }

    const IPV4: [u8; 2] = [8, 0];
    const ARP: [u8; 2] = [8, 6];
    const IPV6: [u8; 2] = [0x86, 0xdd];

    #[test]
    fn a_member_speaks_by_its_own_hardware_address() {
        let packet = v4([10, 0, 3, OWN]);
        assert!(own(IPV4, &packet));
        for from in [PrivateNetwork::mac_of(OTHER), [0x52, 0x54, 0, 0, 0, 1], [0; 6], [0xff; 6]] {
            assert!(!speaks_for_itself(&frame(from, IPV4, &packet), OWN), "{from:x?}");
        }
        let whole = frame(PrivateNetwork::mac_of(OWN), IPV4, &packet);
        for length in 0..whole.len() {
            assert!(!speaks_for_itself(&whole[..length], OWN), "{length}");
        }
    }

    #[test]
    fn a_member_speaks_by_its_own_ipv4_address() {
        assert!(own(IPV4, &v4([0; 4])));
        for other in [
            [10, 0, 3, OTHER],
            [10, 0, 3, 1],
            [10, 0, 3, 255],
            [10, 0, 2, OWN],
            [127, 0, 0, 1],
            [192, 0, 2, 1],
        ] {
            assert!(!own(IPV4, &v4(other)), "{other:?}");
        }
        // Other kinds could carry any packet.
        for kind in [[0x81, 0], [0x88, 0xa8], [0x88, 0x64], [0, 36]] {
            assert!(!own(kind, &v4([10, 0, 3, OWN])), "{kind:x?}");
        }
    }

    #[test]
    fn a_member_answers_arp_for_itself() {
        let mac = PrivateNetwork::mac_of(OWN);
        for operation in [1, 2] {
            assert!(own(ARP, &arp(mac, [10, 0, 3, OWN], operation)));
            assert!(own(ARP, &arp(mac, [0; 4], operation)));
            assert!(!own(ARP, &arp(mac, [10, 0, 3, OTHER], operation)));
            assert!(!own(ARP, &arp(PrivateNetwork::mac_of(OTHER), [10, 0, 3, OWN], operation)));
        }
        assert!(!own(ARP, &arp(mac, [10, 0, 3, OWN], 3)));
        assert!(!own(ARP, &arp(mac, [10, 0, 3, OWN], 1)[..27]));
    }

    #[test]
    fn a_member_speaks_by_its_own_ipv6_address() {
        let itself: Ipv6Addr = "fe80::42:aff:fe00:307".parse().unwrap();
        assert_eq!(link_local(PrivateNetwork::mac_of(OWN)), itself);
        for protocol in [TCP, UDP] {
            assert!(
                own(IPV6, &v6(itself, protocol, &[0; 8]))
                    && own(IPV6, &v6(Ipv6Addr::UNSPECIFIED, protocol, &[]))
            );
            for other in ["fe80::42:aff:fe00:308", "::1", "2001:db8::1", "fec0::2", "ff02::1"] {
                assert!(!own(IPV6, &v6(other.parse().unwrap(), protocol, &[0; 8])), "{other}");
            }
        }
        for protocol in [4, 41, 43, 44, 47, 50, 51, 60] {
            assert!(!own(IPV6, &v6(itself, protocol, &[0; 40])), "{protocol}");
        }
    }

    #[test]
    fn a_member_advertises_nobody_but_itself() {
        let mac = PrivateNetwork::mac_of(OWN);
        let itself = link_local(mac);
        let other = link_local(PrivateNetwork::mac_of(OTHER));
        let option = |kind: u8, mac: [u8; 6]| [&[kind, 1][..], &mac].concat();
        let message = |kind: u8, target: Option<Ipv6Addr>, options: &[u8]| {
            let target = target.map(|target| target.octets().to_vec()).unwrap_or_default();
            own(IPV6, &v6(itself, ICMP_V6, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target, options].concat()))
        };
        for kind in [1, 2] {
            let (right, wrong) = (option(kind, mac), option(kind, PrivateNetwork::mac_of(OTHER)));
            assert!(message(136, Some(itself), &right) && !message(136, Some(itself), &wrong));
            assert!(!message(136, Some(other), &right));
            assert!(message(135, Some(other), &right) && !message(135, Some(other), &wrong));
            assert!(message(133, None, &right) && !message(133, None, &wrong));
            let second = [&[14, 1, 0, 0, 0, 0, 0, 0][..], &wrong].concat();
            assert!(!message(135, Some(other), &second), "behind another option");
        }
        assert!(message(136, Some(itself), &[]) && message(135, Some(other), &[]) && message(133, None, &[]));
        // Options without a length, cut short, or longer than an address.
        for odd in [
            &[1, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 2, 0, 0, 0, 0, 0, 0],
            &[1],
            &[[2, 2].as_slice(), &mac, &[0; 8]].concat(),
        ] {
            assert!(!message(135, Some(other), odd), "{odd:?}");
        }
        assert!(!own(IPV6, &v6(itself, ICMP_V6, &[135, 0, 0, 0, 0, 0, 0, 0, 1, 2])), "no whole target");
        // Routers' words, redirects, and what is not known here.
        for kind in [134, 137, 138, 139, 141, 151, 155, 200] {
            assert!(!message(kind, Some(itself), &[]), "{kind}");
        }
        for kind in [1, 2, 3, 4, 128, 129, 130, 131, 132, 143] {
            assert!(message(kind, Some(other), &[]), "{kind}");
        }
        assert!(!own(IPV6, &v6(itself, ICMP_V6, &[])));
    }

    #[test]
    fn nothing_hides_an_advertisement() {
        let itself = link_local(PrivateNetwork::mac_of(OWN));
        let behind = |header: [u8; 8], kind: u8| {
            own(IPV6, &v6(itself, HOP_BY_HOP, &[&header[..], &[kind, 0]].concat()))
        };
        assert!(behind([ICMP_V6, 0, 5, 2, 0, 0, 1, 0], 143));
        for kind in [134, 135, 136, 137] {
            assert!(!behind([ICMP_V6, 0, 5, 2, 0, 0, 1, 0], kind), "{kind}");
        }
        assert!(!behind([ICMP_V6, 1, 5, 2, 0, 0, 1, 0], 143), "a longer header");
        assert!(!behind([60, 0, 5, 2, 0, 0, 1, 0], 143), "another header");
    }
}
