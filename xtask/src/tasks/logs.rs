//! `logs`: what a machine's main process said.

use std::io;
use std::sync::mpsc;

use anyhow::{Context as _, anyhow};
use init::protocol::Stream;
use jiff::Timestamp;
use rustix::fs::inotify;

use super::Context;
use crate::boot::request::parse_duration;
use crate::error::Hint as _;
use crate::ui;
use crate::vm::record::output_log::{Reader, TailFilter};
use crate::vm::record::run_dir::RunDir;

/// Print what a machine's command has said, on the streams it said it on
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// The machine's name
    name: String,

    /// Go on until the machine ends
    #[arg(short, long)]
    follow: bool,

    /// Only the last lines, so many
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u64>,

    /// Only what was said since then: a time ago (90s, 5m, 1h) or a date and time (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
}

impl LogsArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let run_dir = RunDir::find(&context.workspace, &self.name)?;
        let path = run_dir.output_log();
        let opened = match self.tail {
            Some(lines) => Reader::open_tail(&path, lines),
            None => Reader::open(&path).map(|reader| (reader, TailFilter::default())),
        };
        let (mut reader, mut filter) = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(anyhow!("what `{}` says goes to the terminal that it was booted at", self.name))
                    .hint("a machine with a `--name`, or booted with `-d`, keeps a log");
            }
            reader => reader.with_context(|| format!("failed to open `{path}`"))?,
        };
        // Watched before it is read, so that no change goes unseen.
        let changes = if self.follow && run_dir.is_running() { Some(watch(&run_dir)?) } else { None };
        loop {
            // Asked first: what was said before the end is in the log then.
            let is_over = changes.as_ref().is_none_or(|changes| changes.recv().unwrap_or(true));
            while let Some(piece) = reader.next_piece().with_context(|| format!("failed to read `{path}`"))? {
                let bytes = filter.keep(&piece.bytes);
                if self.since.is_none_or(|since| piece.milliseconds >= since.as_millisecond())
                    && print(piece.stream, bytes).is_err()
                {
                    return Ok(0);
                }
            }
            if is_over {
                return Ok(0);
            }
        }
    }
}

/// Nobody reads any more: that is an end too.
fn print(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Stderr => ui::write_to_stderr(bytes),
        Stream::Stdin | Stream::Stdout => ui::write_to_stdout(bytes),
    }
}

/// Something to receive now and whenever the log has changed; `true` when the machine has ended.
fn watch(run_dir: &RunDir) -> anyhow::Result<mpsc::Receiver<bool>> {
    let path = run_dir.path();
    // The folder, since a file that is full gives its name to the next.
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO;
    let watched = inotify::init(inotify::CreateFlags::CLOEXEC)
        .and_then(|fd| inotify::add_watch(&fd, path.as_std_path(), flags).map(|_| fd))
        .with_context(|| format!("failed to watch `{path}`"))?;
    let (changed, changes) = mpsc::sync_channel(1);
    let _ = changed.send(false);
    let (ended, run_dir) = (changed.clone(), run_dir.clone());
    std::thread::spawn(move || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watched, &mut buffer);
        while reader.next().is_ok() {
            // One that waits to be taken says it all.
            let _ = changed.try_send(false);
        }
    });
    std::thread::spawn(move || {
        run_dir.wait_for_end(None);
        let _ = ended.send(true);
    });
    Ok(changes)
}

fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = parse_duration(text).map_err(|_| {
        format!("`{text}` is neither a time ago (90s, 5m, 1h) nor a date and time (RFC 3339)")
    })?;
    Timestamp::now().checked_sub(ago).map_err(|error| error.to_string())
}
