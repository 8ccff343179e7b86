//! `boot` and `test`: their help, and what is refused before anything is built or booted.

use insta::assert_snapshot;

use crate::support::{Scratch, transcript};

fn boot(arguments: &[&str]) -> String {
    let scratch = Scratch::new();
    let words: Vec<&str> = ["boot"].iter().chain(arguments).copied().collect();
    scratch.transcript(&mut scratch.xtask(&words))
}

#[test]
fn help() {
    let scratch = Scratch::new();
    assert_snapshot!("help_boot", transcript(&mut scratch.xtask(&["boot", "--help"])));
    assert_snapshot!("help_test", transcript(&mut scratch.xtask(&["test", "--help"])));
}

#[test]
fn numbers_that_make_no_machine() {
    assert_snapshot!("port_out_of_range", boot(&["-p", "99999:80"]));
    assert_snapshot!("memory_below_what_boots", boot(&["-m", "16M"]));
    assert_snapshot!("no_cpus", boot(&["--cpus", "0"]));
    assert_snapshot!("no_time", boot(&["--timeout", "soon"]));
}

#[test]
fn folders_and_files_that_are_not_there() {
    assert_snapshot!("share_that_does_not_exist", boot(&["--share", "./no-such-folder"]));
    assert_snapshot!("volume_that_does_not_exist", boot(&["-v", "./no-such-folder:/srv"]));
    assert_snapshot!("volume_on_the_root", boot(&["-v", "/tmp:/"]));
    assert_snapshot!("set_that_does_not_exist", boot(&["--from", "./no-such-set"]));
    assert_snapshot!("dockerfile_that_does_not_exist", boot(&["./no-such-folder/Dockerfile"]));
}

#[test]
fn networks_and_ports_that_cannot_be() {
    assert_snapshot!("network_of_the_host", boot(&["--network", "host"]));
    assert_snapshot!("ports_without_a_network", boot(&["--network", "none", "-p", "8080:80"]));
    assert_snapshot!("port_published_twice", boot(&["-p", "18080:80", "-p", "18080:81"]));
    assert_snapshot!("port_on_ipv6", boot(&["-p", "[::1]:8080:80"]));
    assert_snapshot!("private_network_by_hand", boot(&["--network", "back", "--dry-run"]));
}

#[test]
fn volumes_that_cannot_be() {
    assert_snapshot!("volume_with_a_wrong_name", boot(&["-v", "a b:/srv"]));
    assert_snapshot!("tmpfs_on_the_root", boot(&["--tmpfs", "/:size=1m"]));
    let scratch = Scratch::new();
    let volume = |arguments: &[&str]| transcript(&mut scratch.xtask(&[&["volume"], arguments].concat()));
    assert_snapshot!("volume_list_of_none", volume(&["ls"]));
    assert_snapshot!("volume_that_is_not_there", volume(&["rm", "nothing"]));
    assert_snapshot!("help_volume", volume(&["--help"]));
}

#[test]
fn variables_without_a_name() {
    assert_snapshot!("variable_without_a_name", boot(&["-e", "=value"]));
    let scratch = Scratch::new();
    scratch.write("variables", "# a comment\nA=1\n=2\n");
    assert_snapshot!(
        "env_file_with_a_wrong_line",
        scratch.transcript(&mut scratch.xtask(&["boot", "--env-file", "variables"]))
    );
}
