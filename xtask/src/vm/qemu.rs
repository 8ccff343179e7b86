//! The words that start a [`Machine`] under QEMU. Pure; one function for each device.

use camino::{Utf8Path, Utf8PathBuf};

use super::inherited::Inherited;
use super::machine::{Accelerator, Base, Disk, Machine, Network, PrivateNetwork, PublishedPort, Share};
use super::net::members;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The arguments of [`PROGRAM`] for this machine. What QEMU inherits open is named by its descriptor.
///
/// The console is QEMU's standard input and output: a supervisor holds the other ends, a person who pastes the
/// command line has the console on the terminal.
pub fn arguments(machine: &Machine, inherited: &Inherited) -> Vec<String> {
    let mut words = Words::default();
    let words = &mut words;
    words.add("-M", "microvm,x-option-roms=off,isa-serial=off,acpi=off,rtc=on");
    words.flags(&["-nodefaults", "-no-user-config", "-no-reboot", "-nographic"]);
    accelerator(words, machine.accelerator);
    words.add("-m", format!("{}M", machine.memory_mib));
    words.add("-smp", machine.cpus.to_string());
    kernel(words, machine, inherited);
    serial(words, machine, inherited);
    for (set, fd) in inherited.sets() {
        words.add("-add-fd", format!("fd={fd},set={set}"));
    }
    early_console(words, inherited);
    for (index, disk) in machine.disks.iter().enumerate() {
        block(words, inherited, index, disk);
    }
    network(words, inherited, &machine.network);
    private_network(words, inherited, machine.private_network.as_ref());
    for (index, share) in machine.shares.iter().enumerate() {
        plan9(words, index, share);
    }
    words.add("-device", "virtio-rng-device");
    if let Some(path) = &machine.gdb_socket {
        words.add("-chardev", format!("socket,id=gdb,{},server=on,wait=off", socket(inherited, path)));
        words.add("-gdb", "chardev:gdb");
        // The guest's first instruction waits for the debugger.
        words.flags(&["-S"]);
    }
    // QEMU needs none of these once it runs: less to gain for a guest that breaks out.
    words.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    std::mem::take(&mut words.0)
}

/// A command line for a shell, one option to a line.
pub fn paste(program: &str, arguments: &[String]) -> String {
    let mut text = quote(program);
    for word in arguments {
        text.push_str(if word.starts_with('-') { " \\\n    " } else { " " });
        text.push_str(&quote(word));
    }
    text
}

/// Quotes a word for a POSIX shell where it needs to be.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn add(&mut self, option: &str, value: impl Into<String>) {
        self.0.extend([option.to_owned(), value.into()]);
    }

    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }
}

/// The end of a chardev's socket.
fn socket(inherited: &Inherited, path: &Utf8Path) -> String {
    match inherited.socket_number(path) {
        Some(fd) => format!("fd={fd}"),
        None => format!("path={}", value(path.as_str())),
    }
}

/// A value inside an option's comma-separated list: commas are doubled (`qemu-option` syntax).
fn value(text: &str) -> String {
    text.replace(',', ",,")
}

fn accelerator(words: &mut Words, accelerator: Accelerator) {
    match accelerator {
        Accelerator::Kvm => {
            words.add("-accel", "kvm");
            words.add("-cpu", "host");
        }
        Accelerator::Tcg => {
            // Unbounded, the translation cache takes up to 1 GB of the host's memory; 64 MiB costs no time.
            words.add("-accel", "tcg,tb-size=64");
            words.add("-cpu", "max");
        }
    }
}

/// Where the kernel speaks before hvc0 is there. After `quiet` that is errors alone: why it panics. The port is the debug
/// console's of Bochs. It is set up like a serial port's (`early_serial_hw_init` in arch/x86/kernel/early_printk.c), which
/// writes the divisor to it: 0, from a rate above 115,200, does no harm. It stays beside hvc0 (`keep`): a kernel that halts has
/// shut hvc0 down before it says so, and would count as running for ever.
const EARLY_CONSOLE: &str = "earlyprintk=serial,0xe9,230400,keep";

