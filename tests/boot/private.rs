//! Another user of this host, who reads what there is to read and is first where a folder is to be. As root these tests
//! have a second user; as anybody else they look at modes and at what root owns.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};

use crate::support::{Scratch, texts, wait_until};
use crate::world::{Detached, xtask};

const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const SECRET: &str = "TOKEN=of-its-owner";

/// `nobody` and its group.
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A shell command as another user; where this one is not root, there is none, and nothing is said.
fn as_nobody(script: &str) -> Option<String> {
    let ids = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", "sh", "-c", script];
    let output = is_root().then(|| Command::new("setpriv").args(ids).output().unwrap());
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn everything_below(folder: &Utf8Path, found: &mut Vec<Utf8PathBuf>) {
    for entry in folder.read_dir_utf8().unwrap().map(Result::unwrap) {
        found.push(entry.path().to_owned());
        if entry.file_type().unwrap().is_dir() {
            everything_below(entry.path(), found);
        }
    }
}

#[test]
fn what_is_known_of_a_machine_is_its_owners_alone() {
    let machine =
        Detached::boot("private", &["-e", SECRET, "images/hello", "--", "sh", "-c", "env; sleep 1000"]);
    wait_until("it has spoken", || {
        texts(&machine.task("logs", &[], &[]).output().unwrap()).0.contains(SECRET)
    });
    let workspace = xtask::workspace::Workspace::discover().unwrap();
    assert_eq!(workspace.cache().metadata().unwrap().mode() & 0o777, 0o700);
    let folder = workspace.machines().join(&machine.name);
    let mut found = vec![folder.clone(), workspace.sockets(), workspace.sockets().join(&machine.name)];
    everything_below(&folder, &mut found);
    for path in &found {
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!(metadata.mode() & 0o077, 0, "{path} has mode {:o}", metadata.mode());
    }
    for wanted in ["plan.json", "initramfs.cpio", "overlay.qcow2", "console.log", "output.log", "lock"] {
        assert!(found.contains(&folder.join(wanted)), "{wanted}");
    }
    let holds_secret = |path: &Utf8Path| {
        std::fs::read(path)
            .is_ok_and(|bytes| bytes.windows(SECRET.len()).any(|word| word == SECRET.as_bytes()))
    };
    assert!(found.iter().any(|path| holds_secret(path)), "the test looks where secrets are");

    // Command lines are for everybody to read (proc(5)).
    for which in ["supervisor", "qemu"] {
        let pid = machine.process(which).as_raw_pid();
        assert!(!holds_secret(Utf8Path::new(&format!("/proc/{pid}/cmdline"))), "{which}");
    }
    let script = format!("cat {folder}/* {folder}/../../locks/* 2>/dev/null; ls {}", workspace.sockets());
    assert!(as_nobody(&script).is_none_or(|said| said.is_empty()));
    // Nobody else holds a lock, so nobody else can stop a task.
    let lock = workspace.cache().join("locks/machines.lock");
    assert!(as_nobody(&format!("flock -n {lock} echo held")).is_none_or(|said| said.is_empty()));
}

#[test]
fn a_command_line_to_paste_tells_no_variable() {
    let output =
        xtask(&["boot", "--dry-run", "-e", SECRET, "images/hello"]).current_dir(CHECKOUT).output().unwrap();
    let (said, talk) = texts(&output);
    assert!(output.status.success() && !said.contains("of-its-owner"), "{said}{talk}");
    let initramfs = said.split_whitespace().find(|word| word.ends_with(".cpio")).unwrap();
    assert_eq!(std::fs::metadata(initramfs).unwrap().mode() & 0o777, 0o600);
}

/// Somebody else is first at the place of the sockets. Nothing of theirs is changed, and nothing is said to them.
#[test]
fn a_folder_for_sockets_that_is_not_ours_is_refused() {
    let scratch = Scratch::new();
    let open = scratch.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let victim = scratch.path().join("victim");
    std::fs::create_dir_all(victim.join("kept")).unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();

    let boot = |runtime: &Utf8Path, said: &str| {
        for task in
            [&["boot", "images/hello", "--", "true"][..], &["boot", "--network", "lan", "images/hello"]]
        {
            let output = xtask(task).env("XDG_RUNTIME_DIR", runtime).current_dir(CHECKOUT).output().unwrap();
            let (_, talk) = texts(&output);
            assert!(talk.contains(said) && talk.contains("hint: set XDG_RUNTIME_DIR"), "{talk}");
            assert_eq!(output.status.code(), Some(125));
        }
        assert_eq!(victim.metadata().unwrap().mode() & 0o777, 0o755);
        assert!(victim.join("kept").exists());
    };
    boot(&open, &format!("other users can change the folder `{open}`"));
    let ours = scratch.path().join("ours");
    std::fs::create_dir(&ours).unwrap();
    symlink(&victim, ours.join("microvm")).unwrap();
    let talk = format!("`{ours}/microvm");
    boot(&ours, &talk);
    if is_root() {
        let theirs = scratch.path().join("theirs");
        std::fs::create_dir_all(theirs.join("microvm")).unwrap();
        chown(theirs.join("microvm"), Some(NOBODY), Some(NOBODY)).unwrap();
        boot(&theirs, &format!("`{theirs}/microvm` belongs to another user ({NOBODY})"));
    }
}

/// Somebody else listens in the place of a machine's supervisor.
#[test]
fn a_client_says_nothing_to_another_users_process() {
    if !is_root() {
        // This user's own processes are all that it can start; `host::peer` tells users apart.
        return;
    }
    let machine = Detached::idle("peer");
    let workspace = xtask::workspace::Workspace::discover().unwrap();
    let sockets = workspace.sockets().join(&machine.name);
    let scratch = Scratch::new();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (theirs, heard) = (scratch.path().join("s"), scratch.path().join("heard"));
    let script = format!(
        "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Local => '{theirs}', Listen => 1) or die $!;
         my $c = $s->accept; $c->recv(my $heard, 1000); open(my $f, '>', '{heard}'); print $f $heard;"
    );
    let ids = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", "perl", "-e", &script];
    let mut listener = Command::new("setpriv").args(ids).spawn().unwrap();
    wait_until("somebody listens", || theirs.exists());
    let real = sockets.join("real");
    std::fs::rename(sockets.join("clients"), &real).unwrap();
    symlink(&theirs, sockets.join("clients")).unwrap();
    let output = machine.task("exec", &["-e", SECRET], &["env"]).output().unwrap();
    std::fs::rename(&real, sockets.join("clients")).unwrap();
    let (_, talk) = texts(&output);
    assert!(talk.contains("the other end of the socket belongs to another user (65534)"), "{talk}");
    listener.wait().unwrap();
    assert_eq!(std::fs::read(heard).unwrap(), b"");
    // A supervisor does the same: somebody who comes in is not heard.
    let real = sockets.join("clients");
    for folder in
        real.ancestors().skip(1).take_while(|folder| folder.as_str() != "/tmp" && folder.as_str() != "/")
    {
        let mode = folder.metadata().unwrap().mode();
        if folder.metadata().unwrap().uid() == 0 && mode & 0o001 == 0 {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode | 0o001)).unwrap();
        }
    }
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o777)).unwrap();
    let connect = format!(
        "exec perl -e 'use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!;
         $s->recv(my $heard, 9); print length($heard), \"\\n\"' {real}"
    );
    assert_eq!(as_nobody(&connect).unwrap(), "0\n");
    assert_eq!(machine.sh("echo here"), "here\n");
}
