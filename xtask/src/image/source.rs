//! Where an image comes from, in the words of containers-transports(5).

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};

use super::reference::Reference;
use crate::error::usage;
use crate::name;
use crate::workspace::Workspace;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A Dockerfile, or the folder of one.
    Dockerfile(Utf8PathBuf),
    /// `docker://` or a bare name.
    Registry(Reference),
    /// `docker save`'s archive, and which image in it.
    DockerArchive(Utf8PathBuf, Option<String>),
    /// An archive of an OCI layout, and which image in it.
    OciArchive(Utf8PathBuf, Option<String>),
    /// An OCI layout, and which image in it.
    Oci(Utf8PathBuf, Option<String>),
    /// podman's and buildah's images on this host.
    ContainersStorage(String),
    /// docker's images on this host.
    DockerDaemon(String),
    /// A root file system without a config.
    Rootfs(Utf8PathBuf),
    /// An archive of any of these kinds on standard input.
    Stdin,
}

impl FromStr for Source {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Source> {
        let checkout = Workspace::discover().ok();
        Source::parse(text, |path| {
            path.exists() || checkout.as_ref().is_some_and(|workspace| workspace.root().join(path).exists())
        })
    }
}

impl Source {
    /// Reads a source; `exists` tells a path from an image's name, where the text alone does not.
    pub fn parse(text: &str, exists: impl Fn(&Utf8Path) -> bool) -> anyhow::Result<Source> {
        if text.is_empty() {
            return Err(usage("the source is empty"));
        }
        if text == "-" {
            return Ok(Source::Stdin);
        }
        let Some((transport, rest)) = text.split_once(':').filter(|(word, _)| is_transport(word)) else {
            let first = text.split('/').next().unwrap_or(text);
            let is_path = text.starts_with(['/', '.'])
                || text.ends_with('/')
                || is_dockerfile_name(text)
                || exists(Utf8Path::new(text))
                || text.contains('/') && exists(Utf8Path::new(first));
            return if is_path {
                Ok(Source::Dockerfile(Utf8PathBuf::from(text)))
            } else {
                text.parse().map(Source::Registry)
            };
        };
        let file = |allow_reference: bool| split_path(rest, allow_reference, &exists);
        let source = match transport {
            "docker" => {
                let name = rest.strip_prefix("//").with_context(|| format!("`{text}` lacks `//`"))?;
                Source::Registry(name.parse()?)
            }
            "docker-archive" => file(true).map(|(path, name)| Source::DockerArchive(path, name))?,
            "oci-archive" => file(true).map(|(path, name)| Source::OciArchive(path, name))?,
            "oci" => file(true).map(|(path, name)| Source::Oci(path, name))?,
            "rootfs" => file(false).map(|(path, _)| Source::Rootfs(path))?,
            "containers-storage" => Source::ContainersStorage(named(rest)?),
            "docker-daemon" => Source::DockerDaemon(named(rest)?),
            _ => bail!("`{transport}:` is not a kind of source that is supported"),
        };
        Ok(source)
    }
}

/// Transports that exist, so that one which is not supported is not taken for an image's name.
fn is_transport(word: &str) -> bool {
    const TRANSPORTS: [&str; 12] = [
        "docker",
        "docker-archive",
        "oci-archive",
        "oci",
        "rootfs",
        "containers-storage",
        "docker-daemon",
        "dir",
        "ostree",
        "sif",
        "tarball",
        "atomic",
    ];
    TRANSPORTS.contains(&word)
}

fn is_dockerfile_name(text: &str) -> bool {
    let name = text.rsplit('/').next().unwrap_or(text).to_ascii_lowercase();
    ["dockerfile", "containerfile"].iter().any(|known| name.starts_with(known) || name.ends_with(known))
}

/// `PATH[:REFERENCE]`: the path ends at the first colon, as containers-transports(5) has it.
fn split_path(
    text: &str,
    allow_reference: bool,
    exists: impl Fn(&Utf8Path) -> bool,
) -> anyhow::Result<(Utf8PathBuf, Option<String>)> {
    let (path, reference) = match text.split_once(':') {
        // A file may have a colon in its name after all.
        Some((path, reference)) if allow_reference && !exists(Utf8Path::new(text)) => {
            (path, Some(reference.to_owned()).filter(|reference| !reference.is_empty()))
        }
        _ => (text, None),
    };
    ensure!(!path.is_empty(), "no file is named");
    Ok((Utf8PathBuf::from(path), reference))
}

fn named(text: &str) -> anyhow::Result<String> {
    ensure!(!text.is_empty(), "no image is named");
    ensure!(!text.starts_with('-'), "`{text}` is not an image name");
    Ok(text.to_owned())
}

