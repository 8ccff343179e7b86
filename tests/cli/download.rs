//! The downloader of kernel sources against a server that misbehaves.

use sha2::{Digest as _, Sha256};
use xtask::kernel::download::Download;

use crate::support::Scratch;
use crate::support::http::{Answer, Server};
use std::time::Duration;
use xtask::pace::Slowest;

/// Bytes that differ everywhere, and their sha256.
fn file() -> (Vec<u8>, String) {
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let sha256 = xtask::workspace::hex(&Sha256::digest(&bytes));
    (bytes, sha256)
}

fn fetch(server: &Server, scratch: &Scratch, sha256: &str) -> anyhow::Result<()> {
    Download::begin(&format!("{}/file", server.url), &scratch.path().join("file"))?.finish(sha256)
}

fn range(start: usize) -> Option<String> {
    Some(format!("bytes={start}-"))
}

#[test]
fn a_download_goes_on_where_it_stopped() {
    let (scratch, (bytes, sha256)) = (Scratch::new(), file());
    std::fs::write(scratch.path().join("file.part"), &bytes[..1000]).unwrap();
    let server = Server::start(bytes.clone(), &[Answer::Right]);
    fetch(&server, &scratch, &sha256).unwrap();
    assert_eq!(server.ranges(), [range(1000)]);
    assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), bytes);
    assert!(!scratch.path().join("file.part").exists());
}

#[test]
fn a_download_that_was_whole_asks_for_nothing_more() {
    let (scratch, (bytes, sha256)) = (Scratch::new(), file());
    std::fs::write(scratch.path().join("file.part"), &bytes).unwrap();
    let server = Server::start(bytes.clone(), &[Answer::Right]);
    fetch(&server, &scratch, &sha256).unwrap();
    assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), bytes);
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let (scratch, (bytes, sha256)) = (Scratch::new(), file());
    std::fs::write(scratch.path().join("file.part"), &bytes[..1000]).unwrap();
    let server = Server::start(bytes.clone(), &[Answer::Whole]);
    fetch(&server, &scratch, &sha256).unwrap();
    assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), bytes);
}

#[test]
fn a_part_longer_than_the_file_is_dropped() {
    let (scratch, (bytes, sha256)) = (Scratch::new(), file());
    std::fs::write(scratch.path().join("file.part"), [&bytes[..], b"more"].concat()).unwrap();
    let server = Server::start(bytes.clone(), &[Answer::Right]);
    fetch(&server, &scratch, &sha256).unwrap();
    assert_eq!(server.ranges(), [range(bytes.len() + 4), None]);
    assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), bytes);
}

#[test]
fn a_connection_that_is_cut_is_made_again() {
    let (scratch, (bytes, sha256)) = (Scratch::new(), file());
    let server = Server::start(bytes.clone(), &[Answer::CutAfter(5000), Answer::CutAfter(0), Answer::Right]);
    fetch(&server, &scratch, &sha256).unwrap();
    assert_eq!(server.ranges(), [None, range(5000), range(5000)]);
    assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), bytes);
}

#[test]
fn a_server_that_gives_up_leaves_the_part_for_the_next_run() {
    let (scratch, (bytes, sha256)) = (Scratch::new(), file());
    let server = Server::start(bytes.clone(), &[Answer::CutAfter(5000), Answer::CutAfter(0)]);
    let error = fetch(&server, &scratch, &sha256).unwrap_err();
    let text = xtask::error::render(&error);
    assert!(text.contains("broke off") && text.contains("it goes on where this one stopped"), "{text}");
    assert_eq!(std::fs::read(scratch.path().join("file.part")).unwrap(), &bytes[..5000]);
    assert!(!scratch.path().join("file").exists());
}

#[test]
fn a_file_with_another_sha256_is_not_kept() {
    let (scratch, (bytes, sha256)) = (Scratch::new(), file());
    let server = Server::start(bytes[1..].to_vec(), &[Answer::Right]);
    let error = fetch(&server, &scratch, &sha256).unwrap_err().to_string();
    assert!(error.ends_with("is not the expected file, and was not kept"), "{error}");
    assert_eq!(scratch.path().read_dir_utf8().unwrap().count(), 0);
}

#[test]
fn a_server_that_is_not_there_is_known_at_once() {
    let scratch = Scratch::new();
    // The discard port of loopback, where nobody listens.
    let error = Download::begin("http://127.0.0.1:9/file", &scratch.path().join("file")).unwrap_err();
    assert!(format!("{error:#}").contains("failed to reach `http://127.0.0.1:9/file`"), "{error:#}");
}

#[test]
fn a_server_that_never_gives_the_rest_is_asked_once_more() {
    for (answer, complaint) in [
        (Answer::Status(416), "answered with 416"),
        (Answer::OtherPart, "answered with 206"),
        (Answer::Around, "too many redirects"),
        (Answer::Status(500), "answered with 500"),
    ] {
        let (scratch, (bytes, sha256)) = (Scratch::new(), file());
        std::fs::write(scratch.path().join("file.part"), &bytes[..1000]).unwrap();
        let server = Server::start(bytes, &[answer]);
        let error = fetch(&server, &scratch, &sha256).unwrap_err();
        assert!(format!("{error:#}").contains(complaint), "{error:#}");
        assert!(server.ranges().len() < 25);
    }
}

#[test]
fn a_part_that_is_not_the_next_one_is_not_taken_for_it() {
    let (scratch, (bytes, sha256)) = (Scratch::new(), file());
    std::fs::write(scratch.path().join("file.part"), &bytes[..1000]).unwrap();
    let server = Server::start(bytes.clone(), &[Answer::OtherPart, Answer::Right]);
    fetch(&server, &scratch, &sha256).unwrap();
    assert_eq!(server.ranges(), [range(1000), None]);
    assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), bytes);
}

#[test]
fn a_download_that_trickles_is_given_up_and_kept() {
    // A byte now and then, on one connection and on one after the other.
    for answer in [Answer::Trickle, Answer::CutAfter(1)] {
        let (scratch, (bytes, sha256)) = (Scratch::new(), file());
        let server = Server::start(bytes, &[answer]);
        let slowest = Slowest { bytes: 100_000, within: Duration::from_secs(1) };
        let download =
            Download::begin(&format!("{}/file", server.url), &scratch.path().join("file")).unwrap();
        let error = download.no_slower_than(slowest).finish(&sha256).unwrap_err();
        let text = xtask::error::render(&error);
        assert!(text.contains("less than 100000 bytes came within 1 s"), "{text}");
        assert!(text.contains("it goes on where this one stopped"), "{text}");
        assert!(scratch.path().join("file.part").exists());
    }
}
