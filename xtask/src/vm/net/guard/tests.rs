//! Frames that pass, and frames that do not.

use super::frames::*;
use super::*;
use crate::vm::net::packet::{ACK, FIN, RST, SYN};

fn passes(frame: &[u8]) -> bool {
    Guard::default().is_allowed(frame, Instant::now())
}

/// Who a datagram to port 53 of the guest came from: port 50001 of the gateway.
fn with_correspondent() -> Guard {
    let mut guard = Guard::default();
    let from_gateway = v4(UDP, GATEWAY.octets(), GUEST, &datagram(50001, 53));
    guard.arrives(&from_gateway, Instant::now());
    guard
}

/// All that stands for this host's loopback, or for several hosts, or for none.
const NOT_OUTSIDE: &[[u8; 4]] = &[
    [0, 0, 0, 0],
    [0, 255, 255, 255],
    [10, 0, 2, 0],
    [10, 0, 2, 1],
    [10, 0, 2, 2],
    [10, 0, 2, 4],
    [10, 0, 2, 15],
    [10, 0, 2, 255],
    [127, 0, 0, 0],
    [127, 0, 0, 1],
    [127, 0, 0, 53],
    [127, 255, 255, 255],
    [224, 0, 0, 1],
    [224, 0, 0, 251],
    [239, 255, 255, 250],
    [240, 0, 0, 1],
    [255, 255, 255, 255],
];

const OUTSIDE: &[[u8; 4]] = &[
    [1, 0, 0, 1],
    [10, 0, 1, 255],
    [10, 0, 3, 2],
    [10, 1, 2, 2],
    [11, 0, 2, 2],
    [126, 255, 255, 255],
    [128, 0, 0, 1],
    [192, 168, 0, 1],
    [223, 255, 255, 255],
];

#[test]
fn nothing_begins_at_what_stands_for_the_host() {
    for &to in NOT_OUTSIDE {
        for port in [1, 7, 22, 53, 66, 67, 68, 69, 139, 445, 546, 547] {
            assert!(!passes(&tcp(to, port, SYN)), "{to:?}:{port}");
            let is_dhcp = port == 67 && [[10, 0, 2, 2], [255; 4]].contains(&to);
            assert_eq!(passes(&udp(to, 68, port)), is_dhcp, "{to:?}:{port}");
        }
        assert_eq!(passes(&v4(ICMP, GUEST, to, &[ECHO, 0])), to == [10, 0, 2, 2], "{to:?}");
    }
}

#[test]
fn everything_that_libslirp_knows_goes_outside() {
    for &to in OUTSIDE {
        for port in [53, 67, 69, 80] {
            let both = [tcp(to, port, SYN), udp(to, 40000, port)];
            for frame in &both {
                assert!(passes(frame), "{to:?}:{port}");
                assert!(passes(&with_options(frame.clone())), "{to:?}:{port}");
            }
        }
        assert!(passes(&v4(ICMP, GUEST, to, &[ECHO, 0])));
        // IPv4 in IPv4, IPv6 in IPv4, GRE, IGMP, SCTP.
        for protocol in [0, 2, 4, 41, 47, 58, 132, 255] {
            assert!(!passes(&v4(protocol, GUEST, to, &tcp([127, 0, 0, 1], 22, SYN)[14..])), "{protocol}");
        }
    }
}

#[test]
fn the_name_server_is_asked_for_names_alone() {
    for port in [1, 22, 52, 54, 67, 69, 445, 853, 53 << 8] {
        assert!(!passes(&udp([10, 0, 2, 3], 53, port)) && !passes(&tcp([10, 0, 2, 3], port, SYN)), "{port}");
        assert!(!passes(&v6(UDP, "fec0::3", &datagram(53, port))), "{port}");
        assert!(!passes(&v6(TCP, "fec0::3", &segment(port, SYN))), "{port}");
    }
    for flags in [SYN, ACK, FIN, RST, SYN | ACK] {
        assert!(passes(&tcp([10, 0, 2, 3], 53, flags)) && passes(&v6(TCP, "fec0::3", &segment(53, flags))));
    }
    let question = udp([10, 0, 2, 3], 40000, 53);
    assert!(passes(&question) && passes(&v6(UDP, "fec0::3", &datagram(40000, 53))));
    assert!(passes(&v4(ICMP, GUEST, [10, 0, 2, 3], &[ECHO, 0])));
    assert!(!passes(&with_options(question.clone())));
    // Without their ports, or of another protocol.
    assert!(!passes(&v4(UDP, GUEST, [10, 0, 2, 3], &[0, 1, 0])));
    assert!(!passes(&v4(47, GUEST, [10, 0, 2, 3], &datagram(1, 53))));
}

