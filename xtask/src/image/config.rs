//! An image's config (OCI image spec, `config.md`; docker's images have the same), and what `docker run`'s rules
//! make of it together with the command line.

use std::collections::BTreeMap;

use anyhow::ensure;
use init::boot_config::Command;
use serde::{Deserialize, Serialize};

/// Docker's default where an image sets no PATH (moby, `oci/defaults.go`).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The config file of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `amd64`, `arm64`, … in Go's words; empty where there is no config.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// When the image was made, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// How a container of it runs.
    pub config: RunConfig,
    /// The layers' digests.
    pub rootfs: RootFs,
}

/// How a container of an image runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `80/tcp` and the like.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// What is always run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, or the command where there is no entry point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Paths that hold data which outlives the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub volumes: BTreeMap<String, Empty>,
    /// Where the command starts; empty for `/`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free words about the image.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// `SIGQUIT`, `QUIT` or `3`; empty for SIGTERM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Docker's own: how to see whether the container is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// Docker's health check; times are in nanoseconds, 0 for docker's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["CMD", program, argument…]`, `["CMD-SHELL", script]` or `["NONE"]`.
    #[serde(deserialize_with = "nullable")]
    pub test: Vec<String>,
    /// Between checks.
    pub interval: i64,
    /// For one check.
    pub timeout: i64,
    /// In which failures do not count.
    pub start_period: i64,
    /// Between checks in that time.
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    pub retries: i64,
}

/// The layers' digests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Of the uncompressed layers, bottom first.
    #[serde(deserialize_with = "nullable")]
    pub diff_ids: Vec<String>,
}

/// The `{}` that sets have as values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Docker writes `null` for what is empty.
fn nullable<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// What the command line of `boot` says beside the image; the same flags as `docker run`'s.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--entrypoint`; an empty string takes the image's away.
    pub entrypoint: Option<String>,
    /// Words after the image; none leaves the image's CMD.
    pub command: Vec<String>,
    /// `-e` and `--env-file`, in order: `NAME=value`. Those without a value are resolved by the caller.
    pub env: Vec<String>,
    /// `-w`.
    pub workdir: Option<String>,
    /// `-u`.
    pub user: Option<String>,
    /// `-t`: a terminal, and so a TERM.
    pub terminal: bool,
}

impl ImageConfig {
    /// What to run, by docker's rules. `None` where neither the image nor the command line names a program.
    ///
    /// HOME is not set here: only the guest knows its own `/etc/passwd`.
    pub fn resolve(&self, overrides: &Overrides) -> anyhow::Result<Option<Command>> {
        let run = &self.config;
        let mut argv = match &overrides.entrypoint {
            Some(program) if program.is_empty() => Vec::new(),
            Some(program) => vec![program.clone()],
            None => run.entrypoint.clone().unwrap_or_default(),
        };
        // An entry point of the command line takes the image's CMD away too: it was meant for the other program.
        if !overrides.command.is_empty() {
            argv.extend(overrides.command.iter().cloned());
        } else if overrides.entrypoint.is_none() {
            argv.extend(run.cmd.clone().unwrap_or_default());
        }
        if argv.is_empty() {
            return Ok(None);
        }
        let cwd = overrides.workdir.as_ref().unwrap_or(&run.working_dir);
        ensure!(
            cwd.is_empty() || cwd.starts_with('/'),
            "the working directory `{cwd}` is not an absolute path"
        );
        Ok(Some(Command {
            argv,
            env: self.environment(overrides),
            cwd: cwd.clone(),
            user: overrides.user.clone().unwrap_or_else(|| run.user.clone()),
        }))
    }

    /// The environment: defaults, then the image's, then the command line's; the last word on a name counts.
    pub fn environment(&self, overrides: &Overrides) -> Vec<String> {
        let defaults = [format!("PATH={DEFAULT_PATH}")];
        let terminal = overrides.terminal.then(|| "TERM=xterm".to_owned());
        let mut env: Vec<String> = Vec::new();
        for pair in defaults.iter().chain(&terminal).chain(&self.config.env).chain(&overrides.env) {
            let name = pair.split_once('=').map_or(pair.as_str(), |(name, _)| name);
            let is_same = |known: &String| known.split_once('=').is_some_and(|(known, _)| known == name);
            match env.iter_mut().find(|known| is_same(known)) {
                Some(known) => known.clone_from(pair),
                None => env.push(pair.clone()),
            }
        }
        env
    }

