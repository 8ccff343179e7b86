//! QEMU runs what a guest asks of it, so it is left as few rights on this host as its devices need.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;

use crate::support::Scratch;
use crate::world::{Detached, xtask};

/// Bits of capabilities(7).
const NET_BIND_SERVICE: u64 = 1 << 10;
const READ_SHARES: u64 = 1 << 2;
const WRITE_SHARES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27;

/// Fields of a machine's QEMU in `/proc/PID/status`.
fn status(machine: &Detached) -> HashMap<String, String> {
    let pid = machine.process("qemu").as_raw_pid();
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |line: &str| line.split_once(":\t").map(|(name, value)| (name.into(), value.into()));
    text.lines().filter_map(field).collect()
}

fn capabilities(status: &HashMap<String, String>) -> u64 {
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    let [_, permitted, effective, ..] = sets.map(|set| u64::from_str_radix(&status[set], 16).unwrap());
    assert_eq!(permitted, effective, "{status:?}");
    permitted
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn qemu_has_no_rights_no_variables_and_no_files_but_its_own() {
    let port = free_low_port();
    let publish = format!("{port}:80");
    // A descriptor and a variable that are not for QEMU.
    let script = "exec 9</etc/hostname; exec \"$@\"";
    let machine = Detached { name: format!("confined-{}", std::process::id()) };
    let boot = xtask(&["boot", "-d", "--name", &machine.name, "images/hello", "-p", &publish]);
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", script, "bash"]).arg(boot.get_program()).args(boot.get_args());
    shell.env("SECRET", "not-for-qemu").current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let status = status(&machine);
    let uids: Vec<u32> = status["Uid"].split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    if is_root() {
        assert!(!uids.contains(&0) && status["Groups"].trim().is_empty(), "{status:?}");
        assert_eq!(u64::from_str_radix(&status["CapBnd"], 16).unwrap() & !NET_BIND_SERVICE, 0);
    }
    let wanted = if is_root() && port < 1024 { NET_BIND_SERVICE } else { 0 };
    assert_eq!(capabilities(&status), wanted);
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));

    let process = format!("/proc/{}", machine.process("qemu").as_raw_pid());
    let variables = std::fs::read(format!("{process}/environ")).unwrap();
    let variables = String::from_utf8(variables).unwrap();
    assert!(variables.split_terminator('\0').all(|variable| variable.starts_with("PATH=")), "{variables}");
    let limits = std::fs::read_to_string(format!("{process}/limits")).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size        0 ")), "{limits}");
    for fd in std::fs::read_dir(format!("{process}/fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap();
        let target = target.to_str().unwrap();
        let known = ["/dev/null", "/dev/kvm", "/dev/urandom", "pipe:", "socket:", "anon_inode:", "/memfd:"];
        let own = ["overlay.qcow2", "disk.ext4", "vmlinux", "bzImage", "initramfs.cpio"];
        let is_own = own.iter().any(|name| target.ends_with(name));
        assert!(is_own || known.iter().any(|prefix| target.starts_with(prefix)), "{target}");
    }
    // It does what it is for.
    assert!(crate::world::get(port, "/").contains("200 OK"));
    assert_eq!(machine.sh("echo written >/file && cat /file"), "written\n");
}

/// A port that root alone may listen at, where this is root.
fn free_low_port() -> u16 {
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = if is_root() { 700..1024 } else { 20000..30000 };
    ports.find(free).unwrap()
}

#[test]
fn shares_are_the_only_reason_for_rights_over_files() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("shared");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("secret"), "of its owner").unwrap();
    std::os::unix::fs::chown(&folder, Some(rustix::process::geteuid().as_raw()), None).unwrap();
    std::fs::set_permissions(folder.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();

    let reading = format!("{folder}:/mnt:ro");
    let machine = Detached::boot("reads", &["-v", &reading, "images/hello"]);
    assert_eq!(machine.sh("cat /mnt/secret"), "of its owner");
    let read = status(&machine);
    assert_eq!(capabilities(&read), if is_root() { READ_SHARES } else { 0 });
    assert!(!is_root() || !read["Uid"].split_whitespace().any(|uid| uid == "0"), "{read:?}");
    drop(machine);

    let writing = format!("{folder}:/mnt");
    let machine = Detached::boot("writes", &["-v", &writing, "images/hello"]);
    machine.sh("echo new >/mnt/new; chmod 640 /mnt/new");
    if is_root() {
        machine.sh("chown 1234:2345 /mnt/new");
    }
    assert_eq!(capabilities(&status(&machine)), if is_root() { WRITE_SHARES } else { 0 });
    let made = std::fs::metadata(folder.join("new")).unwrap();
    assert_eq!(made.mode() & 0o7777, 0o640);
    assert!(!is_root() || (made.uid(), made.gid()) == (1234, 2345));
}