#[test]
fn the_gateway_answers_dhcp_and_ping_and_takes_no_connection() {
    assert!(passes(&v4(UDP, [0; 4], [255; 4], &datagram(68, 67))));
    assert!(passes(&v4(UDP, GUEST, [10, 0, 2, 2], &datagram(68, 67))));
    assert!(!passes(&with_options(udp([10, 0, 2, 2], 68, 67))));
    let ping = v4(ICMP, GUEST, [10, 0, 2, 2], &[ECHO, 0]);
    assert!(passes(&ping) && !passes(&with_options(ping)));
    for other in [0, 3, 5, 13] {
        assert!(!passes(&v4(ICMP, GUEST, [10, 0, 2, 2], &[other, 0])), "{other}");
    }
    assert!(!passes(&v4(ICMP, GUEST, [10, 0, 2, 2], &[])));
    let flags = |flags: u8| passes(&tcp([10, 0, 2, 2], 22, flags));
    for allowed in [ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, 0x18] {
        assert!(flags(allowed), "{allowed:x}");
    }
    for refused in [0, SYN, FIN, SYN | RST, SYN | FIN, 0x20, SYN | 0x20, 0xc0 | SYN, !ACK] {
        assert!(!flags(refused), "{refused:x}");
    }
    let answer = tcp([10, 0, 2, 2], 22, ACK);
    assert!(!passes(&with_options(answer)));
    assert!(!passes(&v4(TCP, GUEST, [10, 0, 2, 2], &segment(22, ACK)[..19])));
    assert!(!passes(&tcp([10, 0, 2, 4], 22, ACK)));
}

#[test]
fn whoever_came_in_through_a_published_port_is_answered() {
    let answers = |frame: &[u8]| with_correspondent().is_allowed(frame, Instant::now());
    let answer = udp([10, 0, 2, 2], 53, 50001);
    assert!(answers(&answer) && !passes(&answer));
    for (to, from, port) in [
        ([10, 0, 2, 2], 53, 50002),
        ([10, 0, 2, 2], 54, 50001),
        ([10, 0, 2, 2], 50001, 53),
        ([10, 0, 2, 4], 53, 50001),
    ] {
        assert!(!answers(&udp(to, from, port)), "{to:?} {from} {port}");
    }
    assert!(!answers(&with_options(answer)));
    assert!(!answers(&v4(UDP, GUEST, [10, 0, 2, 2], &datagram(53, 50001)[..3])));
}

#[test]
fn what_comes_in_pieces_is_judged_as_a_whole() {
    let mut guard = with_correspondent();
    let mut leaves = |frame: Vec<u8>| guard.leaves(frame, Instant::now());
    let payload = [datagram(53, 50001), vec![7; 3000]].concat();
    let piece = |to: [u8; 4], offset: usize, more: bool| {
        let end = if more { offset + 1480 } else { payload.len() };
        fragment(v4(UDP, GUEST, to, &payload[offset..end]), more, (offset / 8) as u16)
    };
    assert_eq!(leaves(piece([10, 0, 2, 2], 0, true)), None);
    assert_eq!(leaves(piece([10, 0, 2, 2], 1480, true)), None);
    let whole = leaves(piece([10, 0, 2, 2], 2960, false)).unwrap();
    assert_eq!(whole[34..], payload);
    assert!(passes(&v4(UDP, GUEST, [192, 0, 2, 1], &payload)));
    // The same to what stands for the host in another way, and a connection.
    for to in [[10, 0, 2, 4], [127, 0, 0, 1], [10, 0, 2, 3]] {
        assert_eq!(leaves(piece(to, 0, true)), None);
        assert_eq!(leaves(piece(to, 1480, false)), None, "{to:?}");
    }
    let syn = segment(22, SYN);
    let cut = |at: usize, more: bool| {
        let range = if more { 0..at } else { at..syn.len() };
        fragment(v4(TCP, GUEST, [10, 0, 2, 2], &syn[range.clone()]), more, (range.start / 8) as u16)
    };
    assert_eq!(leaves(cut(8, true)), None);
    let refused = leaves(cut(8, false)).unwrap();
    assert_eq!(refused[34 + 13], FIN, "it is refused like one in one piece");
    for piece in [fragment(udp([192, 0, 2, 1], 1, 2), true, 0), fragment(udp([192, 0, 2, 1], 1, 2), false, 1)]
    {
        assert!(!passes(&piece));
    }
}

