//! A real nginx: the recipe's own Dockerfile, unchanged, and pages from a folder of the host.

use std::process::Command;

use crate::support::Scratch;
use crate::world::{Machine, fixture, get, nginx_base, xtask};

#[test]
fn the_recipes_own_dockerfile_builds_and_nginx_answers() {
    nginx_base();
    let mut machine = Machine::boot(&["-p", "0:80", fixture("recipe").as_str()]);
    let port = machine.port(80);
    let answer = get(port, "/");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nServer: nginx/"), "{answer}");
    assert_eq!(machine.stop(), Some(0), "nginx ends well when it is asked to");
}

#[test]
fn a_page_from_a_share_is_the_hosts_file_and_a_read_only_share_refuses_writes() {
    nginx_base();
    let scratch = Scratch::new();
    let page = format!("made by process {}", std::process::id());
    scratch.write("a site/index.html", &page);
    let site = scratch.path().join("a site");
    let image = fixture("recipe");
    let mut machine = Machine::boot(&["-p", "0:80", "--share", site.as_str(), image.as_str()]);
    let port = machine.port(80);
    assert!(get(port, "/").ends_with(&page));
    // The guest sees the host's folder, not a copy of it.
    scratch.write("a site/later.html", "written later");
    assert!(get(port, "/later.html").ends_with("written later"));
    machine.stop();

    let volume = format!("{site}:/mnt/site:ro");
    let boot = |volume: &str, script: &str| {
        let words = ["boot", "-v", volume, "--entrypoint", "sh", image.as_str(), "--", "-c", script];
        let output = xtask(&words).output().unwrap();
        (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
    };
    let (talk, code) = boot(&volume, "echo x >/mnt/site/index.html");
    assert!(talk.contains("Read-only file system"), "{talk}");
    assert_eq!(code, Some(2), "{talk}");
    let (talk, code) = boot(&format!("{site}:/mnt/site"), "echo from the guest >/mnt/site/guest.txt");
    assert_eq!(code, Some(0), "{talk}");
    assert_eq!(std::fs::read_to_string(site.join("guest.txt")).unwrap(), "from the guest\n");
}

#[test]
fn the_qemu_command_line_of_a_dry_run_boots_when_it_is_pasted() {
    let output = xtask(&["boot", "--dry-run", "images/hello", "--", "sh", "-c", "echo pas''ted; exit 5"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let command_line = String::from_utf8(output.stdout).unwrap();
    let pasted =
        Command::new("sh").args(["-c", &command_line]).stdin(std::process::Stdio::null()).output().unwrap();
    let console = String::from_utf8_lossy(&pasted.stdout);
    assert!(console.contains("pasted\r\n"), "{console}");
    assert!(console.contains("init: main process ended with exit code 5"), "{console}");
}
