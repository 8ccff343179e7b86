//! `status`: what is built, from what, how old, what is stale, and what to type next. It builds and asks nothing.

use std::time::{Duration, SystemTime};

use camino::Utf8Path;
use indicatif::HumanDuration;

use super::Context;
use crate::artifacts::{self, Set};
use crate::host::tools::{self, Purpose};
use crate::image::store::{CachedDisk, Store};
use crate::kernel::{self, KernelRequest};
use crate::ui::{human_bytes, visible_word};
use crate::vm::record::run_dir::RunDir;
use crate::workspace::Workspace;
use crate::{init, note, out};

/// Show what is built, from what, how old it is, what is stale, and the next command to type
#[derive(Debug, Default, clap::Args)]
pub struct StatusArgs {}

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    kind: &'static str,
    what: String,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Missing,
    Current(Duration),
    /// How old it is, and why it will be made again.
    Stale(Duration, &'static str),
}

impl StatusArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let workspace = &context.workspace;
        let mut rows = vec![kernel_row(workspace)?, init_row(workspace)?];
        rows.extend(image_rows(workspace));
        for row in &rows {
            out!("{}", line(row));
        }
        let set = workspace.artifacts();
        if Set::load(&set).is_ok_and(|set| set.init.is_some() && is_cached(workspace, &set.disk)) {
            out!("{:8} {set}, for `collect` and `boot --from`", "set");
        }
        let running = RunDir::all(workspace)?;
        let running: Vec<&str> = running.iter().filter(|run| run.is_running()).map(RunDir::name).collect();
        if !running.is_empty() {
            out!("{:8} {}", "running", running.join(", "));
        }
        let lacks_tools = !tools::missing(&Purpose::FIRST_BOOT).is_empty();
        note!("\nnext: {}", next(&rows, lacks_tools));
        Ok(0)
    }
}

fn line(row: &Row) -> String {
    let state = match row.state {
        State::Missing => "not built yet".to_owned(),
        State::Current(age) => format!("{} old", HumanDuration(age)),
        State::Stale(age, reason) => format!("{} old, stale: {reason}", HumanDuration(age)),
    };
    format!("{:8} {:44} {state}", row.kind, visible_word(&row.what))
}

fn next(rows: &[Row], lacks_tools: bool) -> &'static str {
    let is_incomplete = rows.iter().any(|row| row.state == State::Missing);
    let is_stale = rows.iter().any(|row| matches!(row.state, State::Stale(..)));
    if is_incomplete && lacks_tools {
        "`cargo xtask boot --yes` installs what is missing, builds and boots (`cargo xtask doctor` shows more)"
    } else if is_incomplete || is_stale {
        "`cargo xtask boot` builds what is missing or stale, and boots"
    } else {
        "`cargo xtask boot`"
    }
}

fn kernel_row(workspace: &Workspace) -> anyhow::Result<Row> {
    let Some(latest) = kernel::latest(workspace) else {
        return Ok(Row { kind: "kernel", what: String::new(), state: State::Missing });
    };
    let (what, state) = match kernel::ready(workspace, &KernelRequest::default())? {
        Some(kernel) => (kernel.description, State::Current(age(kernel.built))),
        // One of another config is of use too, and is not what `boot` takes.
        None => {
            let reason = "its config, source or compiler is not the usual one now";
            (latest.description, State::Stale(age(latest.built), reason))
        }
    };
    Ok(Row { kind: "kernel", what, state })
}

fn init_row(workspace: &Workspace) -> anyhow::Result<Row> {
    // The link points at the last one that was used.
    let last = workspace.artifacts().join(artifacts::INIT);
    let (what, state) = match init::ready(workspace)? {
        Some(init) => (size(&init.binary), State::Current(age(init.built))),
        None => match modified(&last).filter(|_| is_cached(workspace, &last)) {
            Some(built) => {
                (size(&last), State::Stale(age(built), "its sources or the compiler have changed"))
            }
            None => (String::new(), State::Missing),
        },
    };
    Ok(Row { kind: "init", what, state })
}

