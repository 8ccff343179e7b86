//! What this host offers: [tools](tools), [packages](setup), an [accelerator], and how [programs](process) are run.

pub mod accelerator;
pub mod doctor;
pub mod fuzz;
pub mod ports;
pub mod process;
pub mod setup;
pub mod tools;
