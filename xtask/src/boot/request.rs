//! What the user asked `boot` for, checked before anything slow starts.

use std::time::Duration;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};

use crate::error::{Hint as _, usage};

/// A `-v` mount, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRequest {
    /// A folder or a file of the host.
    pub source: Utf8PathBuf,
    /// Absolute path in the guest.
    pub target: String,
    /// Refuse writes.
    pub read_only: bool,
}

/// A `-v` mount whose source was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The folder to share, an absolute path: 9p shares folders only.
    pub folder: Utf8PathBuf,
    /// Mount only this file of it.
    pub file: Option<String>,
    /// Absolute path in the guest.
    pub target: String,
    /// Refuse writes.
    pub read_only: bool,
}

/// docker's `-v`: `HOST:GUEST[:ro]`. As for docker, a host path is told from a name by a `/`, or a `.` in front.
pub fn parse_volume(text: &str) -> Result<VolumeRequest, String> {
    let (text, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    let Some((source, target)) = text.rsplit_once(':').filter(|(source, _)| !source.is_empty()) else {
        return Err(format!("`{text}` is not HOST:GUEST"));
    };
    if !target.starts_with('/') {
        return Err(format!("the guest's path `{target}` is not absolute"));
    }
    if target.trim_end_matches('/').is_empty() {
        return Err("a mount on `/` would hide the whole image".into());
    }
    if !source.starts_with('.') && !source.contains('/') {
        return Err(format!("`{source}` is not a path: write `./{source}` for a folder here"));
    }
    Ok(VolumeRequest { source: source.into(), target: target.to_owned(), read_only })
}

impl VolumeRequest {
    /// Looks at the source. Errors where there is none.
    pub fn resolve(&self) -> anyhow::Result<Volume> {
        let path = existing(&self.source, "shared folder or file")?;
        let (folder, file) = match (path.is_dir(), path.parent(), path.file_name()) {
            (false, Some(parent), Some(name)) => (parent.to_owned(), Some(name.to_owned())),
            _ => (path, None),
        };
        Ok(Volume { folder, file, target: self.target.clone(), read_only: self.read_only })
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
        let volume = |source: &str, target: &str, read_only| VolumeRequest {
            source: source.into(),
            target: target.into(),
            read_only,
        };
        assert_eq!(parse_volume("./site:/srv"), Ok(volume("./site", "/srv", false)));
        assert_eq!(parse_volume("/a:b:/srv:ro"), Ok(volume("/a:b", "/srv", true)));
        assert_eq!(parse_volume("/srv").unwrap_err(), "`/srv` is not HOST:GUEST");
        assert_eq!(parse_volume("./site:srv").unwrap_err(), "the guest's path `srv` is not absolute");
        assert_eq!(parse_volume("./site:/").unwrap_err(), "a mount on `/` would hide the whole image");
        assert_eq!(
            parse_volume("data:/srv").unwrap_err(),
            "`data` is not a path: write `./data` for a folder here"
        );
    }

    #[test]
    fn a_single_file_is_shared_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap().canonicalize_utf8().unwrap();
        std::fs::write(folder.join("page"), "").unwrap();
        let resolved =
            |source: &Utf8Path| parse_volume(&format!("{source}:/srv")).unwrap().resolve().unwrap();
        let volume = |file| Volume { folder: folder.clone(), file, target: "/srv".into(), read_only: false };
        assert_eq!(resolved(&folder), volume(None));
        assert_eq!(resolved(&folder.join("page")), volume(Some("page".into())));
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
