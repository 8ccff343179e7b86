//! Where the kernel's source comes from, and what identifies it.
//!
//! Sources are kernel.org (pinned by sha256 in `kernel/sources.toml`), Debian's `linux-source` packages, a tarball
//! or an unpacked tree. [`identities`] tells without a network contact which sources a request may mean, so that a
//! finished kernel is found; [`resolve`] goes and fetches one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;

use anyhow::{Context as _, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use super::KernelRequest;
use super::download::Download;
use super::file_hash;
use super::tree;
use crate::artifact::read_text;
use crate::error::{Hint as _, usage};
use crate::host::setup::{install_packages, offered_version};
use crate::host::tools;
use crate::name;
use crate::nearest::nearest_path;
use crate::note;
use crate::tasks::Context;
use crate::workspace::Workspace;

/// Names another place to download kernels from than kernel.org. The sha256 stays pinned.
pub const MIRROR_VARIABLE: &str = "MICROVM_KERNEL_MIRROR";

/// Where Debian's source packages put their tarball.
const DEBIAN_FOLDER: &str = "/usr/src";
/// The Debian series that the shipped configs are tried with; taken where the distribution offers it.
const DEBIAN_SERIES: &str = "6.12";

/// `--source`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SourceChoice {
    /// Upstream, or Debian's where that cannot be reached.
    #[default]
    Auto,
    /// kernel.org.
    Upstream,
    /// The distribution's `linux-source` package.
    Debian,
    /// A tarball or an unpacked tree.
    Path(Utf8PathBuf),
}

impl FromStr for SourceChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<SourceChoice, Infallible> {
        Ok(match text {
            "auto" => SourceChoice::Auto,
            "upstream" => SourceChoice::Upstream,
            "debian" => SourceChoice::Debian,
            path => SourceChoice::Path(path.into()),
        })
    }
}

/// A source that is on this host.
#[derive(Debug, Clone)]
pub struct Source {
    /// For people: `kernel.org`, `debian`, or the name of the file or folder.
    pub label: String,
    /// The sha256 of the tarball, or of the tree's file list.
    pub identity: String,
    /// What to build from.
    pub content: Content,
}

/// What a source is made of.
#[derive(Debug, Clone)]
pub enum Content {
    /// A compressed tarball.
    Tarball(Utf8PathBuf),
    /// An unpacked tree, which is only read.
    Tree(Utf8PathBuf),
}

/// `kernel/sources.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pins {
    default: String,
    mirror: String,
    sha256: BTreeMap<String, String>,
}

/// A version that may be downloaded.
#[derive(Debug)]
struct Upstream {
    version: String,
    mirror: String,
    sha256: String,
}

impl Upstream {
    fn new(workspace: &Workspace, version: Option<&str>) -> anyhow::Result<Upstream> {
        let path = workspace.kernel_folder().join("sources.toml");
        let pins: Pins =
            toml::from_str(&read_text(&path)?).with_context(|| format!("failed to read `{path}`"))?;
        let version = version.unwrap_or(&pins.default);
        let Some(sha256) = pins.sha256.get(version) else {
            let pinned: Vec<&str> = pins.sha256.keys().map(String::as_str).collect();
            return Err(anyhow!(
                "kernel {version} is not pinned: `kernel/sources.toml` has no sha256 for it, only for {}",
                pinned.join(", ")
            ))
            .hint(format!(
                "add `\"{version}\" = \"SHA256\"` to its table `sha256`; the value is in sha256sums.asc beside the tarball"
            ));
        };
        let mirror = std::env::var(MIRROR_VARIABLE).ok().filter(|mirror| !mirror.is_empty());
        Ok(Upstream {
            version: version.to_owned(),
            mirror: mirror.unwrap_or(pins.mirror),
            sha256: sha256.to_lowercase(),
        })
    }

    fn file_name(&self) -> String {
        format!("linux-{}.tar.xz", self.version)
    }

    fn url(&self) -> String {
        let major = self.version.split('.').next().unwrap_or_default();
        format!("{}/v{major}.x/{}", self.mirror.trim_end_matches('/'), self.file_name())
    }

    fn source(&self, tarball: Utf8PathBuf) -> Source {
        Source {
            label: "kernel.org".to_owned(),
            identity: self.sha256.clone(),
            content: Content::Tarball(tarball),
        }
    }

    /// The tarball of an earlier download, if it is what it should be.
    fn cached(&self, workspace: &Workspace) -> anyhow::Result<Option<Source>> {
        let path = workspace.downloads().join(self.file_name());
        if !path.exists() || file_hash::sha256(workspace, &path)? != self.sha256 {
            return Ok(None);
        }
        Ok(Some(self.source(path)))
    }

    fn begin(&self, workspace: &Workspace) -> anyhow::Result<Download> {
        Download::begin(&self.url(), &workspace.downloads().join(self.file_name()))
    }

