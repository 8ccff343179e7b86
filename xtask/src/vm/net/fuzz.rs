//! What must hold for any frames of a guest's: the body of the fuzz target `guard`, which the tests run too. What passes
//! the [guard](super::guard) is read once more as libslirp reads it (4.7, src/slirp.c and what it calls), and must not
//! lead to this host's loopback. It panics where it does.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::guard::Guard;

/// The input is a sequence of frames: a byte whose lowest bit is set where the frame arrives at the guest and whose
/// others are the seconds since the one before, the frame's length (u16 LE), and the frame.
pub fn guard(records: &[u8]) {
    let mut guard = Guard::default();
    let mut heard: HashMap<(u16, u16), Instant> = HashMap::new();
    let mut now = Instant::now();
    let mut rest = records;
    while let Some((&[flags, low, high], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        now += Duration::from_secs(u64::from(flags >> 1));
        if flags & 1 == 1 {
            guard.arrives(frame, now);
            if let Some(pair) = came_in(frame) {
                heard.insert(pair, now);
            }
            continue;
        }
        let Some(frame) = guard.leaves(frame.to_vec(), now) else { continue };
        match input(&frame) {
            None => {}
            Some(Reached::Loopback { from, to }) => {
                let last = heard.get(&(to, from));
                let age = last.map(|last| now.duration_since(*last));
                assert!(
                    age.is_some_and(|age| age < Duration::from_secs(240)),
                    "port {to} of the loopback is reached from {from}: {frame:x?}"
                );
            }
            Some(Reached::NameServer { to }) => {
                assert_eq!(to, 53, "another service of the name server's: {frame:x?}");
            }
            Some(Reached::Host(address)) => assert!(is_one_elsewhere(address), "{address}: {frame:x?}"),
        }
    }
}

/// The ports of a datagram that the gateway sends, in the order source, destination.
fn came_in(frame: &[u8]) -> Option<(u16, u16)> {
    let ip = frame.get(14..)?;
    let is_gateways = half(frame, 12)? == 0x0800 && ip.get(12..16)? == [10, 0, 2, 2] && *ip.get(9)? == 17;
    let begin = usize::from(ip.first()? & 15) * 4;
    is_gateways.then_some((half(ip, begin)?, half(ip, begin + 2)?))
}

/// Whether an address is of one host, and not of this one's loopback.
fn is_one_elsewhere(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(to) => {
            !(to.is_loopback() || to.is_multicast() || to.is_broadcast() || to.octets()[0] == 0)
        }
        IpAddr::V6(to) => match to.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                is_one_elsewhere(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into())
            }
            [0, ..] => false,
            _ => !(to.is_multicast() || to.is_unicast_link_local()),
        },
    }
}

/// What a frame makes libslirp send to, or connect to.
enum Reached {
    /// UDP on the host's loopback; connections to it have source port 0 here, which nobody comes from.
    Loopback { from: u16, to: u16 },
    /// Where the host asks for names, perhaps on its loopback.
    NameServer { to: u16 },
    /// That address.
    Host(IpAddr),
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// `slirp_input`. Checksums are taken to be right.
fn input(frame: &[u8]) -> Option<Reached> {
    match half(frame, 12)? {
        0x0800 => ip_input(&frame[14..]),
        0x86dd => ip6_input(&frame[14..]),
        // `arp_input` reads that much without asking how much there is.
        0x0806 => {
            assert!(frame.len() >= 14 + 28, "memory behind a frame is read: {frame:x?}");
            None
        }
        kind => panic!("a frame of type {kind:x} passed"),
    }
}

fn ip_input(ip: &[u8]) -> Option<Reached> {
    let header_length = usize::from(ip.first()? & 15) * 4;
    let total = usize::from(half(ip, 2)?);
    if ip.len() < 20 || ip[0] >> 4 != 4 || header_length < 20 || total < header_length || ip.len() < total {
        return None;
    }
    // `ip_reass` follows pointers in what it is given.
    assert!(half(ip, 6)? & 0x3fff == 0, "a piece passed: {ip:x?}");
    // What lies behind a packet's end is still in the buffer.
    transport(ip, header_length)
}

/// `tcp_input`, `udp_input` and `icmp_input`, and `sotranslate_out` after them.
fn transport(ip: &[u8], header_length: usize) -> Option<Reached> {
    let to = Ipv4Addr::from_bits(word(ip, 16)?);
    let segment = ip.get(header_length..)?;
    let (gateway, name_server) = (Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 3));
    let (from, port) = match ip[9] {
        // Ping, which goes out as a datagram to port 7 where this process may not send pings.
        1 => match segment.first()? {
            8 if to != gateway && to != name_server => (0, 7),
            _ => return None,
        },
        6 if begins(segment)? => (0, half(segment, 2)?),
        17 => match half(segment, 2)? {
            67 if to == gateway || to.is_broadcast() => return None,
            port => (half(segment, 0)?, port),
        },
        _ => return None,
    };
    Some(match to.octets() {
        _ if to == name_server => Reached::NameServer { to: port },
        [10, 0, 2, _] => Reached::Loopback { from, to: port },
        _ => Reached::Host(to.into()),
    })
}

/// Whether `tcp_input` makes a connection.
fn begins(segment: &[u8]) -> Option<bool> {
    Some(segment.get(13)? & 0x37 == 0x02)
}

