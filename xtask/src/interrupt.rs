//! Ctrl-C and its kin. By default a signal removes what is half done and ends the task with 128 + its number;
//! while somebody [subscribes](subscribe), signals go there instead (a running machine passes them on).

use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use camino::{Utf8Path, Utf8PathBuf};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

#[derive(Default)]
struct State {
    half_done: Vec<Utf8PathBuf>,
    subscriber: Option<mpsc::Sender<i32>>,
}

static STATE: Mutex<State> = Mutex::new(State { half_done: Vec::new(), subscriber: None });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to listen for SIGINT, SIGTERM and SIGHUP. Called once, by `main`.
pub fn install() -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            handle(signal);
        }
    })?;
    Ok(())
}

fn handle(signal: i32) {
    let mut state = state();
    if let Some(subscriber) = &state.subscriber
        && subscriber.send(signal).is_ok()
    {
        return;
    }
    for path in state.half_done.drain(..) {
        // The way out: what cannot be removed stays under its temporary name.
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
    crate::note!("\ninterrupted");
    std::process::exit(128 + signal);
}

/// Removes this file or folder if the task is interrupted.
pub(crate) fn remove_on_interrupt(path: &Utf8Path) {
    state().half_done.push(path.to_owned());
}

/// This path is finished, or gone.
pub(crate) fn forget(path: &Utf8Path) {
    state().half_done.retain(|known| known != path);
}

/// Signals, for as long as this is alive.
#[derive(Debug)]
pub struct Subscription {
    /// Signal numbers as they arrive.
    pub signals: mpsc::Receiver<i32>,
}

/// Takes over the signals: they no longer end the task.
pub fn subscribe() -> Subscription {
    let (sender, signals) = mpsc::channel();
    state().subscriber = Some(sender);
    Subscription { signals }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        state().subscriber = None;
    }
}