    fn finish(&self, workspace: &Workspace, download: Download) -> anyhow::Result<Source> {
        download
            .finish(&self.sha256)
            .with_context(|| format!("failed to download kernel {}", self.version))
            .hint(format!(
                "`kernel/sources.toml` names the sha256; {MIRROR_VARIABLE} names another mirror"
            ))?;
        Ok(self.source(workspace.downloads().join(self.file_name())))
    }
}

/// Refuses requests that cannot be meant, before anything slow starts.
pub fn check(workspace: &Workspace, request: &KernelRequest) -> anyhow::Result<()> {
    if let Some(version) = &request.version {
        name::parse(version).map_err(usage).context("a kernel version is expected, such as `6.12`")?;
    }
    match (&request.source, &request.version) {
        (SourceChoice::Path(path), _) if !path.exists() => {
            let near = nearest_path(path).map(|near| format!("; did you mean `{near}`?"));
            Err(anyhow!("no such kernel source: `{path}`{}", near.unwrap_or_default()))
                .hint("`--source` takes auto, upstream, debian, a tarball or an unpacked kernel tree")
        }
        (SourceChoice::Path(path), Some(_)) => {
            Err(usage(format!("`--version` chooses what is downloaded; `{path}` has a version of its own")))
        }
        (SourceChoice::Path(path), None) if path.is_dir() => tree::check_clean(path),
        (SourceChoice::Auto | SourceChoice::Upstream, version) => {
            Upstream::new(workspace, version.as_deref()).map(drop)
        }
        (SourceChoice::Path(path), None) => decompression_option(path).map(drop),
        (SourceChoice::Debian, _) => Ok(()),
    }
}

/// What a request's source may turn out to be, the preferred first. No network contact.
pub fn identities(workspace: &Workspace, request: &KernelRequest) -> anyhow::Result<Vec<String>> {
    let version = request.version.as_deref();
    let upstream = || Upstream::new(workspace, version).map(|upstream| upstream.sha256);
    let debian = |version: Option<&str>| match installed(Utf8Path::new(DEBIAN_FOLDER), version) {
        Some((_, tarball)) => file_hash::sha256(workspace, &tarball).map(Some),
        None => Ok(None),
    };
    Ok(match &request.source {
        SourceChoice::Auto => [Some(upstream()?), debian(None)?].into_iter().flatten().collect(),
        SourceChoice::Upstream => vec![upstream()?],
        SourceChoice::Debian => debian(version)?.into_iter().collect(),
        SourceChoice::Path(path) => vec![path_source(workspace, path)?.identity],
    })
}

/// Brings the request's source to this host.
pub fn resolve(context: &Context, request: &KernelRequest) -> anyhow::Result<Source> {
    let workspace = &context.workspace;
    let version = request.version.as_deref();
    match &request.source {
        SourceChoice::Path(path) => path_source(workspace, path),
        SourceChoice::Debian => debian(context, version),
        SourceChoice::Upstream | SourceChoice::Auto => {
            let upstream = Upstream::new(workspace, version)?;
            if let Some(source) = upstream.cached(workspace)? {
                return Ok(source);
            }
            match upstream.begin(workspace) {
                Ok(download) => upstream.finish(workspace, download),
                Err(error) if request.source == SourceChoice::Auto => {
                    let cause = error.root_cause();
                    note!(
                        "kernel {} is out of reach ({cause}): using Debian's kernel source",
                        upstream.version
                    );
                    debian(context, None)
                }
                Err(error) => Err(error).hint("`--source debian` builds the distribution's kernel source"),
            }
        }
    }
}

fn path_source(workspace: &Workspace, path: &Utf8Path) -> anyhow::Result<Source> {
    let path = path.canonicalize_utf8().with_context(|| format!("failed to open `{path}`"))?;
    let label = path.file_name().unwrap_or("/").to_owned();
    if path.is_dir() {
        let identity = tree::fingerprint(&path)?;
        return Ok(Source { label, identity, content: Content::Tree(path) });
    }
    Ok(Source { label, identity: file_hash::sha256(workspace, &path)?, content: Content::Tarball(path) })
}

/// The distribution's package, installed where it is not yet.
fn debian(context: &Context, version: Option<&str>) -> anyhow::Result<Source> {
    let folder = Utf8Path::new(DEBIAN_FOLDER);
    let (_, tarball) = match installed(folder, version) {
        Some(found) => found,
        None => {
            if tools::find("apt-get").is_none() {
                return Err(anyhow!("this distribution has no `linux-source` package"))
                    .hint("unpack a kernel yourself and name it: `--source TARBALL` or `--source DIR`");
            }
            let package = match version {
                Some(version) => format!("linux-source-{version}"),
                None if offered_version(&format!("linux-source-{DEBIAN_SERIES}")).is_some() => {
                    format!("linux-source-{DEBIAN_SERIES}")
                }
                // Depends on the distribution's own series, on Debian and on Ubuntu.
                None => "linux-source".to_owned(),
            };
            install_packages(&[&package], "the kernel's source", context.consent)?;
            installed(folder, version)
                .with_context(|| format!("the package {package} brought no tarball to `{folder}`"))?
        }
    };
    let identity = file_hash::sha256(&context.workspace, &tarball)?;
    Ok(Source { label: "debian".to_owned(), identity, content: Content::Tarball(tarball) })
}

