//! The far side: which machine, how `ssh` is called, and the script that runs there. All of it is pure.
//!
//! The script travels on `ssh`'s standard input to a plain `sh`, so the user's login shell over there parses nothing
//! but that word. It needs `tar` and `sha256sum` (GNU's or busybox's) and writes nothing on that machine. Its output is
//! a header of lines, which [`super::stream`] reads, and then one tar stream.

use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};

use crate::artifacts::{DISK, IMAGE_CONFIG, INIT, KERNEL};

/// First line of the script's output. What a login script prints before it is skipped.
pub(super) const MARKER: &str = "microvm-collect 1";

/// The machine to collect from: `[USER@]HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `[USER@]HOST`, as ssh takes it; HOST may be an alias from its configuration.
    pub host: String,
    /// `None` for ssh's own default.
    pub port: Option<u16>,
}

impl FromStr for Target {
    type Err = String;

    /// Parses `[USER@]HOST[:PORT]`; an IPv6 address with a port stands in brackets.
    fn from_str(text: &str) -> Result<Target, String> {
        let (user, address) = match text.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, text),
        };
        let (name, port) = if let Some(rest) = address.strip_prefix('[') {
            let (name, after) = rest.split_once(']').ok_or("`[` is not closed by `]`")?;
            match after {
                "" => (name, None),
                _ => (name, Some(after.strip_prefix(':').ok_or("after `]` comes `:PORT` or nothing")?)),
            }
        } else {
            match address.split_once(':') {
                // a bare IPv6 address has several colons
                Some((name, port)) if !port.contains(':') => (name, Some(port)),
                _ => (address, None),
            }
        };
        if name.is_empty() || user == Some("") {
            return Err("expected [USER@]HOST[:PORT]".into());
        }
        // ssh would take a leading dash for an option.
        let host = user.map_or_else(|| name.to_owned(), |user| format!("{user}@{name}"));
        // It names a folder here, too. `%` is for an IPv6 address's zone.
        let is_host = |c: char| c.is_alphanumeric() || "_.-:%".contains(c);
        if host.starts_with('-')
            || name.starts_with(['-', '.'])
            || !name.chars().all(is_host)
            || host.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(format!("`{host}` is not the name of a host"));
        }
        let port = match port {
            None => None,
            Some(digits) => match digits.parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                _ => return Err(format!("port `{digits}` is not a number from 1 to 65535")),
            },
        };
        Ok(Target { host, port })
    }
}

impl Target {
    /// The host without user and port.
    pub fn host_name(&self) -> &str {
        self.host.rsplit_once('@').map_or(&self.host, |(_, name)| name)
    }

    /// The command that a user would type to try the connection.
    pub(super) fn command_to_try(&self) -> String {
        match self.port {
            Some(port) => format!("ssh -p {port} {}", self.host),
            None => format!("ssh {}", self.host),
        }
    }
}

/// Options that are handed to `ssh` as they are; see ssh(1).
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SshOptions {
    /// Pass an option to ssh, as in its configuration file (repeatable)
    #[arg(short = 'o', value_name = "OPTION", help_heading = "ssh")]
    pub options: Vec<String>,
    /// Log in with this private key (repeatable)
    #[arg(short = 'i', value_name = "FILE", help_heading = "ssh")]
    pub identities: Vec<Utf8PathBuf>,
    /// Reach the host through another one
    #[arg(short = 'J', value_name = "DESTINATION", help_heading = "ssh")]
    pub jump: Option<String>,
}

