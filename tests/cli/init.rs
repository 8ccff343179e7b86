//! `init`: PID 1 is built once, and is static.

use crate::support::{Scratch, texts, transcript, xtask};

#[test]
fn help() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["init", "--help"])));
}

#[test]
fn a_word_too_many() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["init", "now"])), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: unexpected argument 'now' found

    Usage: cargo xtask init [OPTIONS]

    For more information, try '--help'.
    ");
}

/// The cache outlives the test run, as the build of an optimised init takes long.
#[test]
fn init_is_static_and_the_second_run_builds_nothing() {
    let cache = camino::Utf8Path::new(env!("CARGO_TARGET_TMPDIR")).join("init");
    let first = xtask(&cache, &["init"]).output().unwrap();
    let (paths, talk) = texts(&first);
    assert!(first.status.success(), "{talk}");
    let program = paths.lines().next().unwrap();
    let initramfs = std::fs::read(paths.lines().nth(1).unwrap()).unwrap();

    // Without a loader or a library beside it.
    let ldd =
        texts(&duct::cmd!("ldd", program).stdout_capture().stderr_to_stdout().unchecked().run().unwrap()).0;
    assert!(ldd.contains("statically linked") || ldd.contains("not a dynamic executable"), "{ldd}");
    let bytes = std::fs::read(program).unwrap();
    assert!(initramfs.windows(bytes.len()).any(|window| window == bytes), "the initramfs holds another init");
    assert_eq!(initramfs.len() % 4, 0);

    let second = transcript(&mut xtask(&cache, &["init"]));
    assert!(second.contains(program) && !second.contains("building init"), "{second}");
}
