//! Which compiler there is: asked once for each that is installed, and remembered for as long as its file stays the same.

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use super::file_hash::Stamp;
use crate::artifact::{read_text, write_whole};
use crate::host::tools;
use crate::workspace::Workspace;

/// The program.
const COMPILER: &str = "gcc";

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    stamp: Stamp,
    version: String,
}

/// First line of `gcc --version`; `None` where there is no compiler.
pub(super) fn version(workspace: &Workspace) -> Option<String> {
    version_of(workspace, &tools::find(COMPILER)?)
}

fn version_of(workspace: &Workspace, program: &Utf8Path) -> Option<String> {
    let stamp = Stamp::of(program).ok()?;
    let memory = workspace.verdicts().join(format!("{COMPILER}.json"));
    let remembered = read_text(&memory).ok().and_then(|text| serde_json::from_str::<Remembered>(&text).ok());
    if let Some(remembered) = remembered.filter(|remembered| remembered.stamp == stamp) {
        return Some(remembered.version);
    }
    let text = duct::cmd!(program.as_str(), "--version").env("LC_ALL", "C").stderr_null().read().ok()?;
    let version = text.lines().next()?.to_owned();
    // A task that only looks makes no cache; what is not remembered is asked again.
    if workspace.cache().is_dir()
        && let Ok(json) = serde_json::to_vec(&Remembered { stamp, version: version.clone() })
    {
        let _ = write_whole(&memory, &json);
    }
    Some(version)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_compiler_is_asked_once_until_its_file_changes() {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        let workspace = Workspace::for_test(folder);
        let (program, count) = (folder.join("gcc"), folder.join("count"));
        let install = |version: &str| {
            let script = format!("#!/bin/sh\necho asked >> {count}\necho 'gcc {version}'\n");
            let staged = folder.join("new");
            std::fs::write(&staged, script).unwrap();
            std::fs::set_permissions(&staged, PermissionsExt::from_mode(0o755)).unwrap();
            std::fs::rename(staged, &program).unwrap();
        };
        let asked = || std::fs::read_to_string(&count).unwrap().lines().count();
        install("12.2");
        for _ in 0..3 {
            assert_eq!(version_of(&workspace, &program).as_deref(), Some("gcc 12.2"));
        }
        assert_eq!(asked(), 1);
        install("13.1.0");
        assert_eq!(version_of(&workspace, &program).as_deref(), Some("gcc 13.1.0"));
        assert_eq!(asked(), 2);
        std::fs::remove_file(&program).unwrap();
        assert_eq!(version_of(&workspace, &program), None);
    }
}
