//! One virtual machine: [what to run](machine), [the words for QEMU](qemu), [what its console says](console), the
//! [router] between the agent in the guest and its clients, and the [supervisor] that holds them together; beside them
//! what is known of it ([run_dir], [record], [recorder]) and how to talk to it ([client], [session], [attach], [copy], [control]).

pub mod attach;
pub mod client;
pub mod console;
pub mod control;
pub mod copy;
pub mod fuzz;
pub mod health;
pub mod lifecycle;
pub mod machine;
pub mod net;
pub mod outcome;
pub mod output_log;
pub mod qemu;
pub mod record;
pub mod recorder;
pub mod router;
pub mod run_dir;
pub mod session;
pub mod signal;
pub mod supervisor;
pub mod terminal;
