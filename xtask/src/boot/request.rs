//! What the user asked `boot` for, checked before anything slow starts.

use std::time::Duration;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use crate::disk::volume::{self, Access};
use crate::error::{Hint as _, usage};
use crate::vm::record::run_dir::parse_name;
use crate::workspace::Workspace;

/// A `-v` mount, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRequest {
    /// What is mounted.
    pub source: VolumeSource,
    /// Absolute path in the guest.
    pub target: String,
    /// Refuse writes.
    pub read_only: bool,
}

/// What a `-v` mount names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// A folder or a file of the host.
    Path(Utf8PathBuf),
    /// A disk that outlives its machine.
    Named(String),
}

/// A `-v` mount whose source was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What is mounted.
    pub content: VolumeContent,
    /// Absolute path in the guest.
    pub target: String,
    /// Refuse writes.
    pub read_only: bool,
}

/// What there is to mount; paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeContent {
    /// A folder of the host.
    Folder(Utf8PathBuf),
    /// A file of the host, in a folder that is shared for its sake: 9p shares folders only.
    File {
        /// The folder.
        folder: Utf8PathBuf,
        /// The file's name in it.
        name: String,
    },
    /// A named volume's disk.
    Disk(Utf8PathBuf),
}

/// A `--tmpfs` mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsRequest {
    /// Absolute path in the guest.
    pub target: String,
    /// Mount options, `size=64m,mode=1777`.
    pub options: String,
}

/// docker's `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkRequest {
    /// No network at all.
    None,
    /// The way outside alone.
    Outside,
    /// Beside it, a network with other machines that name it.
    Private(String),
}

/// docker's words for networks, and names.
pub fn parse_network(text: &str) -> Result<NetworkRequest, String> {
    match text {
        "none" => Ok(NetworkRequest::None),
        "default" | "bridge" => Ok(NetworkRequest::Outside),
        "host" => {
            Err("a machine has a network of its own: `-p` leads into it, `--allow-host` out to this host's \
                       loopback"
                .into())
        }
        name => parse_name(name).map(NetworkRequest::Private),
    }
}

/// docker's `-v`: `HOST:GUEST[:ro]` or `NAME:GUEST[:ro]`. As for docker, a host path is told from a name by a `/`, or
/// a `.` in front.
pub fn parse_volume(text: &str) -> Result<VolumeRequest, String> {
    let (text, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    let Some((source, target)) = text.rsplit_once(':').filter(|(source, _)| !source.is_empty()) else {
        return Err(format!("`{text}` is neither HOST:GUEST nor NAME:GUEST"));
    };
    let source = if source.starts_with('.') || source.contains('/') {
        VolumeSource::Path(source.into())
    } else {
        VolumeSource::Named(parse_name(source)?)
    };
    Ok(VolumeRequest { source, target: mount_point(target)?, read_only })
}

/// docker's `--tmpfs`: `GUEST[:OPTIONS]`.
pub fn parse_tmpfs(text: &str) -> Result<TmpfsRequest, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    Ok(TmpfsRequest { target: mount_point(target)?, options: options.to_owned() })
}

fn mount_point(target: &str) -> Result<String, String> {
    if !target.starts_with('/') {
        return Err(format!("the guest's path `{target}` is not absolute"));
    }
    match target.trim_end_matches('/') {
        "" => Err("a mount on `/` would hide the whole image".into()),
        plain => Ok(plain.to_owned()),
    }
}

impl VolumeRequest {
    /// Looks at the source. Errors where a path leads nowhere, or a machine uses the named volume.
    pub fn resolve(&self, workspace: &Workspace) -> anyhow::Result<Volume> {
        let content = match &self.source {
            VolumeSource::Named(name) => {
                volume::check_free(workspace, name, Access::of(self.read_only))?;
                VolumeContent::Disk(volume::disk(workspace, name))
            }
            VolumeSource::Path(path) => {
                let path = existing(path, "shared folder or file")?;
                match (path.is_dir(), path.parent(), path.file_name()) {
                    (false, Some(parent), Some(name)) => {
                        VolumeContent::File { folder: parent.to_owned(), name: name.to_owned() }
                    }
                    _ => VolumeContent::Folder(path),
                }
            }
        };
        Ok(Volume { content, target: self.target.clone(), read_only: self.read_only })
    }
}

/// docker's `-e`: `NAME=value`, or `NAME` for this process's own value (`None` where it has none).
pub fn parse_variable(text: &str) -> Result<Option<String>, String> {
    match text.split_once('=') {
        Some(("", _)) => Err(format!("`{text}` has no name before `=`")),
        Some(_) => Ok(Some(text.to_owned())),
        None if text.is_empty() => Err("an empty variable name".into()),
        None => Ok(std::env::var(text).ok().map(|value| format!("{text}={value}"))),
    }
}

