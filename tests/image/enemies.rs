//! Registries that lie, stall and steal: each is refused in bounded time and space, by name.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use xtask::image::blob::Unpacking;
use xtask::image::registry::client::Options;
use xtask::image::registry::{Blobs, pull};
use xtask::pace::Slowest;

use crate::support::enemy::{Asked, Enemy, Reply};
use crate::support::{Scratch, texts};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", xtask::workspace::hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes)))
}

/// An image of one empty layer: manifest, config and layer.
struct Files {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

fn files() -> Files {
    let layer = vec![0; 1024];
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"digest": digest(&config), "size": config.len()},
        "layers": [{"digest": digest(&layer), "size": layer.len()}]
    });
    Files { manifest: manifest.to_string().into_bytes(), config, layer }
}

impl Files {
    /// What an honest registry answers.
    fn answer(&self, asked: &Asked) -> Reply {
        let name = asked.path.rsplit('/').next().unwrap_or_default();
        if asked.path.contains("/manifests/") {
            Reply::ok(self.manifest.clone())
        } else if name == digest(&self.config) {
            Reply::ok(self.config.clone())
        } else if name == digest(&self.layer) {
            Reply::ok(self.layer.clone())
        } else {
            Reply::status(404)
        }
    }
}

/// Pulls with little patience, and says why it did not come to anything.
fn refusal(enemy: &Enemy) -> String {
    let scratch = Scratch::new();
    let options = Options {
        attempts: 2,
        first_wait: Duration::from_millis(1),
        slowest: Slowest { bytes: 100_000, within: Duration::from_millis(300) },
        ..Options::default()
    };
    let unpacking = Unpacking { folder: scratch.path().join("unpacked"), limit: None };
    let blobs = Blobs::new(scratch.path().join("blobs"));
    let name = format!("{}/team/app:1", enemy.host).parse().unwrap();
    format!("{:#}", pull(&name, options, &blobs, &unpacking).unwrap_err())
}

/// An enemy whose manifest is this.
fn with_manifest(manifest: &serde_json::Value) -> Enemy {
    let manifest = manifest.to_string();
    Enemy::start(move |_| Reply::ok(manifest.clone()))
}

const SOME_DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn what_a_manifest_claims_has_limits() {
    let blob = |size: u64| json!({"digest": SOME_DIGEST, "size": size});
    let image = |config: u64, layers: Vec<serde_json::Value>| json!({"schemaVersion": 2, "config": blob(config), "layers": layers});
    for (manifest, complaint) in [
        (image(2, vec![blob(1 << 62)]), "more than 1.00 TiB are refused"),
        (image(1 << 62, vec![]), "more than 1.00 TiB are refused"),
        (image(u64::MAX, vec![blob(u64::MAX); 2]), "more than 1.00 TiB are refused"),
        (image(5 << 20, vec![]), "the image's config is too large"),
        (image(2, vec![blob(1); 10_000]), "the image has 10000 layers; more than 1000 are refused"),
    ] {
        let said = refusal(&with_manifest(&manifest));
        assert!(said.contains(complaint), "{said}");
    }
    // Each of them may be, and all together do not fit.
    let files = files();
    let enemy = Enemy::start(move |asked| {
        let layers: Vec<_> = (0..100)
            .map(|number| json!({"digest": format!("sha256:{number:064x}"), "size": 1_u64 << 39}))
            .collect();
        match asked.path.contains("/manifests/") {
            true => Reply::ok(
                json!({
                    "schemaVersion": 2,
                    "config": {"digest": digest(&files.config), "size": files.config.len()},
                    "layers": layers
                })
                .to_string(),
            ),
            false => files.answer(asked),
        }
    });
    let said = refusal(&enemy);
    assert!(said.contains("needs 50.00 TiB") && said.contains("are free"), "{said}");
    assert!(!enemy.asked().iter().any(|asked| asked.path.contains("0000000000")), "no layer was asked for");
}

#[test]
fn manifests_that_have_no_end_are_given_up() {
    // One leads to the next.
    let enemy = Enemy::start(|_| {
        let entry = json!({"digest": SOME_DIGEST, "platform": {"architecture": "amd64", "os": "linux"}});
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        Reply::ok(index)
    });
    let said = refusal(&enemy);
    assert!(said.contains("has the digest"), "{said}");
    for (reply, complaint) in [
        (Reply::ok(vec![b' '; (4 << 20) + 1]), "it is longer than 4194304 bytes"),
        (Reply { floods: true, ..Reply::ok("{") }, "it is longer than 4194304 bytes"),
        (Reply { trickles: true, ..Reply::ok("{") }, "less than 100000 bytes came within 0.3 s"),
        (Reply::status(302).with("Location", "/v2/again"), "too many redirects"),
    ] {
        let enemy = Enemy::start(move |_| reply.clone());
        let said = refusal(&enemy);
        assert!(said.contains(complaint), "{said}");
        assert!(enemy.asked().len() < 40, "{}", enemy.asked().len());
    }
}

