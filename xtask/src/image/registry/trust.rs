//! Whom to believe that it is the registry: certificates, and the one exception from them.

use anyhow::Context as _;
use ureq::tls::{Certificate, RootCerts};

/// The server's certificate is not accepted.
pub(super) fn is_about_trust(error: &ureq::Error) -> bool {
    // rustls's error may come wrapped in an I/O error.
    error.to_string().contains("certificate")
}

/// Docker's own exception: a registry on this machine may speak plain HTTP.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What this system trusts (Debian's and Fedora's places), and what was added for this registry (docker's and podman's).
pub(super) fn root_certificates(registry: &str) -> anyhow::Result<RootCerts> {
    const SYSTEM: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
    let mut pem = Vec::new();
    if let Some(system) = SYSTEM.iter().find_map(|path| std::fs::read(path).ok()) {
        pem.extend(system);
    }
    let home = std::env::var("HOME").unwrap_or_default();
    let folders = [
        format!("/etc/docker/certs.d/{registry}"),
        format!("/etc/containers/certs.d/{registry}"),
        format!("{home}/.config/containers/certs.d/{registry}"),
    ];
    for folder in folders {
        for file in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|extension| extension == "crt") {
                let path = file.path();
                pem.push(b'\n');
                pem.extend(
                    std::fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?,
                );
            }
        }
    }
    let certificates: Vec<Certificate<'static>> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
            // A bundle may hold what this TLS does not know; the rest still counts.
            _ => None,
        })
        .collect();
    Ok(if certificates.is_empty() { RootCerts::WebPki } else { certificates.into_iter().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_on_this_machine_is_known() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.8.8.8"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["registry-1.docker.io", "10.0.0.1:5000", "localhost.example.org"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