/// docker's `--env-file`: a variable to a line, `#` begins a comment line.
pub fn read_variables(path: &Utf8Path) -> anyhow::Result<Vec<String>> {
    let text = crate::artifact::read_text(path)?;
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let variable =
            parse_variable(line).map_err(|cause| usage(format!("`{path}` line {number}: {cause}")))?;
        variables.extend(variable);
    }
    Ok(variables)
}

/// The variables of `--env-file` and `-e`, in the order in which the later ones win.
pub fn gather_variables(files: &[Utf8PathBuf], words: &[String]) -> anyhow::Result<Vec<String>> {
    let mut variables = Vec::new();
    for file in files {
        variables.extend(read_variables(file)?);
    }
    for word in words {
        variables.extend(parse_variable(word).map_err(usage)?);
    }
    Ok(variables)
}

/// A time limit: seconds, or a number with a unit `s`, `m` or `h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let complaint = || format!("`{text}` is not a time; write 90, 90s, 5m or 1h");
    let (digits, seconds_per_unit) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1.0),
        Some(b'm') => (&text[..text.len() - 1], 60.0),
        Some(b'h') => (&text[..text.len() - 1], 3600.0),
        _ => (text, 1.0),
    };
    let number: f64 = digits.parse().map_err(|_| complaint())?;
    Duration::try_from_secs_f64(number * seconds_per_unit)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(complaint)
}

/// The absolute path of something on the host that must exist.
pub fn existing(path: &Utf8Path, what: &str) -> anyhow::Result<Utf8PathBuf> {
    path.canonicalize_utf8()
        .with_context(|| format!("the {what} `{path}` cannot be found"))
        .hint("give the path of an existing folder or file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_written_as_for_docker() {
        let volume =
            |source, target: &str, read_only| VolumeRequest { source, target: target.into(), read_only };
        let path = |path: &str| VolumeSource::Path(path.into());
        assert_eq!(parse_volume("./site:/srv"), Ok(volume(path("./site"), "/srv", false)));
        assert_eq!(parse_volume("/a:b:/srv/:ro"), Ok(volume(path("/a:b"), "/srv", true)));
        assert_eq!(
            parse_volume("data:/srv:rw"),
            Ok(volume(VolumeSource::Named("data".into()), "/srv", false))
        );
        assert_eq!(parse_volume("/srv").unwrap_err(), "`/srv` is neither HOST:GUEST nor NAME:GUEST");
        assert_eq!(parse_volume("./site:srv").unwrap_err(), "the guest's path `srv` is not absolute");
        assert_eq!(parse_volume("./site:/").unwrap_err(), "a mount on `/` would hide the whole image");
        assert!(parse_volume("a b:/srv").unwrap_err().starts_with("`a b` is not a name"));
    }

    #[test]
    fn networks_are_dockers_words_or_names() {
        assert_eq!(parse_network("none"), Ok(NetworkRequest::None));
        assert_eq!(parse_network("bridge"), Ok(NetworkRequest::Outside));
        assert_eq!(parse_network("back-end"), Ok(NetworkRequest::Private("back-end".into())));
        assert!(parse_network("host").is_err() && parse_network("a/b").is_err());
    }

    #[test]
    fn a_tmpfs_may_have_options() {
        let tmpfs =
            |target: &str, options: &str| TmpfsRequest { target: target.into(), options: options.into() };
        assert_eq!(parse_tmpfs("/run"), Ok(tmpfs("/run", "")));
        assert_eq!(parse_tmpfs("/run:size=1m,mode=700"), Ok(tmpfs("/run", "size=1m,mode=700")));
        assert_eq!(parse_tmpfs("run").unwrap_err(), "the guest's path `run` is not absolute");
    }

    #[test]
    fn a_single_file_is_found_with_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap().canonicalize_utf8().unwrap();
        std::fs::write(folder.join("page"), "").unwrap();
        let workspace = Workspace::discover().unwrap();
        let content = |source: &Utf8Path| {
            parse_volume(&format!("{source}:/srv")).unwrap().resolve(&workspace).unwrap().content
        };
        assert_eq!(content(&folder), VolumeContent::Folder(folder.clone()));
        let file = VolumeContent::File { folder: folder.clone(), name: "page".into() };
        assert_eq!(content(&folder.join("page")), file);
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for nonsense in ["", "s", "-1", "0", "soon", "nan", "1e300"] {
            assert!(parse_duration(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_variable_needs_a_name() {
        assert_eq!(parse_variable("A=b=c"), Ok(Some("A=b=c".into())));
        assert!(parse_variable("=b").is_err());
        assert_eq!(parse_variable("SURELY_NOT_SET_ANYWHERE"), Ok(None));
    }
}
