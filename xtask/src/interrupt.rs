//! Ctrl-C and its kin. By default a signal removes what is half done and ends the task with 128 + its number;
//! while somebody [subscribes](subscribe), signals go there instead (a running machine passes them on).

use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a folder is removed that keeps getting entries.
const REMOVAL_TRIES: u32 = 100;

#[derive(Default)]
struct State {
    half_done: Vec<Utf8PathBuf>,
    writers: Vec<Pid>,
    subscriber: Option<mpsc::Sender<i32>>,
}

static STATE: Mutex<State> =
    Mutex::new(State { half_done: Vec::new(), writers: Vec::new(), subscriber: None });

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
    for pid in state.writers.drain(..) {
        // One that has ended by itself writes no more either.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    for path in state.half_done.drain(..) {
        // A writer's last system call may still add to a folder. What cannot be removed stays under its temporary name.
        for _ in 0..REMOVAL_TRIES {
            let result =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match result {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                _ => break,
            }
        }
    }
    crate::note!("\ninterrupted");
    std::process::exit(128 + signal);
}

/// Removes this file or folder if the task is interrupted.
pub(crate) fn remove_on_interrupt(path: &Utf8Path) {
    state().half_done.push(path.to_owned());
}

/// Kills this child before half-done folders are removed, so that it does not go on filling them.
#[derive(Debug)]
pub(crate) struct Writer(Pid);

impl Writer {
    /// Until this value is dropped, which has to be before the child is waited for.
    pub(crate) fn new(child: &std::process::Child) -> Writer {
        let pid = Pid::from_child(child);
        state().writers.push(pid);
        Writer(pid)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        state().writers.retain(|known| *known != self.0);
    }
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
