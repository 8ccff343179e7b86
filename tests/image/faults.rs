//! Registries that refuse, stumble or lie: each is a clear error or is overcome, and no half blob stays in the cache.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8Path;
use xtask::error;
use xtask::image::archive::Image;
use xtask::image::blob::Unpacking;
use xtask::image::registry::client::Options;
use xtask::image::registry::{self, Blobs};

use crate::layers::{Documents, Tar, digest, documents};
use crate::support::Scratch;

/// Pulls into a cache in `scratch`. `first_wait` is before the second try.
fn pull(scratch: &Scratch, reference: &str, first_wait: Duration) -> anyhow::Result<Image> {
    let options = Options { first_wait, silence: Duration::from_secs(5), ..Options::default() };
    let blobs = Blobs::new(scratch.path().join("blobs"));
    let unpacking = Unpacking { folder: scratch.path().to_owned(), limit: None };
    registry::pull(&reference.parse().unwrap(), options, &blobs, &unpacking)
}

/// What the registry does with one request, before it does the right thing.
#[derive(Debug, Clone)]
enum Fault {
    /// Answers with a status, headers and a body.
    Status(u16, &'static str, &'static str),
    /// Ends the connection after this many bytes of the body.
    Cut(usize),
    /// Sends other bytes of the same length.
    Corrupt,
}

/// A registry with one image, `app:1`, which stumbles as told where a path has a word in it.
struct Registry {
    host: String,
    requests: Arc<Mutex<Vec<String>>>,
}

type Faults = Arc<Mutex<Vec<(&'static str, VecDeque<Fault>)>>>;

impl Registry {
    fn start(documents: Documents, faults: &[(&'static str, &[Fault])]) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let faults = faults.iter().map(|(word, faults)| (*word, faults.iter().cloned().collect())).collect();
        let faults: Faults = Arc::new(Mutex::new(faults));
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = requests.clone();
        let documents = Arc::new(documents);
        // Ends with the test program.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (documents, faults, seen) = (documents.clone(), faults.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &documents, &faults, &seen));
            }
        });
        Registry { host, requests }
    }

    fn pull(&self, scratch: &Scratch) -> anyhow::Result<Image> {
        pull(scratch, &format!("{}/app:1", self.host), Duration::from_millis(1))
    }

    /// The whole message of a pull that fails.
    fn refusal(&self, scratch: &Scratch) -> String {
        error::render(&self.pull(scratch).unwrap_err())
    }

    fn count(&self, word: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.contains(word)).count()
    }
}

/// One request for each connection. A client that begins with TLS gets nothing, and comes back without.
fn serve(mut stream: TcpStream, documents: &Documents, faults: &Faults, seen: &Mutex<Vec<String>>) {
    let mut first = [0];
    // A TLS record of type handshake (RFC 8446, section 5.1).
    if !matches!(stream.peek(&mut first), Ok(1)) || first[0] == 22 {
        return;
    }
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if !matches!(reader.read_line(&mut head), Ok(1..)) {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap().push(path.clone());
    let fault =
        faults.lock().unwrap().iter_mut().find(|(word, _)| path.contains(word)).and_then(|(_, faults)| {
            // The last one is for ever.
            if faults.len() > 1 { faults.pop_front() } else { faults.front().cloned() }
        });
    let found = if path.contains("/manifests/") {
        Some(documents.manifest.clone())
    } else {
        documents
            .blobs
            .iter()
            .find(|(digest, _)| path.ends_with(digest.as_str()))
            .map(|(_, blob)| blob.clone())
    };
    let range = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let start: usize = range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
    let (status, headers, mut body) = match (&fault, found) {
        (Some(Fault::Status(status, headers, body)), _) => (*status, *headers, body.as_bytes().to_vec()),
        (_, None) => (
            404,
            "",
            br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#.to_vec(),
        ),
        (_, Some(body)) if start > 0 => (206, "", body[start..].to_vec()),
        (_, Some(body)) => (200, "", body),
    };
    let length = body.len();
    match fault {
        Some(Fault::Cut(bytes)) => body.truncate(bytes),
        Some(Fault::Corrupt) => body.iter_mut().for_each(|byte| *byte ^= 1),
        _ => {}
    }
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    // A client may go away at any time.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    let _ = stream.shutdown(Shutdown::Both);
}

fn image() -> Documents {
    let noise: String = (0..60_000_u32)
        .map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26))
        .collect();
    documents(&[Tar::new().folder("./").file("noise", &noise).bytes(), Tar::new().file("top", "top").bytes()])
}

fn files_in(folder: &Utf8Path) -> Vec<String> {
    let entries = folder.read_dir_utf8().into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            if entry.path().is_dir() { files_in(entry.path()) } else { vec![entry.file_name().to_owned()] }
        })
        .collect()
}

#[test]
fn refusals_are_told_apart() {
    let denied = r#"{"errors":[{"code":"DENIED","message":"requested access is denied"}]}"#;
    let cases = [
        (
            Fault::Status(401, "WWW-Authenticate: Basic realm=\"x\"\r\n", denied),
            "answers 401: requested access is denied",
            "podman login",
        ),
        (
            Fault::Status(403, "", denied),
            "answers 403: requested access is denied for the image's manifest",
            "may be private",
        ),
        (Fault::Status(404, "", "{}"), "answers 404 for the image's manifest", "see that"),
        (Fault::Status(429, "Retry-After: 0\r\n", ""), "answers 429", "podman login"),
        (Fault::Status(500, "", "out of order"), "answers 500: out of order", "gave up after 5 attempts"),
    ];
    for (fault, expected, also) in cases {
        let scratch = Scratch::new();
        let registry = Registry::start(image(), &[("/manifests/", &[fault])]);
        let said = registry.refusal(&scratch);
        assert!(said.contains(expected) && said.contains(also), "{said}");
        assert!(said.contains(&format!("failed to pull `{}/app:1`", registry.host)), "{said}");
        assert!(files_in(&scratch.path().join("blobs")).is_empty());
    }
}

