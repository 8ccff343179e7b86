//! `torture`: its words.

use crate::support::{Scratch, texts};

#[test]
fn help() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["torture", "--help"])));
}

#[test]
fn a_row_that_does_not_exist_is_wrong_usage() {
    let scratch = Scratch::new();
    let output = scratch.xtask(&["torture", "--only", "kill=3"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let (_, talk) = texts(&output);
    assert!(talk.contains("there is no row `kill`; is it `kills`?"), "{talk}");
}
