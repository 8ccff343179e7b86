//! The builder's network: slirp4netns, the same user network that QEMU has, with its way to this host's loopback shut.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use rustix::process::Signal;

use super::STEP_LIMIT;
use crate::host::process::die_with;
use crate::host::tools;

/// The device that makes network interfaces out of programs.
const TUN: &str = "/dev/net/tun";

/// Of libslirp: answers for the resolvers of this host, its loopback's included.
pub(super) const NAME_SERVER: &str = "10.0.2.3";

/// A running slirp4netns.
#[derive(Debug)]
pub(super) struct Network(Child);

impl Network {
    /// Connects the network namespace of a process; `None`, said in one line, where this host cannot.
    pub(super) fn connect(pid: u32) -> anyhow::Result<Option<Network>> {
        let Some(program) = tools::find("slirp4netns") else {
            crate::note!("RUN has no network: `slirp4netns` is not on PATH; `cargo xtask setup` installs it");
            return Ok(None);
        };
        if std::fs::File::open(TUN).is_err() {
            crate::note!("RUN has no network: this host has no `{TUN}`");
            return Ok(None);
        }
        let (ours, theirs) = UnixStream::pair().context("failed to make a socket")?;
        // Readiness is told on standard input, the one descriptor whose number is known.
        let mut command = Command::new(program);
        command
            .args(["--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox"])
            .args(["--ready-fd=0", &pid.to_string(), "tap0"])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        die_with(&mut command, rustix::process::getpid(), Signal::KILL);
        let network = Network(command.spawn().context("failed to start `slirp4netns`")?);
        drop(command);
        ours.set_read_timeout(Some(STEP_LIMIT)).context("failed to set a time limit")?;
        (&ours).read_exact(&mut [0]).context("`slirp4netns` did not connect the builder's network")?;
        Ok(Some(network))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It may have ended already, with the namespace.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
