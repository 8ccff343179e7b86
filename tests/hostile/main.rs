//! Enemies: a machine whose PID 1 is ours and means harm, and another user of the host. What they may achieve is nothing:
//! the tasks end, say why, stay small, and write nowhere else.

mod agent;
mod console;
mod copies;
mod ends;
mod shares;
mod world;

#[path = "../image/layers.rs"]
#[allow(dead_code, reason = "archives alone are needed of it")]
mod layers;
#[path = "../support/mod.rs"]
mod support;
