//! A real registry on loopback, and skopeo to fill it.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use camino::Utf8Path;

use super::wait_until;

/// Copies an image from one transport to another.
pub(crate) fn skopeo(words: &[&str]) {
    let all = ["--insecure-policy", "copy", "--quiet"].iter().chain(words).copied();
    let output = duct::cmd("skopeo", all).stderr_to_stdout().stdout_capture().unchecked().run().unwrap();
    assert!(output.status.success(), "skopeo {words:?}: {}", String::from_utf8_lossy(&output.stdout));
}

/// A registry that ends with this value.
pub(crate) struct Registry {
    process: Child,
    /// `127.0.0.1:PORT`, as images' names begin.
    pub(crate) host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Over plain HTTP, open to everyone.
    pub(crate) fn plain(folder: &Utf8Path) -> Registry {
        Registry::start(folder, "", "")
    }

    /// Over TLS with a certificate that nobody vouches for, `cert.pem` in the folder, and with `auth` in its
    /// configuration.
    pub(crate) fn with_tls(folder: &Utf8Path, auth: &str) -> Registry {
        let (key, cert) = (folder.join("key.pem"), folder.join("cert.pem"));
        let certify = duct::cmd!(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            &key,
            "-out",
            &cert
        );
        certify.stderr_null().run().unwrap();
        Registry::start(folder, &format!("  tls: {{certificate: {cert}, key: {key}}}"), auth)
    }

    /// Debian's docker-registry on a free port of this machine, with more of its configuration.
    fn start(folder: &Utf8Path, http: &str, auth: &str) -> Registry {
        // The port is free now; nobody else asks for it in the moment until the registry does.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = folder.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/storage}}}}\n\
             http:\n  addr: {host}\n{http}\n{auth}\n"
        );
        fs::write(&config, text).unwrap();
        let mut serve = Command::new("docker-registry");
        serve.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let process = serve.spawn().unwrap();
        let registry = Registry { process, host };
        wait_until("the registry listens", || std::net::TcpStream::connect(&registry.host).is_ok());
        registry
    }
}
