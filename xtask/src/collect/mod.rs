//! Brings a [set of artifacts](crate::artifacts) from the machine where it was made, over one `ssh` connection.
//!
//! The far side says what it will send and with which checksums, then sends one tar stream ([`remote`]). Here the
//! files are staged, checked ([`stream`]) and put in place together at the end, so that any failure leaves the
//! destination as it was. What is offered must fit the disk before a byte of it is read.

mod remote;
mod stream;

use std::convert::Infallible;
use std::fs;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};

pub use remote::{Candidate, SshOptions, Target, candidates_below};

use crate::artifact::{Lock, Staged, require_space};
use crate::artifacts::{DISK, INIT, Set};
use crate::disk::opened;
use crate::error::Hint as _;
use crate::host::process::dies_with_us;
use crate::pace::{Pace, Slowest, TooSlow};
use crate::{interrupt, note, ui};
use stream::{Finding, Header, StreamError};

/// How long the far side may take until it has found its files and their checksums: somebody may have to log in, and
/// disks of 100 GiB are read whole.
const SUMMING_UP: Slowest = Slowest { bytes: 1 << 20, within: Duration::from_secs(3600) };
/// How many lines of ssh's complaint are shown.
const LAST_LINES: usize = 10;

/// What to collect, from where, to where.
#[derive(Debug)]
pub struct Request<'a> {
    /// The far machine.
    pub target: &'a Target,
    /// How to reach it.
    pub ssh: &'a SshOptions,
    /// Where a set may be over there; the first complete one is taken.
    pub candidates: &'a [Candidate],
    /// The folder to put the set into. Files of other names in it stay.
    pub destination: &'a Utf8Path,
    /// Held while this destination is written.
    pub lock: &'a Utf8Path,
}

/// Fetches the set. Errors name the host and what ssh or the far side said.
pub fn collect(request: &Request<'_>) -> anyhow::Result<()> {
    let destination = request.destination;
    if destination.exists() && !destination.is_dir() {
        bail!("the destination `{destination}` is not a folder");
    }
    let _lock = Lock::hold(request.lock, &format!("`{destination}`"))?;
    Set::settle(destination)?;
    note!("connecting to {}", request.target.host);
    fetch(request).with_context(|| format!("failed to collect from `{}`", request.target.host))
}

fn fetch(request: &Request<'_>) -> anyhow::Result<()> {
    let words = remote::ssh_arguments(request.target, request.ssh, ui::is_interactive());
    let ssh = duct::cmd("ssh", words).stdin_bytes(remote::script(request.candidates));
    // The complaints are shown in the error; ssh asks its questions on the terminal itself.
    let connection =
        dies_with_us(&ssh).stderr_capture().unchecked().reader().context("failed to start `ssh`")?;
    let progress = Progress::default();
    let (over, is_over) = mpsc::channel::<Infallible>();
    std::thread::scope(|scope| {
        let (connection, progress) = (&connection, &progress);
        let watch = scope.spawn(move || watch(connection, progress, &is_over));
        let result = receive(request, connection, progress);
        drop(over);
        match watch.join() {
            // What followed from it is not the cause.
            Ok(Some(too_slow)) if result.is_err() => {
                Err(too_slow).hint("nothing was changed here; run the same command again")
            }
            _ => result,
        }
    })
}

/// Ends a connection that stands still or trickles, which ssh's own checks do not see, and says so.
fn watch(
    connection: &duct::ReaderHandle,
    progress: &Progress,
    is_over: &mpsc::Receiver<Infallible>,
) -> Option<TooSlow> {
    let mut pace = Pace::new(SUMMING_UP, Instant::now());
    let (mut known, mut was_sending) = (0, false);
    while is_over.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
        let is_sending = progress.is_sending.load(Ordering::Relaxed);
        if is_sending && !was_sending {
            pace = Pace::new(Slowest::default(), Instant::now());
        }
        let bytes = progress.received.load(Ordering::Relaxed);
        if let Err(too_slow) = pace.add(Instant::now(), bytes - known) {
            // One that has ended meanwhile needs no end.
            let _ = connection.kill();
            return Some(too_slow);
        }
        (known, was_sending) = (bytes, is_sending);
    }
    None
}

fn receive(
    request: &Request<'_>,
    connection: &duct::ReaderHandle,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(128 * 1024, Counted { connection, progress });

    let header = match stream::read_header(&mut reader) {
        Ok(header) => header,
        Err(StreamError::Failed(error)) => return Err(error),
        Err(StreamError::Ended) => return refusal(connection, request.target),
    };
    progress.is_sending.store(true, Ordering::Relaxed);
    let candidate = chosen(&header, request.candidates)?;
    let landing = Landing::prepare(request.destination, header.total_size())?;
    let what = format!("collecting {} from {}:{}", names(&header), request.target.host, candidate.folder);
    let bar = ui::byte_bar(&what, Some(header.total_size()));
    let received = stream::receive(&mut reader, &header.offers, landing.folder(), &bar);
    let done = bar.position();
    bar.finish_and_clear();
    match received {
        Ok(()) => {}
        Err(StreamError::Failed(error)) => {
            return Err(error)
                .hint("nothing was changed here; if a build was running over there, try again after it");
        }
        Err(StreamError::Ended) => {
            let done = ui::human_bytes(done);
            let total = ui::human_bytes(header.total_size());
            let error = match complaint(connection) {
                Some(complaint) => anyhow!("{complaint}"),
                None => anyhow!("the stream ended early"),
            };
            return Err(error.context(format!("the connection broke after {done} of {total}")))
                .hint("nothing was changed here; run the same command again");
        }
    }
    opened::check_alone(&landing.folder().join(DISK), Utf8Path::new(DISK))?;
    // Every byte is here and checked: how the far side's `tar` ends no longer matters.
    landing.place()?;
    let size = ui::human_bytes(header.total_size());
    note!("collected {} ({size}) into {}", names(&header), request.destination);
    Ok(())
}

