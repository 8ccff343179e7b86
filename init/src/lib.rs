//! The half of PID 1 that the host shares: what a boot is told to do ([`boot_config`]) and what host and
//! guest say to each other while it runs ([`protocol`]). Pure data and codecs, tested on the host.

pub mod boot_config;
pub mod protocol;
