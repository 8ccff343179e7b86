//! What a guest's root puts on the wire against this host's loopback, heard by real services. The test has network and mount
//! namespaces of its own, so that it can have any port, other addresses, and a name server on the loopback.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;

use xtask::workspace::Workspace;

use crate::support::Scratch;
use crate::world::{fixture, nginx_base, xtask};

/// In the environment of the test that runs in its namespaces.
const INSIDE: &str = "MICROVM_TEST_INSIDE";

/// Whether this is the outer half of a test, which has run the inner one, in namespaces where it is root.
fn ran_in_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let namespaces = if rustix::process::geteuid().is_root() { "-mn" } else { "-Urmn" };
    let mut again = Command::new("unshare");
    again.arg(namespaces).arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let output = again.env(INSIDE, "yes").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    // The count shows that the name is a test's.
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{talk}");
    true
}

const OUTSIDE_V4: &str = "192.0.2.1";
const OUTSIDE_V6: &str = "2001:db8::1";

/// Gives the namespaces a loopback, other addresses, and a name server on the loopback.
fn make_host(scratch: &Scratch) {
    let resolv_conf = scratch.write("resolv.conf", "nameserver 127.0.0.1\nnameserver ::1\n");
    let script = format!(
        "set -e; busybox ip link set lo up; busybox ip addr add {OUTSIDE_V4}/32 dev lo
         busybox ip addr add {OUTSIDE_V6}/128 dev lo; mount --make-rprivate /
         mount --bind {resolv_conf} \"$(readlink -f /etc/resolv.conf)\""
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
}

/// A port without a meaning, and those that libslirp or Linux treat in their own ways: echo, DHCP, TFTP, NetBIOS, SMB, DHCPv6.
const PORTS: [u16; 7] = [4000, 7, 67, 69, 139, 445, 547];

/// Services on the loopback that must hear nothing.
struct Quiet {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Quiet {
    fn listen() -> Quiet {
        let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let places =
            || loopbacks.iter().flat_map(|address| PORTS.map(|port| SocketAddr::new(*address, port)));
        let tcp: Vec<_> = places().map(|place| TcpListener::bind(place).unwrap()).collect();
        let udp: Vec<_> = places().map(|place| UdpSocket::bind(place).unwrap()).collect();
        tcp.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        udp.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        Quiet { tcp, udp }
    }

    /// What has come since.
    fn heard(&self) -> BTreeSet<String> {
        let mut heard = BTreeSet::new();
        for listener in &self.tcp {
            while listener.accept().is_ok() {
                heard.insert(format!("tcp {}", listener.local_addr().unwrap()));
            }
        }
        let mut bytes = [0; 2048];
        for socket in &self.udp {
            while let Ok(length) = socket.recv(&mut bytes) {
                let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
                heard.insert(format!("udp {} {said}", socket.local_addr().unwrap()));
            }
        }
        heard
    }
}

/// A service for both transports that answers with its name.
fn answer(place: SocketAddr, name: &'static [u8]) {
    let listener = TcpListener::bind(place).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(name);
        }
    });
    let socket = UdpSocket::bind(place).unwrap();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 100]) {
            let _ = socket.send_to(name, from);
        }
    });
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// A datagram that says where it was sent, or the beginning of a connection, with its checksum.
fn transport(protocol: u8, source: &[u8], to: IpAddr, port: u16, how: &str) -> Vec<u8> {
    let destination = match to {
        IpAddr::V4(to) => to.octets().to_vec(),
        IpAddr::V6(to) => to.octets().to_vec(),
    };
    let ports = [&40000_u16.to_be_bytes()[..], &port.to_be_bytes()].concat();
    let (mut bytes, checksum_at) = match protocol {
        TCP => ([&ports[..], &[0, 0, 0, 9, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]].concat(), 16),
        _ => {
            let mut words = format!("{how} {to}");
            words.extend(std::iter::repeat_n(' ', words.len().next_multiple_of(8) - words.len()));
            let length = (8 + words.len() as u16).to_be_bytes();
            ([&ports[..], &length, &[0, 0], words.as_bytes()].concat(), 6)
        }
    };
    let pseudo = [source, &destination, &[0, protocol], &(bytes.len() as u16).to_be_bytes(), &bytes].concat();
    bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
    bytes
}