/// TCG's timers come late where the host is busy, and say nothing of the machine:
///
/// - `no_timer_check`: the timer's interrupt is not given up on (`check_timer` in arch/x86/kernel/apic/io_apic.c panics)
/// - `tsc=reliable`: the TSC, which is the host's, is not given up for ticks that are late or lost (`clocksource_watchdog`
///   in kernel/time/clocksource.c, `check_tsc_sync_source` in arch/x86/kernel/tsc_sync.c)
/// - `rcu_cpu_stall_suppress`: a CPU that did not run has not hung
///
/// Detectors of lockups and hung tasks are not in the lean kernel, and panic in none unless asked to. Under KVM the kernel
/// does the first by itself, and knows when it was stopped (arch/x86/kernel/kvm.c).
const LATE_TIMERS: &str = "no_timer_check tsc=reliable rcupdate.rcu_cpu_stall_suppress=1";

fn kernel(words: &mut Words, machine: &Machine, inherited: &Inherited) {
    // reboot=t: a triple fault, which `-no-reboot` turns into QEMU's end. panic=-1: at once.
    let mut command_line = format!("quiet {EARLY_CONSOLE} console=hvc0 reboot=t panic=-1 acpi=off");
    if machine.accelerator == Accelerator::Tcg {
        command_line.push(' ');
        command_line.push_str(LATE_TIMERS);
    }
    if machine.initramfs.is_none() {
        command_line.push_str(" root=/dev/vda rw");
    }
    for argument in &machine.kernel_arguments {
        command_line.push(' ');
        command_line.push_str(argument);
    }
    words.add("-kernel", inherited.file(&machine.kernel));
    if let Some(initramfs) = &machine.initramfs {
        words.add("-initrd", inherited.file(initramfs));
    }
    words.add("-append", command_line);
}

/// The stream that the console is on, as a file.
pub const STDOUT: &str = "/dev/stdout";

/// A device that takes bytes and gives none, on the same stream as the console: it is heard for the same verdicts.
fn early_console(words: &mut Words, inherited: &Inherited) {
    let stdout = inherited.file(Utf8Path::new(STDOUT));
    words.add("-chardev", format!("file,id=early,path={},append=on", value(&stdout)));
    words.add("-device", "isa-debugcon,iobase=0xe9,chardev=early");
}

/// All ports sit on one device, since slots are few.
fn serial(words: &mut Words, machine: &Machine, inherited: &Inherited) {
    words.add("-device", "virtio-serial-device");
    // signal=off: what is typed, Ctrl-C included, is the guest's.
    words.add("-chardev", "stdio,id=console,signal=off");
    words.add("-device", "virtconsole,chardev=console");
    if let Some(path) = &machine.agent_socket {
        words.add("-chardev", format!("socket,id=agent,{}", socket(inherited, path)));
        words.add("-device", format!("virtserialport,chardev=agent,name={}", init::protocol::PORT_NAME));
    }
}

fn block(words: &mut Words, inherited: &Inherited, index: usize, disk: &Disk) {
    let format = disk.format.name();
    let file = value(&inherited.file(&disk.path));
    let mut drive = format!("id=disk{index},file={file},format={format},if=none");
    if let Some(Base { path, format }) = &disk.base {
        // In place of the name that is in the overlay's header.
        let (format, file) = (format.name(), value(&inherited.file(path)));
        drive.push_str(&format!(
            ",backing.driver={format},backing.file.driver=file,backing.file.filename={file}"
        ));
    }
    // Freed blocks of the guest become holes of the file. Where the host's disk is full the guest's write fails; QEMU's
    // default is to stop the guest, for good where nobody is there to go on with it.
    drive.push_str(",discard=unmap,werror=report");
    if disk.read_only {
        drive.push_str(",readonly=on");
    }
    if disk.snapshot {
        drive.push_str(",snapshot=on");
    }
    words.add("-drive", drive);
    words.add("-device", format!("virtio-blk-device,drive=disk{index}"));
}

fn network(words: &mut Words, inherited: &Inherited, network: &Network) {
    let Network::User { ports, guard } = network else { return };
    let mut netdev = String::from("user,id=net0");
    for port in ports {
        netdev.push_str(",hostfwd=");
        netdev.push_str(&forward(port));
    }
    words.add("-netdev", netdev);
    words.add("-device", "virtio-net-device,netdev=net0");
    if let Some(guard) = guard {
        // The words are the network's, not the guest's: it receives what leaves.
        redirect(words, inherited, "leave", "rx", &guard.leaving());
        if guard.with_arriving {
            redirect(words, inherited, "arrive", "tx", &guard.arriving());
        }
    }
}

