//! `ps`: the machines there are.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::Context;
use crate::out;
use crate::ui::{self, human_age, human_bytes, visible_word};
use crate::vm::machine::PublishedPort;
use crate::vm::record::run_dir::RunDir;
use crate::vm::record::{Description, Health, Phase, State};
use crate::vm::supervise::outcome::Outcome;

/// List the machines that run
#[derive(Debug, clap::Args)]
pub struct PsArgs {
    /// Those that have ended, too
    #[arg(short, long)]
    all: bool,

    /// Names only
    #[arg(short, long)]
    quiet: bool,

    /// A table, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// One machine as it is listed; the JSON form is for programs.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    image: String,
    /// `booting`, `running`, `exited`, `failed`, `timed out` or `killed`.
    state: &'static str,
    /// Of a machine that has ended and whose supervisor could say how.
    exit_code: Option<u8>,
    cause: Option<String>,
    health: Option<Health>,
    /// That lead into it now.
    ports: Vec<PublishedPort>,
    created: Timestamp,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    uptime_seconds: Option<u64>,
    /// What QEMU takes of the host's memory.
    memory_bytes: Option<u64>,
    /// What the guest has.
    memory_limit_mib: u32,
}

impl PsArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let mut rows: Vec<Row> = Vec::new();
        for run_dir in RunDir::all(&context.workspace)? {
            // One that is being made, or removed, in this moment is not there.
            let Ok(description) = run_dir.description() else { continue };
            let is_running = run_dir.is_running();
            if is_running || self.all {
                let mut state = run_dir.state();
                // Nobody checks any more.
                if state.health.is_some() && run_dir.supervisor().is_some_and(|process| process.is_stopped())
                {
                    state.health = Some(Health::Unhealthy);
                }
                rows.push(row(description, state, is_running, Timestamp::now()));
            }
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.created));
        if self.quiet {
            rows.iter().for_each(|row| out!("{}", row.name));
        } else if self.format == Format::Json {
            for row in &rows {
                ui::print_json(row, false)?;
            }
        } else {
            ui::print(&table(&rows));
        }
        Ok(0)
    }
}

fn row(description: Description, state: State, is_running: bool, now: Timestamp) -> Row {
    let outcome = state.ended.as_ref().map(|ended| &ended.outcome);
    let phase = state.phase(is_running);
    let word = match (phase, outcome) {
        (Phase::Booting, _) => "booting",
        (Phase::Running, _) => "running",
        (Phase::Ended, Some(Outcome::Exited(_))) => "exited",
        (Phase::Ended, Some(Outcome::TimedOut { .. })) => "timed out",
        (Phase::Ended, Some(Outcome::NotStarted { .. } | Outcome::Failed { .. })) => "failed",
        (Phase::Ended | Phase::Killed, _) => "killed",
    };
    let cause = match phase {
        Phase::Killed => Some("its supervisor was killed".to_owned()),
        _ => outcome.and_then(Outcome::sentence),
    };
    let lives = matches!(phase, Phase::Running | Phase::Booting);
    Row {
        name: description.name,
        image: description.image,
        state: word,
        exit_code: outcome.map(Outcome::exit_code),
        cause,
        health: state.health.filter(|_| lives),
        ports: if lives { description.ports } else { Vec::new() },
        created: description.created,
        started: state.started,
        ended: state.ended.as_ref().map(|ended| ended.at),
        uptime_seconds: state
            .started
            .filter(|_| lives)
            .map(|started| u64::try_from(now.duration_since(started).as_secs()).unwrap_or_default()),
        memory_bytes: state.qemu.filter(|_| lives).and_then(resident_bytes),
        memory_limit_mib: description.memory_mib,
    }
}

/// What a process takes of the host's memory (`VmRSS` in proc_pid_status(5)).
fn resident_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Columns as wide as what is in them, two spaces apart.
fn table(rows: &[Row]) -> String {
    let mut lines =
        vec![["NAME", "IMAGE", "STATE", "HEALTH", "PORTS", "UPTIME", "MEMORY"].map(str::to_owned)];
    for row in rows {
        let state = match row.exit_code {
            Some(code) => format!("{} ({code})", row.state),
            None => row.state.to_owned(),
        };
        let ports: Vec<String> = row.ports.iter().map(PublishedPort::to_string).collect();
        let dash = || "-".to_owned();
        lines.push([
            visible_word(&row.name).into_owned(),
            visible_word(&row.image).into_owned(),
            state,
            row.health.map_or_else(dash, |health| health.word().to_owned()),
            if ports.is_empty() { dash() } else { ports.join(", ") },
            row.uptime_seconds.map_or_else(dash, |seconds| human_age(Duration::from_secs(seconds))),
            row.memory_bytes.map_or_else(dash, |bytes| {
                format!("{} of {}", human_bytes(bytes), human_bytes(u64::from(row.memory_limit_mib) << 20))
            }),
        ]);
    }
    let mut widths = [0; 7];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::machine::Accelerator;
    use crate::vm::record::Ended;

    fn description(name: &str) -> Description {
        Description {
            name: name.into(),
            image: "nginx".into(),
            created: Timestamp::UNIX_EPOCH,
            command: vec!["nginx".into()],
            ports: vec!["8080:80".parse().unwrap()],
            memory_mib: 256,
            cpus: 1,
            accelerator: Accelerator::Tcg,
            healthcheck: None,
            kept: true,
        }
    }

    #[test]
    fn a_table_of_machines_in_every_state() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let running = State { started: Some(at(100)), health: Some(Health::Healthy), ..State::default() };
        let ended = |outcome| State {
            started: Some(at(100)),
            ended: Some(Ended { at: at(160), outcome, last_lines: vec![] }),
            ..State::default()
        };
        let failed = Outcome::Failed { cause: "the guest's kernel panicked".into() };
        let rows = [
            row(description("web"), running.clone(), true, at(3800)),
            row(description("on-its-way"), State::default(), true, at(3800)),
            row(description("a-job"), ended(Outcome::Exited(3)), false, at(3800)),
            row(description("broken"), ended(failed), false, at(3800)),
            row(description("stopped"), ended(Outcome::Killed(15)), false, at(3800)),
            row(description("lost"), running, false, at(3800)),
        ];
        insta::assert_snapshot!(table(&rows), @"
        NAME        IMAGE  STATE         HEALTH   PORTS                   UPTIME  MEMORY
        web         nginx  running       healthy  127.0.0.1:8080->80/tcp  1 hour  -
        on-its-way  nginx  booting       -        127.0.0.1:8080->80/tcp  -       -
        a-job       nginx  exited (3)    -        -                       -       -
        broken      nginx  failed (125)  -        -                       -       -
        stopped     nginx  killed (143)  -        -                       -       -
        lost        nginx  killed        -        -                       -       -
        ");
        assert_eq!(rows[5].cause.as_deref(), Some("its supervisor was killed"));
        assert_eq!(rows[3].cause.as_deref(), Some("the guest's kernel panicked"));
    }
}