/// The newest installed source package, or the one of this version: its series and its tarball.
///
/// Debian has `linux-source-6.12.tar.xz` in the folder itself, Ubuntu `linux-source-6.8.0/linux-source-6.8.0.tar.bz2`.
fn installed(folder: &Utf8Path, version: Option<&str>) -> Option<(String, Utf8PathBuf)> {
    let entries = folder.read_dir_utf8().ok()?;
    let mut found: Vec<(Vec<u32>, String, Utf8PathBuf)> = Vec::new();
    for entry in entries.flatten() {
        let Some(rest) = entry.file_name().strip_prefix("linux-source-") else { continue };
        let series = rest.split_once(".tar.").map_or(rest, |(series, _)| series);
        let numbers: Result<Vec<u32>, _> = series.split('.').map(str::parse).collect();
        let (Ok(numbers), true) = (numbers, version.is_none_or(|version| version == series)) else {
            continue;
        };
        let path = entry.path();
        let tarball = if path.is_dir() {
            let is_tarball = |name: &str| name.starts_with(&format!("linux-source-{series}.tar."));
            let inner = path.read_dir_utf8().ok().into_iter().flatten().flatten();
            inner.map(|entry| entry.into_path()).find(|path| path.file_name().is_some_and(is_tarball))
        } else {
            path.is_file().then(|| path.to_owned())
        };
        if let Some(tarball) = tarball {
            found.push((numbers, series.to_owned(), tarball));
        }
    }
    found.sort();
    found.pop().map(|(_, series, tarball)| (series, tarball))
}

/// Refuses a file that is no tarball before it is given to tar: `xz`, `gzip`, `bzip2` and `zstd` are known.
pub fn decompression_option(tarball: &Utf8Path) -> anyhow::Result<Option<(&'static str, &'static str)>> {
    use std::io::Read as _;
    let mut magic = Vec::new();
    std::fs::File::open(tarball)
        .and_then(|file| file.take(262).read_to_end(&mut magic))
        .with_context(|| format!("failed to read `{tarball}`"))?;
    Ok(match magic.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some(("--xz", "xz")),
        [0x1f, 0x8b, ..] => Some(("--gzip", "gzip")),
        [b'B', b'Z', b'h', ..] => Some(("--bzip2", "bzip2")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("--zstd", "zstd")),
        [.., b'u', b's', b't', b'a', b'r'] => None,
        _ => bail!("`{tarball}` is not a tarball (xz, gzip, bzip2, zstd or plain)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_newest_installed_package_is_found_in_debians_and_ubuntus_places() {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        assert_eq!(installed(folder, None), None);
        fs::write(folder.join("linux-source-6.1.tar.xz"), "").unwrap();
        fs::write(folder.join("linux-source-6.12.tar.xz"), "").unwrap();
        fs::write(folder.join("linux-source-patch.tar.xz"), "").unwrap();
        fs::create_dir(folder.join("linux-source-6.8.0")).unwrap();
        fs::create_dir(folder.join("linux-source-7.0")).unwrap();
        let ubuntu = folder.join("linux-source-6.8.0/linux-source-6.8.0.tar.bz2");
        fs::write(&ubuntu, "").unwrap();

        let newest = ("6.12".to_owned(), folder.join("linux-source-6.12.tar.xz"));
        assert_eq!(installed(folder, None), Some(newest));
        assert_eq!(installed(folder, Some("6.8.0")), Some(("6.8.0".to_owned(), ubuntu)));
        assert_eq!(installed(folder, Some("7.0")), None);
    }

    #[test]
    fn the_url_follows_kernel_orgs_folders() {
        let upstream =
            Upstream { version: "6.7.4".into(), mirror: "https://x/linux/".into(), sha256: String::new() };
        assert_eq!(upstream.url(), "https://x/linux/v6.x/linux-6.7.4.tar.xz");
    }

    #[test]
    fn a_tarball_is_known_by_its_first_bytes() {
        let guard = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(guard.path()).unwrap().join("x");
        let option = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            decompression_option(&path)
        };
        assert_eq!(option(b"\xfd7zXZ\0...").unwrap(), Some(("--xz", "xz")));
        let mut plain = vec![0; 512];
        plain[257..262].copy_from_slice(b"ustar");
        assert_eq!(option(&plain).unwrap(), None);
        assert!(
            option(b"<html>")
                .unwrap_err()
                .to_string()
                .ends_with("is not a tarball (xz, gzip, bzip2, zstd or plain)")
        );
    }
}
