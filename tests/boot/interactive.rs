//! `exec -t`, `shell` and `boot` on a real terminal: job control, a full-screen program, the window's size.

use rexpect::session::{PtySession, spawn_command};
use rustix::fd::AsFd as _;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::support::DEADLINE;
use crate::world::Detached;

fn on_terminal(machine: &Detached, task: &str, flags: &[&str], words: &[&str]) -> PtySession {
    let mut script = format!("{} {task}", assert_cmd::cargo::cargo_bin!("xtask").display());
    for word in flags.iter().chain(&[machine.name.as_str()]).chain(words) {
        script.push_str(&format!(" '{word}'"));
    }
    // The shell tells what the user has afterwards: the exit code, and a terminal that is as it was.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("{script}; echo code=$?; stty -a")]).env("TERM", "xterm");
    spawn_command(shell, Some(u64::try_from(DEADLINE.as_millis()).unwrap())).unwrap()
}

fn restored(mut terminal: PtySession, code: u8) {
    terminal.exp_string(&format!("code={code}")).unwrap();
    terminal.exp_regex("[^-]icanon").unwrap();
}

fn resize(terminal: &PtySession, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal.process().get_file_handle().unwrap().as_fd(), size).unwrap();
}

#[test]
fn a_terminal_is_a_real_one() {
    let machine = Detached::idle("terminal");

    // Job control: Ctrl-Z stops, `fg` goes on, Ctrl-C interrupts the command and not the shell.
    let mut shell = on_terminal(&machine, "shell", &[], &[]);
    shell.exp_regex("[#$] ").unwrap();
    shell.send_line("tty; echo TERM is $TERM").unwrap();
    shell.exp_string("/dev/pts/").unwrap();
    shell.exp_string("TERM is xterm").unwrap();
    shell.send_line("sleep 1000; echo slept $?").unwrap();
    shell.exp_string("slept $?\r\n").unwrap();
    machine.wait_for("sleep 1000");
    shell.send_control('z').unwrap();
    shell.exp_string("Stopped").unwrap();
    shell.send_line("jobs; fg").unwrap();
    shell.exp_regex("[0-9]\\] *\\+ *Stopped +sleep 1000").unwrap();
    shell.exp_string("sleep 1000\r\n").unwrap();
    shell.send_control('c').unwrap();
    shell.send_line("echo still $((40 + 2))").unwrap();
    shell.exp_string("still 42").unwrap();

    // The window's size, and its change.
    resize(&shell, 31, 97);
    shell.send_line("until stty size | grep '31 97'; do :; done").unwrap();
    shell.exp_string("31 97\r\n").unwrap();
    shell.send_line("exit 5").unwrap();
    restored(shell, 5);

    // A full-screen program, and what it wrote.
    let mut vi = on_terminal(&machine, "exec", &["-it"], &["vi", "/note"]);
    vi.exp_string("/note").unwrap();
    vi.send("ihello from vi").unwrap();
    vi.flush().unwrap();
    vi.exp_string("hello from vi").unwrap();
    // An escape with more right behind it would be some other key.
    vi.send("\x1b").unwrap();
    vi.flush().unwrap();
    vi.exp_string("- /note").unwrap();
    vi.send(":wq\r").unwrap();
    vi.flush().unwrap();
    restored(vi, 0);
    assert_eq!(machine.sh("cat /note"), "hello from vi\n");

    // Ctrl-C goes to the command, whose exit code comes back.
    let mut sleep = on_terminal(&machine, "exec", &["-it"], &["sleep", "2000"]);
    machine.wait_for("sleep 2000");
    sleep.send_control('c').unwrap();
    restored(sleep, 130);

    // Ctrl-] three times leaves a command that listens to nothing, and it is ended.
    let mut deaf = on_terminal(
        &machine,
        "exec",
        &["-it"],
        &["sh", "-c", "trap '' INT TERM HUP; sleep 3000; sleep 3000"],
    );
    machine.wait_for("sleep 3000");
    deaf.send("\x1d\x1d\x1d").unwrap();
    deaf.flush().unwrap();
    deaf.exp_string("code=125").unwrap();
    machine.wait_for_end("sleep 3000");

    // Without `-i` the terminal is the output's alone.
    let mut colours = on_terminal(
        &machine,
        "exec",
        &["-t"],
        &["sh", "-c", "test -t 1 && printf \"\\033[31mred\\033[0m\\n\""],
    );
    colours.exp_string("\x1b[31mred\x1b[0m\r").unwrap();
    restored(colours, 0);
}