#[test]
fn only_datagrams_of_the_gateways_make_correspondents() {
    let answered = |frame: &[u8]| {
        let mut guard = Guard::default();
        guard.arrives(frame, Instant::now());
        guard.is_allowed(&udp([10, 0, 2, 2], 53, 50001), Instant::now())
    };
    let good = v4(UDP, GATEWAY.octets(), GUEST, &datagram(50001, 53));
    assert!(answered(&good) && answered(&fragment(good.clone(), true, 0)));
    assert!(!answered(&fragment(good, false, 1)));
    assert!(!answered(&v4(UDP, [192, 0, 2, 1], GUEST, &datagram(50001, 53))));
    assert!(!answered(&v4(TCP, GATEWAY.octets(), GUEST, &datagram(50001, 53))));
    assert!(!answered(&v4(UDP, GATEWAY.octets(), GUEST, &[0])));
    assert!(!answered(&[0; 14]) && !answered(&[]));
}

#[test]
fn an_answer_must_come_while_its_question_is_remembered() {
    let mut guard = with_correspondent();
    let late = Instant::now() + 2 * correspondents::LIFETIME;
    assert!(!guard.is_allowed(&udp([10, 0, 2, 2], 53, 50001), late));
}

const V6_OUTSIDE: [&str; 9] = [
    "2000::1",
    "2001:db8::1",
    "3fff:ffff::1",
    "fc00::1",
    "fd00::2",
    "fdff:ffff::1",
    "64:ff9b::192.0.2.1",
    "2002:7f00:1::1",
    "fd00:2::3",
];

const V6_NOT_OUTSIDE: [&str; 27] = [
    "::",
    "::1",
    "::2",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.2.2",
    "::ffff:192.0.2.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.2.2",
    "64:ff9b::",
    "64:ff9b:0:1::192.0.2.1",
    "64:ff9b::1:192.0.2.1",
    "100::1",
    "1fff::1",
    "4000::1",
    "e000::1",
    "fbff::1",
    "fe00::1",
    "fe80::2",
    "fe80::1:2",
    "fec0::2",
    "fec0::1",
    "fec0::4",
    "fec0:0:0:1::2",
    "feff::1",
    "fec0:1::3",
    "fec0::3:3",
];

#[test]
fn ipv6_goes_outside_and_to_nothing_that_stands_for_the_host() {
    let all = |to: &str, port: u16| {
        let (tcp, udp) = (v6(TCP, to, &segment(port, SYN)), v6(UDP, to, &datagram(546, port)));
        (passes(&tcp), passes(&udp))
    };
    for port in [1, 53, 69, 80, 547] {
        for to in V6_OUTSIDE {
            assert_eq!(all(to, port), (true, true), "{to} {port}");
        }
        for to in V6_NOT_OUTSIDE {
            assert_eq!(all(to, port), (false, to == "fec0::2" && port == 547), "{to} {port}");
        }
        // Multicast of every scope (RFC 4291, 7346), with every set of flags.
        for flags_and_scope in 0..=255 {
            for group in ["1", "2", "fb", "101", "1:2", "1:3", "1:ff00:2", "7f00:1"] {
                let to = format!("ff{flags_and_scope:02x}::{group}");
                assert_eq!(all(&to, port), (false, to == "ff02::1:2" && port == 547), "{to} {port}");
            }
        }
    }
    assert!(!passes(&v6(UDP, "2001:db8::1", &[0, 0, 0])), "its ports are missing");
    assert!(!passes(&v6(TCP, "ff02::1:2", &segment(547, SYN))));
}

