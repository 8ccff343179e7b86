//! `inspect`: all that is known of machines, for programs.

use anyhow::Context as _;
use serde_json::json;

use super::Context;
use crate::boot::run::Order;
use crate::ui;
use crate::vm::inherited::Inherited;
use crate::vm::qemu;
use crate::vm::record::run_dir::RunDir;

/// Print all that is known of machines, as JSON
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// The machines' names
    #[arg(required = true)]
    names: Vec<String>,
}

impl InspectArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let mut all = Vec::new();
        for name in &self.names {
            let run_dir = RunDir::find(&context.workspace, name)?;
            let order: Option<Order> = run_dir.read_plan().ok();
            all.push(json!({
                "machine": run_dir.description().context("it is on its way")?,
                "state": run_dir.state(),
                "running": run_dir.is_running(),
                "boot": order.as_ref().map(|order| &order.plan.boot_config),
                "qemu": order.as_ref().map(|order| {
                    qemu::paste(qemu::PROGRAM, &qemu::arguments(&order.plan.machine, &Inherited::default()))
                }),
                "folder": run_dir.path(),
                "console_log": run_dir.console_log(),
                "output_log": run_dir.output_log(),
            }));
        }
        ui::print_json(&all, true)?;
        Ok(0)
    }
}
