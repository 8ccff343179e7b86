//! Which boot this is: the host's settings from the initramfs, or, for an image that carries this program as its own
//! `/sbin/init`, what such images have always been given.

use init::boot_config::{BOOT_CONFIG_VERSION, BootConfig, Command, Mount, Root, Stdio};
use init::protocol::Failure;

use crate::program::{NOT_FOUND, failure};

/// The script that an image without a command brings.
pub(crate) const SCRIPT: &str = "/sbin/init.sh";

/// The `mount_tag` of the share that such images expect, and where.
pub(crate) const SHARE_TAG: &str = "myMountTag";
const SHARE_TARGET: &str = "/usr/share/nginx/html";

/// The search path that [`SCRIPT`] has always been given.
const SCRIPT_PATH: &str = "PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin";

/// The settings of an image that the kernel booted by itself, from `root=` on its command line.
pub(crate) fn without_file(share_is_offered: bool) -> BootConfig {
    let share = Mount::Share {
        tag: SHARE_TAG.into(),
        target: SHARE_TARGET.into(),
        read_only: false,
        file: None,
        required: false,
    };
    BootConfig {
        version: BOOT_CONFIG_VERSION,
        hostname: "microvm".into(),
        // Mounted by the kernel.
        root: Root { device: "/dev/root".into(), fstype: String::new(), read_only: false },
        mounts: if share_is_offered { vec![share] } else { Vec::new() },
        network: None,
        command: None,
        stdio: Stdio::Console,
        stop_signal: 15,
        trace: false,
    }
}

/// The main process's command: the settings' own, or the image's script with the kernel's arguments to init.
///
/// # Errors
/// There is neither.
pub(crate) fn main_command(
    config: &BootConfig,
    arguments: &[String],
    script_exists: bool,
) -> Result<Command, Failure> {
    match &config.command {
        Some(command) => Ok(command.clone()),
        None if script_exists => Ok(Command {
            argv: ["/bin/sh".into(), SCRIPT.into()].into_iter().chain(arguments.iter().cloned()).collect(),
            env: vec![SCRIPT_PATH.into()],
            cwd: "/".into(),
            user: String::new(),
        }),
        None => Err(failure(NOT_FOUND, format!("there is no command, and the image has no `{SCRIPT}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_its_own_init_runs_its_script() {
        let config = without_file(false);
        assert_eq!((config.hostname.as_str(), config.stdio), ("microvm", Stdio::Console));
        assert!(config.mounts.is_empty());
        let command = main_command(&config, &["one".into(), "two".into()], true).unwrap();
        assert_eq!(command.argv, ["/bin/sh", "/sbin/init.sh", "one", "two"]);
        assert_eq!(command.env, ["PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"]);

        let failure = main_command(&config, &[], false).unwrap_err();
        assert_eq!(failure.code, 127);
        assert_eq!(failure.message, "there is no command, and the image has no `/sbin/init.sh`");
    }

    #[test]
    fn the_share_is_mounted_where_it_is_offered() {
        let [Mount::Share { tag, target, required: false, .. }] = &without_file(true).mounts[..] else {
            panic!()
        };
        assert_eq!((tag.as_str(), target.as_str()), ("myMountTag", "/usr/share/nginx/html"));
    }

    #[test]
    fn a_command_of_the_settings_takes_no_arguments_from_the_kernel() {
        let command =
            Command { argv: vec!["x".into()], env: vec![], cwd: String::new(), user: String::new() };
        let config = BootConfig { command: Some(command.clone()), ..without_file(false) };
        assert_eq!(main_command(&config, &["quiet".into()], false).unwrap(), command);
    }
}
