//! `boot`: from a source to a running machine, and its exit code.

#![allow(rustdoc::broken_intra_doc_links, reason = "brackets in the help are no links")]

use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use init::boot_config::Stdio;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::Context;
use super::image::ImageOptions;
use crate::boot::bootable::{self, Bootable, from_image, from_set};
use crate::boot::plan::{Parts, Plan, plan};
use crate::boot::request::{
    NetworkRequest, TmpfsRequest, Volume, VolumeRequest, existing, gather_variables, parse_duration,
    parse_network, parse_tmpfs, parse_volume,
};
use crate::boot::run::{self, Order};
use crate::boot::{attachments, background};
use crate::error::usage;
use crate::host::accelerator::{self, AcceleratorChoice};
use crate::host::ports::{self, Promises};
use crate::host::tools::Purpose;
use crate::image::config::Overrides;
use crate::image::{self, Source};
use crate::vm::client::terminal;
use crate::vm::inherited::Inherited;
use crate::vm::machine::{PublishedPort, parse_memory_mib};
use crate::vm::qemu;
use crate::vm::record::Description;
use crate::vm::record::output_log::{LogBounds, LogOption};
use crate::vm::record::run_dir::{RunDir, parse_name};
use crate::vm::signal;
use crate::vm::supervise::outcome::Outcome;
use crate::workspace::{Workspace, hex};
use crate::{artifact, note, out};

/// The image that is booted when none is named, relative to the checkout.
const DEFAULT_IMAGE: &str = "images/hello";

/// The default image's web server, on a port that needs no root; a free one where this is taken.
const DEFAULT_PORT: &str = "8080:80";

/// How long a machine waits for a debugger and what is done with it.
const DEBUGGERS_PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Boot a container image as a microVM; build what is missing first
///
/// With no SOURCE the default image is booted and its web server published. The terminal is the container's: every
/// key goes to the guest, Ctrl-C too. Ctrl-] three times within a second ends a guest that does not listen.
#[derive(Debug, clap::Args)]
pub struct BootArgs {
    /// A Dockerfile or its folder, an image's name, or an archive (containers-transports(5))
    source: Option<String>,

    /// Command and arguments in place of the image's CMD
    #[arg(last = true)]
    command: Vec<String>,

    /// Boot a folder that `collect` made, or one with the recipe's files, in place of SOURCE
    #[arg(long, value_name = "DIR", conflicts_with_all = ["source", "ImageOptions"])]
    from: Option<Utf8PathBuf>,

    /// Publish a port of the guest: [[IP:]HOST:]GUEST[/udp]; on 127.0.0.1 unless an IP is named, HOST 0 picks a free one
    #[arg(short, long = "publish", value_name = "HOST:GUEST")]
    publish: Vec<PublishedPort>,

    /// Publish every port that the image EXPOSEs, on free ports
    #[arg(short = 'P', long)]
    publish_all: bool,

