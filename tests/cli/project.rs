//! What the project itself is made of: actions that are pinned, dependencies that `deny.toml` allows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use camino::Utf8Path;
use cargo_metadata::MetadataCommand;

fn root() -> &'static Utf8Path {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// True for a local action, and for one of a full commit (40 hex digits) with its version in a comment.
fn is_pinned(uses: &str) -> bool {
    let (action, comment) = uses.split_once('#').unwrap_or((uses, ""));
    let action = action.trim().trim_matches(['"', '\'']);
    let is_commit = |word: &str| word.len() == 40 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    action.starts_with("./")
        || action.split_once('@').is_some_and(|(_, commit)| is_commit(commit))
            && comment.trim().starts_with('v')
}

#[test]
fn actions_are_pinned_by_commit() {
    assert!(!is_pinned("actions/checkout@v4") && !is_pinned("actions/checkout@main # v4"));
    let folder = root().join(".github/workflows");
    let mut seen = 0;
    for entry in folder.read_dir_utf8().unwrap() {
        let path = entry.unwrap().into_path();
        for line in fs::read_to_string(&path).unwrap().lines() {
            if let Some((_, uses)) = line.split_once("uses:") {
                assert!(is_pinned(uses), "`{path}` uses an action that is not pinned:{uses}");
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

/// True if what must be kept of an SPDX expression is allowed; Cargo's old `/` is an `OR`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words, allowed) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut is_allowed = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        is_allowed |= all(words, allowed);
    }
    is_allowed
}

fn all(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut is_allowed = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        is_allowed &= one(words, allowed);
    }
    is_allowed
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    match words.next() {
        Some("(") => any(words, allowed) & (words.next() == Some(")")),
        Some(name) => match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
            Some(exception) => allowed.contains(&format!("{name} WITH {exception}")),
            None => allowed.contains(name),
        },
        None => false,
    }
}

#[test]
fn licences_are_read_as_spdx_reads_them() {
    let allowed = BTreeSet::from(["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned));
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("MIT AND GPL-3.0 OR GPL-2.0", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("MIT ISC", false),
        ("(MIT", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn dependencies_are_what_deny_toml_allows() {
    let rules: toml::Table = fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let words = |table: &str, key: &str| -> BTreeSet<String> {
        let list = rules[table][key].as_array().unwrap();
        list.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let allowed = words("licenses", "allow");
    let skipped = words("bans", "skip");
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(str::to_owned))
        .exec()
        .unwrap();
    // What is built here, and not what other platforms would need.
    let used: BTreeSet<_> =
        metadata.resolve.iter().flat_map(|graph| &graph.nodes).map(|node| &node.id).collect();
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut complaints = Vec::new();
    for package in metadata.packages.iter().filter(|package| used.contains(&package.id)) {
        versions.entry(&package.name).or_default().insert(package.version.to_string());
        let named = format!("{}@{}", package.name, package.version);
        // Of the workspace itself there is no source.
        let source = package.source.as_ref();
        if source.is_some_and(|source| !source.is_crates_io()) {
            complaints.push(format!("{named} is of an unknown source"));
        }
        let license = package.license.as_deref().unwrap_or("none");
        if !is_allowed(license, &allowed) {
            complaints.push(format!("{named} has the licence `{license}`"));
        }
    }
    for (name, versions) in versions {
        let is_skipped = |version: &str| {
            skipped.iter().filter_map(|skipped| skipped.split_once('@')).any(|(crate_name, start)| {
                crate_name == name && format!("{version}.").starts_with(&format!("{start}."))
            })
        };
        let unwanted: Vec<_> = versions.iter().filter(|version| !is_skipped(version)).collect();
        if unwanted.len() > 1 {
            complaints.push(format!("{name} is there in several versions: {unwanted:?}"));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