/// True if a link points into this cache: the checkout's links may be from a time with another one.
fn is_cached(workspace: &Workspace, link: &Utf8Path) -> bool {
    match (link.canonicalize_utf8(), workspace.cache().canonicalize_utf8()) {
        (Ok(target), Ok(cache)) => target.starts_with(cache),
        _ => false,
    }
}

fn image_rows(workspace: &Workspace) -> Vec<Row> {
    let store = Store::new(workspace);
    let disks = store.disks();
    if disks.is_empty() {
        return vec![Row { kind: "image", what: String::new(), state: State::Missing }];
    }
    disks.iter().map(|disk| image_row(workspace.root(), disk, store.last_seen(&disk.record.digest))).collect()
}

/// `last_seen` is when the source was last found to give this disk: a file that was written later may give another.
fn image_row(checkout: &Utf8Path, disk: &CachedDisk, last_seen: Option<SystemTime>) -> Row {
    let record = &disk.record;
    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(record.created);
    let made = last_seen.map_or(made, |seen| seen.max(made));
    let has_changed = source_path(checkout, &record.source)
        .and_then(|path| newest_change(&path, 0))
        .is_some_and(|changed| changed > made + Duration::from_secs(1));
    let state = if has_changed {
        State::Stale(disk.age(), "its source was written since")
    } else {
        State::Current(disk.age())
    };
    Row { kind: "image", what: format!("{} from {}", record.name, record.source), state }
}

/// The file or folder of a source on this host.
fn source_path(checkout: &Utf8Path, source: &str) -> Option<camino::Utf8PathBuf> {
    let path = match source.split_once(':') {
        Some(("docker-archive" | "oci-archive" | "oci" | "rootfs", path)) => path,
        Some(_) => return None,
        None => source,
    };
    let path = checkout.join(path);
    path.exists().then_some(path)
}

/// When a file, or anything in a folder, was last written. Deep trees are looked at in part.
fn newest_change(path: &Utf8Path, depth: usize) -> Option<SystemTime> {
    const DEEPEST: usize = 8;
    let own = modified(path);
    if depth == DEEPEST || !path.is_dir() {
        return own;
    }
    let entries = path.read_dir_utf8().into_iter().flatten().flatten();
    entries.filter_map(|entry| newest_change(entry.path(), depth + 1)).chain(own).max()
}

fn modified(path: &Utf8Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

fn size(path: &Utf8Path) -> String {
    path.metadata()
        .map_or_else(|_| String::new(), |metadata| format!("static, {}", human_bytes(metadata.len())))
}

fn age(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: State) -> Row {
        Row { kind: "init", what: "static, 1 MiB".into(), state }
    }

    #[test]
    fn the_next_command_follows_from_what_is_there() {
        let current = || row(State::Current(Duration::from_secs(7200)));
        let stale = row(State::Stale(Duration::from_secs(60), "its sources have changed"));
        assert!(next(&[current(), row(State::Missing)], true).contains("--yes"));
        assert!(next(&[current(), row(State::Missing)], false).contains("builds what is missing"));
        assert!(next(&[stale], true).contains("builds what is missing or stale"));
        assert_eq!(next(&[current()], true), "`cargo xtask boot`");
    }

    #[test]
    fn a_line_tells_age_and_reason() {
        let stale = row(State::Stale(Duration::from_secs(7200), "its sources have changed"));
        assert!(line(&stale).ends_with(" 2 hours old, stale: its sources have changed"));
    }

    #[test]
    fn a_source_is_stale_when_a_file_in_it_was_written_later() {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(guard.path()).unwrap();
        std::fs::create_dir_all(folder.join("image/site")).unwrap();
        std::fs::write(folder.join("image/site/index.html"), "x").unwrap();
        let record = |created| crate::image::store::DiskRecord {
            name: "image".into(),
            source: "image".into(),
            digest: String::new(),
            size: 0,
            created,
        };
        let state = |created| {
            let disk = CachedDisk { folder: folder.to_owned(), record: record(created) };
            image_row(folder, &disk, None).state
        };
        let now = crate::image::store::now();
        assert!(matches!(state(now + 5), State::Current(_)));
        assert!(matches!(state(now - 60), State::Stale(..)));
        // what is pulled from elsewhere is not looked at
        assert_eq!(source_path(folder, "docker://image"), None);
    }
}