impl Source {
    /// A short name for the disk and the machine: the last word of the source.
    pub fn short_name(&self) -> String {
        let of_path = |path: &Utf8PathBuf| {
            let path = camino::absolute_utf8(path).unwrap_or_else(|_| path.clone());
            let name = path.file_name().unwrap_or("image");
            let is_recipe = is_dockerfile_name(name) && path.is_file();
            let name = if is_recipe {
                path.parent().and_then(|parent| parent.file_name()).unwrap_or("image")
            } else {
                name
            };
            name.split('.').find(|part| !part.is_empty()).unwrap_or("image").to_owned()
        };
        let of_name = |name: &String| {
            name.parse::<Reference>().map_or_else(|_| name.clone(), |name| name.short_name().to_owned())
        };
        let name = match self {
            Source::Dockerfile(path) | Source::Rootfs(path) => of_path(path),
            Source::DockerArchive(path, name) | Source::OciArchive(path, name) | Source::Oci(path, name) => {
                name.as_ref().filter(|name| !name.starts_with('@')).map_or_else(|| of_path(path), of_name)
            }
            Source::Registry(reference) => reference.short_name().to_owned(),
            Source::ContainersStorage(name) | Source::DockerDaemon(name) => of_name(name),
            Source::Stdin => "stdin".to_owned(),
        };
        name::like(&name, "image")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut with_name = |kind: &str, path: &Utf8PathBuf, name: &Option<String>| {
            write!(f, "{kind}:{path}")?;
            name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
        };
        match self {
            Source::Dockerfile(path) => write!(f, "{path}"),
            Source::Registry(reference) => write!(f, "docker://{reference}"),
            Source::DockerArchive(path, name) => with_name("docker-archive", path, name),
            Source::OciArchive(path, name) => with_name("oci-archive", path, name),
            Source::Oci(path, name) => with_name("oci", path, name),
            Source::ContainersStorage(name) => write!(f, "containers-storage:{name}"),
            Source::DockerDaemon(name) => write!(f, "docker-daemon:{name}"),
            Source::Rootfs(path) => write!(f, "rootfs:{path}"),
            Source::Stdin => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        format!("{:?}", text.parse::<Source>().unwrap()).replace("Utf8PathBuf", "")
    }

    #[test]
    fn transports() {
        assert_eq!(parsed("docker-archive:a.tar"), r#"DockerArchive("a.tar", None)"#);
        assert_eq!(parsed("docker-archive:a.tar:nginx:1"), r#"DockerArchive("a.tar", Some("nginx:1"))"#);
        assert_eq!(parsed("oci:dir:v1"), r#"Oci("dir", Some("v1"))"#);
        assert_eq!(parsed("oci-archive:/x/y.tar"), r#"OciArchive("/x/y.tar", None)"#);
        assert_eq!(parsed("rootfs:a:b.tar"), r#"Rootfs("a:b.tar")"#);
        assert_eq!(parsed("containers-storage:localhost/x"), r#"ContainersStorage("localhost/x")"#);
        assert_eq!(parsed("-"), "Stdin");
        assert_eq!(parsed("./nothing/here"), r#"Dockerfile("./nothing/here")"#);
        assert_eq!(parsed("nothing/Dockerfile.x"), r#"Dockerfile("nothing/Dockerfile.x")"#);
        assert_eq!(parsed("/"), r#"Dockerfile("/")"#);
        assert_eq!(parsed("nothing/"), r#"Dockerfile("nothing/")"#);
        for name in ["docker://quay.io/a/b:c", "quay.io/a/b:c"] {
            assert_eq!(name.parse::<Source>().unwrap().to_string(), "docker://quay.io/a/b:c");
        }
        assert_eq!("nginx:1".parse::<Source>().unwrap().to_string(), "docker://docker.io/library/nginx:1");
    }

    #[test]
    fn what_is_no_source_is_an_error() {
        for text in ["", "docker:nginx", "dir:x", "rootfs:", "oci:", "containers-storage:", "Nginx Image"] {
            assert!(text.parse::<Source>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_source_has_a_short_name() {
        let cases = [
            ("docker-archive:/x/web.tar.gz", "web"),
            ("oci:/x/layout:v1", "v1"),
            ("nginx:1", "nginx"),
            ("quay.io/a/b:c", "b"),
            ("rootfs:/x/debian.tar", "debian"),
            ("containers-storage:localhost/web:2", "web"),
        ];
        for (text, name) in cases {
            assert_eq!(text.parse::<Source>().unwrap().short_name(), name, "{text}");
        }
    }
}