fn v4(protocol: u8, to: Ipv4Addr, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = 20 + options.len();
    let total = ((length + payload.len()) as u16).to_be_bytes();
    let first =
        [&[0x40 | (length / 4) as u8, 0][..], &total, &[0, 7], &fragment.to_be_bytes(), &[64, protocol]];
    let rest = [&GUEST_V4.octets()[..], &to.octets(), options].concat();
    let checksum = sum(&[&first.concat()[..], &[0, 0], &rest].concat()).to_be_bytes();
    [&first.concat()[..], &checksum, &rest, payload].concat()
}

fn v6(protocol: u8, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[protocol, 64], &GUEST_V6.octets(), &to.octets(), payload].concat()
}

fn frame(kind: u16, packet: &[u8]) -> Vec<u8> {
    let hosts = [0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56];
    [&hosts[..], &kind.to_be_bytes(), packet].concat()
}

/// Every way of writing to a place that stands for the loopback, or might.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let to_v4 = "10.0.2.0 10.0.2.1 10.0.2.2 10.0.2.3 10.0.2.4 10.0.2.255 0.0.0.0 127.0.0.1 127.255.255.255 224.0.0.1 \
                 224.0.0.251 239.255.255.250 240.0.0.1 255.255.255.255";
    for to in to_v4.split(' ').map(|text| text.parse::<Ipv4Addr>().unwrap()) {
        for (protocol, port) in [TCP, UDP].into_iter().flat_map(|protocol| PORTS.map(|port| (protocol, port)))
        {
            let inner = |how: &str| transport(protocol, &GUEST_V4.octets(), to.into(), port, how);
            frames.push(frame(0x0800, &v4(protocol, to, &[], 0, &inner("plain"))));
            frames.push(frame(0x0800, &v4(protocol, to, &[1, 1, 1, 1], 0, &inner("options"))));
            // A source route, through the gateway and from elsewhere to it.
            let route = [&[131, 7, 4][..], &to.octets(), &[0]].concat();
            let elsewhere = v4(protocol, Ipv4Addr::new(10, 0, 2, 2), &route, 0, &inner("source route"));
            frames.push(frame(0x0800, &elsewhere));
            for kind in [0x8100, 0x88a8] {
                let tagged = [&[0, 1, 8, 0][..], &v4(protocol, to, &[], 0, &inner("vlan"))].concat();
                frames.push(frame(kind, &tagged));
            }
            let whole = inner("pieces");
            let cut = 8;
            frames.push(frame(0x0800, &v4(protocol, to, &[], 0x2000, &whole[..cut])));
            frames.push(frame(0x0800, &v4(protocol, to, &[], 1, &whole[cut..])));
            let gateway = Ipv4Addr::new(10, 0, 2, 2);
            frames
                .push(frame(0x0800, &v4(4, gateway, &[], 0, &v4(protocol, to, &[], 0, &inner("ip in ip")))));
        }
        let mut ping = vec![8, 0, 0, 0, 0, 1, 0, 1];
        let checksum = sum(&ping).to_be_bytes();
        ping[2..4].copy_from_slice(&checksum);
        frames.push(frame(0x0800, &v4(1, to, &[], 0, &ping)));
    }
    let mut to_v6: Vec<Ipv6Addr> =
        "fec0::1 fec0::2 fec0::3 fec0::4 fe80::2 fe80::3 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.2.2 ff02::2 \
         ff02::fb ff02::1:2 ff05::1:3 ff02::1:ff00:2 ff12::1 ff32::1"
            .split(' ')
            .map(|text| text.parse().unwrap())
            .collect();
    to_v6.extend((0..16).map(|scope| Ipv6Addr::new(0xff00 | scope, 0, 0, 0, 0, 0, 0, 1)));
    for to in to_v6 {
        for (protocol, port) in [TCP, UDP].into_iter().flat_map(|protocol| PORTS.map(|port| (protocol, port)))
        {
            let inner = |how: &str| transport(protocol, &GUEST_V6.octets(), to.into(), port, how);
            frames.push(frame(0x86dd, &v6(protocol, to, &inner("plain"))));
            // Hop-by-hop options, destination options, a route, a fragment that is all of it.
            for extension in [0, 60, 43, 44] {
                let header =
                    [&[protocol, 0][..], &if extension == 44 { [0; 6] } else { [1, 4, 0, 0, 0, 0] }].concat();
                let packet = [&header[..], &inner("extension")].concat();
                frames.push(frame(0x86dd, &v6(extension, to, &packet)));
            }
        }
    }
    // ARP of odd lengths and contents.
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56][..],
        &[127, 0, 0, 1],
        &[0; 6],
        &[10, 0, 2, 2],
    ];
    let arp = arp.concat();
    frames.extend((0..arp.len()).map(|length| frame(0x0806, &arp[..length])));
    frames
}

