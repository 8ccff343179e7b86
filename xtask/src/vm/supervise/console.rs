//! What the guest's console says about its fate. Pure: lines in, a verdict out.

use std::collections::VecDeque;

use init::protocol::{EXIT_MARKER, FATAL_MARKER, STEP_MARKER};

/// How many of the last lines are kept for a failure's message.
const LAST_LINES: usize = 15;

/// How many notes there are at most: PID 1's steps are fewer, and a guest can write what looks like them for ever.
const MOST_NOTES: usize = 200;

/// What was read off the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel or PID 1 gave up; the cause in one sentence.
    Failed(String),
    /// The guest's processors have stopped or another system runs on them; the cause in one sentence.
    Halted(String),
    /// PID 1 says how the main process ended.
    Exited(u8),
    /// PID 1 has said something: the kernel boots and runs user space.
    Alive,
}

/// What the kernel says of a virtio disk that fails (`blk_print_req_error` in block/blk-mq.c), with or without a type before it.
const DISK_FAILED: &str = "error, dev vd";

/// Splits the console's bytes into lines and remembers the last ones.
#[derive(Debug, Default)]
pub struct Console {
    partial: Vec<u8>,
    last_lines: VecDeque<String>,
    /// For whoever runs the machine.
    notes: Vec<String>,
    noted: usize,
    disk_failed: bool,
}

impl Console {
    /// Takes bytes as they come and gives the verdicts of the lines they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                let line = self.end_line();
                verdicts.extend(judge(&line));
            } else if self.partial.len() < 4096 {
                self.partial.push(byte);
            }
        }
        verdicts
    }

    /// The last lines, the unfinished one included.
    pub fn last_lines(&mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.last_lines.iter().cloned().collect()
    }

    /// What whoever runs the machine is to hear of what was said since the last call: PID 1's steps, where it traces
    /// them, and the first word of a disk that fails.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn end_line(&mut self) -> String {
        // The early console begins with a zero (`EARLY_CONSOLE` in vm/qemu.rs).
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial))
            .trim_start_matches('\0')
            .trim_end()
            .to_owned();
        if let Some(at) = line.find(STEP_MARKER).filter(|_| self.noted < MOST_NOTES) {
            self.noted += 1;
            self.notes.push(line[at..].to_owned());
        }
        if !self.disk_failed && line.contains(DISK_FAILED) {
            self.disk_failed = true;
            self.notes.push("warning: the guest cannot write to its disk; is this host's disk full?".into());
        }
        // The early console stays beside hvc0: the kernel says the same line on both.
        let is_repeated = line.starts_with('[') && self.last_lines.back() == Some(&line);
        if !line.is_empty() && !is_repeated {
            if self.last_lines.len() == LAST_LINES {
                self.last_lines.pop_front();
            }
            self.last_lines.push_back(line.clone());
        }
        line
    }
}

/// The causes a panic line names, with the sentence they become. First match wins.
const PANICS: &[(&str, &str)] = &[
    ("VFS: Unable to mount root fs", "the kernel found no root file system"),
    ("No working init found", "the image holds no init that the kernel can run"),
    ("Requested init", "the kernel could not run the init that was asked for"),
    ("Attempted to kill init", "PID 1 ended, and the kernel panicked"),
    ("System is deadlocked on memory", "the guest ran out of memory; give it more with `-m`"),
    ("Out of memory and no killable processes", "the guest ran out of memory; give it more with `-m`"),
];

/// What the kernel says last, without being quiet (`kernel_halt`, `kernel_power_off` in kernel/reboot.c and `kernel_kexec` in
/// kernel/kexec_core.c), with the sentence it becomes. Without ACPI a machine that is switched off stands still.
const HALTS: &[(&str, &str)] = &[
    ("reboot: System halted", "the guest halted its processors"),
    ("reboot: Power down", "the guest switched itself off"),
    ("reboot: Power off not available", "the guest switched itself off"),
    ("kexec_core: Starting new kernel", "the guest replaced its kernel"),
];