/// The words after `ssh`. Where nobody can answer, ssh must not ask.
pub(super) fn ssh_arguments(target: &Target, options: &SshOptions, can_ask: bool) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |flag: &str, value: &str| words.extend([flag.to_owned(), value.to_owned()]);
    // ssh keeps the first value that it sees of an option: the user's come first.
    for option in &options.options {
        add("-o", option);
    }
    for identity in &options.identities {
        add("-i", identity.as_str());
    }
    if let Some(jump) = &options.jump {
        add("-J", jump);
    }
    if let Some(port) = target.port {
        add("-p", &port.to_string());
    }
    if !can_ask {
        add("-o", "BatchMode=yes");
    }
    // A machine that is gone is noticed within a minute.
    add("-o", "ConnectTimeout=15");
    add("-o", "ServerAliveInterval=15");
    // What a configuration file adds for interactive sessions would be in the way.
    add("-o", "ClearAllForwardings=yes");
    add("-o", "RemoteCommand=none");
    // A connection that is kept for later would keep our pipes open.
    add("-o", "ControlMaster=no");
    words.extend(["-T", "--", &target.host, "sh"].map(str::to_owned));
    words
}

/// One place where a set may be: a folder, and the files' paths below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Absolute, or relative to the home folder of the user over there (`~/…`).
    pub folder: Utf8PathBuf,
    /// Paths below the folder of [`INIT`], [`KERNEL`], [`DISK`]. The kernel's may hold one `*`: the newest match counts.
    pub files: [&'static str; 3],
    /// Path below the folder of [`IMAGE_CONFIG`], taken where it is there.
    pub image_config: Option<&'static str>,
}

/// Where a set may be below one folder, the best first: this workbench's own, a collected one, one made by hand.
pub fn candidates_below(folder: &Utf8Path) -> Vec<Candidate> {
    let candidate = |folder: Utf8PathBuf, files, image_config| Candidate { folder, files, image_config };
    vec![
        candidate(folder.join("target/artifacts"), [INIT, KERNEL, DISK], Some(IMAGE_CONFIG)),
        candidate(folder.to_owned(), [INIT, KERNEL, DISK], Some(IMAGE_CONFIG)),
        candidate(
            folder.to_owned(),
            ["myinit/myinit", "linux-*/arch/x86_64/boot/bzImage", "dockerbuild/dockerimage.qcow2"],
            None,
        ),
    ]
}

/// Names what the far side runs; each `try` line is one candidate, numbered from 0.
const SCRIPT: &str = r#"
unset TAR_OPTIONS CDPATH
LC_ALL=C
export LC_ALL

newest() {
    # unquoted: one of the words is a pattern
    ls -1Ltd $1 2>/dev/null | head -n 1
}

try() {
    cd "${HOME:-.}" || return 0
    if [ ! -d "$2" ]; then
        printf 'no-folder %s\n' "$1"
        return 0
    fi
    cd -- "$2" || return 0
    kernel=$(newest "$4")
    incomplete=
    for file in "$3" "${kernel:-$4}" "$5"; do
        if [ ! -f "$file" ]; then
            printf 'missing %s %s\n' "$1" "$file"
            incomplete=yes
        elif [ ! -r "$file" ]; then
            printf 'unreadable %s %s\n' "$1" "$file"
            incomplete=yes
        fi
    done
    [ -z "$incomplete" ] || return 0
    printf 'found %s\n' "$1"
    set -- "$3" "$kernel" "$5" "$6"
    # The image's config is welcome, not needed.
    if [ -z "$4" ] || [ ! -f "$4" ] || [ ! -r "$4" ]; then
        set -- "$1" "$2" "$3"
    fi
    for file; do
        size=$(wc -c <"$file") && sum=$(sha256sum <"$file") || exit 1
        printf 'file %s %s %s\n' "$((size))" "${sum%% *}" "$file"
    done
    printf '\n'
    exec tar -chf - "$@"
}

lacks() {
    ! command -v "$1" >/dev/null 2>&1 && printf 'lacks %s\n' "$1"
}
"#;

/// The whole script for these candidates. A call at the end: a script that arrives in part does nothing.
pub(super) fn script(candidates: &[Candidate]) -> String {
    let mut text = format!("{SCRIPT}\nmain() {{\n    printf '%s\\n' '{MARKER}'\n");
    text.push_str("    lacks tar || lacks sha256sum && return 0\n");
    for (number, candidate) in candidates.iter().enumerate() {
        let [init, kernel, disk] = candidate.files;
        let words = [init, kernel, disk, candidate.image_config.unwrap_or("")];
        let folder = folder_there(&candidate.folder);
        text.push_str(&format!("    try {number} {} {}\n", quote(&folder), words.map(quote).join(" ")));
    }
    text.push_str("    printf '\\n'\n}\n\nmain </dev/null\n");
    text
}

