//! The command line as a user meets it: help pages, results, and bad input for each task.

#[path = "../support/mod.rs"]
mod support;

mod boot;
mod collect;
mod doctor;
mod download;
mod image;
mod init;
mod kernel;
mod machines;
mod output;
mod project;
mod status;
mod torture;
