//! Which accelerator runs guests here. That `/dev/kvm` opens says nothing: KVM is used only where a guest was seen to
//! reach user space with it on this host, under a deadline. The verdict is remembered for this kernel and this QEMU.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::artifact::{Lock, read_text, write_whole};
use crate::vm::machine::{Accelerator, LEAST_MEMORY_MIB, Machine, Network};
use crate::vm::supervise::lifecycle::Limits;
use crate::vm::supervise::supervisor::{Supervision, Supervisor};
use crate::vm::{qemu, queue};
use crate::workspace::Workspace;
use crate::{host::tools, note};

/// A guest under working KVM needs well under a second; a stalled one waits for ever.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// What `--accel` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AcceleratorChoice {
    /// KVM where a guest was seen to boot with it, else TCG
    Auto,
    /// The host's virtualisation, whatever the probe says
    Kvm,
    /// QEMU's translation of instructions; works anywhere
    Tcg,
}

/// Whether guests boot with KVM here, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The kernel, processor and QEMU that the verdict is for.
    host: String,
    /// Why KVM is of no use; `None` where a guest was seen to boot with it.
    pub reason: Option<String>,
}

/// The accelerator to use. `kernel`, and `initramfs` with PID 1, serve the probe, where one is needed.
pub fn choose(
    workspace: &Workspace,
    choice: AcceleratorChoice,
    kernel: &Utf8Path,
    initramfs: impl FnOnce() -> anyhow::Result<Utf8PathBuf>,
) -> anyhow::Result<Accelerator> {
    match choice {
        AcceleratorChoice::Kvm => Ok(Accelerator::Kvm),
        AcceleratorChoice::Tcg => Ok(Accelerator::Tcg),
        AcceleratorChoice::Auto => match verdict(workspace, kernel, initramfs)?.reason {
            None => Ok(Accelerator::Kvm),
            Some(reason) => {
                note!("running without KVM: {reason}");
                Ok(Accelerator::Tcg)
            }
        },
    }
}

/// What is known about KVM here without booting anything; `None` where only a probe can tell.
pub fn known_verdict(workspace: &Workspace) -> Option<Verdict> {
    let host = describe_host();
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "this host has no /dev/kvm".to_owned(),
            std::io::ErrorKind::PermissionDenied => {
                "this user may not open /dev/kvm (`sudo adduser $USER kvm`, then log in again)".to_owned()
            }
            _ => format!("/dev/kvm cannot be opened: {error}"),
        };
        return Some(Verdict { host, reason: Some(reason) });
    }
    let text = read_text(&workspace.verdicts().join("kvm.json")).ok()?;
    serde_json::from_str::<Verdict>(&text).ok().filter(|verdict| verdict.host == host)
}

fn verdict(
    workspace: &Workspace,
    kernel: &Utf8Path,
    initramfs: impl FnOnce() -> anyhow::Result<Utf8PathBuf>,
) -> anyhow::Result<Verdict> {
    if let Some(verdict) = known_verdict(workspace) {
        return Ok(verdict);
    }
    let folder = workspace.verdicts();
    let _lock = Lock::hold(&folder.join("kvm.lock"), "the KVM probe")?;
    if let Some(verdict) = known_verdict(workspace) {
        return Ok(verdict);
    }
    let initramfs = initramfs()?;
    note!("trying whether a guest boots with KVM here (at most {} s, once)", PROBE_DEADLINE.as_secs());
    let reason = probe(&folder.join("kvm-console.log"), kernel, &initramfs)?;
    let verdict = Verdict { host: describe_host(), reason };
    write_whole(&folder.join("kvm.json"), &serde_json::to_vec_pretty(&verdict)?)
        .context("failed to remember the KVM verdict")?;
    Ok(verdict)
}

/// Boots the real kernel with the real PID 1 and no disk. That PID 1 speaks, if only to complain, is the proof.
fn probe(console_log: &Utf8Path, kernel: &Utf8Path, initramfs: &Utf8Path) -> anyhow::Result<Option<String>> {
    let machine = Machine {
        kernel: kernel.to_owned(),
        initramfs: Some(initramfs.to_owned()),
        kernel_arguments: Vec::new(),
        accelerator: Accelerator::Kvm,
        memory_mib: LEAST_MEMORY_MIB * 2,
        cpus: 1,
        agent_socket: None,
        disks: Vec::new(),
        shares: Vec::new(),
        network: Network::None,
        private_network: None,
        gdb_socket: None,
    };
    let supervision = Supervision {
        limits: Limits {
            start: PROBE_DEADLINE,
            run: Some(PROBE_DEADLINE),
            grace: Duration::ZERO,
            answer: PROBE_DEADLINE,
            end: PROBE_DEADLINE,
        },
        console_log: console_log.to_owned(),
        clients: None,
        main: queue::bounded(0).0,
        console_is_main: false,
    };
    let begun = Instant::now();
    Supervisor::launch(&machine, supervision)?.run()?;
    let console = String::from_utf8_lossy(&fs::read(console_log).unwrap_or_default()).into_owned();
    Ok(if console.contains("init: ") {
        None
    } else if begun.elapsed() < PROBE_DEADLINE {
        Some("a guest fails to boot with it on this host".to_owned())
    } else {
        Some("a guest stalls with it on this host".to_owned())
    })
}

/// What a verdict depends on: another kernel, processor or QEMU may do better.
fn describe_host() -> String {
    let uname = rustix::system::uname();
    let processor = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| text.lines().find(|line| line.starts_with("model name")).map(str::to_owned))
        .unwrap_or_default();
    let qemu = tools::find(qemu::PROGRAM)
        .and_then(|program| Some(format!("{program} of {:?}", fs::metadata(&program).ok()?.modified().ok()?)))
        .unwrap_or_default();
    format!("{} | {processor} | {qemu}", uname.release().to_string_lossy())
}
