//! Tells the workbench which compiler it is built by: PID 1 is of the same, and nobody has to ask for it at each boot.

use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").expect("Cargo names the compiler");
    let output =
        Command::new(rustc).arg("-vV").output().expect("the compiler that has just compiled this runs");
    let version = String::from_utf8(output.stdout).expect("its version is text");
    println!("cargo::rustc-env=WORKBENCH_RUSTC={}", version.replace('\n', "; "));
    println!("cargo::rerun-if-changed=build.rs");
}
