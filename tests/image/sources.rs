//! One image from everywhere: archives, folders, standard input and a real registry give the same disk.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use crate::layers::{Tar, layout, layout_for_two};
use crate::oracle::some_layout;
use crate::support::registry::{Registry, skopeo};
use crate::support::{Scratch, texts};
use crate::view;

/// Digest of the disk that a source gives, and what was said.
fn disk_digest(scratch: &Scratch, source: &str, more: &[&str]) -> String {
    let disk = scratch.path().join("disk.raw");
    let words = ["image", source, "--size", "32M", "--output", disk.as_str(), "--format", "raw"];
    let mut command = scratch.xtask(&[&words[..], more].concat());
    command.env("REGISTRY_AUTH_FILE", scratch.path().join("auth.json"));
    if source == "-" {
        command.stdin(fs::File::open(scratch.path().join("docker.tar")).unwrap());
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{source}: {}", texts(&output).1);
    view::check(&disk);
    Sha256::digest(fs::read(&disk).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_kind_of_archive_gives_the_same_disk() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.path().join(name);
    let layout = some_layout(&at("layout"));
    let oci = format!("oci:{layout}:v1");
    let expected = disk_digest(&scratch, &oci, &[]);

    skopeo(&[&oci, &format!("docker-archive:{}:example.org/app:1", at("docker.tar"))]);
    skopeo(&[&oci, &format!("oci-archive:{}:v1", at("oci.tar"))]);
    skopeo(&["--dest-compress-format", "zstd", &oci, &format!("oci:{}:v1", at("zstd"))]);
    duct::cmd!("gzip", "--keep", at("docker.tar")).run().unwrap();
    duct::cmd!("xz", "--keep", at("oci.tar")).run().unwrap();
    let sources = [
        format!("docker-archive:{}", at("docker.tar")),
        format!("docker-archive:{}:example.org/app:1", at("docker.tar")),
        format!("docker-archive:{}", at("docker.tar.gz")),
        format!("oci-archive:{}", at("oci.tar")),
        format!("oci-archive:{}:v1", at("oci.tar.xz")),
        format!("oci:{}", at("zstd")),
        "-".to_owned(),
    ];
    for source in sources {
        // A cache of its own for each: none may find what another has left.
        fs::remove_dir_all(scratch.cache()).unwrap();
        assert_eq!(disk_digest(&scratch, &source, &[]), expected, "{source}");
    }
}

/// An image in podman's storage, which goes with this value.
struct Stored(String);

impl Stored {
    fn new(word: &str) -> Stored {
        Stored(format!("localhost/microvm-test-{word}-{}:1", std::process::id()))
    }

    /// Gives the name to another image.
    fn fill(&self, layout: &Utf8Path) {
        self.remove();
        skopeo(&[&format!("oci:{layout}:v1"), &format!("containers-storage:{}", self.0)]);
    }

    fn remove(&self) {
        let _ = duct::cmd!("podman", "rmi", "--force", &self.0).stdout_null().stderr_null().run();
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What `image` prints and says.
fn image(scratch: &Scratch, source: &str) -> (String, String) {
    let output = scratch.xtask(&["image", source, "--size", "32M"]).output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
    texts(&output)
}

#[test]
fn podmans_own_storage() {
    let scratch = Scratch::new();
    let layout = some_layout(&scratch.path().join("layout"));
    let stored = Stored::new("storage");
    stored.fill(&layout);
    let source = format!("containers-storage:{}", stored.0);
    let disk = disk_digest(&scratch, &source, &[]);
    assert_eq!(disk, disk_digest(&scratch, &format!("oci:{layout}:v1"), &[]));
    // Unchanged, it is not exported again; changed, it is.
    let (first, said) = image(&scratch, &source);
    assert!(!said.contains("exporting"), "{said}");
    stored.fill(&other_layout(&scratch));
    let (second, said) = image(&scratch, &source);
    assert!(first != second && said.contains("exporting"), "{said}");
}

fn other_layout(scratch: &Scratch) -> Utf8PathBuf {
    layout(&scratch.path().join("other"), &[Tar::new().folder("./").file("moved", "1").bytes()])
}

#[test]
fn a_dockerfile_is_built_again_when_its_base_has_moved() {
    let scratch = Scratch::new();
    let base = Stored::new("base");
    base.fill(&some_layout(&scratch.path().join("layout")));
    scratch.write("app/Dockerfile", &format!("FROM {}\nCOPY Dockerfile /\n", base.0));
    let (first, said) = image(&scratch, "app");
    assert!(said.contains("building"), "{said}");
    let (again, said) = image(&scratch, "app");
    assert!(first == again && !said.contains("building"), "{said}");
    base.fill(&other_layout(&scratch));
    let (moved, said) = image(&scratch, "app");
    assert!(first != moved && said.contains("building"), "{said}");
}

#[test]
fn a_registry_over_plain_http() {
    let scratch = Scratch::new();
    let layout = some_layout(&scratch.path().join("layout"));
    let oci = format!("oci:{layout}:v1");
    let registry = Registry::plain(scratch.path());
    let expected = disk_digest(&scratch, &oci, &[]);
    for (name, options) in
        [("oci", &[][..]), ("docker", &["--format", "v2s2"]), ("zstd", &["--dest-compress-format", "zstd"])]
    {
        let image = format!("docker://{}/team/{name}:1", registry.host);
        skopeo(&[options, &["--dest-tls-verify=false", &oci, &image]].concat());
        fs::remove_dir_all(scratch.cache()).unwrap();
        assert_eq!(disk_digest(&scratch, &image, &[]), expected, "{name}");
        // The bare name means the same.
        assert_eq!(disk_digest(&scratch, image.trim_start_matches("docker://"), &[]), expected);
    }
    let blobs = fs::read_dir(scratch.cache().join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs, 2, "two layers, of which nothing else is kept");

    // What is in the cache needs no registry.
    let image = format!("{}/team/zstd:1", registry.host);
    drop(registry);
    assert_eq!(disk_digest(&scratch, &image, &[]), expected);
}

/// A manifest list is resolved to this machine's image, in a registry and in a layout.
#[test]
fn an_image_for_two_machines() {
    let scratch = Scratch::new();
    let layers = [Tar::new().folder("./").file("a", "a").bytes()];
    let plain = layout(&scratch.path().join("plain"), &layers);
    let expected = disk_digest(&scratch, &format!("oci:{plain}"), &[]);
    let both = format!("oci:{}:v1", layout_for_two(&scratch.path().join("both"), &layers));
    fs::remove_dir_all(scratch.cache()).unwrap();
    assert_eq!(disk_digest(&scratch, &both, &[]), expected);
    let registry = Registry::plain(scratch.path());
    let image = format!("docker://{}/app:1", registry.host);
    skopeo(&["--all", "--dest-tls-verify=false", &both, &image]);
    fs::remove_dir_all(scratch.cache()).unwrap();
    assert_eq!(disk_digest(&scratch, &image, &[]), expected);
}

#[test]
fn a_registry_with_tls_and_a_password() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.path().join(name);
    let layout = some_layout(&at("layout"));
    // bcrypt of `secret`, as `htpasswd -B` writes it.
    fs::write(at("htpasswd"), "tester:$2b$04$2LkU8LC6lvXyMd3Ax9Oo7ui5ENuVc30DikVFTMqUwmxRInlbFmg1O\n")
        .unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", at("htpasswd"));
    let registry = Registry::with_tls(scratch.path(), &auth);
    let image = format!("docker://{}/app:1", registry.host);
    let oci = format!("oci:{layout}:v1");
    skopeo(&["--dest-tls-verify=false", "--dest-creds", "tester:secret", &oci, &image]);

    let run = |more: &[&str]| {
        let output = scratch.path().join("out.qcow2");
        let mut command = scratch.xtask(&[&["image", &image, "--output", output.as_str()], more].concat());
        command.env("REGISTRY_AUTH_FILE", at("auth.json"));
        texts(&command.output().unwrap()).1
    };
    // Nobody vouches for the certificate.
    let said = run(&[]);
    assert!(
        said.contains("certificate") && said.contains("hint: ") && said.contains("--tls-verify=false"),
        "{said}"
    );
    // Nobody has logged in.
    let said = run(&["--tls-verify=false"]);
    assert!(said.contains("answers 401") && said.contains("podman login"), "{said}");
    // Somebody has, with another password.
    let login = |password: &str| {
        let text = format!(r#"{{"auths":{{"{}":{{"auth":"{}"}}}}}}"#, registry.host, password);
        fs::write(at("auth.json"), text).unwrap();
    };
    login("dGVzdGVyOndyb25n"); // tester:wrong
    let said = run(&["--tls-verify=false"]);
    assert!(said.contains("answers 401") && said.contains("log in again"), "{said}");
    login("dGVzdGVyOnNlY3JldA=="); // tester:secret
    let disk = disk_digest(&scratch, &image, &["--tls-verify=false"]);
    assert_eq!(disk, disk_digest(&scratch, &oci, &[]));

    // With the registry's certificate where podman looks for it, TLS is verified.
    let home = at("home");
    let trusted: Utf8PathBuf = home.join(".config/containers/certs.d").join(&registry.host);
    fs::create_dir_all(&trusted).unwrap();
    fs::copy(at("cert.pem"), trusted.join("ca.crt")).unwrap();
    let output = at("trusted.qcow2");
    let mut command = scratch.xtask(&["image", &image, "--pull", "--output", output.as_str()]);
    command.env("REGISTRY_AUTH_FILE", at("auth.json")).env("HOME", &home);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
}

#[test]
fn an_image_for_another_machine_is_refused_by_name() {
    let scratch = Scratch::new();
    let archive = scratch.path().join("arm.tar");
    let config = r#"{"architecture":"arm64","os":"linux","rootfs":{"diff_ids":[]}}"#;
    scratch.write("docker/config.json", config);
    scratch.write("docker/manifest.json", r#"[{"Config":"config.json","Layers":[]}]"#);
    duct::cmd!("tar", "-cf", &archive, "-C", scratch.path().join("docker"), ".").run().unwrap();
    let said = scratch.transcript(&mut scratch.xtask(&["image", &format!("docker-archive:{archive}")]));
    assert!(said.contains("the image is for the architecture `arm64`"), "{said}");
}
