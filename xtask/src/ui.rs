//! What a task tells: data on standard output, talk on standard error. Nothing else writes to either.
//!
//! Data goes out byte for byte. A reader that has gone (`| head`) is no failure: the rest is dropped, and the task goes
//! on to its own exit code. Any other failure is told once, and `main` turns it into the workbench's exit code.
//!
//! Talk may quote what guests, images, registries and other machines say: [`visible`] keeps that from steering the
//! terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdout};
use rustix::termios::{OutputModes, tcgetattr};

/// Prints one line of talk.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { $crate::ui::say(&format!($($arg)*)) };
}

/// Prints one line of data.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => { $crate::ui::print(&format!("{}\n", format_args!($($arg)*))) };
}

/// How writing to standard output has failed so far. Locked while it is written to, so that lines stay whole.
static STDOUT: Mutex<Option<Failure>> = Mutex::new(None);
static STDERR: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy)]
enum Failure {
    /// Nobody reads any more.
    Gone,
    /// A device that takes no more.
    Broken,
}

/// Prints lines of talk; [`note!`](crate::note) formats them.
pub fn say(lines: &str) {
    ask(&format!("{lines}\n"));
}

/// Prints talk whose answer is to follow on its line.
pub fn ask(text: &str) {
    let text = visible(text);
    // A terminal that a guest has (raw) goes down a line, and not back to its beginning.
    let is_raw = tcgetattr(stderr()).is_ok_and(|modes| !modes.output_modes.contains(OutputModes::OPOST));
    let text = if is_raw { Cow::Owned(text.replace('\n', "\r\n")) } else { text };
    // Nobody to talk to is no reason to stop.
    let _ = write_to_stderr(text.as_bytes());
}

/// Prints data. On a terminal, what would steer it is made [visible].
pub fn print(text: &str) {
    let text = if io::stdout().is_terminal() { visible(text) } else { Cow::Borrowed(text) };
    // It is remembered, and told by then.
    let _ = write_to_stdout(text.as_bytes());
}

/// Prints a value as JSON on lines of its own, with invisible characters written as JSON's escapes.
pub fn print_json(value: &impl serde::Serialize, is_pretty: bool) -> anyhow::Result<()> {
    let text = if is_pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }?;
    print(&format!(
        "{}\n",
        escape(
            &text,
            |c| c != '\n' && is_hidden(c),
            |c| {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
            }
        )
    ));
    Ok(())
}

/// Writes bytes to standard output as they are. Errors where they cannot be written, which is also [told](has_failed).
pub fn write_to_stdout(bytes: &[u8]) -> io::Result<()> {
    let mut failure = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
    match *failure {
        Some(Failure::Gone) => return Err(io::ErrorKind::BrokenPipe.into()),
        Some(Failure::Broken) => return Err(io::Error::other("standard output has failed")),
        None => {}
    }
    write_all(stdout(), bytes).map_err(|errno| {
        *failure = Some(match errno {
            Errno::PIPE => Failure::Gone,
            _ => {
                say(&format!("error: failed to write to standard output: {}", io::Error::from(errno)));
                Failure::Broken
            }
        });
        errno.into()
    })
}

/// Writes bytes to standard error as they are: what a guest's process says there.
pub fn write_to_stderr(bytes: &[u8]) -> io::Result<()> {
    let _turn = STDERR.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(write_all(stderr(), bytes)?)
}

/// True where data could not be written, and not because its reader had enough of it.
pub fn has_failed() -> bool {
    matches!(*STDOUT.lock().unwrap_or_else(PoisonError::into_inner), Some(Failure::Broken))
}

/// Standard output for what writes by itself.
#[derive(Debug)]
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_to_stdout(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Also where the descriptor does not block, as one that was inherited may not.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            },
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Text with `\x1b` and the like in place of the characters that steer a terminal or hide in it: controls other than a
/// line's end and a tab, marks for the direction of writing, and characters without a width.
pub fn visible(text: &str) -> Cow<'_, str> {
    escape(text, |c| !matches!(c, '\n' | '\t') && is_hidden(c), shown)
}

/// The same for a word that is to stay on its line.
pub fn visible_word(text: &str) -> Cow<'_, str> {
    escape(text, is_hidden, shown)
}

fn escape(text: &str, is_bad: impl Fn(char) -> bool, shown: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let part = |c: char| if is_bad(c) { shown(c) } else { c.to_string() };
    Cow::Owned(text.chars().map(part).collect())
}

fn shown(c: char) -> String {
    let code = u32::from(c);
    if c.is_ascii() { format!("\\x{code:02x}") } else { format!("\\u{{{code:x}}}") }
}

/// Unicode's categories Cc, Zl and Zp, and of Cf those that change how others look (UAX 9 and UTS 39).
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// True where a person can see a progress bar and answer a question.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn is_watched() -> bool {
    io::stderr().is_terminal()
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
    bar.set_message(visible_word(what).into_owned());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_shown_and_text_is_left_alone() {
        for (said, shown) in [
            ("plain text, naïve, 日本, e\u{301}", "plain text, naïve, 日本, e\u{301}"),
            ("two\n\tlines", "two\n\tlines"),
            ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
            ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
            ("over\rwritten\x08\x7f\0", r"over\x0dwritten\x08\x7f\x00"),
            ("c1 \u{9b}31m \u{85}", r"c1 \u{9b}31m \u{85}"),
            ("bidi \u{202e}gpj.exe\u{2066}\u{2069}", r"bidi \u{202e}gpj.exe\u{2066}\u{2069}"),
            ("zero\u{200b}width\u{feff}", r"zero\u{200b}width\u{feff}"),
            ("line\u{2028}tag\u{e0041}", r"line\u{2028}tag\u{e0041}"),
        ] {
            assert_eq!(visible(said), shown);
        }
        assert_eq!(visible_word("a\nb\tc"), r"a\x0ab\x09c");
    }

    #[test]
    fn a_descriptor_that_does_not_block_takes_everything() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let sent: Vec<u8> = (0..1 << 20).map(|number: u32| number as u8).collect();
        let reading = std::thread::spawn(move || {
            let mut read = Vec::new();
            io::Read::read_to_end(&mut reader, &mut read).map(|_| read)
        });
        write_all(std::os::fd::AsFd::as_fd(&writer), &sent).unwrap();
        drop(writer);
        assert!(reading.join().unwrap().unwrap() == sent);
    }
}
