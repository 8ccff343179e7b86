//! `init`: builds PID 1, or finds it built.

use super::Context;
use crate::ui::human_bytes;
use crate::{init, note, out};

/// Build PID 1 of the guest and pack it into the initramfs
///
/// What is printed on standard output are the paths of the program and of the initramfs.
#[derive(Debug, clap::Args)]
pub struct InitArgs {}

impl InitArgs {
    /// Runs the task.
    pub fn run(self, context: &Context) -> anyhow::Result<u8> {
        context.clear_leftovers();
        let init = init::ensure(context)?;
        let bytes = std::fs::metadata(&init.binary)?.len();
        note!("init: static, {}", human_bytes(bytes));
        out!("{}\n{}", init.binary, init.initramfs);
        Ok(0)
    }
}
