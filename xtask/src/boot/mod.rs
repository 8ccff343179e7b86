//! `boot`: [what was asked](request), [the machine it makes](plan), and [its run](run), in the foreground or in the
//! [background].

pub mod attachments;
pub mod background;
pub mod bootable;
pub mod plan;
pub mod request;
pub mod run;
