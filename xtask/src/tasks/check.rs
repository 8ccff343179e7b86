//! `check`: all that is looked at before a change is committed, except for the tests.

use anyhow::Context as _;

use super::Context;
use crate::host::process::dies_with_us;
use crate::host::tools;
use crate::note;

/// What cargo is asked for.
const STEPS: [&[&str]; 3] = [
    &["fmt", "--all", "--check"],
    &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
    &["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"],
];

/// Of rustdoc. Links to what is private are for those who read the code; a label may say what it links to.
const DOC_FLAGS: &str =
    "-D warnings -A rustdoc::private_intra_doc_links -A rustdoc::redundant_explicit_links";

/// Of cargo-deny: what needs no database, and the database.
const RULES: &[&str] = &["deny", "check", "licenses", "bans", "sources"];
const ADVISORIES: &[&str] = &["deny", "check", "advisories"];
const FETCH: &[&str] = &["deny", "fetch", "db"];

/// Check the code's form, its lints, its documentation and its dependencies
#[derive(Debug, clap::Args)]
pub struct CheckArgs {}

impl CheckArgs {
    /// Runs the task.
    pub fn run(&self, context: &Context) -> anyhow::Result<u8> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let passes = |words: &[&str]| -> anyhow::Result<bool> {
            note!("cargo {}", words.join(" "));
            let command = dies_with_us(&duct::cmd(&cargo, words))
                .dir(context.workspace.root())
                .env("RUSTDOCFLAGS", DOC_FLAGS)
                .stdin_null()
                .unchecked();
            Ok(command.run().context("failed to start cargo")?.status.success())
        };
        for step in STEPS {
            if !passes(step)? {
                return Ok(1);
            }
        }
        if tools::find("cargo-deny").is_none() {
            note!("advisories were not looked up: `cargo-deny` is not on PATH");
            return Ok(0);
        }
        if !passes(RULES)? {
            return Ok(1);
        }
        if !passes(FETCH)? {
            note!("advisories were not looked up: their database cannot be fetched");
            return Ok(0);
        }
        Ok(u8::from(!passes(ADVISORIES)?))
    }
}
