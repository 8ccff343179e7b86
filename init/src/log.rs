//! What PID 1 says on the machine's console.
//!
//! Everything goes to standard error, which the kernel opened on the console before PID 1 began. A console that
//! cannot be written to is no reason to stop, so nothing here fails.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use init::protocol::STEP_MARKER;
use rustix::time::{ClockId, clock_gettime};

static TRACING: AtomicBool = AtomicBool::new(false);

/// Prints each step with its time from now on.
pub(crate) fn start_tracing() {
    TRACING.store(true, Ordering::Relaxed);
}

/// Prints one line, `init: TEXT`.
pub(crate) fn say(text: impl Display) {
    raw(format!("init: {text}\n"));
}

/// Prints one step of the boot with the seconds since the kernel started, if steps are traced.
pub(crate) fn step(name: impl Display) {
    if TRACING.load(Ordering::Relaxed) {
        let now = clock_gettime(ClockId::Boottime);
        let milliseconds = now.tv_nsec / 1_000_000;
        raw(format!("{STEP_MARKER}{}.{milliseconds:03}s {name}\n", now.tv_sec));
    }
}

/// Prints one line that already has its marker. One write, so that lines of the guest's processes do not mix in.
pub(crate) fn raw(line: String) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}
