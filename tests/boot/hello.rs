//! The default image: its banner, its page, a command's streams and exit code, Ctrl-C on a real terminal.

use camino::Utf8Path;
use rexpect::session::spawn_command;
use std::io::Write as _;
use std::process::Stdio;

use crate::support::Scratch;
use crate::world::{DEADLINE, get, xtask};

#[test]
fn hello_reaches_its_banner_answers_and_ends_on_ctrl_c() {
    let xtask = assert_cmd::cargo::cargo_bin!("xtask");
    let mut shell = std::process::Command::new("sh");
    // The shell tells what the user has afterwards: the exit code, and a terminal that is as it was.
    let script = format!("{} boot -p 0:80 images/hello; echo code=$?; stty -a", xtask.display());
    shell.args(["-c", &script]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let milliseconds = u64::try_from(DEADLINE.as_millis()).unwrap();
    let mut terminal = spawn_command(shell, Some(milliseconds)).unwrap();

    terminal.exp_string("listening on http://127.0.0.1:").unwrap();
    let (_, port) = terminal.exp_regex("[0-9]+").unwrap();
    terminal.exp_string("hello from a microVM: Linux ").unwrap();
    assert!(get(port.parse().unwrap(), "/").contains("<h1>hello from a microVM</h1>"));
    terminal.send_control('c').unwrap();
    terminal.exp_string("code=130").unwrap();
    terminal.exp_regex("[^-]icanon").unwrap();
}

#[test]
fn a_command_has_streams_and_an_exit_code_of_its_own() {
    let output = xtask(&["boot", "images/hello", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(talk.ends_with("err\n"), "{talk}");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn settings_reach_the_command_and_input_comes_through_unharmed() {
    let every_byte: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let script = "echo $WORD:$(pwd):$(id -u):$(id -g):$(hostname); cat";
    let mut boot =
        xtask(&["boot", "-i", "-e", "WORD=a b", "-w", "/tmp/made/here", "-u", "12:34", "--hostname", "web"])
            .args(["--cpus", "2", "-m", "128M", "images/hello", "--", "sh", "-c", script])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    let mut stdin = boot.stdin.take().unwrap();
    let input = every_byte.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = boot.wait_with_output().unwrap();
    writer.join().unwrap();
    let expected = b"a b:/tmp/made/here:12:34:web\n";
    assert!(output.stdout.starts_with(expected), "{}", String::from_utf8_lossy(&output.stdout[..200]));
    assert!(output.stdout[expected.len()..] == every_byte, "the bytes differ");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_a_guest_writes_is_gone_unless_it_persists() {
    let name = format!("persist-{}", std::process::id());
    let boot = |arguments: &[&str], script: &str| {
        let output = xtask(&["boot"])
            .args(arguments)
            .args(["images/hello", "--", "sh", "-c", script])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .unwrap();
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
    };
    let persist = ["--rm", "--persist", "--name", name.as_str()];
    assert_eq!(boot(&[], "echo gone >/file").1, Some(0));
    assert_eq!(boot(&[], "cat /file").1, Some(1));
    assert_eq!(boot(&persist, "echo kept >/file").1, Some(0));
    assert_eq!(boot(&persist, "cat /file"), ("kept\n".into(), Some(0)));
    let workspace = xtask::workspace::Workspace::discover().unwrap();
    std::fs::remove_file(workspace.persistent_disks().join(format!("{name}.qcow2"))).unwrap();
}

#[test]
fn an_image_of_the_checkout_is_found_from_any_folder() {
    let output = xtask(&["boot", "images/hello", "--", "true"]).current_dir("/").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A PATH with all programs but those.
fn path_without(scratch: &Scratch, programs: &[&str]) -> String {
    let folder = scratch.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    let path = std::env::var("PATH").unwrap();
    for entry in
        path.split(':').filter_map(|folder| Utf8Path::new(folder).read_dir_utf8().ok()).flatten().flatten()
    {
        if !programs.iter().any(|program| entry.file_name().contains(program)) {
            // The first of a name counts.
            let _ = std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name()));
        }
    }
    folder.into_string()
}

#[test]
fn with_everything_built_no_compiler_is_needed() {
    let boot = |path: Option<&str>| {
        let mut boot = xtask(&["boot", "images/hello", "--", "echo", "hi"]);
        boot.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if let Some(path) = path {
            boot.env("PATH", path);
            // What Cargo tells a test.
            boot.env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTUP_HOME").env_remove("CARGO_HOME");
        }
        let output = boot.output().unwrap();
        assert_eq!(output.stdout, b"hi\n", "{}", String::from_utf8_lossy(&output.stderr));
    };
    let scratch = Scratch::new();
    boot(None);
    boot(Some(&path_without(&scratch, &["gcc", "cc", "clang", "rustc", "cargo", "rustup"])));
}