/// What has come over the connection.
#[derive(Default)]
struct Progress {
    received: AtomicU64,
    /// The header is here: from now on the files come.
    is_sending: AtomicBool,
}

struct Counted<'a> {
    connection: &'a duct::ReaderHandle,
    progress: &'a Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.connection.read(buffer)?;
        self.progress.received.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

fn names(header: &Header) -> String {
    header.offers.iter().map(|offer| offer.name).collect::<Vec<_>>().join(", ")
}

/// The candidate that the far side sends, or why there is none, each candidate in its own line.
fn chosen<'a>(header: &Header, candidates: &'a [Candidate]) -> anyhow::Result<&'a Candidate> {
    if let Some(program) = &header.lacks {
        return Err(anyhow!("`{program}` was not found there")).hint("install it on that machine");
    }
    if let Some(candidate) = header.found.and_then(|number| candidates.get(number)) {
        if header.offers.len() < 3 {
            bail!("a file over there could not be read to its end");
        }
        return Ok(candidate);
    }
    let mut text = "no complete set of init, kernel and disk over there; looked at".to_owned();
    for (number, candidate) in candidates.iter().enumerate() {
        let findings: Vec<_> =
            header.findings.iter().filter(|(of, _)| *of == number).map(|(_, finding)| finding).collect();
        let line = format!("\n  {}: {}", candidate.folder, why_not(&findings));
        // One folder may be two candidates; that it is not there is said once.
        if !text.ends_with(&line) {
            text.push_str(&line);
        }
    }
    Err(anyhow!("{text}")).hint("build there with `cargo xtask boot`, or name the folder with `--remote-dir`")
}

fn why_not(findings: &[&Finding]) -> String {
    let mut reasons = Vec::new();
    for finding in findings {
        reasons.push(match finding {
            Finding::NoFolder => "no such folder".to_owned(),
            Finding::Missing(file) => format!("no `{file}`"),
            Finding::Unreadable(file) => format!("`{file}` may not be read"),
        });
    }
    if reasons.is_empty() { "may not be entered".to_owned() } else { reasons.join(", ") }
}

/// ssh's last words, once it has ended; `None` if it said nothing.
fn complaint(connection: &duct::ReaderHandle) -> Option<String> {
    let output = connection.try_wait().ok()??;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
    (!last.is_empty()).then_some(last)
}

/// The error for a connection that ended before the far side said anything.
fn refusal(connection: &duct::ReaderHandle, target: &Target) -> anyhow::Result<()> {
    let status = match connection.try_wait() {
        Ok(Some(output)) => output.status.to_string(),
        _ => "it did not end".to_owned(),
    };
    let complaint = complaint(connection).unwrap_or_else(|| "it said nothing".to_owned());
    let hint = remote::hint_for(&complaint, target);
    Err(anyhow!("{complaint}").context(format!("`ssh` ended before the transfer began ({status})")))
        .hint(hint)
}

/// Where the files are while they arrive, on the destination's own file system.
struct Landing<'a> {
    staged: Staged,
    destination: &'a Utf8Path,
    /// A new destination appears in one step; in one that exists, file after file is replaced.
    is_new: bool,
}

impl<'a> Landing<'a> {
    /// Makes the staging folder, if `size` bytes will fit.
    fn prepare(destination: &'a Utf8Path, size: u64) -> anyhow::Result<Landing<'a>> {
        let is_new = !destination.exists();
        // An existing destination may be a mount point, or somebody's current folder: it must stay the same one.
        let staged =
            if is_new { Staged::new(destination)? } else { Staged::new(&destination.join("collect"))? };
        let folder = staged.path();
        fs::create_dir(folder).with_context(|| format!("failed to create the folder `{folder}`"))?;
        require_space(folder, size, "the set")
            .hint("nothing was changed here; free some space, or name another folder with `--dest`")?;
        Ok(Landing { staged, destination, is_new })
    }

    fn folder(&self) -> &Utf8Path {
        self.staged.path()
    }

    /// Puts the files in place of those that are there.
    fn place(self) -> anyhow::Result<()> {
        let init = self.folder().join(INIT);
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("failed to make `{init}` executable"))?;
        // A signal that comes now is late: a set must not be left half old, half new.
        let _uninterrupted = interrupt::take_over(|_| {});
        if self.is_new {
            return self.staged.publish();
        }
        Set::replace(self.staged, self.destination)
    }
}

/// Where a set is looked for when no folder is named: a checkout of this workbench in the home folder
/// first, then the recipe's `~/work`.
pub fn usual_candidates(checkout: &Utf8Path) -> Vec<Candidate> {
    let same_name = Utf8Path::new("~").join(checkout.file_name().unwrap_or("microvm"));
    [same_name, Utf8PathBuf::from("~/work")].iter().flat_map(|folder| candidates_below(folder)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_places_are_the_checkouts_and_then_the_recipes() {
        let folders: Vec<String> = usual_candidates(Utf8Path::new("/src/bench"))
            .iter()
            .map(|candidate| candidate.folder.to_string())
            .collect();
        assert_eq!(folders[..3], ["~/bench/target/artifacts", "~/bench", "~/bench"]);
        assert_eq!(folders[3..], ["~/work/target/artifacts", "~/work", "~/work"]);
    }
}