/// Boots a guest that sends all frames; what the loopback heard of it, and what the guest was answered.
fn attack(quiet: &Quiet, frames: &str, arguments: &[&str]) -> (BTreeSet<String>, String) {
    let tar = Workspace::discover().unwrap().cache().join("stand-in/nginx-rootfs.tar");
    let (script, image) = (format!("{}:/enemy.pl:ro", fixture("enemy.pl")), format!("rootfs:{tar}"));
    let frames = format!("{frames}:/frames:ro");
    let mut words = vec!["boot", "-v", &script, "-v", &frames];
    words.extend(arguments);
    words.extend([image.as_str(), "--", "perl", "/enemy.pl", "/frames", "4001"]);
    let output = xtask(&words).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    // The guest was answered after its frames, which libslirp takes in their order.
    (quiet.heard(), said)
}

#[test]
fn no_frame_of_a_guest_reaches_the_hosts_loopback_and_what_is_allowed_is_answered() {
    nginx_base();
    if ran_in_namespaces(
        "enemy::no_frame_of_a_guest_reaches_the_hosts_loopback_and_what_is_allowed_is_answered",
    ) {
        return;
    }
    let scratch = Scratch::new();
    make_host(&scratch);
    let place = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
    ["127.0.0.1", "::1"].iter().for_each(|address| answer(place(address, 53), b"a name"));
    [OUTSIDE_V4, OUTSIDE_V6].iter().for_each(|address| answer(place(address, 4001), b"outside"));
    let quiet = Quiet::listen();
    let digits = |frame: &Vec<u8>| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let text: String = frames().iter().map(digits).collect();
    let all = scratch.write("frames", &text);
    let answers = "udp 10.0.2.3 a name\ntcp 10.0.2.3 a name\nudp fec0::3 a name\ntcp fec0::3 a name\n\
                   udp 192.0.2.1 outside\ntcp 192.0.2.1 outside\nudp 2001:db8::1 outside\ntcp 2001:db8::1 outside\n";

    let (heard, said) = attack(&quiet, all.as_str(), &[]);
    assert_eq!(heard, BTreeSet::new());
    assert_eq!(said, answers);

    // The same frames are heard where the guest may reach the host. QEMU lives through those in pieces.
    let (heard, said) = attack(&quiet, all.as_str(), &["--allow-host"]);
    let heard: String = heard.into_iter().map(|line| line + "\n").collect();
    for expected in [
        "tcp 127.0.0.1:4000",
        "tcp [::1]:4000",
        "udp 127.0.0.1:4000 plain 10.0.2.2",
        "udp 127.0.0.1:4000 options 10.0.2.2",
        "udp 127.0.0.1:67 plain 127.0.0.1",
        "udp 127.0.0.1:4000 plain ::ffff:127.0.0.1",
        "udp [::1]:4000 plain fec0::2",
        "udp [::1]:4000 plain ff02::1",
    ] {
        assert!(heard.contains(expected), "`{expected}` is missing in\n{heard}");
    }
    assert_eq!(said, answers);
}
