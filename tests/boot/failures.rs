//! What a user is told when a machine cannot do what was asked.

use std::fs;
use std::net::TcpListener;

use xtask::vm::machine::{Accelerator, Machine, Network};
use xtask::vm::supervise::outcome::Outcome;
use xtask::vm::supervise::supervisor::{Supervision, Supervisor};

use crate::support::{Scratch, in_small_cache};
use crate::world::{busybox_image, complete_set, set_of, xtask};

fn boot(arguments: &[&str]) -> (String, Option<i32>) {
    let output = xtask(&["boot"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

#[test]
fn a_missing_command_is_127_and_one_that_cannot_run_126() {
    let (talk, code) = boot(&["images/hello", "--", "no-such-command"]);
    assert!(talk.contains("error: `no-such-command`"), "{talk}");
    assert_eq!(code, Some(127));
    let (talk, code) = boot(&["images/hello", "--", "/etc/passwd"]);
    assert!(talk.contains("error: `/etc/passwd`"), "{talk}");
    assert_eq!(code, Some(126));
}

#[test]
fn a_signal_is_128_more_and_a_timeout_124() {
    assert_eq!(boot(&["images/hello", "--", "sh", "-c", "kill -9 $$"]).1, Some(137));
    let (talk, code) = boot(&["--timeout", "4s", "images/hello", "--", "sleep", "1000"]);
    assert!(talk.contains("error: the machine ran longer than 4 s"), "{talk}");
    assert_eq!(code, Some(124));
}

/// A set as `collect` makes it, with a disk that holds nothing.
fn set_with_empty_disk(scratch: &Scratch, with_init: bool) -> String {
    let set = scratch.path().join("set");
    fs::create_dir(&set).unwrap();
    complete_set(&set, with_init);
    let disk = set.join("hda.qcow2");
    let create = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", disk.as_str(), "64M"])
        .status()
        .unwrap();
    assert!(create.success());
    set.into_string()
}

#[test]
fn a_disk_without_a_root_is_named_by_pid_1_and_by_the_kernel() {
    for with_init in [true, false] {
        let scratch = Scratch::new();
        let (talk, code) = boot(&["--from", &set_with_empty_disk(&scratch, with_init)]);
        assert_eq!(code, Some(125), "{talk}");
        let cause = if with_init { "/dev/vda" } else { "error: the kernel found no root file system" };
        assert!(talk.contains("error: ") && talk.contains(cause), "{talk}");
        assert!(talk.contains("the console's last lines"), "{talk}");
    }
}

#[test]
fn a_full_disk_of_the_host_ends_neither_in_silence_nor_in_a_wait() {
    let scratch = Scratch::new();
    let set = set_of(&scratch, &busybox_image(&scratch, ""), true);
    let script = "/busybox dd if=/dev/zero of=/big bs=1M count=40; /busybox sync; exit 3";
    let words = ["boot", "--accel", "tcg", "--from", set.as_str(), "--", "/busybox", "sh", "-c", script];
    let (talk, code, left) = in_small_cache(&scratch, "9m", &words);
    assert!(talk.contains("the guest cannot write to its disk; is this host's disk full?"), "{talk}");
    assert_eq!((code, left.as_str()), (Some(3), ""), "{talk}");

    let (talk, code, left) = in_small_cache(&scratch, "1m", &words);
    assert!(talk.contains("No space left on device") && talk.contains("hint: free some space"), "{talk}");
    assert_eq!((code, left.as_str()), (Some(125), ""), "{talk}");
}

#[test]
fn a_port_in_use_is_named_with_its_holder() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (talk, code) = boot(&["-p", &format!("{port}:80"), "images/hello"]);
    assert!(talk.starts_with(&format!("error: port {port} is in use by ")), "{talk}");
    assert_eq!(code, Some(125));
}

/// Each finds the default port free, or promised to another; ports of both kinds, and those that the image exposes.
#[test]
fn machines_that_start_at_once_have_ports_of_their_own() {
    let start = |more: &[&str]| {
        let words = [&["boot", "-p", "0:80", "-p", "0:53/udp"][..], more, &["--", "cat"]].concat();
        let words = if more.is_empty() { vec!["boot", "-i", "--", "cat"] } else { words };
        let mut boot = xtask(&words);
        boot.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        boot.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        boot.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let mut boots: Vec<_> = (0..4).flat_map(|_| [start(&[]), start(&["-P", "-i", "images/hello"])]).collect();
    for (number, boot) in boots.iter_mut().enumerate() {
        std::io::Write::write_all(&mut boot.stdin.take().unwrap(), format!("{number}").as_bytes()).unwrap();
    }
    let mut listening = Vec::new();
    for (number, boot) in boots.into_iter().enumerate() {
        let output = boot.wait_with_output().unwrap();
        let (said, talk) = crate::support::texts(&output);
        assert_eq!((output.status.code(), said), (Some(0), number.to_string()), "{talk}");
        listening
            .extend(talk.lines().filter_map(|line| line.strip_prefix("listening on ")).map(str::to_owned));
    }
    assert!(listening.len() >= 4 + 4 * 2, "{listening:?}");
}

/// A port that the user named is never another one: of several who name it at once, one has it.
#[test]
fn a_port_that_several_name_at_once_is_had_by_one() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = format!("{port}:80");
    let start = || {
        let mut boot = xtask(&["boot", "-i", "-p", &publish, "images/hello", "--", "cat"]);
        boot.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        boot.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        boot.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let mut boots: Vec<_> = (0..4).map(|_| start()).collect();
    // Three say that they cannot, while one waits for its input.
    crate::support::wait_until("three have ended", || {
        boots.iter_mut().filter_map(|boot| boot.try_wait().unwrap()).count() == 3
    });
    let mut had = 0;
    for mut boot in boots {
        let input = boot.stdin.take();
        let is_over = boot.try_wait().unwrap().is_some();
        drop(input);
        let output = boot.wait_with_output().unwrap();
        let talk = crate::support::texts(&output).1;
        if is_over {
            assert!(talk.starts_with(&format!("error: port {port} is in use")), "{talk}");
            assert_eq!(output.status.code(), Some(125));
        } else {
            had += 1;
            assert!(
                output.status.success() && talk.contains(&format!(":{port} (guest port 80/tcp)")),
                "{talk}"
            );
        }
    }
    assert_eq!(had, 1);
}

/// The QEMU that a process started, once there is one.
pub(crate) fn qemu_of(boot: u32) -> u32 {
    let deadline = std::time::Instant::now() + crate::world::DEADLINE;
    loop {
        let children = fs::read_to_string(format!("/proc/{boot}/task/{boot}/children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            if name.starts_with("qemu-system") {
                return child.parse().unwrap();
            }
        }
        assert!(std::time::Instant::now() < deadline, "boot never started QEMU");
        std::thread::yield_now();
    }
}

/// True for a process that is no more, or waits for its parent to take notice (state Z).
pub(crate) fn has_ended(process: u32) -> bool {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

#[test]
fn killing_boot_leaves_no_qemu_and_its_name_is_free_again() {
    let name = format!("killed-{}", std::process::id());
    let named = |script: &str| boot(&["--rm", "--name", &name, "images/hello", "--", "sh", "-c", script]);
    let mut boot = xtask(&["boot", "--rm", "--name", &name, "images/hello", "--", "sleep", "1000"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let qemu = qemu_of(boot.id());
    let (talk, code) = named("true");
    assert!(talk.contains(&format!("a machine named `{name}` is running")) && code == Some(125), "{talk}");
    boot.kill().unwrap();
    boot.wait().unwrap();
    crate::support::wait_until("QEMU has ended", || has_ended(qemu));
    assert_eq!(named("exit 9").1, Some(9));
    let workspace = xtask::workspace::Workspace::discover().unwrap();
    let left = xtask::vm::record::run_dir::RunDir::named(&workspace, &name);
    assert!(!left.path().exists(), "something of `{name}` is left");
}

#[test]
fn a_kernel_that_panics_before_its_console_is_up_says_why() {
    let scratch = Scratch::new();
    let workspace = xtask::workspace::Workspace::discover().unwrap();
    let ending = |argument: &str| {
        let machine = Machine {
            kernel: xtask::kernel::latest(&workspace).unwrap().boot_image().to_owned(),
            initramfs: None,
            kernel_arguments: vec![argument.to_owned()],
            accelerator: Accelerator::Tcg,
            memory_mib: 128,
            cpus: 1,
            agent_socket: Some("agent".into()),
            disks: Vec::new(),
            shares: Vec::new(),
            network: Network::None,
            private_network: None,
            gdb_socket: None,
        };
        let supervision = Supervision {
            limits: xtask::boot::run::limits(Accelerator::Tcg, None),
            console_log: scratch.path().join("console.log"),
            clients: None,
            main: xtask::vm::queue::bounded(1).0,
            console_is_main: false,
        };
        Supervisor::launch(&machine, supervision).unwrap().run().unwrap()
    };
    // At once; and where there is no memory for the drivers.
    for (argument, cause) in [
        ("memmap=exactmap", "the guest's kernel panicked: Invalid user supplied memory map"),
        ("mem=16M", "the guest ran out of memory; give it more with `-m`"),
    ] {
        let ended = ending(argument);
        assert_eq!(ended.outcome, Outcome::Failed { cause: cause.into() }, "{:?}", ended.last_lines);
        assert!(!ended.last_lines.is_empty());
    }
}
