//! Runs the fuzz targets of `fuzz/` for a short time, with the compiler that is there.
//!
//! The flags are cargo-fuzz's, without the sanitizers that want a nightly compiler: the targets are safe Rust, and what
//! is looked for is a panic, an endless loop, or memory without bound.

use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;

use super::process::{dies_with_us, run_watched};

/// The targets, as `fuzz/Cargo.toml` names them.
const TARGETS: [&str; 9] = [
    "layer",
    "reference",
    "manifest",
    "protocol",
    "qcow2",
    "extraction",
    "dockerignore",
    "dockerfile",
    "guard",
];

/// Coverage counters and traced comparisons, which libFuzzer steers by (cargo-fuzz, `src/project.rs`).
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// Builds the targets of a checkout and runs each for so long. Errors where one finds something, with its last lines.
pub fn run(root: &Utf8Path, time: Duration) -> anyhow::Result<()> {
    let folder = root.join("fuzz");
    let output = root.join("target/fuzz");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let host = "x86_64-unknown-linux-gnu";
    crate::note!("building the fuzz targets");
    // With a target named, the flags are not for build scripts and macros.
    let build = duct::cmd!(cargo, "build", "--release", "--target", host, "--target-dir", &output)
        .dir(&folder)
        .env("RUSTFLAGS", FLAGS);
    run_watched("the build of the fuzz targets", &build, |_| {})?;
    for target in TARGETS {
        crate::note!("fuzzing `{target}` for {} s", time.as_secs());
        let corpus = output.join("corpus").join(target);
        crate::artifact::create_folder(&corpus)?;
        let program = output.join(host).join("release").join(target);
        let words = [
            format!("-max_total_time={}", time.as_secs()),
            "-rss_limit_mb=512".to_owned(),
            "-timeout=10".to_owned(),
            "-max_len=16384".to_owned(),
            "-print_final_stats=1".to_owned(),
            format!("-artifact_prefix={output}/"),
            corpus.to_string(),
            // Read and left as they are: an empty corpus would take hours to find a header's form.
            folder.join("seeds").join(target).to_string(),
        ];
        let fuzz = dies_with_us(&duct::cmd(program.as_std_path(), words));
        run_watched(&format!("fuzzing `{target}`"), &fuzz, |_| {})
            .with_context(|| format!("the input that did it is in `{output}`"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_something_to_begin_with() {
        let seeds = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
        for target in TARGETS {
            assert!(
                seeds.join(target).read_dir_utf8().is_ok_and(|mut files| files.next().is_some()),
                "{target}"
            );
        }
    }
}
