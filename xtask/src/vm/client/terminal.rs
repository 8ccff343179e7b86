//! The user's terminal: raw while a guest has it, and restored in every case.

use std::io::IsTerminal as _;
use std::sync::Mutex;

use init::protocol::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// What the terminal was like before it became raw; also read by the way out of an interrupted task.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// While this is alive the terminal at standard input is raw.
#[derive(Debug)]
pub struct RawTerminal {
    _private: (),
}

/// True where both a person's keys and a person's eyes are at the other end.
pub fn is_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// The size of the terminal at standard output, or at standard input, or 24 by 80.
pub fn window_size() -> WindowSize {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            WindowSize { rows: size.ws_row, columns: size.ws_col }
        }
        _ => WindowSize { rows: 24, columns: 80 },
    }
}

impl RawTerminal {
    /// Makes the terminal at standard input raw: every key goes to the guest.
    pub fn enter() -> rustix::io::Result<RawTerminal> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *lock() = Some(before);
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(RawTerminal { _private: () })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was found. Does nothing when it was not changed.
pub fn restore() {
    if let Some(before) = lock().take() {
        // There is nobody to tell when the terminal itself is gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &before);
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
