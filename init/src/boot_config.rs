//! This boot's settings, written by the host as `/boot.json` into the initramfs and read by PID 1.
//!
//! A change of command, variable or mount is a new `boot.json`, never a new disk. Unknown fields are refused, so
//! that a host and an `init` of different versions say so instead of misunderstanding each other.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Where the initramfs holds the settings.
pub const BOOT_CONFIG_PATH: &str = "/boot.json";

/// The form of [`BootConfig`]; raised whenever a field changes its meaning.
pub const BOOT_CONFIG_VERSION: u32 = 2;

/// Everything PID 1 needs to know about this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// [`BOOT_CONFIG_VERSION`] of the writer.
    pub version: u32,
    /// The guest's host name, as `uname -n` prints it and `/etc/hostname` holds it.
    pub hostname: String,
    /// The root file system.
    pub root: Root,
    /// What is mounted on top of the root and of the standard mounts, in this order.
    pub mounts: Vec<Mount>,
    /// Contents for `/etc/hosts` and `/etc/resolv.conf`, beside `/etc/hostname`; `None` leaves the image's own.
    pub network: Option<Network>,
    /// The main process. `None` hands over to the image's own `/sbin/init.sh`.
    pub command: Option<Command>,
    /// What the main process's standard streams are.
    pub stdio: Stdio,
    /// The signal that asks the main process to end (number, 1..=64); OCI `StopSignal`, SIGTERM by default.
    pub stop_signal: i32,
    /// Print each step of PID 1 with the time since boot.
    pub trace: bool,
}

/// The root file system's device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Device node, `/dev/vda`.
    pub device: String,
    /// File system type, `ext4`.
    pub fstype: String,
    /// Mount it read-only.
    pub read_only: bool,
}

/// One mount of the user's, made after the root and the standard mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "snake_case")]
pub enum Mount {
    /// A host folder over virtio-9p; several mounts may be of one tag.
    Share {
        /// The device's `mount_tag`.
        tag: String,
        /// Where in the guest; created where missing.
        target: String,
        /// Refuse writes.
        read_only: bool,
        /// Only this file of the shared folder is mounted, at `target`.
        file: Option<String>,
        /// Failure ends the boot; otherwise it is reported by name and passed over.
        required: bool,
    },
    /// A fresh tmpfs.
    Tmpfs {
        /// Where in the guest; created where missing.
        target: String,
        /// Mount options such as `size=64m,mode=1777`, after docker's own; `tmpcopyup`, as runc calls it, starts
        /// with what the image has there.
        options: String,
    },
    /// A named volume: a disk that starts with what the image holds at `target`, as docker's volumes do.
    Volume {
        /// Device node such as `/dev/vdb`.
        device: String,
        /// File system type, `ext4`.
        fstype: String,
        /// Where in the guest; created where missing.
        target: String,
        /// Mount it read-only.
        read_only: bool,
    },
}

/// Name resolution inside the guest. The address itself is the kernel's business (`ip=` on its command line).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// `/etc/hosts` entries beside localhost: address, names.
    pub hosts: Vec<(String, Vec<String>)>,
    /// `/etc/resolv.conf` name servers.
    pub nameservers: Vec<String>,
    /// The interface to other machines.
    pub private: Option<PrivateNetwork>,
}

/// The guest's second interface, which PID 1 brings up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivateNetwork {
    /// The interface's hardware address, as `/sys/class/net/*/address` shows it.
    pub mac: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Bits of the network's address.
    pub prefix_length: u8,
    /// Lines for `/etc/hosts` of the machines that are there already.
    pub hosts: String,
}

/// A process to run, in the OCI image config's terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program and arguments; the program is looked up in `env`'s PATH inside the guest.
    pub argv: Vec<String>,
    /// `NAME=value` pairs, complete but for what only the guest knows (HOME).
    pub env: Vec<String>,
    /// Working directory, created where missing; empty means `/`.
    pub cwd: String,
    /// OCI `User`: `user`, `uid`, `user:group`, `uid:gid` or empty for root; resolved in the image's own files.
    pub user: String,
}

/// What the main process's standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "snake_case")]
pub enum Stdio {
    /// Streams carried by the agent's port to the host.
    Agent {
        /// A pseudo-terminal in place of three pipes.
        tty: bool,
        /// Keep standard input open; otherwise it is `/dev/null`.
        stdin: bool,
    },
    /// The machine's console (hvc0), for a machine that is started by hand.
    Console,
}

impl BootConfig {
    /// Reads the settings, refusing another version's.
    pub fn parse(json: &[u8]) -> Result<BootConfig, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if versioned.version != BOOT_CONFIG_VERSION {
            return Err(format!(
                "boot settings have version {}, this init reads version {BOOT_CONFIG_VERSION}",
                versioned.version
            ));
        }
        serde_json::from_slice(json).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_another_version_are_refused_before_they_are_read() {
        let error = BootConfig::parse(br#"{"version":1,"whatever":[]}"#).unwrap_err();
        assert_eq!(
            error,
            format!("boot settings have version 1, this init reads version {BOOT_CONFIG_VERSION}")
        );
        let ours = format!(r#"{{"version":{BOOT_CONFIG_VERSION},"whatever":[]}}"#);
        let error = BootConfig::parse(ours.as_bytes()).unwrap_err();
        assert!(error.contains("unknown field `whatever`"), "{error}");
    }
}
