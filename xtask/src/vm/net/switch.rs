//! Carries the frames that a machine sends on its private network straight to the other members' QEMU. Each machine's
//! supervisor does so for its own: no member depends on another, and none on the order in which they come and go.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::Context as _;

use super::guard::LONGEST_FRAME;
use super::members;
use crate::vm::machine::PrivateNetwork;

/// How long a member may take to make room for a frame. After that it is dropped, as networks do.
const PATIENCE: Duration = Duration::from_millis(20);

/// Listens where QEMU sends. Errors where the socket cannot be made.
pub(super) fn start(network: &PrivateNetwork) -> anyhow::Result<()> {
    let path = &network.our_socket;
    let bind = || -> std::io::Result<UnixDatagram> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let socket = bind().with_context(|| format!("failed to listen at `{path}`"))?;
    let network = network.clone();
    std::thread::spawn(move || {
        let mut frame = vec![0; LONGEST_FRAME];
        // It ends with this process.
        while let Ok(length) = socket.recv(&mut frame) {
            let frame = &frame[..length];
            for number in receivers(frame, network.number, || members::numbers(&network.folder)) {
                // A member that has gone, or takes nothing, misses it.
                let _ = socket.send_to(frame, members::socket(&network.folder, number));
            }
        }
    });
    Ok(())
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