#[test]
fn neighbours_are_discovered_in_libslirps_network_and_nothing_is_put_before_a_transport() {
    for to in
        ["fe80::2", "fec0::2", "fec0::3", "fec0::99", "ff02::1", "ff02::2", "ff02::16", "ff02::1:ff00:2"]
    {
        assert!(passes(&v6(ICMP_V6, to, &[135])), "{to}");
    }
    for to in ["::1", "2001:db8::1", "ff01::1", "ff05::2", "fec0:1::2", "::ffff:127.0.0.1"] {
        assert!(!passes(&v6(ICMP_V6, to, &[128])), "{to}");
    }
    // Hop-by-hop, routing, fragment, destination options, ESP, AH, mobility, shim6, none, IPv4, IPv6, GRE, ICMP.
    for protocol in [0, 43, 44, 60, 50, 51, 135, 140, 59, 4, 41, 47, 1] {
        for next in [TCP, UDP] {
            let header = [&[next, 0, 0, 0, 0, 0, 0, 0][..], &segment(22, SYN)].concat();
            for to in ["::1", "fec0::2", "fec0::3", "ff02::1", "2001:db8::1"] {
                assert!(!passes(&v6(protocol, to, &header)), "{protocol} {to}");
            }
        }
    }
}

#[test]
fn other_kinds_of_frames_do_not_pass() {
    let inner = &tcp([192, 0, 2, 1], 80, SYN)[14..];
    // VLAN tags of three kinds, MPLS, PPPoE, NC-SI, LLDP, IEEE 802.3's lengths.
    for kind in [
        [0x81, 0x00],
        [0x88, 0xa8],
        [0x91, 0x00],
        [0x88, 0x47],
        [0x88, 0x64],
        [0x88, 0xf8],
        [0x88, 0xcc],
        [0, 46],
    ] {
        let tagged = [&[0, 1, 0x08, 0x00][..], inner].concat();
        assert!(!passes(&frame(kind, &tagged)) && !passes(&frame(kind, inner)), "{kind:x?}");
    }
    assert!(passes(&frame([0x08, 0x00], inner)));
    for length in 0..34 {
        assert!(!passes(&frame([0x08, 0x00], inner)[..length]), "{length}");
    }
    let v6 = v6(UDP, "2001:db8::1", &datagram(1, 2));
    for length in 0..v6.len() {
        assert!(!passes(&v6[..length]), "{length}");
    }
}

#[test]
fn arp_is_whole_and_about_ipv4() {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[0x52; 6], &GUEST, &[0; 6], &[10, 0, 2, 2]].concat();
    assert!(passes(&frame([8, 6], &arp)));
    assert!(passes(&frame([8, 6], &[&arp[..], &[0; 18]].concat())), "padded");
    for length in 0..arp.len() {
        assert!(!passes(&frame([8, 6], &arp[..length])), "{length}");
    }
    for (at, value) in [(1, 6), (0, 1), (2, 0x86), (3, 1), (4, 5), (5, 16), (6, 1), (7, 0), (7, 3)] {
        let mut odd = arp.clone();
        odd[at] = value;
        assert!(!passes(&frame([8, 6], &odd)), "{at}: {value}");
    }
    let mut reply = arp;
    reply[7] = 2;
    assert!(passes(&frame([8, 6], &reply)));
}