    /// Errors where a container of this image cannot run here.
    pub fn check_platform(&self) -> anyhow::Result<()> {
        let ImageConfig { architecture, os, .. } = self;
        ensure!(
            matches!(architecture.as_str(), "amd64" | ""),
            "the image is for the architecture `{architecture}`, and the machine is `amd64`"
        );
        ensure!(matches!(os.as_str(), "linux" | ""), "the image is for `{os}`, and the machine runs `linux`");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nginx() -> ImageConfig {
        serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","config":{"ExposedPorts":{"80/tcp":{}},
            "Env":["PATH=/usr/sbin:/bin","NGINX_VERSION=1.21.0"],"Entrypoint":["/docker-entrypoint.sh"],
            "Cmd":["nginx","-g","daemon off;"],"StopSignal":"SIGQUIT","Volumes":null,"User":"www","WorkingDir":"/srv","Labels":{"a":"b"},
            "Healthcheck":{"Test":["CMD-SHELL","curl -f http://localhost/"],"Interval":5000000000,"Retries":2}},
            "rootfs":{"type":"layers","diff_ids":["sha256:aa"]},"history":[]}"#,
        )
        .unwrap()
    }

    fn argv(overrides: Overrides) -> Option<Vec<String>> {
        nginx().resolve(&overrides).unwrap().map(|command| command.argv)
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn entrypoint_and_cmd_follow_docker() {
        let run = |entrypoint: Option<&str>, command: &str| {
            argv(Overrides {
                entrypoint: entrypoint.map(str::to_owned),
                command: words(command),
                ..Default::default()
            })
            .map(|argv| argv.join(" "))
        };
        assert_eq!(run(None, "").unwrap(), "/docker-entrypoint.sh nginx -g daemon off;");
        assert_eq!(run(None, "ls -l").unwrap(), "/docker-entrypoint.sh ls -l");
        assert_eq!(run(Some("sh"), "").unwrap(), "sh");
        assert_eq!(run(Some("sh"), "-c id").unwrap(), "sh -c id");
        assert_eq!(run(Some(""), "id").unwrap(), "id");
        assert_eq!(run(Some(""), ""), None);
    }

    #[test]
    fn the_last_word_on_a_variable_counts() {
        let overrides = Overrides {
            env: words("NGINX_VERSION=2 A=1 A=2"),
            terminal: true,
            user: Some("0:0".into()),
            ..Default::default()
        };
        let command = nginx().resolve(&overrides).unwrap().unwrap();
        assert_eq!(command.env, words("PATH=/usr/sbin:/bin TERM=xterm NGINX_VERSION=2 A=2"));
        assert_eq!((command.cwd.as_str(), command.user.as_str()), ("/srv", "0:0"));
        assert_eq!(
            ImageConfig::default().environment(&Overrides::default()),
            [format!("PATH={DEFAULT_PATH}")]
        );
    }

    #[test]
    fn another_architecture_is_refused_by_name() {
        let arm = ImageConfig { architecture: "arm64".into(), os: "linux".into(), ..Default::default() };
        assert!(arm.check_platform().unwrap_err().to_string().contains("`arm64`"));
        nginx().check_platform().unwrap();
        ImageConfig::default().check_platform().unwrap();
    }

    #[test]
    fn a_relative_workdir_is_an_error() {
        let overrides = Overrides { workdir: Some("srv".into()), ..Default::default() };
        assert!(nginx().resolve(&overrides).is_err());
    }

    #[test]
    fn config_survives_the_way_to_the_disk_and_back() {
        let json = serde_json::to_string(&nginx()).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&json).unwrap(), nginx());
        assert!(json.contains(r#""ExposedPorts":{"80/tcp":{}}"#), "{json}");
        let check = nginx().config.healthcheck.unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "curl -f http://localhost/"]);
        assert_eq!((check.interval, check.timeout, check.retries), (5_000_000_000, 0, 2));
    }
}
