//! One virtual machine: [what to run](machine) and [the words for QEMU](qemu); the process that [supervises](supervise)
//! it, with its [networks](net); [what is known of it](record); and [how to talk to it](client).

pub mod client;
pub mod inherited;
pub mod machine;
pub mod net;
pub mod qemu;
pub mod queue;
pub mod record;
pub mod signal;
pub mod supervise;
