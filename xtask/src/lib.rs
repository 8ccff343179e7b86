//! The workbench, in reading order: a task is parsed, prepares artifacts, and runs a machine.

pub mod cli;
pub mod error;
pub mod name;
pub mod nearest;
pub mod pace;
pub mod ui;

pub mod artifact;
pub mod artifacts;
pub mod interrupt;
pub mod workspace;

pub mod host;

pub mod collect;
pub mod image;
pub mod init;
pub mod kernel;

pub mod disk;

pub mod vm;

pub mod boot;

pub mod bench;
pub mod torture;

pub mod tasks;

#[cfg(test)]
#[path = "../../tests/support/hostile_tar.rs"]
mod hostile_tar;