#[test]
fn packets_are_read_by_their_own_lengths() {
    let good = tcp([192, 0, 2, 1], 80, SYN);
    assert!(passes(&[&good[..], &[0; 6]].concat()), "padded by Ethernet");
    for (at, value) in [(14, 0x44), (14, 0x55), (14, 0x65), (17, 19), (17, 41), (16, 1)] {
        let mut odd = good.clone();
        odd[at] = value;
        assert!(!passes(&odd), "{at}: {value:x}");
    }
    let mut odd = v6(UDP, "2001:db8::1", &datagram(1, 2));
    odd[14] = 0x40;
    assert!(!passes(&odd));
    // Ports that are beyond a packet's end are none.
    let mut short = udp([10, 0, 2, 3], 40000, 53);
    short[17] = 23;
    assert!(!passes(&short));
    short[17] = 24;
    assert!(passes(&short));
}

/// The sum of a segment with its pseudo header, which is all ones where the checksum is right (RFC 9293, RFC 8200).
fn sum(addresses: &[u8], segment: &[u8]) -> u32 {
    let pseudo = [addresses, &[0, TCP], &(segment.len() as u16).to_be_bytes()].concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum
}

#[test]
fn a_refused_connection_goes_on_as_the_end_of_one() {
    let refused = [
        (tcp([10, 0, 2, 2], 22, SYN), 34, 26..34),
        (tcp([10, 0, 2, 3], 80, SYN), 34, 26..34),
        (v6(TCP, "fec0::2", &segment(22, SYN)), 54, 22..54),
        (v6(TCP, "fec0::3", &segment(80, SYN)), 54, 22..54),
    ];
    for (original, at, addresses) in refused {
        for sequence in [0_u32, 7, 0xffff, 0xffff_ffff, 0x1234_ffff, 0x8000_0001] {
            let mut frame = original.clone();
            frame[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
            let checksum = !(sum(&frame[addresses.clone()], &frame[at..]) as u16);
            frame[at + 16..at + 18].copy_from_slice(&checksum.to_be_bytes());
            assert_eq!(sum(&frame[addresses.clone()], &frame[at..]), 0xffff);
            let frame = Guard::default().leaves(frame, Instant::now()).unwrap();
            assert_eq!(
                (frame[at + 13], sum(&frame[addresses.clone()], &frame[at..])),
                (FIN, 0xffff),
                "{sequence:x}"
            );
            assert_eq!(frame[at + 4..at + 8], sequence.wrapping_add(1).to_be_bytes());
        }
    }
}

#[test]
fn what_is_refused_otherwise_is_left_as_it_is() {
    let syn = || tcp([10, 0, 2, 2], 22, SYN);
    let dropped = [
        tcp([127, 0, 0, 1], 22, SYN),
        tcp([10, 0, 2, 2], 22, FIN),
        tcp([10, 0, 2, 4], 22, SYN),
        udp([10, 0, 2, 2], 1, 2),
        with_options(syn()),
        v6(TCP, "::1", &segment(22, SYN)),
        v6(UDP, "fec0::2", &segment(22, SYN)),
        v4(UDP, GUEST, [10, 0, 2, 2], &segment(22, SYN)),
        v4(TCP, GUEST, [10, 0, 2, 2], &segment(22, SYN)[..19]),
    ];
    for frame in dropped {
        assert_eq!(Guard::default().leaves(frame.clone(), Instant::now()), None, "{frame:x?}");
        let mut left = frame.clone();
        assert_eq!(refusal::refuse_connection(&mut left), None);
        assert_eq!(left, frame);
    }
    let passes = tcp([10, 0, 2, 3], 53, SYN);
    assert_eq!(Guard::default().leaves(passes.clone(), Instant::now()), Some(passes));
}

#[test]
fn a_guest_that_may_reach_the_host_sends_whole_packets_only() {
    let now = Instant::now();
    let mut guard = Guard::new(true);
    for frame in [tcp([10, 0, 2, 2], 22, SYN), udp([127, 0, 0, 1], 1, 2), v6(UDP, "::1", &segment(22, SYN))] {
        assert_eq!(guard.leaves(frame.clone(), now), Some(frame));
    }
    let whole = v4(UDP, GUEST, [10, 0, 2, 2], &[0; 32]);
    assert_eq!(guard.leaves(fragment(whole, false, 1), now), None);
}
