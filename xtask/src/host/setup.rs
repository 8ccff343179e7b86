//! Installs what is missing: asks first, or says the exact command. Debian's `apt-get` is the one way it knows.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use super::tools::{self, Purpose, Tool};
use crate::error::Hint as _;
use crate::{note, ui};

/// Asks nothing, and waits for another program that installs (seconds).
const APT_GET: &[&str] =
    &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"];

/// Whether packages may be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// `--yes`.
    Given,
    /// Ask on a terminal; elsewhere stop with the command to run.
    Ask,
}

/// apt may take one tool away to bring another, such as a newer qemu-utils for the qemu-system-x86 that it has. What was
/// taken away is installed in the next round, in the version that fits.
const ROUNDS: usize = 3;

/// Makes sure that all tools for some work are on this host. True if something had to be installed.
///
/// Errors where the user declines, where there is no apt, where it fails, and where a tool is still missing afterwards.
pub fn require(purposes: &[Purpose], consent: Consent) -> anyhow::Result<bool> {
    for round in 0..ROUNDS {
        let missing = tools::missing(purposes);
        if missing.is_empty() {
            return Ok(round > 0);
        }
        install(&missing, consent)?;
    }
    match tools::missing(purposes).first() {
        Some(tool) => bail!("`{}` is missing again after other packages were installed", tool.name()),
        None => Ok(true),
    }
}

/// Installs the packages that bring these tools.
fn install(missing: &[Tool], consent: Consent) -> anyhow::Result<()> {
    let names = missing.iter().map(|tool| format!("`{}`", tool.name())).collect::<Vec<_>>().join(", ");
    let packages: BTreeSet<&str> = missing.iter().map(|tool| tool.package).collect();
    if tools::find("apt-get").is_none() {
        return Err(anyhow::anyhow!("missing on this host: {names}"))
            .hint("this distribution has no apt-get: install them with its own package manager");
    }
    install_packages(&packages.into_iter().collect::<Vec<_>>(), &names, consent)?;
    match missing.iter().find(|tool| tool.is_missing()) {
        Some(tool) => {
            bail!("`{}` is still missing after the package {} was installed", tool.name(), tool.package)
        }
        None => Ok(()),
    }
}

/// Installs Debian packages by name. `reason` says what they bring.
pub fn install_packages(packages: &[&str], reason: &str, consent: Consent) -> anyhow::Result<()> {
    let command = install_command(packages, rustix::process::geteuid().is_root());
    if !is_agreed(consent, reason, &command)? {
        return Err(anyhow::anyhow!("missing on this host: {reason}"))
            .hint(format!("run `{command}`, or the same task with `--yes`"));
    }
    let sudo: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["sudo"] };
    if !sudo.is_empty() && tools::find("sudo").is_none() {
        return Err(anyhow::anyhow!("installing packages needs root, and there is no sudo"))
            .hint(format!("as root, run `{}`", install_command(packages, true)));
    }
    note!("installing {}", packages.join(" "));
    // apt's talk belongs on standard error, with ours.
    let apt_get = |arguments: &[&str]| {
        let words = sudo.iter().chain(APT_GET).chain(arguments);
        let words: Vec<&str> = words.copied().collect();
        duct::cmd(words[0], &words[1..]).stdin_null().stdout_to_stderr().run()
    };
    // A fresh machine may have no package lists.
    let mut is_updated = false;
    if packages.iter().any(|package| offered_version(package).is_none()) {
        update(&apt_get);
        is_updated = true;
    }
    let install: Vec<&str> =
        ["install", "-y", "--no-install-recommends"].iter().chain(packages).copied().collect();
    let mut result = apt_get(&install);
    if result.is_err() && !is_updated {
        // Old lists name files that the mirror no longer has.
        update(&apt_get);
        result = apt_get(&install);
    }
    result
        .with_context(|| format!("failed to install {}", packages.join(" ")))
        .hint(format!("run `{command}` by hand"))?;
    Ok(())
}

/// Where the package lists cannot be renewed, those that are there may do.
fn update(apt_get: &impl Fn(&[&str]) -> std::io::Result<std::process::Output>) {
    if let Err(error) = apt_get(&["update"]) {
        note!("apt-get update failed ({error}); going on with the package lists that are there");
    }
}

/// The command a user would type.
fn install_command(packages: &[&str], is_root: bool) -> String {
    let sudo = if is_root { "" } else { "sudo " };
    format!("{sudo}apt-get install --no-install-recommends {}", packages.join(" "))
}

fn is_agreed(consent: Consent, reason: &str, command: &str) -> anyhow::Result<bool> {
    if consent == Consent::Given {
        return Ok(true);
    }
    if !ui::is_interactive() {
        return Ok(false);
    }
    ui::ask(&format!("missing on this host: {reason}\nrun `{command}`? [Y/n] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("failed to read the answer")?;
    // End of input is no answer.
    Ok(answer.ends_with('\n') && matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// The version that a Debian package would be installed at, or `None` where apt does not offer it.
pub fn offered_version(package: &str) -> Option<String> {
    let shell = Shell::new().ok()?;
    let policy = cmd!(shell, "apt-cache policy {package}").quiet().ignore_stderr().read().ok()?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (candidate != "(none)").then(|| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_the_one_a_user_can_paste() {
        assert_eq!(
            install_command(&["flex", "bison"], false),
            "sudo apt-get install --no-install-recommends flex bison"
        );
        assert_eq!(install_command(&["bc"], true), "apt-get install --no-install-recommends bc");
    }
}