/// Frames of one direction go out by one socket and come back by the other.
fn redirect(words: &mut Words, inherited: &Inherited, id: &str, queue: &str, [out, back]: &[Utf8PathBuf; 2]) {
    words.add("-chardev", format!("socket,id={id}-out,{}", socket(inherited, out)));
    words.add("-chardev", format!("socket,id={id}-back,{}", socket(inherited, back)));
    let ends = format!("outdev={id}-out,indev={id}-back");
    words.add("-object", format!("filter-redirector,id={id},netdev=net0,queue={queue},{ends}"));
}

fn private_network(words: &mut Words, inherited: &Inherited, network: Option<&PrivateNetwork>) {
    let Some(network) = network else { return };
    let own = members::socket(&network.folder, network.number);
    let end = match inherited.socket_number(&own) {
        Some(fd) => format!("type=fd,local.str={fd}"),
        None => format!("type=unix,local.path={}", value(own.as_str())),
    };
    words.add("-netdev", format!("dgram,id=net1,local.{end}"));
    words.add("-device", format!("virtio-net-device,netdev=net1,mac={}", network.mac()));
}

fn forward(port: &PublishedPort) -> String {
    format!("{}:{}:{}-:{}", port.protocol, port.address, port.host, port.guest)
}

fn plan9(words: &mut Words, index: usize, share: &Share) {
    // security_model=none: files belong to whoever runs QEMU, as with a bind mount for one's own containers.
    // multidevs=remap: inode numbers stay unique where the folder spans file systems.
    let mut fsdev =
        format!("local,id=fs{index},path={},security_model=none,multidevs=remap", value(share.path.as_str()));
    if share.read_only {
        fsdev.push_str(",readonly=on");
    }
    words.add("-fsdev", fsdev);
    words.add("-device", format!("virtio-9p-device,fsdev=fs{index},mount_tag={}", value(&share.tag)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::machine::{GuardSockets, static_address};

    fn machine() -> Machine {
        Machine {
            kernel: "/cache/vmlinux".into(),
            initramfs: Some("/run/initramfs.cpio".into()),
            kernel_arguments: vec![static_address("web")],
            accelerator: Accelerator::Tcg,
            memory_mib: 256,
            cpus: 1,
            agent_socket: Some("/run/agent.sock".into()),
            disks: vec![Disk {
                path: "/cache/overlay.qcow2".into(),
                format: crate::vm::machine::DiskFormat::Qcow2,
                read_only: false,
                snapshot: false,
                base: Some(Base {
                    path: "/cache/disk.ext4".into(),
                    format: crate::vm::machine::DiskFormat::Raw,
                }),
            }],
            shares: Vec::new(),
            network: Network::User { ports: vec!["8080:80".parse().unwrap()], guard: None },
            private_network: None,
            gdb_socket: None,
        }
    }

    fn command_line(machine: &Machine) -> String {
        paste(PROGRAM, &arguments(machine, &Inherited::default()))
    }

    #[test]
    fn a_web_server() {
        insta::assert_snapshot!(command_line(&machine()));
    }

    #[test]
    fn a_machine_with_everything() {
        let volume = Disk {
            path: "/volumes/a,b".into(),
            format: crate::vm::machine::DiskFormat::Raw,
            read_only: true,
            snapshot: true,
            base: None,
        };
        let share = Share { tag: "share0".into(), path: "/home/me/my site".into(), read_only: true };
        let ports = vec!["0.0.0.0:53:53/udp".parse().unwrap(), "8443:443".parse().unwrap()];
        let mut everything = machine();
        everything.disks.push(volume);
        everything.shares.push(share);
        let guard = Some(GuardSockets { folder: "/run/web".into(), with_arriving: true, allows_host: false });
        everything.network = Network::User { ports, guard };
        everything.private_network = Some(PrivateNetwork { folder: "/run/networks/lan".into(), number: 2 });
        everything.gdb_socket = Some("/run/web/gdb".into());
        everything.accelerator = Accelerator::Kvm;
        everything.cpus = 4;
        insta::assert_snapshot!(command_line(&everything));
    }

    #[test]
    fn a_disk_with_an_init_of_its_own() {
        let recipe = Machine {
            initramfs: None,
            agent_socket: None,
            network: Network::None,
            kernel_arguments: Vec::new(),
            ..machine()
        };
        insta::assert_snapshot!(command_line(&recipe));
    }

    #[test]
    fn words_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quote("a=b,c:/d"), "a=b,c:/d");
        assert_eq!(quote("it's a $HOME"), r"'it'\''s a $HOME'");
        assert_eq!(quote(""), "''");
    }
}
