//! Carries the frames that a machine sends on its private network to the other members. Each machine's supervisor does so
//! for its own: no member depends on another, and none on the order in which they come and go.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::guard::LONGEST_FRAME;
use super::members;
use crate::artifact::remove_any;
use crate::vm::inherited::Inherited;
use crate::vm::machine::PrivateNetwork;

/// How long a member may take to make room for a frame. After that it is dropped, as networks do.
const PATIENCE: Duration = Duration::from_millis(20);

/// Listens where the other members send, and connects with QEMU, which sees nothing of the network's folder. Errors where
/// a socket cannot be made.
pub(super) fn start(network: &PrivateNetwork, inherited: &mut Inherited) -> anyhow::Result<()> {
    let path = members::socket(&network.folder, network.number);
    let make = || -> anyhow::Result<_> {
        // One that a killed machine of this number has left.
        remove_any(&path)?;
        let (ours, theirs) = UnixDatagram::pair()?;
        let lan = UnixDatagram::bind(&path)?;
        for socket in [&ours, &lan] {
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        Ok((Arc::new(ours), Arc::new(lan), theirs))
    };
    let (qemu, lan, theirs) = make().with_context(|| format!("failed to listen at `{path}`"))?;
    inherited.socket(&path, theirs.into());
    let (from_lan, to_qemu) = (Arc::clone(&lan), Arc::clone(&qemu));
    // Both end with this process.
    std::thread::spawn(move || {
        carry(&from_lan, |frame| {
            // A guest that takes nothing misses it.
            let _ = to_qemu.send(frame);
        });
    });
    let network = network.clone();
    std::thread::spawn(move || {
        carry(&qemu, |frame| {
            for number in receivers(frame, network.number, || members::numbers(&network.folder)) {
                // A member that has gone, or takes nothing, misses it.
                let _ = lan.send_to(frame, members::socket(&network.folder, number));
            }
        });
    });
    Ok(())
}

fn carry(from: &UnixDatagram, to: impl Fn(&[u8])) {
    let mut frame = vec![0; LONGEST_FRAME];
    while let Ok(length) = from.recv(&mut frame) {
        // The other end has closed (a frame is never empty).
        if length == 0 {
            return;
        }
        to(&frame[..length]);
    }
}

/// The members that a frame is for; `all` are those there are.
fn receivers(frame: &[u8], own: u8, all: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let Some(destination) = frame.first_chunk::<6>() else { return Vec::new() };
    let mut numbers = match PrivateNetwork::number_of(*destination) {
        Some(number) => vec![number],
        // Broadcast, multicast, and addresses that a guest has given itself.
        None => all(),
    };
    numbers.retain(|number| *number != own);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_goes_to_its_receiver_and_a_broadcast_to_all_others() {
        let receivers = |destination: [u8; 6]| receivers(&destination, 2, || vec![2, 3, 4]);
        assert_eq!(receivers(PrivateNetwork::mac_of(3)), [3]);
        assert_eq!(receivers(PrivateNetwork::mac_of(2)), [0; 0]);
        assert_eq!(receivers([0xff; 6]), [3, 4]);
        assert_eq!(super::receivers(&[0xff; 5], 2, || vec![3]), [0; 0]);
    }
}
