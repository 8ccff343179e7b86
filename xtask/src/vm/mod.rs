//! One virtual machine: [what to run](machine), [the words for QEMU](qemu), [what its console says](console), the
//! [router] between the agent in the guest and its clients, and the [supervisor] that holds them together.

pub mod console;
pub mod lifecycle;
pub mod machine;
pub mod outcome;
pub mod qemu;
pub mod router;
pub mod run_dir;
pub mod session;
pub mod signal;
pub mod supervisor;
pub mod terminal;
