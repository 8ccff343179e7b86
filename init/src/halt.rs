//! The machine's end: file systems in order, then the reboot that QEMU's `-no-reboot` turns into its own end.
//! With `acpi=off` there is nothing to power off.

use std::fmt::Display;
use std::time::Duration;

use init::protocol::FATAL_MARKER;
use rustix::system::{RebootCommand, reboot};

use crate::{log, mounts};

/// Ends the machine in order.
pub(crate) fn stop() -> ! {
    log::step("unmount the file systems");
    mounts::release_all();
    restart()
}

/// Ends the machine because PID 1 cannot go on.
pub(crate) fn fatal(cause: impl Display) -> ! {
    log::raw(format!("{FATAL_MARKER}{cause}\n"));
    rustix::fs::sync();
    restart()
}

/// Makes a panic in PID 1, which nothing is known to cause, end the machine with its message in place of the
/// kernel's.
pub(crate) fn stop_on_panic() {
    std::panic::set_hook(Box::new(|panic| fatal(panic)));
}

fn restart() -> ! {
    rustix::fs::sync();
    if let Err(e) = reboot(RebootCommand::Restart) {
        log::say(format_args!("cannot end the machine: {e}"));
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
