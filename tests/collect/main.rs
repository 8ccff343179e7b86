//! `collect` against a real `sshd` on loopback: what arrives, and that any failure leaves the destination as it was.

mod world;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{fs, thread};

use camino::Utf8Path;
use xtask::artifacts::Set;

use world::{DEADLINE, World, listing, noise, write};

const INIT_SIZE: usize = 20_000;
const KERNEL_SIZE: usize = 300_000;
const DISK_SIZE: usize = 3_000_000;

/// A qcow2 as far as its header tells.
fn disk(seed: u64) -> Vec<u8> {
    let mut bytes = noise(DISK_SIZE, seed);
    let header = include_bytes!("../../fuzz/seeds/qcow2/alone");
    bytes[..header.len()].copy_from_slice(header);
    bytes
}

/// The files of a set under the recipe's names.
fn write_set(folder: &Utf8Path, seed: u64) {
    write(&folder.join("init"), &noise(INIT_SIZE, seed));
    write(&folder.join("kernel"), &noise(KERNEL_SIZE, seed + 1));
    write(&folder.join("hda.qcow2"), &disk(seed + 2));
}

fn stderr_of(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

/// Runs `collect` into a destination that holds an older set, expects it to fail, and the older set to be as it was.
/// Returns what was said.
fn fails_and_changes_nothing(world: &World, mut command: assert_cmd::Command) -> String {
    let near = world.near();
    write_set(&near, 1000);
    write(&near.join("notes.txt"), b"mine");
    let before = listing(&near);
    let assert = command.args(["--dest", near.as_str()]).assert().failure();
    assert_eq!(listing(&near), before, "{}", stderr_of(&assert));
    stderr_of(&assert)
}

#[test]
fn this_workbenchs_own_set_is_found_and_its_links_are_followed() {
    let world = World::new();
    let checkout = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let there = world.home().join(checkout.file_name().unwrap());
    write_set(&world.home().join("cache"), 1);
    fs::create_dir_all(there.join("target/artifacts")).unwrap();
    for name in ["init", "kernel", "hda.qcow2"] {
        symlink(world.home().join("cache").join(name), there.join("target/artifacts").join(name)).unwrap();
    }
    write(&there.join("target/artifacts/image.json"), b"{}");

    let near = world.near();
    let assert = world.collect().args(["--dest", near.as_str()]).assert().code(0);
    let mut expected = listing(&world.home().join("cache"));
    expected.push(("image.json".into(), b"{}".into()));
    expected.sort();
    assert_eq!(listing(&near), expected);
    assert_eq!(fs::metadata(near.join("init")).unwrap().permissions().mode() & 0o777, 0o755);
    let set = Set::load(&near).unwrap();
    assert!(set.init.is_some() && set.image_config.is_some());
    let said =
        stderr_of(&assert).replace(near.as_str(), "[NEAR]").replace(checkout.file_name().unwrap(), "[NAME]");
    insta::assert_snapshot!(said, @"
    connecting to 127.0.0.1
    collecting init, kernel, hda.qcow2, image.json from 127.0.0.1:~/[NAME]/target/artifacts
    collected init, kernel, hda.qcow2, image.json (3.17 MiB) into [NEAR]
    boot it with `cargo xtask boot --from [NEAR]`
    ");

    // The second run brings what is there now, keeps the user's own files, and leaves no config of an older image.
    write(&near.join("notes.txt"), b"mine");
    write(&world.home().join("cache/kernel"), &noise(KERNEL_SIZE, 99));
    fs::remove_file(there.join("target/artifacts/image.json")).unwrap();
    world.collect().args(["--dest", near.as_str()]).assert().code(0);
    let mut expected = listing(&world.home().join("cache"));
    expected.push(("notes.txt".into(), b"mine".into()));
    expected.sort();
    assert_eq!(listing(&near), expected);
}

#[test]
fn a_set_made_by_hand_is_collected_with_its_newest_kernel() {
    let world = World::new();
    let work = world.home().join("work");
    write(&work.join("myinit/myinit"), b"init");
    write(&work.join("dockerbuild/dockerimage.qcow2"), &disk(7));
    // Kbuild makes the link: arch/x86_64/boot/bzImage -> ../../x86/boot/bzImage
    for (version, age_seconds) in [("6.7.4", 10), ("6.12", 1000)] {
        let arch = work.join(format!("linux-{version}/arch"));
        write(&arch.join("x86/boot/bzImage"), version.as_bytes());
        fs::create_dir_all(arch.join("x86_64/boot")).unwrap();
        symlink("../../x86/boot/bzImage", arch.join("x86_64/boot/bzImage")).unwrap();
        let built = std::time::SystemTime::now() - std::time::Duration::from_secs(age_seconds);
        fs::File::options()
            .write(true)
            .open(arch.join("x86/boot/bzImage"))
            .unwrap()
            .set_modified(built)
            .unwrap();
    }
    let near = world.near();
    world.collect().args(["--dest", near.as_str()]).assert().code(0);
    let expected = [("hda.qcow2", disk(7)), ("init", b"init".into()), ("kernel", b"6.7.4".into())];
    assert!(listing(&near) == expected.map(|(name, bytes)| (name.to_owned(), bytes)));
}

#[test]
fn a_disk_that_lies_on_another_file_is_not_collected() {
    let world = World::new();
    let there = world.home().join("work");
    write_set(&there, 5);
    let mut bytes = disk(7);
    let header = include_bytes!("../../fuzz/seeds/qcow2/overlay");
    bytes[..header.len()].copy_from_slice(header);
    write(&there.join("hda.qcow2"), &bytes);
    let mut command = world.collect();
    command.args(["--remote-dir", "work"]);
    let talk = fails_and_changes_nothing(&world, command);
    assert!(
        talk.contains("`hda.qcow2` cannot be a disk: it lies on another file, `/srv/disks/a.qcow2`"),
        "{talk}"
    );
}

#[test]
fn odd_folders_and_a_machine_with_busybox_alone_will_do() {
    let world = World::new();
    world.only_busybox();
    let odd = "it's a \"$HOME\" `folder`;*";
    write_set(&world.home().join(odd), 7);
    let near = world.near().join("also 'odd'");
    world.collect().args(["--remote-dir", odd, "--dest", near.as_str()]).assert().code(0);
    assert_eq!(listing(&near), listing(&world.home().join(odd)));
}

#[test]
fn a_refused_connection_names_the_host_and_says_what_to_try() {
    let world = World::new();
    // Bound and not listening: nobody else takes the port meanwhile.
    let closed =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&closed, &std::net::SocketAddrV4::new([127, 0, 0, 1].into(), 0)).unwrap();
    let address: std::net::SocketAddrV4 = rustix::net::getsockname(&closed).unwrap().try_into().unwrap();
    let said = fails_and_changes_nothing(&world, world.collect_from(address.port(), "user_key"));
    insta::assert_snapshot!(said.replace(&address.port().to_string(), "[PORT]"), @"
    connecting to 127.0.0.1
    error: failed to collect from `127.0.0.1`

    Caused by:
        `ssh` ended before the transfer began (exit status: 255)
        ssh: connect to host 127.0.0.1 port [PORT]: Connection refused

    hint: is sshd running there, and on that port? try `ssh -p [PORT] 127.0.0.1`
    ");
}

#[test]
fn a_key_that_the_far_side_does_not_know_is_an_error() {
    let world = World::new();
    let said = fails_and_changes_nothing(&world, world.collect_from(world.port, "stranger_key"));
    assert!(said.contains("Permission denied (publickey)"), "{said}");
    assert!(said.contains("hint: name a key with `-i`, or another user: `USER@127.0.0.1`"), "{said}");
}

#[test]
fn a_far_side_that_is_not_the_known_one_is_an_error() {
    let world = World::new();
    fs::rename(world.home().join("../stranger_key.pub"), world.home().join("../known_hosts")).unwrap();
    let said = fails_and_changes_nothing(&world, world.collect());
    assert!(said.contains("Host key verification failed"), "{said}");
    assert!(said.contains("accept its key"), "{said}");
}

#[test]
fn where_no_set_is_whole_the_error_lists_every_candidate() {
    let world = World::new();
    let mut command = world.collect();
    command.args(["--remote-dir", "nowhere"]);
    let said = fails_and_changes_nothing(&world, command);
    insta::assert_snapshot!(said, @"
    connecting to 127.0.0.1
    error: failed to collect from `127.0.0.1`

    Caused by:
        no complete set of init, kernel and disk over there; looked at
          nowhere/target/artifacts: no such folder
          nowhere: no such folder

    hint: build there with `cargo xtask boot`, or name the folder with `--remote-dir`
    ");

    write(&world.home().join("part/init"), b"init");
    write(&world.home().join("part/linux-6.7.4/arch/x86_64/boot/bzImage"), b"kernel");
    let mut command = world.collect();
    command.args(["--remote-dir", "~/part"]);
    let said = fails_and_changes_nothing(&world, command);
    insta::assert_snapshot!(said, @"
    connecting to 127.0.0.1
    error: failed to collect from `127.0.0.1`

    Caused by:
        no complete set of init, kernel and disk over there; looked at
          ~/part/target/artifacts: no such folder
          ~/part: no `kernel`, no `hda.qcow2`
          ~/part: no `myinit/myinit`, no `dockerbuild/dockerimage.qcow2`

    hint: build there with `cargo xtask boot`, or name the folder with `--remote-dir`
    ");
}

/// Forwards one connection to `port`, and cuts it after `limit` bytes towards the client.
fn cutting_proxy(port: u16, limit: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own_port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        // Ends with an error when the connection is cut.
        thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
        std::io::copy(&mut (&server).take(limit as u64), &mut &client).unwrap();
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
    own_port
}

#[test]
fn a_connection_that_breaks_changes_nothing() {
    let world = World::new();
    write_set(&world.home().join("work"), 3);
    let port = cutting_proxy(world.port, KERNEL_SIZE + DISK_SIZE / 2);
    let said = fails_and_changes_nothing(&world, world.collect_from(port, "user_key"));
    assert!(said.contains("the connection broke after ") && said.contains(" of 3.17 MiB"), "{said}");
    assert!(said.contains("hint: nothing was changed here; run the same command again"), "{said}");
}

#[test]
fn a_stream_that_ends_early_changes_nothing() {
    let world = World::new();
    write_set(&world.home().join("work"), 3);
    world.replace_program("tar", "/usr/bin/env -i /bin/tar \"$@\" | head -c 1000000");
    let said = fails_and_changes_nothing(&world, world.collect());
    assert!(said.contains("the stream ended early"), "{said}");
}

#[test]
fn content_that_is_altered_on_its_way_is_refused() {
    let world = World::new();
    let work = world.home().join("work");
    write_set(&work, 3);
    write(&work.join("kernel"), b"kernel kernel kernel");
    world.replace_program("tar", "/bin/tar \"$@\" | sed 's/kernel kernel/kernel kerneL/'");
    let said = fails_and_changes_nothing(&world, world.collect());
    assert!(said.contains("`kernel` arrived damaged: its sha256 is "), "{said}");
}

#[test]
fn other_names_in_the_stream_are_refused() {
    let world = World::new();
    write_set(&world.home().join("work"), 3);
    world.replace_program("tar", "/bin/tar --transform 's,^init$,../../escaped,' -P \"$@\"");
    let said = fails_and_changes_nothing(&world, world.collect());
    assert!(
        said.contains(
            "the tar stream holds `../../escaped` (20000 bytes) where the file `init` (20000 bytes) is due"
        ),
        "{said}"
    );
}

#[test]
fn a_file_that_cannot_be_written_to_its_end_changes_nothing() {
    let world = World::new();
    write_set(&world.home().join("work"), 3);
    // As a disk that fills up: the disk's file may take 1 MB (ulimit counts 512 bytes), and the write fails.
    let mut command = Command::new("sh");
    command
        .env("MICROVM_CACHE", world.cache())
        .args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh"])
        .arg(assert_cmd::cargo::cargo_bin!("xtask"))
        .args(["collect", &format!("127.0.0.1:{}", world.port)])
        .args(world.ssh_words("user_key"));
    let mut command = assert_cmd::Command::from_std(command);
    command.timeout(DEADLINE);
    let said = fails_and_changes_nothing(&world, command);
    assert!(said.contains("failed to write `") && said.contains("File too large"), "{said}");
}

/// A far side that sends about a third and then waits until `go` is there, or the world has gone.
fn stall(world: &World) {
    let go = world.home().join("go");
    world.replace_program(
        "tar",
        &format!(
            "/bin/tar \"$@\" | {{ head -c 1000000; touch {go}.asked; while [ ! -e {go} ] && [ -e {go}.asked ]; do sleep 0.05; done; cat; }}"
        ),
    );
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < DEADLINE, "{what} did not come");
        thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn ctrl_c_changes_nothing() {
    let world = World::new();
    write_set(&world.home().join("work"), 3);
    stall(&world);
    let near = world.near();
    write_set(&near, 1000);
    let before = listing(&near);
    let mut child = world
        .std_command()
        .arg(format!("127.0.0.1:{}", world.port))
        .args(world.ssh_words("user_key"))
        .args(["--dest", near.as_str()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the transfer", || {
        listing(&near).len() > before.len() && world.home().join("go.asked").exists()
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(listing(&near), before);
    write(&world.home().join("go"), b"");
}

#[test]
fn two_at_once_take_turns() {
    let world = World::new();
    write_set(&world.home().join("work"), 3);
    stall(&world);
    let near = world.near();
    let start = || {
        world
            .std_command()
            .arg(format!("127.0.0.1:{}", world.port))
            .args(world.ssh_words("user_key"))
            .args(["--dest", near.as_str()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let first = start();
    wait_for("the first transfer", || world.home().join("go.asked").exists());
    let mut second = start();
    let mut said = String::new();
    let mut stderr = second.stderr.take().unwrap();
    while !said.contains('\n') {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        said.push(byte[0].into());
    }
    assert!(said.starts_with("waiting for another task that works on `"), "{said}");
    write(&world.home().join("go"), b"");
    let output = first.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stderr.read_to_string(&mut said).unwrap();
    assert!(second.wait().unwrap().success(), "{said}");
    assert_eq!(listing(&near), listing(&world.home().join("work")));
}

#[test]
fn a_destination_that_is_a_file_is_refused_before_connecting() {
    let world = World::new();
    let file = world.home().join("file");
    fs::File::create(&file).unwrap().write_all(b"mine").unwrap();
    let assert = world.collect().args(["--dest", file.as_str()]).assert().code(125);
    assert_eq!(stderr_of(&assert), format!("error: the destination `{file}` is not a folder\n"));
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}
