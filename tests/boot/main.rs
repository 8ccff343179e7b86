//! Real machines under real QEMU: each test boots one from a fresh overlay, and waits for what it says, never for time.

mod background;
mod collected;
mod confined;
mod copy;
mod debug;
mod disk;
mod enemy;
mod failures;
mod foreign;
mod full_disk;
mod hello;
mod interactive;
mod kernel;
mod load;
mod network;
mod nginx;
mod output;
mod pid1;
mod power_cuts;
mod private;
mod registry;
mod supervision;
mod turns;
mod volumes;
mod world;

#[path = "../support/mod.rs"]
mod support;
