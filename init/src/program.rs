//! Finds the program that a command names, and says in docker's codes why it cannot be run.
//!
//! The search happens in the guest, as the process's own user and from its own working directory, as `execvp`
//! would do it; it only looks. What is found may still fail to run, which [`exec_failure`] words.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use init::protocol::Failure;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

/// docker's exit code for a failure of its own making.
pub(crate) const AGENT_FAILED: u8 = 125;
/// docker's and the shells' exit code for a command that cannot be run.
pub(crate) const CANNOT_RUN: u8 = 126;
/// docker's and the shells' exit code for a command that is not there.
pub(crate) const NOT_FOUND: u8 = 127;

/// The file to run for `name`, looked up in the directories of `path` unless it has a slash.
///
/// # Errors
/// 127 where nothing is found; 126 where it is a directory, may not be run, or is no program of this machine.
pub(crate) fn find(name: &str, path: &str) -> Result<PathBuf, Failure> {
    if name.is_empty() {
        return Err(failure(NOT_FOUND, "the command is empty"));
    }
    if name.contains('/') {
        let file = PathBuf::from(name);
        check(&file).map_err(|e| failure_of(name, &e))?;
        return Ok(file);
    }
    let mut closest = None;
    for directory in path.split(':') {
        // An empty entry means the working directory; `./` keeps `execvp` from searching again.
        let file = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(Flaw::Missing) => {}
            Err(flaw) => closest = closest.or(Some((file, flaw))),
        }
    }
    Err(match closest {
        Some((file, flaw)) => failure_of(&file.to_string_lossy(), &flaw),
        None => failure(NOT_FOUND, format!("`{name}` was not found in PATH (`{path}`)")),
    })
}

/// The first of `candidates` that can be run.
pub(crate) fn first_runnable<'a>(candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates.into_iter().find(|file| check(Path::new(file)).is_ok())
}

#[derive(Debug)]
enum Flaw {
    Missing,
    Directory,
    Denied,
    Format,
    Other(std::io::Error),
}

fn check(file: &Path) -> Result<(), Flaw> {
    let metadata = std::fs::metadata(file).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Flaw::Missing,
        ErrorKind::PermissionDenied => Flaw::Denied,
        _ => Flaw::Other(e),
    })?;
    if metadata.is_dir() {
        return Err(Flaw::Directory);
    }
    accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS).map_err(|_| Flaw::Denied)?;
    let mut start = Vec::new();
    // A program may be executable and not readable; then the kernel judges its form.
    if let Ok(opened) = File::open(file) {
        opened.take(20).read_to_end(&mut start).map_err(Flaw::Other)?;
        if !is_program(&start) {
            return Err(Flaw::Format);
        }
    }
    Ok(())
}

/// Whether a file that starts like this is a script or an ELF program of this machine. `execvp` would hand
/// anything else to `/bin/sh`, which answers with nonsense.
fn is_program(start: &[u8]) -> bool {
    const X86_64: [u8; 2] = [62, 0];
    const I386: [u8; 2] = [3, 0];
    let machine = start.get(18..20);
    start.starts_with(b"#!")
        || (start.starts_with(b"\x7fELF") && (machine == Some(&X86_64) || machine == Some(&I386)))
}

fn failure_of(name: &str, flaw: &Flaw) -> Failure {
    match flaw {
        Flaw::Missing => failure(NOT_FOUND, format!("`{name}` was not found in the image")),
        Flaw::Directory => failure(CANNOT_RUN, format!("`{name}` is a directory")),
        Flaw::Denied => failure(CANNOT_RUN, format!("`{name}` cannot be run: permission denied")),
        Flaw::Format => failure(
            CANNOT_RUN,
            format!("`{name}` is neither a script nor a program for this machine (x86-64)"),
        ),
        Flaw::Other(e) => failure(CANNOT_RUN, format!("`{name}` cannot be run: {e}")),
    }
}