/// `ip6_input`, `tcp_input` and `udp6_input`. ICMPv6 leads nowhere.
fn ip6_input(ip: &[u8]) -> Option<Reached> {
    if ip.len() < 40 || ip[0] >> 4 != 6 {
        return None;
    }
    let to = Ipv6Addr::from(<[u8; 16]>::try_from(&ip[24..40]).ok()?);
    let segment = &ip[40..];
    let port = half(segment, 2)?;
    let is_gateway = to == Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
    match ip[6] {
        6 if begins(segment)? => {}
        17 if port == 547 && (is_gateway || to == Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2)) => return None,
        17 => {}
        _ => return None,
    }
    Some(match to.segments() {
        [0xfec0, 0, 0, 0, 0, 0, 0, 3] => Reached::NameServer { to: port },
        [0xfec0, 0, 0, 0, ..] => Reached::Loopback { from: 0, to: port },
        _ => Reached::Host(to.into()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::guard::frames::*;
    use super::*;

    fn record(flags: u8, frame: &[u8]) -> Vec<u8> {
        [&[flags][..], &(frame.len() as u16).to_le_bytes(), frame].concat()
    }

    /// The frames that fuzzing begins with.
    const SEED: &[u8] = include_bytes!("../../../../fuzz/seeds/guard/conversation");

    #[test]
    fn the_seed_is_a_conversation_of_all_kinds() {
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[0x52; 6], &GUEST, &[0; 6], &[10, 0, 2, 2]].concat();
        let answer = udp([10, 0, 2, 2], 7, 50001);
        let frames = [
            (0, frame([8, 6], &arp)),
            (0, v4(17, [0; 4], [255; 4], &datagram(68, 67))),
            (0, udp([10, 0, 2, 3], 40000, 53)),
            (0, tcp([10, 0, 2, 3], 53, 2)),
            (0, tcp([10, 0, 2, 2], 22, 2)),
            (0, tcp([10, 0, 2, 2], 22, 16)),
            (1, v4(17, [10, 0, 2, 2], GUEST, &datagram(50001, 7))),
            (0, answer.clone()),
            (0, with_options(answer.clone())),
            (2, fragment(answer.clone(), false, 1)),
            (0, fragment(answer, true, 0)),
            (0, v4(1, GUEST, [10, 0, 2, 2], &[8, 0])),
            (0, tcp([192, 0, 2, 1], 80, 2)),
            (0, v6(6, "2001:db8::1", &segment(80, 2))),
            (0, v6(17, "fec0::3", &datagram(40000, 53))),
            (0, v6(17, "ff02::1:2", &datagram(546, 547))),
            (0, v6(58, "ff02::2", &[133])),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(|(flags, frame)| record(*flags, frame)).collect();
        assert!(SEED == bytes, "write these bytes to the seed:\n{}", bytes.escape_ascii());
        guard(SEED);
    }

    #[test]
    fn the_reading_of_libslirp_knows_the_loopback() {
        let reaches = |frame: &[u8]| match input(frame) {
            None => "nothing".to_owned(),
            Some(Reached::Loopback { from, to }) => format!("loopback {from} {to}"),
            Some(Reached::NameServer { to }) => format!("name server {to}"),
            Some(Reached::Host(address)) => address.to_string(),
        };
        assert_eq!(reaches(&udp([10, 0, 2, 2], 68, 67)), "nothing");
        assert_eq!(reaches(&udp([10, 0, 2, 4], 68, 67)), "loopback 68 67");
        assert_eq!(reaches(&tcp([10, 0, 2, 2], 22, 2)), "loopback 0 22");
        assert_eq!(reaches(&tcp([10, 0, 2, 2], 22, 18)), "nothing");
        assert_eq!(reaches(&udp([10, 0, 2, 3], 1, 69)), "name server 69");
        assert_eq!(reaches(&udp([127, 0, 0, 1], 1, 67)), "127.0.0.1");
        assert_eq!(reaches(&v6(6, "ff02::1", &segment(22, 2))), "ff02::1");
        assert_eq!(reaches(&v6(17, "fec0::9", &datagram(1, 2))), "loopback 0 2");
        assert_eq!(reaches(&with_options(udp([10, 0, 2, 2], 7, 8))), "loopback 7 8");
        for address in
            ["127.0.0.1", "0.0.0.0", "::1", "ff01::1", "fe80::1", "::ffff:1.2.3.4", "64:ff9b::127.0.0.1"]
        {
            assert!(!is_one_elsewhere(address.parse().unwrap()), "{address}");
        }
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let own = (0..=5u8, prop::sample::select(vec![[10, 0, 2], [127, 0, 0], [224, 0, 0], [192, 0, 2]]));
        let to = own.prop_map(|(last, net)| [net[0], net[1], net[2], last]);
        let port = prop::sample::select(vec![7, 53, 67, 69, 547, 50001]);
        let v6_to =
            prop::sample::select(vec!["::1", "fec0::2", "fec0::3", "ff02::1", "ff02::1:2", "fd00::1"]);
        prop_oneof![
            (to.clone(), port.clone(), any::<u8>()).prop_map(|(to, port, flags)| tcp(to, port, flags)),
            (to.clone(), port.clone()).prop_map(|(to, port)| udp(to, 7, port)),
            (to, port.clone(), any::<bool>(), 0..3u16, any::<bool>()).prop_map(
                |(to, port, more, offset, options)| {
                    let frame = fragment(udp(to, 7, port), more, offset);
                    if options { with_options(frame) } else { frame }
                }
            ),
            (v6_to.clone(), port.clone()).prop_map(|(to, port)| v6(17, to, &datagram(7, port))),
            (v6_to, port).prop_map(|(to, port)| v6(6, to, &segment(port, 2))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_with_a_few_bytes_changed(
            frames in prop::collection::vec((0..8u8, any_frame()), 1..12),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let arrival = record(1, &v4(17, [10, 0, 2, 2], GUEST, &datagram(50001, 7)));
            let mut bytes = Vec::new();
            for (flags, frame) in frames {
                bytes.extend(record(flags, &frame));
            }
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            guard(&[arrival, bytes].concat());
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            guard(&bytes);
        }
    }
}
