//! PID 1 of a machine that is an enemy of its host. The main process's first word names the attack ([`attacks`]); the
//! host's tests hold what each of them may achieve: nothing.

mod attacks;
mod port;

use std::fs;
use std::time::Duration;

use init::boot_config::{BOOT_CONFIG_PATH, BootConfig};
use rustix::mount::{MountFlags, mount};

fn main() {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        // The console tells of whatever needs it and has it not.
        let _ = mount(kind, target, kind, MountFlags::empty(), None);
    }
    let settings: BootConfig =
        serde_json::from_slice(&fs::read(BOOT_CONFIG_PATH).expect("the settings are there"))
            .expect("the settings are understood");
    let words = settings.command.as_ref().map(|command| command.argv.clone()).unwrap_or_default();
    if attacks::run(&words, &settings, port::Port::open()) == attacks::Then::Ends {
        let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    }
    // The host decides when this machine ends, unless the attack did.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
