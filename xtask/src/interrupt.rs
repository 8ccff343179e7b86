//! Ctrl-C and its kin. By default a signal removes what is half done and ends the task with 128 + its number;
//! while somebody [takes them over](take_over), signals go there instead (a running machine passes them on).
//!
//! Whoever asks again gets away: of the signals that go elsewhere the third ends the task after all, and one that comes
//! while half-done files are removed ends it at once.

use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::vm::client::terminal;

/// As many signals somebody may take over: one asks the guest to end, the next one ends it.
const MOST_TAKEN: u32 = 2;

/// How often a folder is removed that keeps getting entries.
const REMOVAL_TRIES: u32 = 100;

#[derive(Default)]
struct State {
    half_done: Vec<Utf8PathBuf>,
    writers: Vec<Pid>,
    taker: Option<mpsc::Sender<i32>>,
    /// By the taker that there is.
    taken: u32,
    is_ending: bool,
}

/// What a signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The taker gets it.
    Taken,
    /// The task ends when what is half done is removed.
    CleansUp,
    /// The task ends now.
    Ends,
}

impl State {
    fn effect(&mut self) -> Effect {
        if self.is_ending {
            return Effect::Ends;
        }
        if self.taker.is_some() && self.taken < MOST_TAKEN {
            self.taken += 1;
            return Effect::Taken;
        }
        self.is_ending = true;
        Effect::CleansUp
    }
}

static STATE: Mutex<State> =
    Mutex::new(State { half_done: Vec::new(), writers: Vec::new(), taker: None, taken: 0, is_ending: false });

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
    let effect = state.effect();
    if let (Effect::Taken, Some(taker)) = (effect, &state.taker) {
        // One whose thread has ended needs no more signals, and the next but one ends the task.
        let _ = taker.send(signal);
        return;
    }
    let (writers, half_done) = (std::mem::take(&mut state.writers), std::mem::take(&mut state.half_done));
    drop(state);
    if effect == Effect::CleansUp {
        let clean_up = move || {
            remove(&writers, half_done);
            end(signal)
        };
        // The next signal is listened to meanwhile.
        if std::thread::Builder::new().spawn(clean_up).is_ok() {
            return;
        }
    }
    end(signal)
}

fn end(signal: i32) -> ! {
    terminal::restore();
    crate::note!("\ninterrupted");
    std::process::exit(128 + signal);
}

fn remove(writers: &[Pid], half_done: Vec<Utf8PathBuf>) {
    for &pid in writers {
        // One that has ended by itself writes no more either.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    for path in half_done {
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

/// Signals go to the taker for as long as this is alive.
#[derive(Debug)]
pub struct Taken(());

/// Takes over the signals: the next two no longer end the task. `taker` is called on a thread of its own, where it may
/// wait without holding up the signals that follow.
#[must_use = "signals are taken over until this is dropped"]
pub fn take_over(taker: impl FnMut(i32) + Send + 'static) -> Taken {
    let (sender, signals) = mpsc::channel();
    std::thread::spawn(move || signals.into_iter().for_each(taker));
    let mut state = state();
    state.taker = Some(sender);
    state.taken = 0;
    Taken(())
}

impl Drop for Taken {
    fn drop(&mut self) {
        state().taker = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_signal_ends_the_task_after_all_and_the_next_one_at_once() {
        let mut state = State { taker: Some(mpsc::channel().0), ..State::default() };
        let effects = [(); 4].map(|()| state.effect());
        assert_eq!(effects, [Effect::Taken, Effect::Taken, Effect::CleansUp, Effect::Ends]);
    }

    #[test]
    fn a_signal_ends_the_task_where_nobody_takes_it() {
        let mut state = State::default();
        assert_eq!([state.effect(), state.effect()], [Effect::CleansUp, Effect::Ends]);
    }
}