fn judge(line: &str) -> Option<Verdict> {
    if let Some((_, panic)) = line.split_once("Kernel panic - not syncing: ") {
        let known = PANICS.iter().find(|(pattern, _)| panic.contains(pattern));
        let sentence = match known {
            Some((_, sentence)) => (*sentence).to_owned(),
            None => format!("the guest's kernel panicked: {}", panic.trim_end_matches(" ]---")),
        };
        return Some(Verdict::Failed(sentence));
    }
    if let Some((_, sentence)) = HALTS.iter().find(|(pattern, _)| line.contains(pattern)) {
        return Some(Verdict::Halted((*sentence).to_owned()));
    }
    // The kernel's log may stand before PID 1's words on a line.
    if let Some((_, cause)) = line.split_once(FATAL_MARKER) {
        return Some(Verdict::Failed(cause.to_owned()));
    }
    if let Some((_, code)) = line.split_once(EXIT_MARKER) {
        return code.trim().parse().ok().map(Verdict::Exited);
    }
    line.contains("init: ").then_some(Verdict::Alive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(text: &str) -> Vec<Verdict> {
        Console::default().push(text.as_bytes())
    }

    #[test]
    fn a_disk_that_fails_is_told_once() {
        let mut console = Console::default();
        for _ in 0..2 {
            console.push(b"[    9.1] critical space allocation error, dev vda, sector 8 op 0x1:(WRITE)\r\n");
            console.push(b"[    9.2] I/O error, dev vda, sector 16 op 0x1:(WRITE) flags 0x800\r\n");
        }
        assert_eq!(console.take_notes().len(), 1);
        assert_eq!(console.take_notes().len(), 0);
    }

    #[test]
    fn steps_without_end_are_not_all_told() {
        let mut console = Console::default();
        for _ in 0..1000 {
            console.push(format!("{STEP_MARKER}0.1 mount\n").as_bytes());
        }
        assert_eq!(console.take_notes().len(), MOST_NOTES);
        console.push(format!("{STEP_MARKER}0.1 mount\n").as_bytes());
        assert_eq!(console.take_notes().len(), 0);
    }

    #[test]
    fn a_panic_becomes_a_sentence() {
        let text = "[    0.9] Kernel panic - not syncing: VFS: Unable to mount root fs on \"/dev/vda\" or unknown-block(0,0)\r\n";
        assert_eq!(verdicts(text), [Verdict::Failed("the kernel found no root file system".into())]);
        let text = "Kernel panic - not syncing: Fatal exception in interrupt\n";
        assert_eq!(
            verdicts(text),
            [Verdict::Failed("the guest's kernel panicked: Fatal exception in interrupt".into())]
        );
    }

    #[test]
    fn a_machine_that_stands_still_is_named() {
        let text = "[    4.2] reboot: System halted\r\n[    4.3] reboot: Power down\r\n";
        let [halted, off] = ["the guest halted its processors", "the guest switched itself off"];
        assert_eq!(verdicts(text), [halted, off].map(|sentence| Verdict::Halted(sentence.into())));
    }

    #[test]
    fn pid_1_speaks_for_itself() {
        let text =
            format!("{EXIT_MARKER}7\r\n{FATAL_MARKER}no disk `/dev/vda`\r\ninit: mounted\r\nhello\r\n");
        assert_eq!(
            verdicts(&text),
            [Verdict::Exited(7), Verdict::Failed("no disk `/dev/vda`".into()), Verdict::Alive]
        );
    }

    #[test]
    fn the_last_lines_are_kept_with_the_unfinished_one() {
        let mut console = Console::default();
        for number in 0..40 {
            console.push(format!("line {number}\r\r\n").as_bytes());
        }
        console.push(b"unfinished");
        let lines = console.last_lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[14].as_str()), (15, "line 26", "unfinished"));
    }

    #[test]
    fn a_line_of_the_kernel_on_both_consoles_is_kept_once() {
        let mut console = Console::default();
        console.push(b"[    1.2] oops\r\n[    1.2] oops\r\n[    1.3] oops\r\nguest\r\nguest\r\n");
        assert_eq!(console.last_lines(), ["[    1.2] oops", "[    1.3] oops", "guest", "guest"]);
    }
}
