//! What a guest reaches, and what reaches it: this host's loopback, published ports, other machines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::support::{Scratch, wait_until};
use crate::world::{DEADLINE, Detached, Machine, fixture, get, nginx_base, xtask};

/// Services on the host's loopback; they greet whoever comes.
fn loopback_services() -> (u16, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"the host\n");
        }
    });
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 100]) {
            let _ = socket.send_to(b"the host\n", from);
        }
    });
    (tcp, udp)
}

/// What root in a guest finds of these services, and what an echo service in it answers through its published port.
fn probe(arguments: &[&str]) -> (Vec<String>, String) {
    nginx_base();
    let (tcp, udp) = loopback_services();
    let (script, image) = (format!("{}:/probe.pl:ro", fixture("probe.pl")), fixture("recipe"));
    let busybox = xtask::host::tools::find("busybox").unwrap();
    let busybox = format!("{busybox}:/tools/busybox:ro");
    let (tcp, udp) = (tcp.to_string(), udp.to_string());
    let mut words = vec!["boot", "-p", "0:7/udp", "-v", &script, "-v", &busybox];
    words.extend(arguments);
    words.extend([image.as_str(), "--", "perl", "/probe.pl", &tcp, &udp, "/tools/busybox"]);
    let mut boot = xtask(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut talk = BufReader::new(boot.stderr.take().unwrap()).lines().map_while(Result::ok);
    let line = talk.find(|line| line.contains("(guest port 7/udp)")).unwrap();
    let port: u16 = line.split(" (guest").next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let out = BufReader::new(boot.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said: Vec<String> = out.take_while(|line| line != "echo is up").collect();

    assert_eq!(said.len(), 4, "{said:?}\n{}", talk.collect::<Vec<_>>().join("\n"));

    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let deadline = Instant::now() + DEADLINE;
    // More than a frame holds, both ways.
    let question = format!("end{}", ".".repeat(4000));
    let mut answer = [0; 10_000];
    let length = loop {
        assert!(Instant::now() < deadline, "the guest's echo never answered; it said {said:?}");
        client.send_to(question.as_bytes(), ("127.0.0.1", port)).unwrap();
        if let Ok(length) = client.recv(&mut answer) {
            break length;
        }
    };
    assert!(boot.wait().unwrap().success());
    (
        said,
        String::from_utf8_lossy(&answer[..length]).trim_end_matches('.').to_owned() + &format!(" {length}"),
    )
}

#[test]
fn a_guest_reaches_the_hosts_loopback_only_where_it_is_allowed() {
    let (said, echo) = probe(&[]);
    let unreached =
        ["tcp 10.0.2.2 refused", "udp 10.0.2.2 nothing", "tcp 127.0.0.1 nothing", "udp 127.0.0.1 nothing"];
    assert_eq!(said, unreached);
    assert_eq!(echo, "guest: end 4010");

    let (said, echo) = probe(&["--allow-host"]);
    assert_eq!(said[..2], ["tcp 10.0.2.2 the host", "udp 10.0.2.2 the host"]);
    assert_eq!(echo, "guest: end 4010");
}

#[test]
fn machines_of_a_private_network_find_each_other_by_name_in_whichever_order_they_come() {
    nginx_base();
    let own = |what: &str| format!("{what}-{}", std::process::id());
    let (network, web_name, db_name) = (own("net"), own("web"), own("db"));
    let scratch = Scratch::new();
    let script = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n\
                  printf 'INCR visits\\r\\nQUIT\\r\\n' | nc $DATABASE 6379\n";
    let page = scratch.write("cgi-bin/visits", script);
    std::fs::set_permissions(&page, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (share, database) = (format!("{}:/www:ro", scratch.path()), format!("DATABASE={db_name}"));
    let hello = format!("{}/../images/hello", env!("CARGO_MANIFEST_DIR"));
    let web = |name: &str| {
        let words = [
            "--rm",
            "--name",
            name,
            "--network",
            &network,
            "-p",
            "0:80",
            "-v",
            &share,
            "-e",
            &database,
            &hello,
        ];
        let mut web = Machine::boot(&words);
        let port = web.port(80);
        (web, port)
    };
    let visits = |port: u16| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer = get(port, "/cgi-bin/visits");
            if let Some((_, count)) = answer.split_once("\r\n\r\n:") {
                return count.lines().next().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "the database was never reached: {answer}");
        }
    };

    // The first machine runs before there is one to reach.
    let (first, port) = web(&web_name);
    assert!(get(port, "/cgi-bin/visits").starts_with("HTTP/1.1 200"));
    let redis = fixture("redis");
    let database = Machine::boot(&["--rm", "--name", &db_name, "--network", &network, redis.as_str()]);
    assert_eq!(visits(port), "1");
    // The network outlives its first machine, and a later one finds who is there.
    assert_eq!(first.stop(), Some(130));
    let (second, port) = web(&own("other-web"));
    assert_eq!(visits(port), "2");
    assert_eq!(database.stop(), Some(0));
    assert_eq!(second.stop(), Some(130));
    let workspace = xtask::workspace::Workspace::discover().unwrap();
    std::fs::remove_dir_all(workspace.networks().join(&network)).unwrap();
}

#[test]
fn without_a_network_there_is_none_and_exposed_ports_are_published_on_request() {
    let hello = format!("{}/../images/hello", env!("CARGO_MANIFEST_DIR"));
    let script = "ls /sys/class/net; cat /etc/hostname; tail -1 /etc/hosts; cat /etc/resolv.conf";
    let words = ["boot", "--network", "none", "--hostname", "alone", &hello, "--", "sh", "-c", script];
    let output = xtask(&words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "dummy0\nlo\nalone\nff02::2\tip6-allrouters\n");

    let mut machine = Machine::boot(&["-P", &hello]);
    let port = machine.port(80);
    assert!(get(port, "/").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_member_whose_supervisor_was_killed_is_no_name_any_more_and_another_does_not_speak_for_it() {
    let network = format!("lan-{}", std::process::id());
    let hello = format!("{}/../images/hello", env!("CARGO_MANIFEST_DIR"));
    let idle = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let member = |word: &str| Detached::boot(word, &["--network", &network, &hello, "--", "sh", "-c", idle]);
    let (alice, bob, mallory) = (member("alice"), member("bob"), member("mallory"));
    let knows = |machine: &Detached, name: &str| machine.sh("cat /etc/hosts").contains(name);
    wait_until("alice knows the others", || knows(&alice, &bob.name) && knows(&alice, &mallory.name));
    let ping = |address: &str| format!("ping -c 1 -W 10 {address} >/dev/null && echo reached");
    assert_eq!(alice.sh(&ping("10.0.3.4")), "reached\n");
    assert_eq!(alice.sh(&ping("10.0.3.3")), "reached\n");

    // With bob's address on its interface, mallory sends as bob: alice's answers would go to bob, who counts them.
    let counted = || bob.sh("cat /sys/class/net/eth1/statistics/rx_packets").trim().parse::<u64>().unwrap();
    let before = counted();
    mallory.sh("ip addr add 10.0.3.3/32 dev eth1
         ip route del 10.0.3.0/24 dev eth1; ip route add 10.0.3.0/24 dev eth1 src 10.0.3.3
         ping -c 3 -W 2 10.0.3.2 >/dev/null || true
         ip addr del 10.0.3.3/32 dev eth1; ip route add 10.0.3.0/24 dev eth1 src 10.0.3.4");
    assert_eq!(
        alice.sh("ip neigh show 10.0.3.3 2>/dev/null | grep -c 02:42:0a:00:03:04 || true").trim(),
        "0"
    );
    assert_eq!(alice.sh(&ping("10.0.3.3")), "reached\n", "and bob is still who answers for it");
    assert!(counted() <= before + 8, "alice answered somebody who was not bob");

    kill_process(bob.process("supervisor"), Signal::KILL).unwrap();
    wait_until("bob is no name any more", || !knows(&alice, &bob.name) && !knows(&mallory, &bob.name));
    assert!(knows(&alice, &mallory.name));
    drop((alice, bob, mallory));
    let workspace = xtask::workspace::Workspace::discover().unwrap();
    std::fs::remove_dir_all(workspace.networks().join(&network)).unwrap();
}