#[test]
fn what_passes_is_tried_again() {
    let scratch = Scratch::new();
    let (busy, broken) = (Fault::Status(429, "Retry-After: 0\r\n", ""), Fault::Status(503, "", ""));
    let right = Fault::Cut(usize::MAX);
    let registry = Registry::start(image(), &[("/manifests/", &[busy, broken, right])]);
    let image = registry.pull(&scratch).unwrap();
    assert_eq!(registry.count("/manifests/"), 3);
    assert_eq!(image.layers.len(), 2);
    assert_eq!(files_in(&scratch.path().join("blobs")).len(), 2);
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let scratch = Scratch::new();
    let documents = image();
    let large = documents.blobs[0].0.clone();
    let large: &'static str = large.leak();
    let registry =
        Registry::start(documents, &[(large, &[Fault::Cut(1000), Fault::Cut(5000), Fault::Cut(usize::MAX)])]);
    registry.pull(&scratch).unwrap();
    assert_eq!(registry.count(large), 3);
    // A second pull needs only the manifest and the config.
    registry.pull(&scratch).unwrap();
    assert_eq!(registry.count(large), 3);
}

#[test]
fn a_connection_that_breaks_for_ever_is_an_error() {
    let scratch = Scratch::new();
    let documents = image();
    let large: &'static str = documents.blobs[0].0.clone().leak();
    let registry = Registry::start(documents, &[(large, &[Fault::Cut(1000), Fault::Cut(0)])]);
    let said = registry.refusal(&scratch);
    assert!(said.contains(&format!("the blob `{large}` ends after 1000 bytes")), "{said}");
    assert!(!files_in(&scratch.path().join("blobs")).contains(&large[7..].to_owned()));
}

#[test]
fn wrong_bytes_are_never_kept() {
    for word in ["/blobs/", "/manifests/"] {
        let scratch = Scratch::new();
        let documents = image();
        let pinned = digest(&documents.manifest);
        let registry = Registry::start(documents, &[(word, &[Fault::Corrupt])]);
        let reference = format!("{}/app@{pinned}", registry.host);
        let said = error::render(&pull(&scratch, &reference, Duration::from_millis(1)).unwrap_err());
        assert!(said.contains("has the digest `sha256:") && said.contains("in place of"), "{said}");
        assert!(files_in(&scratch.path().join("blobs")).is_empty());
    }
}

#[test]
fn a_manifest_that_lists_what_is_not_there() {
    let scratch = Scratch::new();
    let mut documents = image();
    let (missing, _) = documents.blobs.remove(1);
    let said = Registry::start(documents, &[]).refusal(&scratch);
    assert!(
        said.contains(&format!("answers 404: blob unknown to registry for the blob `{missing}`")),
        "{said}"
    );
}

#[test]
fn a_manifest_that_lies_about_a_size() {
    for (wrong, expected) in
        [(10, "is longer than the 10 bytes"), (10_000_000, "and the manifest says 10000000")]
    {
        let scratch = Scratch::new();
        let mut documents = image();
        let right = format!("\"size\":{}", documents.blobs[1].1.len());
        let text = String::from_utf8(documents.manifest).unwrap();
        assert!(text.contains(&right), "{text}");
        documents.manifest = text.replace(&right, &format!("\"size\":{wrong}")).into_bytes();
        let said = Registry::start(documents, &[]).refusal(&scratch);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_manifest_that_is_none() {
    for (body, expected) in [
        ("<html>", "it is not the JSON that it should be"),
        (r#"{"schemaVersion":1,"fsLayers":[]}"#, "docker's schema 1"),
        (r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../x","size":1}]}"#, "is not a digest"),
    ] {
        let scratch = Scratch::new();
        let registry = Registry::start(image(), &[("/manifests/", &[Fault::Status(200, "", body)])]);
        let said = registry.refusal(&scratch);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn an_index_without_this_machine() {
    let scratch = Scratch::new();
    let index: &'static str = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"sha256:{}","size":1,"platform":{{"architecture":"arm64","os":"linux"}}}}]}}"#,
        "0".repeat(64)
    )
    .leak();
    let registry = Registry::start(image(), &[("/manifests/", &[Fault::Status(200, "", index)])]);
    let said = registry.refusal(&scratch);
    assert!(said.contains("not made for `linux/amd64`; it is for linux/arm64"), "{said}");
}

#[test]
fn a_name_without_an_address_is_not_tried_again() {
    let scratch = Scratch::new();
    // RFC 2606 keeps `.invalid` out of the domain name system.
    let said =
        error::render(&pull(&scratch, "registry.invalid/app:1", Duration::from_secs(600)).unwrap_err());
    assert!(said.contains("failed to reach the registry `registry.invalid`"), "{said}");
    assert!(said.contains("hint: see that the name is right") && !said.contains("gave up after"), "{said}");
}