    /// `none`, or the name of a private network in which machines reach each other by their names
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = parse_network)]
    network: NetworkRequest,

    /// Let the guest reach what listens on this host's loopback alone, at 10.0.2.2
    #[arg(long)]
    allow_host: bool,

    /// Mount a folder or a file of the host, or, with a name in place of HOST, a volume that outlives the machine
    #[arg(short, long = "volume", value_name = "HOST:GUEST[:ro]", value_parser = parse_volume)]
    volume: Vec<VolumeRequest>,

    /// Mount an empty file system in memory; OPTIONS such as size=64m,mode=1777
    #[arg(long, value_name = "GUEST[:OPTIONS]", value_parser = parse_tmpfs)]
    tmpfs: Vec<TmpfsRequest>,

    /// Mount the root read-only; the image's VOLUMEs stay writable, in memory
    #[arg(long)]
    read_only: bool,

    /// Share a folder read-only at the recipe's place (/usr/share/nginx/html) with the recipe's tag (myMountTag)
    #[arg(long, value_name = "DIR")]
    share: Option<Utf8PathBuf>,

    /// Set a variable; NAME alone passes the host's value on
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,

    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<Utf8PathBuf>,

    /// Working directory of the command
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// User (and group) of the command
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Program in place of the image's ENTRYPOINT
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,

    /// Name of the machine
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,

    /// Run in the background; print the machine's name when its command has started
    #[arg(short, long, conflicts_with = "dry_run")]
    detach: bool,

    /// Remove all that is known of the machine when it ends; what was neither named nor detached always is
    #[arg(long)]
    rm: bool,

    /// The guest's host name
    #[arg(long, default_value = "microvm", value_parser = parse_name)]
    hostname: String,

    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal; the default where standard input and output are one
    #[arg(short, long)]
    tty: bool,

    /// Memory
    #[arg(short, long, value_name = "SIZE", default_value = "256M", value_parser = parse_memory_mib)]
    memory: u32,

    /// Virtual CPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: u32,

    /// How the guest's instructions are run
    #[arg(long, value_enum, default_value_t = AcceleratorChoice::Auto)]
    accel: AcceleratorChoice,

    /// End the machine after this time, with exit code 124
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// How much of the output is kept for `logs`: max-size=10m for each of max-file=3 files
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<LogOption>,

    /// Keep what the guest writes, for the next boot with the same --name; `reset` discards what was kept first
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "keep")]
    persist: Option<Persist>,

    /// Print PID 1's steps with their times
    #[arg(long)]
    init_debug: bool,

    /// Wait for gdb before the guest's first instruction, at a socket that is this user's alone
    #[arg(long)]
    gdb: bool,

    /// Print the QEMU command line, ready to paste, in place of running it
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    image: ImageOptions,
}

/// What becomes of a kept disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Persist {
    /// Go on with what was kept
    Keep,
    /// Discard what was kept, and begin anew
    Reset,
}
/// How often another port is picked where a program took the one that was picked before QEMU had it.
const MOST_TRIES: u32 = 5;

