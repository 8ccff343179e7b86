//! Images of every kind against other programs' reading of them, a real registry, and input that is bad.
//!
//! The oracles unpack owners and devices: those tests are root's, and another user's run goes through sudo.

#[path = "../support/mod.rs"]
mod support;

mod bad;
mod builds;
mod enemies;
mod ext4;
mod faults;
mod fuzz;
mod layers;
mod oracle;
mod plain_user;
mod sources;
mod tars;
mod view;
