//! A Dockerfile and its context: found, hashed, and staged for a builder without touching the user's folder.
//!
//! Two things are put into the staged context beside what the user has there: the workbench's own static `init`,
//! for Dockerfiles that `COPY init /sbin/init`, and the host's programs that the Dockerfile asks for in a comment
//! `# host-program: NAME`, so that an image can be made of them with no registry and no network.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use super::context::{self, Entry};
use super::dockerignore::DockerIgnore;
use crate::artifact::create_folder;
use crate::error::Hint as _;
use crate::host::tools;
use crate::nearest;
use crate::workspace::hex;

/// The name under which PID 1 is in every context.
const INIT_NAME: &str = "init";

const HOST_PROGRAM: &str = "# host-program:";

/// A Dockerfile, and the files that it may copy.
#[derive(Debug)]
pub struct BuildContext {
    /// The file itself.
    pub dockerfile: Utf8PathBuf,
    folder: Utf8PathBuf,
    entries: Vec<Entry>,
    /// Files from elsewhere, by their names in the context.
    extra: Vec<(String, Utf8PathBuf)>,
}

/// What the staged context has of the user's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// The files themselves, by a second name: for a builder that cannot write them.
    Links,
    /// Copies.
    Copies,
}

impl BuildContext {
    /// Finds the Dockerfile that a path means, and lists its context. Errors name the nearest file where there is none.
    pub fn discover(path: &Utf8Path, init_binary: &Utf8Path) -> anyhow::Result<BuildContext> {
        let dockerfile = find_dockerfile(path)?;
        let folder = match dockerfile.parent() {
            Some(parent) if !parent.as_str().is_empty() => parent.to_owned(),
            _ => Utf8PathBuf::from("."),
        };
        let text = context::read_text(&dockerfile)?;
        let ignore = read_ignore(&dockerfile, &folder)?;
        let entries = context::list(&folder, &ignore)?;
        let is_there = |name: &str| entries.iter().any(|entry| entry.path == name);
        let mut extra = Vec::new();
        // A file of the user's own goes before ours. Where nobody copies it, it would only make `COPY .` grow.
        if mentions_init(&text) && !is_there(INIT_NAME) {
            extra.push((INIT_NAME.to_owned(), init_binary.to_owned()));
        }
        for name in host_programs(&text) {
            if !is_there(name) {
                extra.push((name.to_owned(), host_program(name, &dockerfile)?));
            }
        }
        Ok(BuildContext { dockerfile, folder, entries, extra })
    }

    /// A hash of all that the build can see: names, modes, contents, links' targets.
    pub fn hash(&self) -> anyhow::Result<String> {
        let mut hash = Sha256::new();
        context::hash(&mut hash, &self.dockerfile, u64::MAX)?;
        for Entry { path, kind, mode, size } in &self.entries {
            hash.update(format!("\n{path}\0{mode:o}\0"));
            let full = self.folder.join(path);
            if kind.is_symlink() {
                let target = full.read_link().with_context(|| format!("failed to read the link `{full}`"))?;
                hash.update(target.as_os_str().as_encoded_bytes());
            } else if kind.is_file() {
                context::hash(&mut hash, &full, *size)?;
            }
        }
        for (name, from) in &self.extra {
            hash.update(format!("\n{name}\0"));
            context::hash(&mut hash, from, u64::MAX)?;
        }
        Ok(hex(&hash.finalize()))
    }

