//! Files between the host and a running machine, as a tar stream through its agent. Nothing of the image is needed.

use std::ffi::OsStr;
use std::io::{self, PipeReader, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use init::archive::{Rules, extract, write_tree};
use init::protocol::{DIRECTORY, Program, Start, Stream};

use super::session::{Input, Session, SessionEnd};
use super::{CHANNEL, Client, START_LIMIT};
use crate::error::EXIT_NOT_FOUND;
use crate::vm::record::run_dir::RunDir;

/// What is at the place that something is copied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Directory,
    Other,
}

/// Where a copy goes: into this directory, under this name (`.` for the contents of a directory).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    directory: PathBuf,
    name: Vec<u8>,
}

/// Copies a path of the host into a machine, where docker's `cp` would put it.
pub fn into_machine(run_dir: &RunDir, source: &Path, target: &Path, follow: bool) -> anyhow::Result<()> {
    let looked = if follow { source.metadata() } else { source.symlink_metadata() };
    let is_directory = looked.with_context(|| format!("failed to look at `{}`", source.display()))?.is_dir();
    let place = place(source, is_directory, target, look_in_machine(run_dir, target)?)?;
    let (reader, writer) = io::pipe().context("failed to create a pipe")?;
    let (source, name) = (source.to_owned(), place.name);
    let writing = std::thread::spawn(move || pack(writer, &source, &name, follow));
    let unpacked = unpack_in_machine(run_dir, &place.directory, Box::new(reader));
    match unpacked {
        Ok(()) => writing.join().unwrap_or_else(|_| bail!("reading stopped")),
        // What could not be read here is the cause of what could not be understood there.
        Err(error) => match writing.is_finished().then(|| writing.join()) {
            Some(Ok(Err(cause))) if cause.root_cause().downcast_ref().is_none_or(is_not_broken_pipe) => {
                Err(cause)
            }
            _ => Err(error),
        },
    }
}

fn is_not_broken_pipe(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::BrokenPipe
}

/// Copies a path of a machine to the host, where docker's `cp` would put it. What comes is an enemy's word: it makes what was
/// asked for and nothing else ([`Rules::Foreign`]). With `keep_all` it may give owners, setuid and setgid bits, devices and
/// all attributes, as far as this user may.
pub fn out_of_machine(
    run_dir: &RunDir,
    source: &Path,
    target: &Path,
    follow: bool,
    keep_all: bool,
) -> anyhow::Result<()> {
    let is_directory = match look_in_machine(run_dir, source)? {
        There::Directory => true,
        // A link that leads nowhere is still something to copy.
        There::Nothing | There::Other => false,
    };
    let there = match target.metadata() {
        Ok(metadata) if metadata.is_dir() => There::Directory,
        Ok(_) => There::Other,
        Err(error) if error.kind() == io::ErrorKind::NotFound => There::Nothing,
        Err(error) => return Err(error).with_context(|| format!("failed to look at `{}`", target.display())),
    };
    let Place { directory, name } = place(source, is_directory, target, there)?;
    let (reader, writer) = io::pipe().context("failed to create a pipe")?;
    let rules = Rules::Foreign { name: name.clone(), keep_all };
    let failed = format!("failed to copy `{}:{}`", run_dir.name(), source.display());
    let unpacking = std::thread::spawn(move || unpack(reader, &directory, &rules));
    let packed = pack_in_machine(run_dir, source, &name, follow, writer);
    let unpacked = unpacking.join().unwrap_or_else(|_| bail!("writing stopped")).context(failed);
    match packed {
        // The machine was left because nobody took what it sent; the cause is here.
        Err(error) if error.is::<NobodyReads>() => unpacked.and(Err(error)),
        // What the machine complains of is the cause where both failed.
        packed => packed.and(unpacked),
    }
}

/// Writes a machine's path to `out` as a tar stream.
pub fn to_stream(run_dir: &RunDir, source: &Path, follow: bool, out: impl Write) -> anyhow::Result<()> {
    match pack_in_machine(run_dir, source, &name_of(source), follow, out) {
        // A reader that goes has a reason of its own, and says it.
        Err(error) if error.downcast_ref().is_some_and(|NobodyReads(e)| !is_not_broken_pipe(e)) => Ok(()),
        packed => packed,
    }
}

