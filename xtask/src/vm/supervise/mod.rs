//! The process behind a running machine: the [supervisor] owns QEMU, follows its [lifecycle], reads its [console], and
//! is the [router] between the agent in the guest and its clients.

pub mod console;
pub mod fuzz;
pub mod lifecycle;
pub mod outcome;
pub mod router;
pub mod supervisor;
mod switchboard;
pub mod wires;