    /// Lays the context out in an empty folder; gives the path of the Dockerfile, which is beside it, and the context's.
    pub fn stage(&self, into: &Utf8Path, sharing: Sharing) -> anyhow::Result<(Utf8PathBuf, Utf8PathBuf)> {
        let staged = into.join("context");
        create_folder(&staged)?;
        for Entry { path, kind, mode, size } in &self.entries {
            let (from, to) = (self.folder.join(path), staged.join(path));
            let failed = || format!("failed to copy `{from}` into the build context");
            if kind.is_dir() {
                fs::create_dir(&to)
                    .and_then(|()| fs::set_permissions(&to, fs::Permissions::from_mode(mode | 0o700)))
                    .with_context(failed)?;
            } else if kind.is_symlink() {
                from.read_link()
                    .and_then(|target| std::os::unix::fs::symlink(target, &to))
                    .with_context(failed)?;
            } else if sharing == Sharing::Copies || fs::hard_link(&from, &to).is_err() {
                // A second name costs nothing; across file systems it takes a copy.
                context::copy(&from, &to, *size)?;
            }
        }
        for (name, from) in &self.extra {
            let to = staged.join(name);
            fs::copy(from, &to)
                .and_then(|_| fs::set_permissions(&to, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("failed to copy `{from}` into the build context"))?;
        }
        let dockerfile = into.join("Dockerfile");
        context::copy(&self.dockerfile, &dockerfile, u64::MAX)?;
        Ok((dockerfile, staged))
    }
}

/// True if the Dockerfile that a path means copies `init` out of its context.
pub fn copies_init(path: &Utf8Path) -> anyhow::Result<bool> {
    Ok(mentions_init(&context::read_text(&find_dockerfile(path)?)?))
}

pub(super) fn find_dockerfile(path: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    let metadata = fs::metadata(path).with_context(|| nearest::describe(path))?;
    if !metadata.is_dir() {
        ensure!(metadata.is_file(), "`{path}` is neither a Dockerfile nor a folder");
        return Ok(path.to_owned());
    }
    let candidates = ["Dockerfile", "Containerfile"].map(|name| path.join(name));
    if let Some(found) = candidates.iter().find(|candidate| candidate.is_file()) {
        return Ok(found.clone());
    }
    let names = path.read_dir_utf8().with_context(|| format!("failed to list `{path}`"))?;
    let names: Vec<String> = names.flatten().map(|entry| entry.file_name().to_owned()).collect();
    match nearest::nearest("Dockerfile", names.iter().map(String::as_str)) {
        Some(near) => bail!("the folder `{path}` has no Dockerfile; is it `{}`?", path.join(near)),
        None => bail!("the folder `{path}` has no Dockerfile"),
    }
}

/// More patterns than people write. Each is compared with each name of the context.
const PATTERNS_LIMIT: usize = 10_000;

/// `Dockerfile.x.dockerignore` goes before `.dockerignore`, as in docker's BuildKit.
fn read_ignore(dockerfile: &Utf8Path, folder: &Utf8Path) -> anyhow::Result<DockerIgnore> {
    let own = Utf8PathBuf::from(format!("{dockerfile}.dockerignore"));
    let candidates = [own, folder.join(".dockerignore"), folder.join(".containerignore")];
    let Some(found) = candidates.iter().find(|candidate| candidate.is_file()) else {
        return Ok(DockerIgnore::default());
    };
    let ignore = DockerIgnore::parse(&context::read_text(found)?);
    ensure!(ignore.len() <= PATTERNS_LIMIT, "`{found}` has more than {PATTERNS_LIMIT} patterns");
    Ok(ignore)
}

/// True if a Dockerfile copies `init` out of its context.
pub(super) fn mentions_init(dockerfile: &str) -> bool {
    dockerfile.lines().any(|line| {
        let mut words = line.split([' ', '\t', '[', ']', ',', '"']).filter(|word| !word.is_empty());
        let is_copy =
            words.next().is_some_and(|word| ["copy", "add"].contains(&word.to_ascii_lowercase().as_str()));
        is_copy && words.any(|word| matches!(word, "init" | "./init" | "/init"))
    })
}

pub(super) fn host_programs(dockerfile: &str) -> impl Iterator<Item = &str> {
    dockerfile.lines().filter_map(|line| line.trim().strip_prefix(HOST_PROGRAM)).map(str::trim)
}

/// A program of the host that runs anywhere: it must be static.
fn host_program(name: &str, dockerfile: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    ensure!(
        !name.is_empty() && !name.contains('/'),
        "`{dockerfile}` asks for the host's program `{name}`, which is not a name"
    );
    let wanted = || format!("`{dockerfile}` asks for the host's program `{name}`");
    let path = tools::find(name).with_context(|| format!("{}, which is not on PATH", wanted()));
    let path = path.hint(format!("install it, for example with `apt-get install {name}-static`"))?;
    let program = fs::read(&path).with_context(|| format!("failed to read `{path}`"))?;
    if names_an_interpreter(&program) {
        return Err(anyhow::anyhow!("{}, and `{path}` is not static", wanted()))
            .hint(format!("install a static one, for example with `apt-get install {name}-static`"));
    }
    Ok(path)
}

/// True for an ELF that needs a dynamic loader: it has a program header of type PT_INTERP (System V ABI, chapter 5).
pub(super) fn names_an_interpreter(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = program.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    };
    let is_elf64 = program.starts_with(b"\x7fELF\x02\x01");
    let headers = || Some((number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?));
    let Some((table, size, count)) = headers().filter(|_| is_elf64) else { return false };
    (0..count)
        .any(|index| number(table.saturating_add(index.saturating_mul(size)), 4) == Some(PT_INTERP as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::read_text;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(files: &[(&str, &str)]) -> Folder {
            let folder = Folder(tempfile::tempdir().unwrap());
            for (name, text) in files {
                folder.write(name, text);
            }
            folder
        }
        fn path(&self) -> &Utf8Path {
            Utf8Path::from_path(self.0.path()).unwrap()
        }
        fn write(&self, name: &str, text: &str) {
            let path = self.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fn context(&self) -> BuildContext {
            BuildContext::discover(self.path(), Utf8Path::new("/bin/true")).unwrap()
        }
    }

    #[test]
    fn the_hash_sees_contents_modes_and_links_but_not_what_is_ignored() {
        let folder =
            Folder::with(&[("Dockerfile", "FROM scratch"), ("a/b", "1"), (".dockerignore", "*.log")]);
        let first = folder.context().hash().unwrap();
        assert_eq!(folder.context().hash().unwrap(), first);
        folder.write("x.log", "noise");
        assert_eq!(folder.context().hash().unwrap(), first);
        folder.write("a/b", "2");
        let second = folder.context().hash().unwrap();
        assert_ne!(second, first);
        fs::set_permissions(folder.path().join("a/b"), fs::Permissions::from_mode(0o755)).unwrap();
        let third = folder.context().hash().unwrap();
        assert_ne!(third, second);
        std::os::unix::fs::symlink("b", folder.path().join("a/link")).unwrap();
        assert_ne!(folder.context().hash().unwrap(), third);
    }

    #[test]
    fn the_staged_context_has_init_and_leaves_the_users_folder_alone() {
        let folder = Folder::with(&[
            ("Dockerfile", "FROM scratch\nCOPY init /sbin/init"),
            ("site/index.html", "hello"),
            ("site/draft", "no"),
            (".dockerignore", "site\n!site/index.html"),
        ]);
        let into = tempfile::tempdir().unwrap();
        let (dockerfile, context) =
            folder.context().stage(Utf8Path::from_path(into.path()).unwrap(), Sharing::Links).unwrap();
        assert!(read_text(&dockerfile).unwrap().contains("COPY init"));
        assert_eq!(fs::read(context.join("init")).unwrap(), fs::read("/bin/true").unwrap());
        assert_eq!(read_text(&context.join("site/index.html")).unwrap(), "hello");
        assert!(!context.join("site/draft").exists());
        assert!(!folder.path().join("init").exists());
    }

    #[test]
    fn a_users_own_init_goes_before_ours() {
        let copy = "FROM scratch\nCOPY [\"init\", \"/sbin/init\"]";
        assert!(Folder::with(&[("Dockerfile", copy), ("init", "mine")]).context().extra.is_empty());
        assert_eq!(Folder::with(&[("Dockerfile", copy)]).context().extra.len(), 1);
        let without = "FROM scratch\nRUN init\nCOPY . /";
        assert!(Folder::with(&[("Dockerfile", without)]).context().extra.is_empty());
    }

    #[test]
    fn a_missing_dockerfile_names_the_nearest() {
        let folder = Folder::with(&[("dockerfile", "FROM scratch")]);
        let error = find_dockerfile(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("is it `{}/dockerfile`?", folder.path())), "{error}");
        let error = find_dockerfile(&folder.path().join("dockerfil")).unwrap_err().to_string();
        assert!(error.contains("/dockerfile`?"), "{error}");
    }

    #[test]
    fn host_programs_must_be_static() {
        assert_eq!(host_programs("# host-program: busybox\nFROM scratch").collect::<Vec<_>>(), ["busybox"]);
        assert!(names_an_interpreter(&fs::read("/bin/sh").unwrap()));
        assert!(!names_an_interpreter(b"#!/bin/sh"));
        let error = host_program("no-such-program", Utf8Path::new("Dockerfile")).unwrap_err().to_string();
        assert!(error.contains("`no-such-program`, which is not on PATH"), "{error}");
    }
}