/// Unpacks a tar stream into a directory of a machine.
pub fn from_stream(run_dir: &RunDir, target: &Path, input: Input) -> anyhow::Result<()> {
    unpack_in_machine(run_dir, target, input)
}

fn pack(out: impl Write, source: &Path, name: &[u8], follow: bool) -> anyhow::Result<()> {
    let mut complaints = Vec::new();
    write_tree(out, source, name, follow, &mut |complaint| complaints.push(complaint))?;
    if complaints.is_empty() { Ok(()) } else { Err(anyhow!("{}", complaints.join("\n"))) }
}

/// More than any padding after an archive's end: GNU tar fills up to a record of 20 blocks, or as many as it is told.
const PADDING: u64 = 1 << 20;

fn unpack(mut reader: PipeReader, directory: &Path, rules: &Rules) -> anyhow::Result<()> {
    let mut left_out = LeftOut::default();
    let extracted = extract(&mut reader, directory, rules, &mut |complaint| left_out.take(complaint));
    left_out.say();
    extracted?;
    // The padding after an archive's end is nobody's, but somebody has to take it.
    let mut padding = (&mut reader).take(PADDING);
    io::copy(&mut padding, &mut io::sink()).context("failed to read the end of the stream")?;
    if padding.limit() == 0 {
        bail!("the stream goes on after the archive's end");
    }
    Ok(())
}

/// Entries that were left out. A few are named; an enemy may send millions.
#[derive(Debug, Default)]
struct LeftOut {
    named: Vec<String>,
    others: u64,
}

impl LeftOut {
    fn take(&mut self, complaint: String) {
        if self.named.len() < 10 { self.named.push(complaint) } else { self.others += 1 }
    }

    fn say(&self) {
        for complaint in &self.named {
            crate::note!("{complaint}");
        }
        if self.others > 0 {
            crate::note!("... and {} more", self.others);
        }
        if !self.named.is_empty() {
            crate::note!("`cp -a` as root keeps devices");
        }
    }
}

/// The machine was left, since what it said was too much or nobody took it.
#[derive(Debug)]
struct NobodyReads(io::Error);

impl std::fmt::Display for NobodyReads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "what the machine sent could not be taken: {}", self.0)
    }
}

impl std::error::Error for NobodyReads {}

fn pack_in_machine(
    run_dir: &RunDir,
    source: &Path,
    name: &[u8],
    follow: bool,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let path = source.as_os_str().as_bytes().to_vec();
    let end = run(run_dir, Program::TarOut { path, name: name.to_vec(), follow }, None, |bytes| {
        out.write_all(bytes).and_then(|()| out.flush())
    });
    end.and_then(End::into_result)
        .with_context(|| format!("failed to copy `{}:{}`", run_dir.name(), source.display()))
}

fn unpack_in_machine(run_dir: &RunDir, directory: &Path, input: Input) -> anyhow::Result<()> {
    let path = directory.as_os_str().as_bytes().to_vec();
    run(run_dir, Program::TarIn { path }, Some(input), |_| Ok(()))
        .and_then(End::into_result)
        .with_context(|| format!("failed to copy into `{}:{}`", run_dir.name(), directory.display()))
}

fn look_in_machine(run_dir: &RunDir, path: &Path) -> anyhow::Result<There> {
    let mut kind = Vec::new();
    let look = Program::Stat { path: path.as_os_str().as_bytes().to_vec() };
    let end = run(run_dir, look, None, |bytes| {
        kind.extend_from_slice(bytes);
        if kind.len() <= DIRECTORY.len() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    });
    let end = end.with_context(|| format!("failed to look at `{}:{}`", run_dir.name(), path.display()))?;
    if end.code == EXIT_NOT_FOUND {
        return Ok(There::Nothing);
    }
    end.into_result()?;
    Ok(if kind == DIRECTORY.as_bytes() { There::Directory } else { There::Other })
}

/// How one of the agent's own programs ended.
struct End {
    code: u8,
    /// What it said on standard error.
    cause: String,
}

