//! Image names as docker reads them: `[registry/]repository[:tag][@digest]` (distribution's `reference` package).

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};

/// The registry that short names mean.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// A full image name: short ones are completed when they are parsed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host with an optional port, `docker.io`.
    pub registry: String,
    /// `library/nginx`.
    pub repository: String,
    /// `latest` where neither tag nor digest is given; `None` where only a digest is.
    pub tag: Option<String>,
    /// `sha256:…`, which pins the image.
    pub digest: Option<String>,
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Reference> {
        parse(text).with_context(|| format!("`{text}` is not an image name"))
    }
}

fn parse(text: &str) -> anyhow::Result<Reference> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            check_digest(digest)?;
            (rest, Some(digest.to_owned()))
        }
        None => (text, None),
    };
    let is_registry = |word: &str| word.contains(['.', ':']) || word == "localhost" || has_upper(word);
    let (registry, rest) = match rest.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, rest),
    };
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag.to_owned())),
        None => (rest, digest.is_none().then(|| "latest".to_owned())),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let host_end = registry.rfind(':').unwrap_or(registry.len());
    let (host, port) = registry.split_at(host_end);
    ensure!(
        host.starts_with(|c: char| c == '[' || c.is_ascii_alphanumeric())
            && !host.contains("..")
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.[]:".contains(&b)),
        "`{registry}` is not a registry's address"
    );
    ensure!(
        port.is_empty() || port[1..].parse::<u16>().is_ok(),
        "`{}` is not a port",
        port.trim_start_matches(':')
    );
    if has_upper(repository) {
        bail!("the repository `{repository}` has upper-case letters");
    }
    ensure!(repository.split('/').all(is_path_component), "`{repository}` is not a repository's name");
    if let Some(tag) = &tag {
        ensure!(is_tag(tag), "`{tag}` is not a tag");
    }
    let is_official = registry == DEFAULT_REGISTRY && !repository.contains('/');
    let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
    ensure!(repository.len() <= 255, "the repository's name is longer than 255 bytes");
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Lower-case words joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut separators = bytes.split(|&byte| is_word(byte)).filter(|run| !run.is_empty());
    bytes.first().copied().is_some_and(is_word)
        && bytes.last().copied().is_some_and(is_word)
        && separators.all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|&byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || b".-".contains(&byte))
}

/// Errors where a digest is not one of SHA-256, the only kind in use.
pub fn check_digest(digest: &str) -> anyhow::Result<()> {
    let hex = digest.strip_prefix("sha256:");
    ensure!(
        hex.is_some_and(
            |hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        ),
        "`{digest}` is not a digest such as `sha256:` with 64 hexadecimal digits"
    );
    Ok(())
}

impl Reference {
    /// What a manifest is asked for by: the digest where there is one, or the tag.
    pub fn manifest_key(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// The last part of the repository: a good name for a machine.
    pub fn short_name(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or(&self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.21.0", "docker.io/library/nginx:1.21.0"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost/app:x", "localhost/app:x"),
            ("localhost:5000/a/b__c:x_1.0-z", "localhost:5000/a/b__c:x_1.0-z"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            (&format!("nginx@{digest}"), &format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"), &format!("docker.io/library/nginx:1@{digest}")),
        ];
        for (text, full) in cases {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full, "{text}");
            assert_eq!(full.parse::<Reference>().unwrap().to_string(), full, "{full}");
        }
    }

    #[test]
    fn what_is_no_name_is_an_error() {
        let long = format!("a/{}", "b".repeat(300));
        // Short enough as it stands, too long as `library/…`.
        let long_when_completed = "b".repeat(250);
        for text in [
            "",
            ":",
            "a:",
            "@",
            "nginx@sha256:12",
            "Nginx",
            "a//b",
            "a/",
            "/a",
            "a b",
            "a:b:c",
            "a/-b",
            "a..b",
            "localhost:99999/a",
            "../a",
            "a../b",
            ".a/b",
            "a:-tag",
            &long,
            &long_when_completed,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
