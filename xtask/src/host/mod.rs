//! What this host offers: [tools](tools), [packages](setup), an [accelerator], how [programs](process) are run,
//! and how QEMU is [confined](confine).

pub mod accelerator;
pub mod confine;
pub mod doctor;
pub mod fuzz;
pub mod peer;
pub mod ports;
pub mod private;
pub mod process;
pub mod setup;
pub mod tools;