/// `~/work` and `work` are the same place: the script starts from the home folder.
fn folder_there(folder: &Utf8Path) -> String {
    match folder.as_str() {
        "~" => ".".to_owned(),
        text => text.strip_prefix("~/").unwrap_or(text).to_owned(),
    }
}

/// A word that any `sh` takes literally.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What to do about ssh's own complaint.
pub(super) fn hint_for(complaint: &str, target: &Target) -> String {
    let try_it = target.command_to_try();
    let knows = |words: &str| complaint.contains(words);
    if knows("Connection refused") {
        format!("is sshd running there, and on that port? try `{try_it}`")
    } else if knows("Host key verification failed") {
        format!("run `{try_it}` once on a terminal to check and accept its key")
    } else if knows("Permission denied") {
        format!("name a key with `-i`, or another user: `USER@{}`", target.host_name())
    } else if knows("Could not resolve hostname") {
        "check the host's name; an address or an alias from ~/.ssh/config will do too".to_owned()
    } else {
        format!("try `{try_it}` by hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_user_host_and_port() {
        let parse = |text: &str| text.parse::<Target>().map(|target| (target.host, target.port));
        for (text, host, port) in [
            ("build", "build", None),
            ("me@build:2222", "me@build", Some(2222)),
            ("fe80::1", "fe80::1", None),
            ("me@[fe80::1]:22", "me@fe80::1", Some(22)),
            ("[::1]", "::1", None),
            ("a@b@build", "a@b@build", None),
        ] {
            assert_eq!(parse(text), Ok((host.to_owned(), port)), "{text}");
        }
        for text in [
            "",
            "me@",
            "@build",
            "build:",
            "build:0",
            "build:65536",
            "build:ssh",
            "-oX=y",
            "me@-x",
            "a b",
            "[::1",
            "..",
            "../build",
            "me@a/b",
            "a\u{202e}b",
            "a\\b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_users_options_come_first_and_the_host_after_the_dashes() {
        let target: Target = "me@build:2222".parse().unwrap();
        let options = SshOptions {
            options: vec!["BatchMode=no".into()],
            identities: vec!["key file".into()],
            jump: Some("gate".into()),
        };
        let words = ssh_arguments(&target, &options, false).join("|");
        assert_eq!(
            words,
            "-o|BatchMode=no|-i|key file|-J|gate|-p|2222|-o|BatchMode=yes|-o|ConnectTimeout=15|\
             -o|ServerAliveInterval=15|-o|ClearAllForwardings=yes|-o|RemoteCommand=none|-o|ControlMaster=no|-T|--|me@build|sh"
        );
        assert!(!ssh_arguments(&target, &options, true).contains(&"BatchMode=yes".to_owned()));
    }

    #[test]
    fn odd_folders_reach_the_script_literally() {
        let text = script(&candidates_below(Utf8Path::new("~/it's $HOME `x`")));
        assert!(
            text.contains(r"try 1 'it'\''s $HOME `x`' 'init' 'kernel' 'hda.qcow2' 'image.json'"),
            "{text}"
        );
    }

    #[test]
    fn each_complaint_has_its_hint() {
        let target: Target = "me@build".parse().unwrap();
        for (complaint, hint) in [
            ("ssh: connect to host build port 22: Connection refused", "sshd running"),
            ("Host key verification failed.", "accept its key"),
            ("me@build: Permission denied (publickey).", "`USER@build`"),
            ("ssh: Could not resolve hostname build: Name or service not known", "check the host's name"),
            ("Connection timed out", "try `ssh me@build` by hand"),
        ] {
            assert!(hint_for(complaint, &target).contains(hint), "{complaint}");
        }
    }
}
