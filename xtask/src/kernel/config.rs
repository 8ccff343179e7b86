//! Kernel configs as data: fragments are read, merged and compared with what Kconfig made of them. Pure.
//!
//! A setting is one line, `CONFIG_X=value` or `# CONFIG_X is not set`; the latter is the value `n`. What options
//! exist is [`super::kconfig`]'s to know; running Kconfig is [`super::build`]'s.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use anyhow::bail;

use super::kconfig::Symbols;

/// Who asked for a setting, which decides how much has to come true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A fragment of this repository, written for several kernel versions.
    Shipped,
    /// A whole config, saved from some kernel: it also holds what that kernel computed by itself.
    Whole,
    /// `--fragment` or `--set`.
    User,
}

/// One option and the value it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `CONFIG_X`.
    pub option: String,
    /// As `.config` writes it, strings with their quotes; `n` for "is not set".
    pub value: String,
    /// Where it was asked for, `file:line` or `--set`.
    pub place: String,
    /// Who asked.
    pub origin: Origin,
}

/// Reads a fragment or a whole config; `name` is its path for messages.
///
/// Errors name the first line that is neither a setting, a comment nor empty.
pub fn parse(text: &str, name: &str, origin: Origin) -> anyhow::Result<Vec<Setting>> {
    let mut settings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = format!("{name}:{}", index + 1);
        match parse_line(line) {
            Line::Nothing => {}
            Line::Setting { option, value } => {
                settings.push(Setting { option: option.to_owned(), value: value.to_owned(), place, origin });
            }
            Line::Wrong => {
                let shown: String = line.chars().take(60).filter(|c| !c.is_control()).collect();
                bail!("`{place}` is not a line of a kernel config: `{shown}`")
            }
        }
    }
    Ok(settings)
}

/// Reads the argument of `--set`. A value that is no number, quoted string or y/m/n becomes a string.
pub fn parse_set(argument: &str) -> anyhow::Result<Setting> {
    let Some((option, value)) = argument.split_once('=') else {
        bail!("`--set {argument}` has no value, as in `--set CONFIG_X=y`")
    };
    if !is_option(option) {
        bail!("`--set {argument}` does not name an option, as in `--set CONFIG_X=y`")
    }
    let value =
        if is_value(value) { value.to_owned() } else { format!("\"{}\"", value.replace('"', "\\\"")) };
    Ok(Setting { option: option.to_owned(), value, place: "--set".to_owned(), origin: Origin::User })
}

enum Line<'a> {
    Nothing,
    Setting { option: &'a str, value: &'a str },
    Wrong,
}

fn parse_line(line: &str) -> Line<'_> {
    let line = line.trim();
    if let Some(comment) = line.strip_prefix('#') {
        return match comment.trim().strip_suffix(" is not set").filter(|option| is_option(option)) {
            Some(option) => Line::Setting { option, value: "n" },
            None => Line::Nothing,
        };
    }
    match line.split_once('=') {
        None if line.is_empty() => Line::Nothing,
        Some((option, value)) if is_option(option) && is_value(value) => Line::Setting { option, value },
        _ => Line::Wrong,
    }
}