#[test]
fn blobs_that_trickle_flood_or_lie_are_given_up() {
    for (reply, complaint) in [
        (Reply { trickles: true, ..Reply::ok("") }, "less than 100000 bytes came within 0.3 s"),
        (Reply { floods: true, ..Reply::ok("") }, "is longer than the 9000000 bytes that the manifest says"),
        // A byte for each connection.
        (Reply::ok("x"), "less than 100000 bytes came within 0.3 s"),
        (
            Reply { status: 206, ..Reply::ok("x") }.with("Content-Range", "bytes 5-5/9000000"),
            "sent another part",
        ),
        (Reply::status(416), "answers 416"),
        (Reply::status(429).with("Retry-After", "0"), "gave up after 2 attempts"),
    ] {
        let files = files();
        let enemy = Enemy::start(move |asked| {
            let layer = json!({"digest": SOME_DIGEST, "size": 9_000_000});
            let config = json!({"digest": digest(&files.config), "size": files.config.len()});
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
            match asked.path.rsplit('/').next() {
                _ if asked.path.contains("/manifests/") => Reply::ok(manifest),
                Some(SOME_DIGEST) if reply.body == b"x" && reply.status == 200 => {
                    // Goes on wherever it is asked to, a byte at a time.
                    let start = asked.header("range").and_then(|range| range.strip_prefix("bytes="));
                    match start.map(|range| range.trim_end_matches('-')) {
                        None => reply.clone(),
                        Some(start) => Reply { status: 206, ..reply.clone() }
                            .with("Content-Range", format!("bytes {start}-{start}/9000000")),
                    }
                }
                Some(SOME_DIGEST) => reply.clone(),
                _ => files.answer(asked),
            }
        });
        let said = refusal(&enemy);
        assert!(said.contains(complaint), "{said}");
    }
}

/// `cargo xtask image` with a log-in for these hosts: the exit code and what was said.
fn with_log_in(enemy: &Enemy, hosts: &[&str]) -> (Option<i32>, String) {
    let scratch = Scratch::new();
    let entry = json!({"auth": STANDARD.encode("me:secret")});
    let auths: serde_json::Map<String, serde_json::Value> =
        hosts.iter().map(|host| ((*host).to_owned(), entry.clone())).collect();
    let file = scratch.write("auth.json", &json!({"auths": auths}).to_string());
    let image = format!("docker://{}/team/app:1", enemy.host);
    let output = scratch.xtask(&["image", &image]).env("REGISTRY_AUTH_FILE", file).output().unwrap();
    (output.status.code(), texts(&output).1)
}

#[test]
fn a_log_in_at_a_plain_registry_is_kept_for_all_requests() {
    let right = format!("Basic {}", STANDARD.encode("me:secret"));
    let files = files();
    let enemy = Enemy::start(move |asked| match asked.header("authorization") {
        Some(shown) if shown == right => files.answer(asked),
        _ => Reply::status(401).with("WWW-Authenticate", "Basic realm=\"x\""),
    });
    let (code, said) = with_log_in(&enemy, &[&enemy.host]);
    assert_eq!(code, Some(0), "{said}");
    let without = enemy.asked().iter().filter(|asked| asked.header("authorization").is_none()).count();
    assert_eq!(without, 1, "{:?}", enemy.asked());
}

#[test]
fn a_token_of_a_plain_registry_is_kept_for_all_requests() {
    let files = files();
    let enemy = Enemy::start(move |asked| match asked.header("authorization") {
        _ if asked.path.starts_with("/token") => Reply::ok(r#"{"token":"abc"}"#),
        Some("Bearer abc") => files.answer(asked),
        _ => {
            let host = asked.header("host").unwrap_or_default();
            Reply::status(401).with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\""))
        }
    });
    let (code, said) = with_log_in(&enemy, &[&enemy.host]);
    assert_eq!(code, Some(0), "{said}");
    let tokens = enemy.asked().iter().filter(|asked| asked.path.starts_with("/token")).count();
    assert_eq!(tokens, 1, "{:?}", enemy.asked());
}

#[test]
fn a_log_in_is_not_sent_to_another_host_over_plain_http() {
    let thief = Enemy::at("127.0.0.2", |_| Reply::ok(r#"{"token":"abc"}"#));
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"x\"", thief.host);
    let enemy = Enemy::start(move |_| Reply::status(401).with("WWW-Authenticate", realm.clone()));
    let (code, said) = with_log_in(&enemy, &[&enemy.host]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("over plain HTTP; it was not sent"), "{said}");
    assert_eq!(thief.asked(), []);

    // Nor by an answer that leads there.
    let thief = Enemy::at("127.0.0.2", |_| Reply::ok(r#"{"token":"abc"}"#));
    let there = format!("http://{}/token", thief.host);
    let enemy = Enemy::start(move |asked| match asked.path.starts_with("/token") {
        true => Reply::status(307).with("Location", there.clone()),
        false => {
            let host = asked.header("host").unwrap_or_default();
            Reply::status(401).with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\""))
        }
    });
    let (code, said) = with_log_in(&enemy, &[&enemy.host]);
    assert_eq!(code, Some(125), "{said}");
    assert!(thief.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn a_registry_that_never_lets_in_is_asked_a_few_times() {
    let enemy = Enemy::start(|asked| match asked.path.starts_with("/token") {
        true => Reply::ok(r#"{"token":"abc"}"#),
        false => {
            let host = asked.header("host").unwrap_or_default();
            Reply::status(401).with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\""))
        }
    });
    let said = refusal(&enemy);
    assert!(said.contains("answers 401"), "{said}");
    assert!(enemy.asked().len() <= 3, "{:?}", enemy.asked());
}

#[test]
fn what_a_registry_says_cannot_steer_the_terminal() {
    let message = json!({"errors": [{"message": "\u{1b}]0;owned\u{7}\u{202e}".repeat(1000)}]}).to_string();
    let enemy = Enemy::start(move |_| Reply { status: 403, ..Reply::ok(message.clone()) });
    let (code, said) = with_log_in(&enemy, &[]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains(r"\x1b]0;owned\x07\u{202e}") && said.len() < 5000, "{said}");
    assert!(!said.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{said}");
}
