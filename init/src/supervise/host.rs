//! What the host says, obeyed.

use std::time::{Duration, Instant};

use init::boot_config::Command;
use init::protocol::{Failure, Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message, Program, Start, Stream};
use rustix::process::{kill_process, kill_process_group};

use super::{Supervisor, ending::Phase};
use crate::agent::Heard;
use crate::environment;
use crate::network;
use crate::process::Streams;
use crate::program::{AGENT_FAILED, failure};
use crate::session;

impl Supervisor {
    pub(super) fn heard(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Begun => {
                if let (Some(main), Some(agent)) = (self.channels.get_mut(&MAIN_CHANNEL), &mut self.agent) {
                    main.start_over(now);
                    if main.is_running() {
                        agent.send_first(MAIN_CHANNEL, Message::Started { pid: main.pid_number() });
                    }
                }
            }
            Heard::Ended => {
                let theirs: Vec<u32> =
                    self.channels.keys().copied().filter(|id| *id != MAIN_CHANNEL).collect();
                self.close(&theirs, now);
            }
            Heard::Frame(Frame { channel, message }) => self.obey(channel, message, now),
        }
    }

    fn obey(&mut self, id: u32, message: Message, now: Instant) {
        let channel = self.channels.get_mut(&id);
        match (message, channel) {
            (Message::Start(start), channel) => {
                let in_use = channel.is_some() || id <= MAIN_CHANNEL;
                if let Err(failure) = self.start(id, in_use, start) {
                    self.send(id, Message::Failed(failure));
                }
            }
            (Message::Shutdown { signal, grace_seconds }, _) if id == MACHINE_CHANNEL => {
                let signal = if signal == 0 { self.stop_signal } else { signal };
                self.shut_down(signal, Duration::from_secs(grace_seconds.into()), now);
            }
            (Message::Ping(number), _) if id == MACHINE_CHANNEL => {
                self.send(MACHINE_CHANNEL, Message::Pong(number));
            }
            (Message::Hosts(lines), _) if id == MACHINE_CHANNEL => network::update_hosts(&lines),
            // The main process goes on without listeners, as a container does.
            (Message::Close, Some(_)) if id != MAIN_CHANNEL => self.close(&[id], now),
            (Message::Signal(number), Some(_)) if id == MAIN_CHANNEL => self.signal_main(number),
            (Message::Signal(number), Some(channel)) => {
                if let Some(signal) = session::signal(number) {
                    // Its group, so that a pipeline gets it; there is none while the child is on its way.
                    if kill_process_group(channel.pid, signal).is_err() {
                        let _ = kill_process(channel.pid, signal);
                    }
                }
            }
            (Message::Data(Stream::Stdin, bytes), Some(channel)) => {
                let unread = channel.feed(&bytes);
                self.grant_input(id, unread);
            }
            (Message::End(Stream::Stdin), Some(channel)) => channel.end_input(),
            (Message::Credit(stream, bytes), Some(channel)) => channel.grant(stream, bytes, now),
            (Message::Resize(size), Some(channel)) => channel.resize(size),
            // For a channel that has just been closed on this side, or what only a guest says.
            _ => {}
        }
    }

    fn start(&mut self, id: u32, in_use: bool, start: Start) -> Result<(), Failure> {
        if in_use {
            return Err(failure(AGENT_FAILED, format!("channel {id} is in use")));
        }
        if !matches!(self.phase, Phase::Running { .. }) {
            return Err(failure(AGENT_FAILED, "the main process has ended, and the machine with it"));
        }
        let program = match start.program {
            Program::Command(command) => Program::Command(inherit(self.main_command.as_ref(), command)),
            Program::Shell(command) => Program::Shell(inherit(self.main_command.as_ref(), command)),
            files @ (Program::TarOut { .. } | Program::TarIn { .. } | Program::Stat { .. }) => files,
        };
        let streams = match start.tty {
            Some(size) => Streams::Terminal { size, stdin: start.stdin },
            None => Streams::Pipes { stdin: start.stdin },
        };
        self.start_channel(id, &program, streams)
    }

    /// Nobody listens to these channels any more: their sessions end.
    fn close(&mut self, ids: &[u32], now: Instant) {
        let closed: Vec<_> = ids.iter().filter_map(|id| self.channels.remove(id)).collect();
        if !closed.is_empty() {
            let leaders: Vec<_> = closed.iter().map(|channel| channel.pid).collect();
            self.sweeps.push(session::hang_up(&leaders, now));
        }
        // Not before: a leader that sees the end of its input goes, and nobody knows any more whose children it leaves.
        drop(closed);
    }
}

/// A further command in the main one's surroundings, as `docker exec` has it.
fn inherit(main: Option<&Command>, command: Command) -> Command {
    let Some(main) = main else { return command };
    let or_main = |own: String, main: &String| if own.is_empty() { main.clone() } else { own };
    Command {
        argv: command.argv,
        env: environment::lay_over(&main.env, &command.env),
        cwd: or_main(command.cwd, &main.cwd),
        user: or_main(command.user, &main.user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_inherits_what_it_does_not_say() {
        let command = |argv: &str, env: &[&str], cwd: &str, user: &str| Command {
            argv: vec![argv.into()],
            env: env.iter().map(|pair| pair.to_string()).collect(),
            cwd: cwd.into(),
            user: user.into(),
        };
        let main = command("nginx", &["A=1", "B=2"], "/srv", "web");
        assert_eq!(
            inherit(Some(&main), command("sh", &["B=3"], "", "")),
            command("sh", &["A=1", "B=3"], "/srv", "web")
        );
        assert_eq!(
            inherit(Some(&main), command("sh", &[], "/", "0")),
            command("sh", &["A=1", "B=2"], "/", "0")
        );
        assert_eq!(inherit(None, command("sh", &["C=1"], "", "")), command("sh", &["C=1"], "", ""));
    }
}
