//! `doctor`: what is on this host, what is not, and what follows from it.

use std::fmt::Write as _;

use super::Context;
use crate::host::doctor::{Report, examine};
use crate::host::tools::{self, Purpose};
use crate::note;
use crate::ui::{self, human_bytes};

/// Show which tools and which accelerator this host has, and what follows from it
///
/// The exit code is 0 if `boot` finds everything that it needs, and 1 otherwise.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// How the report is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Format {
    /// A table
    #[default]
    Table,
    /// One JSON object
    Json,
}

impl DoctorArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let report = examine(&context.workspace);
        match self.format {
            Format::Table => ui::print(&table(&report)),
            Format::Json => ui::print_json(&report, true)?,
        }
        if !report.ready {
            note!("\n`cargo xtask setup` installs what is missing for `boot`");
        } else if !tools::missing(&[Purpose::Test]).is_empty() {
            note!("\n`cargo xtask setup --tests` installs what is missing for `test`");
        }
        Ok(if report.ready { 0 } else { 1 })
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{words}");
    };
    for tool in &report.tools {
        // Of a header or a library, the end of the path tells enough.
        let name = tool.name.rsplit('/').next().unwrap_or_default();
        let version = tool.version.as_deref().unwrap_or("");
        let needs = || tool.tasks.join(", ");
        match &tool.path {
            Some(path) => line(format_args!("ok       {name:28} {version:22} {path}")),
            None if tool.missing => {
                line(format_args!("missing  {name:28} package {:15} for {}", tool.package, needs()));
            }
            None => line(format_args!("-        {name:28} not needed on this host")),
        }
    }
    line(format_args!(""));
    for task in &report.tasks {
        let verdict = if task.missing.is_empty() {
            "ready".into()
        } else {
            format!("needs {}", task.missing.join(", "))
        };
        line(format_args!("{:26} {verdict}", task.task));
    }
    line(format_args!(""));
    let accelerator = &report.accelerator;
    let reason = match (accelerator.name, &accelerator.reason) {
        ("unknown", _) => "; the first `boot` tries whether guests run with KVM".to_owned(),
        (_, Some(reason)) => format!(": {reason}"),
        (_, None) => String::new(),
    };
    line(format_args!("{:26} {}{reason}", "accelerator", accelerator.name));
    line(format_args!("{:26} {}", "Dockerfiles are built by", report.builds));
    let free =
        report.cache_free_bytes.map_or_else(String::new, |bytes| format!(", {} free", human_bytes(bytes)));
    line(format_args!("{:26} {}{free}", "cache", report.cache));
    text
}
