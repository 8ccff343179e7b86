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
    use super::*;

    #[test]
    fn a_compiler_is_asked_once_until_its_file_changes() {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        let workspace = Workspace::for_test(folder);
        let (program, count) = (folder.join("gcc"), folder.join("count"));
        let install = |version: &str| {
            // Written by another process: a file that this one has open for writing, or a child of it, cannot be run.
            let script = "printf '#!/bin/sh\\necho asked >> %s\\necho \"gcc %s\"\\n' \"$1\" \"$2\" >new; chmod 755 new; mv new gcc";
            let words = ["-c", script, "sh", count.as_str(), version];
            let installed = std::process::Command::new("sh").args(words).current_dir(folder).status();
            assert!(installed.unwrap().success());
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
