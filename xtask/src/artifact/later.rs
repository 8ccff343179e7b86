//! Work that a task need not wait for before it goes on, such as writing a large disk through while it is booted
//! already; the process ends when it is done.

use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

static RUNNING: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Begins the work. Where it fails, a warning says so: what it was to finish is to count as absent then.
pub fn begin(work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = work() {
            crate::note!("warning: {error:#}");
        }
    });
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
}

/// Waits until all of it is done. Called last by `main`.
pub fn finish() {
    loop {
        let next = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(thread) = next else { return };
        // It has said itself that it failed.
        let _ = thread.join();
    }
}
