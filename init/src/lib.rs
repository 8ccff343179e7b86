//! The half of PID 1 that the host shares: what a boot is told to do ([`boot_config`]), what host and guest say to each
//! other while it runs ([`protocol`]), and files as a tar stream between them ([`archive`]). Tested on the host.

pub mod archive;
pub mod boot_config;
pub mod protocol;

#[cfg(test)]
#[path = "../../tests/support/hostile_tar.rs"]
mod hostile_tar;
