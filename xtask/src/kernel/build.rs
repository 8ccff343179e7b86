//! Configures and compiles a kernel tree into a folder of its own, with the tree left as it is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use camino::Utf8Path;
use duct::Expression;

use super::config::{self, Setting};
use super::kconfig::Symbols;
use crate::artifact::{create_folder, read_text, remove_any};
use crate::error::Hint as _;
use crate::host::process::run_watched;
use crate::{note, ui};

/// Options of the shipped configs that some kernel versions have and refuse, with the reason.
const MAY_LACK: &[&str] = &[
    // before Linux 6.10 only with MODULES, which the microvm config leaves out: filters are interpreted then
    "CONFIG_BPF_JIT",
    // later only with EFI_STUB, which the recipe's config leaves out
    "CONFIG_AMD_MEM_ENCRYPT",
];

/// Variables of the user's that would make another kernel of the same request.
const FOREIGN_VARIABLES: &[&str] = &[
    "CROSS_COMPILE",
    "LLVM",
    "CC",
    "KCFLAGS",
    "KCPPFLAGS",
    "KBUILD_OUTPUT",
    "KCONFIG_CONFIG",
    "KCONFIG_ALLCONFIG",
    "LOCALVERSION",
    "MAKEFLAGS",
    "MFLAGS",
    "V",
    "W",
    "C",
    "O",
];

/// What the final config starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// `make tinyconfig`: everything off.
    Tiny,
    /// The kernel's own defaults.
    Defaults,
}

/// A source tree and the folder that is built in.
#[derive(Debug, Clone, Copy)]
pub struct Build<'a> {
    /// Read only.
    pub tree: &'a Utf8Path,
    /// Everything that make writes.
    pub folder: &'a Utf8Path,
}

impl Build<'_> {
    /// Writes the final `.config` and returns it.
    ///
    /// Errors where a setting that was asked for did not take; each is named.
    pub fn configure(&self, base: Base, settings: &[Setting]) -> anyhow::Result<String> {
        create_folder(self.folder)?;
        let bar = ui::spinner("configuring the kernel");
        let path = self.folder.join(".config");
        remove_any(&path)?;
        let mut start = String::new();
        if base == Base::Tiny {
            self.run("make tinyconfig", self.make(&["tinyconfig"]), |_| {})?;
            start = read_text(&path)?;
        }
        std::fs::write(&path, config::apply(&start, settings))
            .with_context(|| format!("failed to write `{path}`"))?;
        self.run("make olddefconfig", self.make(&["olddefconfig"]), |_| {})?;
        let result = read_text(&path)?;
        bar.finish_and_clear();

        let outcome = config::check(settings, &result, &Symbols::scan(self.tree), MAY_LACK);
        if !outcome.lacking.is_empty() {
            note!("this kernel goes without {}", outcome.lacking.join(" "));
        }
        if !outcome.failures.is_empty() {
            let count = outcome.failures.len();
            let options = if count == 1 { "option" } else { "options" };
            return Err(anyhow!("{}", outcome.failures.join("\n")))
                .with_context(|| format!("{count} kernel config {options} did not take"))
                .hint(
                    "`olddefconfig` drops an option whose dependencies are not met: ask for those as well",
                );
        }
        Ok(result)
    }

    /// Compiles `vmlinux` and `bzImage`. `expected_steps` is how many steps it took before, or a guess.
    ///
    /// Returns the number of steps that make reported, and the time.
    pub fn compile(&self, what: &str, expected_steps: u64) -> anyhow::Result<(u64, Duration)> {
        let started = Instant::now();
        let bar = ui::step_bar(&format!("compiling {what}"), expected_steps);
        let mut steps = 0;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let result =
            self.run("make bzImage", self.make(&[&format!("-j{jobs}"), "vmlinux", "bzImage"]), |line| {
                if is_step(line) {
                    steps += 1;
                    // The guess was too low: the work goes on, so the bar grows.
                    bar.set_length(expected_steps.max(steps + 1));
                    bar.set_position(steps);
                }
            });
        bar.finish_and_clear();
        result?;
        for output in ["vmlinux", "arch/x86/boot/bzImage"] {
            if !self.folder.join(output).is_file() {
                bail!("make succeeded, and there is no `{output}`");
            }
        }
        Ok((steps, started.elapsed()))
    }

    fn make(&self, arguments: &[&str]) -> Expression {
        let words = ["-C", self.tree.as_str(), &format!("O={}", self.folder), "ARCH=x86_64"];
        let mut make = duct::cmd("make", words.iter().chain(arguments));
        for variable in FOREIGN_VARIABLES {
            make = make.env_remove(variable);
        }
        // The same request gives the same bytes, whoever builds it and when.
        make.env("LC_ALL", "C")
            .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
            .env("KBUILD_BUILD_VERSION", "1")
            .env("KBUILD_BUILD_USER", "microvm")
            .env("KBUILD_BUILD_HOST", "workbench")
    }

    fn run(&self, what: &str, make: Expression, on_line: impl FnMut(&str)) -> anyhow::Result<()> {
        let Err(error) = run_watched(&format!("`{what}`"), &make, on_line) else { return Ok(()) };
        if format!("{error:#}").contains("No space left on device") {
            // What was built so far is what fills the disk.
            remove_any(self.folder)?;
            return Err(error)
                .hint(format!("the disk is full; the half build in `{}` was removed", self.folder));
        }
        Err(error)
    }
}

/// True for a line such as `  CC      init/main.o`.
fn is_step(line: &str) -> bool {
    line.strip_prefix("  ").and_then(|rest| rest.split_once(' ')).is_some_and(|(word, _)| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_talk() {
        assert!(is_step("  CC      init/main.o"));
        assert!(is_step("  HOSTCC  scripts/basic/fixdep"));
        assert!(!is_step("make[1]: Entering directory '/x'"));
        assert!(!is_step("  100 | int x;"));
        assert!(!is_step("Kernel: arch/x86/boot/bzImage is ready  (#1)"));
    }
}
