//! What a task tells its user while it works. All of it goes to standard error: standard output is data.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Prints one line of talk.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { $crate::ui::say(&format!($($arg)*)) };
}

/// Prints one line of talk; [`note!`](crate::note) formats it.
pub fn say(line: &str) {
    use std::io::Write as _;
    // Nobody to talk to is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// True where a person can see a progress bar and answer a question.
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

const BYTES: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";

fn bar(length: Option<u64>, template: &str, what: &str) -> ProgressBar {
    if !is_watched() {
        say(what);
        return ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden());
    }
    styled(ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()), template, what)
}

fn styled(bar: ProgressBar, template: &str, what: &str) -> ProgressBar {
    // The templates are constants of this file; a wrong one would show as indicatif's default bar.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A bar over a number of bytes. Where nobody watches, one line says that the work began.
pub fn byte_bar(what: &str, bytes: Option<u64>) -> ProgressBar {
    let template = match bytes {
        Some(_) => BYTES,
        None => "{spinner} {msg} {bytes} {bytes_per_sec}",
    };
    bar(bytes, template, what)
}

/// Several bars over bytes, below each other.
#[derive(Debug)]
pub struct ByteBars {
    bars: Option<MultiProgress>,
}

/// Bars for work that is done side by side. Where nobody watches, one line says that the work began.
pub fn byte_bars(what: &str) -> ByteBars {
    if !is_watched() {
        say(what);
    }
    ByteBars { bars: is_watched().then(MultiProgress::new) }
}

impl ByteBars {
    /// One more bar.
    pub fn add(&self, what: &str, bytes: u64) -> ProgressBar {
        match &self.bars {
            Some(bars) => styled(bars.add(ProgressBar::new(bytes)), BYTES, what),
            None => ProgressBar::hidden(),
        }
    }

    /// Its work is done.
    pub fn remove(&self, bar: &ProgressBar) {
        bar.finish_and_clear();
    }
}

/// A bar over a number of steps. Where nobody watches, one line says that the work began.
pub fn step_bar(what: &str, steps: u64) -> ProgressBar {
    bar(Some(steps), "{msg} [{bar:30}] {pos}/{len} {eta}", what)
}

/// A sign of life for work whose length is not known.
pub fn spinner(what: &str) -> ProgressBar {
    bar(None, "{spinner} {msg} {elapsed}", what)
}

/// `1.4 GiB`, `37 MiB`, `512 B`.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `3 days`, `5 minutes`, `just now`.
pub fn human_age(age: Duration) -> String {
    let seconds = age.as_secs();
    let units = [("day", 86400), ("hour", 3600), ("minute", 60)];
    match units.iter().find(|(_, length)| seconds >= *length) {
        Some((unit, length)) => {
            let count = seconds / length;
            format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
        }
        None => "just now".to_owned(),
    }
}
