//! PID 1 of the microVM.
//!
//! [`STEPS`] is the boot, in order. After it [`supervise`] runs the main process and serves the host until that
//! process ends, and [`halt`] stops the machine. An error that PID 1 cannot work around is printed with its cause
//! and stops the machine too; it never panics.

mod agent;
mod channel;
mod child;
mod environment;
mod halt;
mod log;
mod mounts;
mod netlink;
mod network;
mod process;
mod program;
mod session;
mod settings;
mod supervise;
mod user;
mod volumes;

use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use init::boot_config::{BOOT_CONFIG_PATH, BootConfig, Stdio};
use rustix::process::{Resource, Rlimit, setrlimit};

use agent::Agent;

/// How long the driver may take to name the agent's port, where the host cannot do without.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);

/// What the steps leave for those after them.
struct Boot {
    config: BootConfig,
    /// The settings came in an initramfs, and the root is still to be mounted.
    from_initramfs: bool,
    /// What the kernel's command line passed on to init.
    arguments: Vec<String>,
    agent: Option<Agent>,
}

/// One step of the boot: what it does, as an error about it says it, and how.
type Step = (&'static str, fn(&mut Boot) -> Result<()>);

/// The boot, in order.
const STEPS: [Step; 9] = [
    ("read this boot's settings", read_settings),
    ("enter the root file system", enter_root),
    ("make the standard mounts", |_| mounts::make_standard()),
    ("look for what the kernel booted with", look_around),
    ("set up the kernel", set_up_kernel),
    ("bring up the network", bring_up_network),
    ("make the mounts that were asked for", |boot| volumes::make_all(&boot.config.mounts)),
    ("put the files of name resolution in place", bind_network_files),
    ("open the agent's port", open_agent),
];

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    if let [process::CHILD_ARGUMENT, ..] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return child::main(&arguments[1..]);
    }
    if !rustix::process::getpid().is_init() {
        log::say("this is PID 1 of a microVM; it has nothing to do here");
        return ExitCode::FAILURE;
    }
    halt::stop_on_panic();
    match boot(arguments) {
        Ok(()) => halt::stop(),
        Err(e) => halt::fatal(format_args!("{e:#}")),
    }
}

fn boot(arguments: Vec<String>) -> Result<()> {
    let mut boot =
        Boot { config: settings::without_file(false), from_initramfs: false, arguments, agent: None };
    for (name, run) in STEPS {
        log::step(name);
        run(&mut boot).with_context(|| format!("failed to {name}"))?;
    }
    let Boot { config, arguments, agent, .. } = boot;
    let main = settings::main_command(&config, &arguments, Path::new(settings::SCRIPT).exists());
    log::step("run the main process");
    supervise::supervise(&config, main, agent)?;
    Ok(())
}

fn read_settings(boot: &mut Boot) -> Result<()> {
    match std::fs::read(BOOT_CONFIG_PATH) {
        Ok(json) => {
            let parsed = BootConfig::parse(&json).map_err(anyhow::Error::msg);
            boot.config = parsed.with_context(|| format!("cannot read `{BOOT_CONFIG_PATH}`"))?;
            boot.from_initramfs = true;
            if boot.config.trace {
                log::start_tracing();
            }
            Ok(())
        }
        // The image's own `/sbin/init`: the kernel has mounted the root.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("cannot read `{BOOT_CONFIG_PATH}`")),
    }
}

fn enter_root(boot: &mut Boot) -> Result<()> {
    if boot.from_initramfs { mounts::enter_root(&boot.config.root) } else { Ok(()) }
}

fn look_around(boot: &mut Boot) -> Result<()> {
    if !boot.from_initramfs {
        boot.config = settings::without_file(volumes::is_offered(settings::SHARE_TAG));
    }
    Ok(())
}

fn set_up_kernel(boot: &mut Boot) -> Result<()> {
    // PID 1 holds the streams of every command that runs; its children get their own limit of files. Processes
    // are limited by memory alone, as in a container.
    let limits = [(Resource::Nofile, Some(524_288)), (Resource::Nproc, None)];
    for (resource, limit) in limits {
        if let Err(e) = setrlimit(resource, Rlimit { current: limit, maximum: limit }) {
            log::say(format_args!("cannot raise the limit {resource:?}: {e}"));
        }
    }
    let hostname = &boot.config.hostname;
    if let Err(e) = rustix::system::sethostname(hostname.as_bytes()) {
        log::say(format_args!("cannot set the host name to `{hostname}`: {e}"));
    }
    Ok(())
}

fn bring_up_network(boot: &mut Boot) -> Result<()> {
    network::apply_kernel_settings();
    if let Err(e) = network::bring_up_loopback() {
        log::say(format_args!("{e:#}"));
    }
    match boot.config.network.as_ref().and_then(|network| network.private.as_ref()) {
        Some(private) => network::bring_up_private(private),
        None => Ok(()),
    }
}

fn bind_network_files(boot: &mut Boot) -> Result<()> {
    match &boot.config.network {
        Some(network) => network::bind_files(&boot.config.hostname, network),
        None => Ok(()),
    }
}

fn open_agent(boot: &mut Boot) -> Result<()> {
    boot.agent = match boot.config.stdio {
        Stdio::Agent { .. } => Some(Agent::open(AGENT_PATIENCE)?),
        // Welcome where there is one.
        Stdio::Console => Agent::open(Duration::ZERO).ok(),
    };
    Ok(())
}