impl End {
    fn into_result(self) -> anyhow::Result<()> {
        if self.code == 0 { Ok(()) } else { Err(anyhow!("{}", self.cause)) }
    }
}

/// The agent's programs say one sentence, or one for each file that they leave out; more than this is dropped, in bytes.
const MOST_TALK: usize = 64 * 1024;

/// Runs one of the agent's own programs to its end, or leaves it when `stdout` takes no more.
fn run(
    run_dir: &RunDir,
    program: Program,
    input: Option<Input>,
    mut stdout: impl FnMut(&[u8]) -> io::Result<()>,
) -> anyhow::Result<End> {
    let mut client = Client::connect(run_dir)?;
    let start = Start { program, tty: None, stdin: input.is_some() };
    if let Err(failure) = client.start(start, START_LIMIT)? {
        bail!("{}", failure.message);
    }
    let (speaker, leaver) = (client.speaker(), client.speaker());
    let mut stderr = Vec::new();
    let mut left = None;
    let end = Session { channel: CHANNEL, tty: false }.run(
        client.frames(),
        move |message| speaker.say(CHANNEL, message),
        || {},
        input,
        |stream, bytes| match stream {
            Stream::Stdout => stdout(bytes).map_err(|error| {
                leaver.leave();
                let kind = error.kind();
                left = Some(NobodyReads(error));
                kind.into()
            }),
            Stream::Stdin | Stream::Stderr => {
                let room = MOST_TALK.saturating_sub(stderr.len());
                stderr.extend_from_slice(&bytes[..bytes.len().min(room)]);
                Ok(())
            }
        },
    );
    if let Some(left) = left {
        return Err(left.into());
    }
    match end {
        SessionEnd::Exited(code) => {
            Ok(End { code, cause: harmless(String::from_utf8_lossy(&stderr).trim()) })
        }
        SessionEnd::Failed(failure) => Err(anyhow!("{}", failure.message)),
        SessionEnd::Lost => Err(anyhow!("the connection to the machine `{}` has ended", run_dir.name())),
    }
}

/// Lines that an agent said, with what a terminal would act on made visible.
fn harmless(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let shown = |letter: char| {
            if letter.is_control() { letter.escape_default().to_string() } else { letter.into() }
        };
        line.chars().map(shown).collect::<String>()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// docker's rules (`docker cp --help`, and its reference). Pure.
fn place(source: &Path, is_directory: bool, target: &Path, there: There) -> anyhow::Result<Place> {
    let shown = target.display();
    let wants_directory = ends_as_directory(target);
    let parent = || {
        let mut parts = target.components();
        let name = parts.next_back().map(|part| part.as_os_str().as_bytes().to_vec());
        let name = name.filter(|name| name != b".." && name != b"/" && name != b".");
        let directory = parts.as_path();
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        name.map(|name| Place { directory: directory.to_owned(), name })
            .with_context(|| format!("`{shown}` does not exist"))
    };
    match there {
        There::Directory => Ok(Place { directory: target.to_owned(), name: name_of(source) }),
        There::Nothing if wants_directory && !is_directory => bail!("the directory `{shown}` does not exist"),
        There::Nothing => parent(),
        There::Other if is_directory => {
            bail!("`{}` is a directory and cannot replace the file `{shown}`", source.display())
        }
        There::Other if wants_directory => bail!("`{shown}` is not a directory"),
        There::Other => parent(),
    }
}

fn ends_as_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.")
}

/// What a path is called where it is copied into a directory: its base name, or `.` where its contents are meant.
fn name_of(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    match bytes[..end].rsplit(|byte| *byte == b'/').next().unwrap_or_default() {
        b"" | b"." | b".." => b".".to_vec(),
        name => name.to_vec(),
    }
}

/// `NAME:PATH` as the two it is made of; `None` for a path of the host, which may hold a colon after a slash or begin with a dot.
pub fn split_machine(word: &OsStr) -> Option<(&str, &Path)> {
    let bytes = word.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let name = std::str::from_utf8(&bytes[..colon]).ok()?;
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return None;
    }
    Some((name, Path::new(OsStr::from_bytes(&bytes[colon + 1..]))))
}

#[cfg(test)]
mod tests;