impl BootArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        context.clear_leftovers();
        let mut tries = 1;
        loop {
            match self.try_once(context)? {
                Tried::Done(code) => return Ok(code),
                Tried::Lost(port) if tries == MOST_TRIES => return Err(ports::taken(&port)),
                Tried::Lost(_) => tries += 1,
            }
        }
    }

    fn try_once(&self, context: &Context) -> anyhow::Result<Tried> {
        let workspace = &context.workspace;
        // Everything that can be wrong is found before anything slow starts.
        if self.dry_run && matches!(self.network, NetworkRequest::Private(_)) {
            return Err(usage("a private network needs `boot` to carry its frames: leave out `--dry-run`"));
        }
        if let Some(name) = &self.name {
            RunDir::named(workspace, name).check_free()?;
        }
        let volumes: Vec<Volume> =
            self.volume.iter().map(|volume| volume.resolve(workspace)).collect::<Result<_, _>>()?;
        let share = self.share.as_deref().map(|path| existing(path, "shared folder")).transpose()?;
        let variables = gather_variables(&self.env_file, &self.env)?;
        let source = self.source(context)?;
        let is_default = self.source.is_none() && self.from.is_none();
        let mut promises = Promises::default();
        let mut ports = self.settled_ports(is_default, &mut promises)?;

        let request = self.image.request(source);
        let mut bootable = match &self.from {
            Some(folder) => {
                context.require(&[Purpose::Boot])?;
                from_set(workspace, folder)?
            }
            None => {
                context.require(&bootable::purposes(workspace, &request)?)?;
                from_image(context, &request)?
            }
        };
        if self.publish_all {
            ports = promises.settle(&attachments::with_exposed(ports, &bootable.config)?)?;
        }
        let accelerator = accelerator::choose(workspace, self.accel, &bootable.kernel, || {
            Ok(crate::init::ensure(context)?.initramfs)
        })?;

        let tty = self.tty || (!self.interactive && !self.detach && terminal::is_terminal());
        let overrides = Overrides {
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            env: variables,
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            terminal: tty,
        };
        let command = bootable.config.resolve(&overrides)?;
        let stop_signal = match bootable.config.config.stop_signal.as_str() {
            "" => signal::TERM,
            text => signal::parse(text)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("the image `{}` has a wrong STOPSIGNAL", bootable.image))?,
        };
        let has_agent = bootable.initramfs.is_some() && !self.dry_run;
        let name = self.name.clone().unwrap_or_else(|| random_name(&bootable.short_name));
        let description = Description {
            name: name.clone(),
            image: bootable.image.clone(),
            created: Timestamp::now(),
            command: command.as_ref().map(|command| command.argv.clone()).unwrap_or_default(),
            ports: ports.clone(),
            memory_mib: self.memory,
            cpus: self.cpus,
            accelerator,
            healthcheck: bootable.config.config.healthcheck.clone(),
            kept: !self.rm && !self.dry_run && (self.detach || self.name.is_some()),
        };
        let mut held = Vec::from_iter(bootable.in_use.take());
        let mut kept_root = None;
        if !self.dry_run {
            held.extend(attachments::take_volumes(workspace, &volumes)?);
            if let Some(how) = self.persist {
                let name = self.name.as_deref().unwrap_or(&bootable.short_name);
                let (disk, lock) = attachments::kept_root(workspace, &bootable, name, how == Persist::Reset)?;
                held.push(lock);
                kept_root = Some(disk);
            }
        }
        let (run_dir, lock) = RunDir::create(workspace, &description)?;
        let mut guard = Guard { run_dir: &run_dir, keeps: false };
        let private_network = match &self.network {
            NetworkRequest::Private(network) => Some(attachments::join(workspace, network, &run_dir)?),
            _ => None,
        };
        let gdb_socket = self.gdb.then(|| match self.dry_run {
            true => workspace.dry_runs().join("gdb"),
            false => run_dir.gdb_socket(),
        });
        let parts = Parts {
            kernel: bootable.kernel.clone(),
            initramfs: bootable.initramfs.is_some().then(|| run_dir.initramfs()),
            root: match kept_root {
                _ if self.dry_run => attachments::discarding_root(&bootable),
                Some(disk) => disk,
                None => attachments::fresh_root(&bootable, &run_dir)?,
            },
            accelerator,
            memory_mib: self.memory,
            cpus: self.cpus,
            hostname: self.hostname.clone(),
            ports: (self.network != NetworkRequest::None).then(|| ports.clone()),
            guard: if self.dry_run { None } else { attachments::guard(&run_dir, &ports, self.allow_host) },
            private_network,
            gdb_socket: gdb_socket.clone(),
            volumes: if self.dry_run { volumes } else { attachments::with_files_alone(volumes, &run_dir) },
            tmpfs: self.tmpfs.clone(),
            read_only: self.read_only,
            image_volumes: bootable.config.config.volumes.keys().cloned().collect(),
            recipe_share: share,
            command,
            stdio: if has_agent {
                Stdio::Agent { tty, stdin: tty || self.interactive }
            } else {
                Stdio::Console
            },
            stop_signal,
            trace: self.init_debug,
            agent_socket: has_agent.then(|| run_dir.agent_socket()),
        };
        let planned = plan(parts).map_err(usage)?;
        if self.dry_run {
            return self.print(workspace, &bootable, planned).map(Tried::Done);
        }
        if let Some(initramfs) = &bootable.initramfs {
            let bytes = run::initramfs(initramfs, &planned.boot_config)?;
            artifact::write_unsynced(&run_dir.initramfs(), &bytes)?;
        }
        let mut limits = run::limits(accelerator, self.timeout);
        if let Some(socket) = gdb_socket {
            limits.start = DEBUGGERS_PATIENCE;
            let symbols = bootable.kernel.with_file_name("vmlinux");
            note!("the guest waits for gdb:\n    gdb {symbols} -ex 'target remote {socket}'");
        }
        let order = Order { plan: planned, limits, log: LogBounds::of(&self.log_opt) };
        run_dir.write_plan(&order)?;
        let ended = if self.detach {
            if !has_agent {
                return Err(usage(
                    "a machine with an init of its own runs in the foreground only: drop `-d`",
                ));
            }
            let ended = background::start(&run_dir, lock, &held)?;
            if ended.is_none() {
                tell(&ports);
            }
            ended
        } else {
            let ports = ports.clone();
            let on_ports = move || {
                tell(&ports);
                drop(promises);
            };
            Some(run::in_foreground(&order, &run_dir, bootable.set.take(), on_ports)?)
        };
        let Some(ended) = ended else {
            // From here on the supervisor clears away.
            std::mem::forget(guard);
            out!("{name}");
            return Ok(Tried::Done(0));
        };
        if let Outcome::Failed { cause } = &ended.outcome
            && let Some(port) = ports::lost(&ports, cause)
        {
            if self.names(port) {
                return Err(ports::taken(port));
            }
            return Ok(Tried::Lost(*port));
        }
        guard.keeps = description.kept;
        run::report(&workspace.console_logs(), &run_dir, &ended).map(Tried::Done)
    }

    /// True for a port of the host that the user named: another one will not do.
    fn names(&self, port: &PublishedPort) -> bool {
        self.publish.iter().any(|named| (named.host, named.protocol) == (port.host, port.protocol))
    }

    fn source(&self, context: &Context) -> anyhow::Result<Source> {
        let source = match &self.source {
            Some(source) => source.parse()?,
            None => Source::Dockerfile(context.workspace.root().join(DEFAULT_IMAGE)),
        };
        image::check(&context.workspace, &source)?;
        Ok(source)
    }

    fn settled_ports(&self, is_default: bool, promises: &mut Promises) -> anyhow::Result<Vec<PublishedPort>> {
        let mut ports = self.publish.clone();
        if self.network == NetworkRequest::None {
            if !ports.is_empty() || self.publish_all {
                return Err(usage(
                    "without a network there are no ports to publish: leave out `--network none`",
                ));
            }
            return Ok(Vec::new());
        }
        if ports.is_empty() && is_default && !self.publish_all {
            let mut port: PublishedPort = DEFAULT_PORT.parse().map_err(anyhow::Error::msg)?;
            if !promises.take(&port) {
                port.host = 0;
            }
            ports.push(port);
        }
        promises.settle(&ports)
    }

    /// The machine as one would start it by hand: the console on the terminal in place of the agent, writes thrown away.
    fn print(&self, workspace: &Workspace, bootable: &Bootable, mut planned: Plan) -> anyhow::Result<u8> {
        if let Some(initramfs) = &bootable.initramfs {
            let bytes = run::initramfs(initramfs, &planned.boot_config)?;
            // Named by its content: an earlier command line still boots what it was printed for.
            let name = format!("{}.cpio", &hex(&Sha256::digest(&bytes))[..16]);
            let kept = workspace.dry_runs().join(name);
            artifact::write_whole(&kept, &bytes)?;
            planned.machine.initramfs = Some(kept);
        }
        out!("{}", qemu::paste(qemu::PROGRAM, &qemu::arguments(&planned.machine, &Inherited::default())));
        Ok(0)
    }
}

/// What came of one try to boot.
enum Tried {
    /// The exit code.
    Done(u8),
    /// Another program took a port that was picked for it.
    Lost(PublishedPort),
}

fn tell(ports: &[PublishedPort]) {
    for port in ports {
        let scheme = if port.guest == 80 { "http://" } else { "" };
        note!(
            "listening on {scheme}{}:{} (guest port {}/{})",
            port.address,
            port.host,
            port.guest,
            port.protocol
        );
    }
}

/// A name for a machine that was given none: its image's, and four digits of chance.
fn random_name(image: &str) -> String {
    let plain: String =
        image.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(24).collect();
    let plain = plain.trim_matches('-');
    let chance = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), plain) as u16;
    format!("{}-{chance:04x}", if plain.is_empty() { "machine" } else { plain })
}

/// Clears away what an ended machine leaves.
struct Guard<'a> {
    run_dir: &'a RunDir,
    /// What tells of it stays.
    keeps: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // What stays is found and removed by the next machine.
        let _ = if self.keeps { self.run_dir.retire() } else { self.run_dir.remove() };
    }
}