/// What to report when the kernel refused to run a file that [`find`] had found.
pub(crate) fn exec_failure(file: &Path, error: &std::io::Error) -> Failure {
    let name = file.display();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        // The file was there a moment ago: what is missing is the `#!` or ELF interpreter that it names.
        Some(Errno::NOENT) => {
            failure(NOT_FOUND, format!("`{name}` needs an interpreter that the image does not have"))
        }
        _ => failure(CANNOT_RUN, format!("`{name}` cannot be run: {error}")),
    }
}

/// A failure with docker's code.
pub(crate) fn failure(code: u8, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory of its own below the build's, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("init-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        fn file(&self, name: &str, contents: &[u8], mode: u32) -> String {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        }

        fn path(&self, directories: &[&str]) -> String {
            let absolute = directories.iter().map(|name| self.0.join(name).to_str().unwrap().to_owned());
            absolute.collect::<Vec<_>>().join(":")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn path_is_searched_in_order_and_past_what_cannot_run() {
        let scratch = Scratch::new("search");
        scratch.file("a/tool", b"#!/bin/sh\n", 0o644);
        let second = scratch.file("b/tool", b"#!/bin/sh\n", 0o755);
        scratch.file("c/tool", b"#!/bin/sh\n", 0o755);
        fs::create_dir_all(scratch.0.join("d/tool")).unwrap();
        let found = find("tool", &scratch.path(&["missing", "d", "a", "b", "c"])).unwrap();
        assert_eq!(found.to_str().unwrap(), second);
    }

    #[test]
    fn failures_have_dockers_codes() {
        let scratch = Scratch::new("codes");
        let code = |name: &str, path: &str| {
            let failure = find(name, path).unwrap_err();
            (failure.code, failure.message.replace(scratch.0.to_str().unwrap(), "[DIR]"))
        };
        let plain = scratch.file("plain", b"#!/bin/sh\n", 0o644);
        let text = scratch.file("text", b"echo hello\n", 0o755);
        let empty = scratch.file("empty", b"", 0o755);
        let mut arm = b"\x7fELF".to_vec();
        arm.resize(18, 0);
        arm.extend([183, 0]);
        let arm = scratch.file("arm", &arm, 0o755);
        let directory = scratch.path(&["."]);

        assert_eq!(code("", "/bin"), (127, "the command is empty".into()));
        assert_eq!(code("no-such", "/a:/b"), (127, "`no-such` was not found in PATH (`/a:/b`)".into()));
        assert_eq!(code("/no/such", "/bin"), (127, "`/no/such` was not found in the image".into()));
        assert_eq!(
            code(&format!("{plain}/x"), ""),
            (127, "`[DIR]/plain/x` was not found in the image".into())
        );
        assert_eq!(code(&plain, ""), (126, "`[DIR]/plain` cannot be run: permission denied".into()));
        assert_eq!(
            code("plain", &directory),
            (126, "`[DIR]/./plain` cannot be run: permission denied".into())
        );
        assert_eq!(code(&directory, ""), (126, "`[DIR]/.` is a directory".into()));
        let wrong = "is neither a script nor a program for this machine (x86-64)";
        for (file, name) in [(&text, "text"), (&empty, "empty"), (&arm, "arm")] {
            assert_eq!(code(file, ""), (126, format!("`[DIR]/{name}` {wrong}")));
        }
    }

    #[test]
    fn a_missing_interpreter_is_not_a_missing_file() {
        let missing = std::io::Error::from_raw_os_error(Errno::NOENT.raw_os_error());
        let failure = exec_failure(Path::new("/app"), &missing);
        assert_eq!(failure.code, NOT_FOUND);
        assert_eq!(failure.message, "`/app` needs an interpreter that the image does not have");
        let busy = std::io::Error::from_raw_os_error(Errno::TXTBSY.raw_os_error());
        assert_eq!(exec_failure(Path::new("/app"), &busy).code, CANNOT_RUN);
    }

    #[test]
    fn the_first_runnable_candidate_wins() {
        assert_eq!(first_runnable(["/no/such", "/etc", "/bin/sh", "/bin/cat"]), Some("/bin/sh"));
        assert_eq!(first_runnable(["/no/such"]), None);
    }
}
