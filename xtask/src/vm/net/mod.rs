//! The host's part of a machine's network, beside QEMU's own: the [guard] that keeps a guest from this host's
//! loopback, and private networks, where [members] find each other and a [switch] carries their frames.

pub mod fuzz;
pub mod guard;
pub mod members;
mod packet;
mod relay;
mod speaker;
mod switch;

use std::sync::mpsc::SyncSender;

use super::inherited::Inherited;
use super::machine::{Machine, Network};
use members::Joined;

/// Held while a machine runs; its place in the private network is free again afterwards.
#[derive(Debug)]
pub struct Attached {
    _joined: Option<Joined>,
}

/// Makes everything ready that QEMU is connected to. `names` gets the `/etc/hosts` lines of the private network's machines,
/// now and whenever they change. Errors where a socket cannot be made.
pub fn attach<E: Send + 'static>(
    machine: &Machine,
    inherited: &mut Inherited,
    names: &SyncSender<E>,
    event: fn(String) -> E,
) -> anyhow::Result<Attached> {
    if let Network::User { guard: Some(guard), .. } = &machine.network {
        relay::start(guard, inherited)?;
    }
    let Some(network) = &machine.private_network else { return Ok(Attached { _joined: None }) };
    switch::start(network, inherited)?;
    let names = names.clone();
    members::watch(network, move |lines| names.send(event(lines)).is_ok())?;
    Ok(Attached { _joined: Some(Joined::new(network)) })
}
