//! The attacks, by name.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::time::Duration;

use init::boot_config::{BootConfig, Mount};
use init::protocol::{
    DIRECTORY, EXIT_MARKER, FATAL_MARKER, Failure, Frame, MACHINE_CHANNEL, MAIN_CHANNEL, MAX_PAYLOAD,
    Message, NOT_A_DIRECTORY, Program, Start, Stream, VERSION,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

use crate::port::Port;

/// What a flood sends at least, in bytes: more than any host may hold of it.
const FLOOD: usize = 300 << 20;

/// What the console is sent by one that never ends its line.
const CONSOLE_FLOOD: usize = 100 << 20;

/// Escapes that clear a terminal, name its window and colour what follows.
const ESCAPES: &str = "\x1b[2J\x1b]0;owned\x07\x1b[31m\u{9b}31m\r\x08";

/// What becomes of the machine after the attack.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It goes on until the host ends it.
    Stays,
    /// It ends as an honest one does.
    Ends,
}

/// Does what the first word says; the others are its arguments.
pub(crate) fn run(words: &[String], settings: &BootConfig, mut port: Port) -> Then {
    let (name, arguments) = words.split_first().expect("an attack is named");
    match name.as_str() {
        "wrong-hello" => port.say(MACHINE_CHANNEL, Message::Hello { version: VERSION + 97 }),
        "rubbish" => port.raw(&rubbish(1 << 20)),
        "endless-frame" => {
            // 4 GiB less one byte are announced, and then they come.
            port.raw(&[0xff, 0xff, 0xff, 0xff, 17, 1, 0, 0, 0]);
            flood(|| port.raw(&[b'x'; MAX_PAYLOAD]));
        }
        "silence" => {}
        "a-byte-a-second" => {
            let mut bytes = Vec::new();
            Frame::new(MACHINE_CHANNEL, Message::Hello { version: VERSION }).encode(&mut bytes);
            for byte in bytes {
                port.raw(&[byte]);
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        "failure" => {
            port.say(MACHINE_CHANNEL, Message::Hello { version: VERSION });
            let message = ESCAPES.repeat(300);
            port.say(MAIN_CHANNEL, Message::Failed(Failure { code: 127, message }));
            return Then::Ends;
        }
        "two-ends" => {
            port.start();
            port.say(MAIN_CHANNEL, Message::Exited { code: 3 });
            port.say(MAIN_CHANNEL, Message::Exited { code: 4 });
            port.say(MAIN_CHANNEL, Message::Failed(Failure { code: 127, message: "late".into() }));
            return Then::Ends;
        }
        "end-without-an-end" => {
            port.start();
            port.say(MAIN_CHANNEL, Message::Exited { code: 3 });
        }
        "more-than-credit" => {
            port.start();
            flood(|| port.say(MAIN_CHANNEL, Message::Data(Stream::Stdout, vec![b'x'; MAX_PAYLOAD])));
            port.say(MAIN_CHANNEL, Message::Exited { code: 5 });
            return Then::Ends;
        }
        "nobodys-channels" => {
            port.start();
            let mut channel = 2;
            flood(|| {
                channel += 1;
                port.say(channel, Message::Data(Stream::Stdout, vec![b'x'; MAX_PAYLOAD]));
                port.say(channel, Message::Exited { code: 0 });
            });
            port.say(MAIN_CHANNEL, Message::Exited { code: 5 });
            return Then::Ends;
        }
        "words-of-the-host" => {
            port.start();
            for channel in 0..2000 {
                for message in hosts_words() {
                    port.say(channel, message);
                }
            }
            port.say(MAIN_CHANNEL, Message::Exited { code: 6 });
            return Then::Ends;
        }
        "console-flood" => {
            port.start();
            let mut console = console();
            let bytes = [b'x'; MAX_PAYLOAD];
            for _ in 0..CONSOLE_FLOOD / bytes.len() {
                console.write_all(&bytes).expect("the console takes bytes");
            }
            port.say(MAIN_CHANNEL, Message::Exited { code: 7 });
            return Then::Ends;
        }
        "console-lies" => {
            port.start();
            let mut console = console();
            for line in [format!("{EXIT_MARKER}9"), format!("{ESCAPES}init: +{ESCAPES}"), "\u{1b}c".into()] {
                writeln!(console, "{line}").expect("the console takes lines");
            }
            port.say(MAIN_CHANNEL, Message::Exited { code: 8 });
            return Then::Ends;
        }
        "console-panic" => {
            port.start();
            writeln!(console(), "Kernel panic - not syncing: {ESCAPES}boo").expect("the console takes lines");
        }
        "console-fatal" => {
            port.start();
            writeln!(console(), "{FATAL_MARKER}{ESCAPES}boo").expect("the console takes lines");
        }
        "reboot" => {
            port.start();
            let _ = reboot(RebootCommand::Restart);
        }
        "halt" => {
            port.start();
            let _ = reboot(RebootCommand::Halt);
        }
        "power-off" => {
            port.start();
            let _ = reboot(RebootCommand::PowerOff);
        }
        "kernel-crash" => {
            port.start();
            // PID 1 ends, which no kernel survives.
            std::process::exit(0);
        }
        "spin" => {
            port.start();
            loop {
                std::hint::spin_loop();
            }
        }
        "frozen" => port.start(),
        "deaf-clients" => {
            // Answers every start, and then sends without any end what nobody has room for.
            port.start();
            answer(&mut port, |port, channel, _| {
                flood(|| port.say(channel, Message::Data(Stream::Stdout, vec![b'x'; MAX_PAYLOAD])));
            });
        }
        "endless-answers" => {
            port.start();
            let stream = if arguments[0] == "err" { Stream::Stderr } else { Stream::Stdout };
            answer(&mut port, |port, channel, _| {
                // With manners this time: no more than the credit.
                with_credit(port, channel, stream, std::iter::repeat_n(b'x', usize::MAX));
            });
        }
        "tar" => {
            let length: usize = arguments[0].parse().expect("the archive's length");
            let endless: usize =
                arguments[1].parse().expect("how many bytes at its end are repeated for ever");
            let mut archive = vec![0; length];
            File::open("/dev/vda")
                .and_then(|mut disk| disk.read_exact(&mut archive))
                .expect("the disk is read");
            port.start();
            answer(&mut port, |port, channel, program| {
                if let Program::Stat { path } = program {
                    let kind = if path.ends_with(b"/") { DIRECTORY } else { NOT_A_DIRECTORY };
                    port.say(channel, Message::Data(Stream::Stdout, kind.into()));
                } else {
                    let end = archive[length - endless..].iter().copied().cycle();
                    let more = if endless == 0 { end.take(0) } else { end.take(usize::MAX) };
                    with_credit(port, channel, Stream::Stdout, archive.iter().copied().chain(more));
                }
                port.say(channel, Message::Exited { code: 0 });
            });
        }
        "share" => {
            plant(settings);
            port.start();
            port.say(MAIN_CHANNEL, Message::Exited { code: 0 });
            return Then::Ends;
        }
        unknown => panic!("there is no attack `{unknown}`"),
    }
    Then::Stays
}

/// Everything that the host alone has to say, and what makes no sense where it comes.
fn hosts_words() -> Vec<Message> {
    let stat = Program::Stat { path: b"/".to_vec() };
    vec![
        Message::Start(Start { program: stat, tty: None, stdin: true }),
        Message::Shutdown { signal: 9, grace_seconds: 0 },
        Message::Hosts("127.0.0.1 evil".into()),
        Message::Signal(9),
        Message::Close,
        Message::Credit(Stream::Stdin, u32::MAX),
        Message::Credit(Stream::Stdout, u32::MAX),
        Message::Data(Stream::Stdin, b"typed by nobody".to_vec()),
        Message::End(Stream::Stdin),
        Message::Hello { version: VERSION },
        Message::Started { pid: u32::MAX },
    ]
}

/// Sends until it was enough for any host.
fn flood(mut send: impl FnMut()) {
    for _ in 0..FLOOD / MAX_PAYLOAD {
        send();
    }
}

/// Serves every process that is started with `serve`, one after another.
fn answer(port: &mut Port, mut serve: impl FnMut(&mut Port, u32, &Program)) {
    loop {
        let Frame { channel, message } = port.hear();
        if let Message::Start(start) = message {
            port.say(channel, Message::Started { pid: 2 });
            serve(port, channel, &start.program);
        }
    }
}

/// Sends bytes as an honest agent would, until the host closes the channel.
fn with_credit(port: &mut Port, channel: u32, stream: Stream, mut bytes: impl Iterator<Item = u8>) {
    let mut credit = u64::from(init::protocol::WINDOW);
    loop {
        let piece: Vec<u8> = bytes.by_ref().take(MAX_PAYLOAD).collect();
        if piece.is_empty() {
            return;
        }
        while credit < piece.len() as u64 {
            match port.hear() {
                Frame { channel: ours, message: Message::Credit(what, more) }
                    if (ours, what) == (channel, stream) =>
                {
                    credit += u64::from(more);
                }
                Frame { channel: ours, message: Message::Close } if ours == channel => return,
                _ => {}
            }
        }
        credit -= piece.len() as u64;
        port.say(channel, Message::Data(stream, piece));
    }
}

fn console() -> File {
    File::options().write(true).open("/dev/console").expect("the console opens")
}

/// Bytes without a pattern.
fn rubbish(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Leaves traps in the share, and tries its way out of it.
fn plant(settings: &BootConfig) {
    let tag = settings.mounts.iter().find_map(|mount| match mount {
        Mount::Share { tag, .. } => Some(tag.clone()),
        _ => None,
    });
    fs::create_dir("/share").expect("the initramfs is writable");
    let options: &CStr = c"trans=virtio,version=9p2000.L";
    mount(tag.expect("there is a share"), "/share", "9p", MountFlags::empty(), Some(options))
        .expect("the share is mounted");
    for (name, target) in [("up", ".."), ("far", "../outside"), ("passwd", "/etc/passwd"), ("root", "/")] {
        symlink(target, format!("/share/{name}")).expect("a link is planted");
    }
    let mode = Mode::from_raw_mode(0o666);
    for (name, kind, device) in [
        ("memory", FileType::CharacterDevice, rustix::fs::makedev(1, 1)),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(254, 0)),
        ("fifo", FileType::Fifo, 0),
    ] {
        // The host may well refuse.
        let _ = mknodat(CWD, format!("/share/{name}"), kind, mode, device);
    }
    let _ = fs::write(format!("/share/{}", "n".repeat(255)), "");
    let _ = fs::write(format!("/share/{}", "n".repeat(4000)), "");
    // Dots are the guest's own kernel's business; these go to the server as they are where it lets them.
    let _ = fs::write("/share/../outside-of-the-guests-share", "");
    let _ = fs::write("/share/up/escaped", "");
    let _ = fs::write("/share/far/escaped", "");
    // A program of root's that anybody may run as root.
    let _ = fs::write("/share/program", "#!/bin/sh\n");
    let set_id = Mode::from_raw_mode(0o6755);
    let _ = rustix::fs::chmodat(CWD, "/share/program", set_id, rustix::fs::AtFlags::empty());
    rustix::fs::sync();
}