fn is_option(text: &str) -> bool {
    text.strip_prefix("CONFIG_").is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

fn is_value(text: &str) -> bool {
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    matches!(text, "y" | "m" | "n")
        || (text.len() >= 2 && text.starts_with('"') && text.ends_with('"'))
        || is_number(text.strip_prefix('-').unwrap_or(text))
        || text
            .strip_prefix("0x")
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// One setting for each option: the last one that was asked for.
pub fn merge(settings: Vec<Setting>) -> Vec<Setting> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut merged: Vec<Setting> = Vec::new();
    for setting in settings {
        match places.get(&setting.option) {
            Some(&index) => merged[index] = setting,
            None => {
                places.insert(setting.option.clone(), merged.len());
                merged.push(setting);
            }
        }
    }
    merged
}

/// The text of a `.config` with these settings in place of the base's own.
pub fn apply(base: &str, settings: &[Setting]) -> String {
    let asked: HashMap<&str, &Setting> = settings.iter().map(|s| (s.option.as_str(), s)).collect();
    let mut text = String::new();
    for line in base.lines() {
        if !matches!(parse_line(line), Line::Setting { option, .. } if asked.contains_key(option)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push_str(&render(settings));
    text
}

/// Settings as a `.config` writes them.
pub fn render(settings: &[Setting]) -> String {
    let mut text = String::new();
    for Setting { option, value, .. } in settings {
        // Writing to a string cannot fail.
        let _ = match value.as_str() {
            "n" => writeln!(text, "# {option} is not set"),
            value => writeln!(text, "{option}={value}"),
        };
    }
    text
}

/// The values of a finished `.config`. What is absent is `n`.
pub fn values(config: &str) -> BTreeMap<&str, &str> {
    config
        .lines()
        .filter_map(|line| match parse_line(line) {
            Line::Setting { option, value } => Some((option, value)),
            _ => None,
        })
        .collect()
}

/// What became of the settings that were asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Settings that did not take, each a line for the user.
    pub failures: Vec<String>,
    /// Options that this kernel does not offer, where that is nobody's mistake.
    pub lacking: Vec<String>,
}

/// Compares what was asked for with the config that Kconfig made of it.
///
/// Every setting of the user's has to be there. In shipped fragments and whole configs excused are options that this
/// kernel does not know and what `may_lack` names; in whole configs also options without a prompt, which Kconfig
/// computes.
pub fn check(settings: &[Setting], config: &str, symbols: &Symbols, may_lack: &[&str]) -> Outcome {
    let values = values(config);
    let mut outcome = Outcome::default();
    for Setting { option, value, place, origin } in settings {
        let got = values.get(option.as_str()).copied().unwrap_or("n");
        if got == value {
            continue;
        }
        if *origin != Origin::User && may_lack.contains(&option.as_str()) {
            outcome.lacking.push(option.clone());
            continue;
        }
        let Some(symbol) = symbols.get(option) else {
            if *origin == Origin::User {
                let near = symbols.nearest(option);
                let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                outcome.failures.push(format!("{option} ({place}): this kernel has no such option{near}"));
            } else {
                outcome.lacking.push(option.clone());
            }
            continue;
        };
        if !symbol.has_prompt && *origin == Origin::Whole {
            continue;
        }
        let mut failure = format!("{option} ({place}): wanted {value}, got {got}");
        if !symbol.has_prompt {
            failure.push_str("; the kernel computes this one, it cannot be set");
        } else if value == "m" && got == "y" {
            failure.push_str("; modules are off in this config, it can only be built in");
        } else if got == "n" && !symbol.depends.is_empty() {
            let _ = write!(failure, "; depends on {}", symbol.depends.join(" && "));
        }
        outcome.failures.push(failure);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(text: &str) -> Vec<Setting> {
        parse(text, "f", Origin::User).unwrap()
    }

    #[test]
    fn a_fragment_is_settings_comments_and_empty_lines() {
        let settings = fragment(
            "# why\n\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"a b\"\nCONFIG_D=0x1F\nCONFIG_E=-3\n#CONFIG_F=y\n",
        );
        let pairs: Vec<_> = settings.iter().map(|s| (s.option.as_str(), s.value.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("CONFIG_A", "y"),
                ("CONFIG_B", "n"),
                ("CONFIG_C", "\"a b\""),
                ("CONFIG_D", "0x1F"),
                ("CONFIG_E", "-3")
            ]
        );
        assert_eq!(settings[1].place, "f:4");
    }

    #[test]
    fn what_is_no_config_is_refused_by_line() {
        let refused = |text: &str| parse(text, "f", Origin::Whole).unwrap_err().to_string();
        assert_eq!(refused("CONFIG_A=y\nint main\n"), "`f:2` is not a line of a kernel config: `int main`");
        assert_eq!(refused("CONFIG_A=yes"), "`f:1` is not a line of a kernel config: `CONFIG_A=yes`");
        assert_eq!(refused("CONFIG_=y"), "`f:1` is not a line of a kernel config: `CONFIG_=y`");
        assert_eq!(refused("\u{7f}ELF\u{2}"), "`f:1` is not a line of a kernel config: `ELF`");
    }

    #[test]
    fn a_set_argument_needs_an_option_and_a_value() {
        let setting = parse_set("CONFIG_LOCALVERSION=-mine").unwrap();
        assert_eq!((setting.option.as_str(), setting.value.as_str()), ("CONFIG_LOCALVERSION", "\"-mine\""));
        assert_eq!(parse_set("CONFIG_A=m").unwrap().value, "m");
        assert!(parse_set("CONFIG_A").unwrap_err().to_string().contains("has no value"));
        assert!(parse_set("A=y").unwrap_err().to_string().contains("does not name an option"));
    }

    #[test]
    fn the_last_word_counts() {
        let merged = merge(fragment("CONFIG_A=y\nCONFIG_B=y\nCONFIG_A=m\n# CONFIG_B is not set"));
        assert_eq!(render(&merged), "CONFIG_A=m\n# CONFIG_B is not set\n");
        let base = "# Automatically generated\nCONFIG_Z=y\n# CONFIG_A is not set\nCONFIG_B=y\n";
        assert_eq!(
            apply(base, &merged),
            "# Automatically generated\nCONFIG_Z=y\nCONFIG_A=m\n# CONFIG_B is not set\n"
        );
    }

    fn symbols() -> Symbols {
        let kconfig =
            "config EROFS_FS\n\ttristate \"EROFS\"\n\tdepends on BLOCK\nconfig HIDDEN\n\tdef_bool y\n";
        Symbols::parse("Kconfig", |_| Some(kconfig.to_owned()))
    }

    #[test]
    fn what_did_not_take_is_named_with_both_values() {
        let asked = fragment(
            "CONFIG_EROFS_FS=y\n# CONFIG_HIDDEN is not set\nCONFIG_EROFS_FFS=y\n# CONFIG_NOWHERE is not set",
        );
        let outcome = check(&asked, "CONFIG_HIDDEN=y\n", &symbols(), &[]);
        assert_eq!(
            outcome.failures,
            [
                "CONFIG_EROFS_FS (f:1): wanted y, got n; depends on BLOCK",
                "CONFIG_HIDDEN (f:2): wanted n, got y; the kernel computes this one, it cannot be set",
                "CONFIG_EROFS_FFS (f:3): this kernel has no such option; did you mean `CONFIG_EROFS_FS`?",
            ]
        );
        // Nobody asks for less on the user's behalf.
        assert_eq!(check(&asked, "CONFIG_HIDDEN=y\n", &symbols(), &["CONFIG_EROFS_FS"]), outcome);
        assert_eq!(check(&asked[..1], "CONFIG_EROFS_FS=y\n", &symbols(), &[]), Outcome::default());
    }

    #[test]
    fn a_whole_config_may_hold_what_another_kernel_computed() {
        let asked = parse("CONFIG_EROFS_FS=y\nCONFIG_HIDDEN=n\nCONFIG_OLD=y\n", "f", Origin::Whole).unwrap();
        let outcome = check(&asked, "CONFIG_HIDDEN=y\n", &symbols(), &[]);
        assert_eq!(outcome.failures.len(), 1);
        assert_eq!(outcome.lacking, ["CONFIG_OLD"]);
        let outcome = check(&asked, "CONFIG_HIDDEN=y\n", &symbols(), &["CONFIG_EROFS_FS"]);
        assert_eq!(outcome.lacking, ["CONFIG_EROFS_FS", "CONFIG_OLD"]);
        assert_eq!(outcome.failures, [""; 0]);
    }
}
