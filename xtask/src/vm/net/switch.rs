//! Carries the frames that a machine sends on its private network to the other members. Each machine's supervisor does so
//! for its own: no member depends on another, and none on the order in which they come and go. What does not
//! [speak for itself](super::speaker) is carried by neither the sender's nor the receiver's.

use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;

use super::guard::LONGEST_FRAME;
use super::members;
use super::speaker::speaks_for_itself;
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
    let folder = network.folder.clone();
    std::thread::spawn(move || {
        carry(&from_lan, |sender, frame| {
            if member_at(sender, &folder).is_some_and(|number| speaks_for_itself(frame, number)) {
                // A guest that takes nothing misses it.
                let _ = to_qemu.send(frame);
            }
        });
    });
    let network = network.clone();
    std::thread::spawn(move || {
        carry(&qemu, |_, frame| {
            if !speaks_for_itself(frame, network.number) {
                return;
            }
            for number in receivers(frame, network.number, || members::numbers(&network.folder)) {
                // A member that has gone, or takes nothing, misses it.
                let _ = lan.send_to(frame, members::socket(&network.folder, number));
            }
        });
    });
    Ok(())
}

fn carry(from: &UnixDatagram, to: impl Fn(&SocketAddr, &[u8])) {
    let mut frame = vec![0; LONGEST_FRAME];
    while let Ok((length, sender)) = from.recv_from(&mut frame) {
        // The other end has closed (a frame is never empty).
        if length == 0 {
            return;
        }
        to(&sender, &frame[..length]);
    }
}

/// The member whose socket this is.
fn member_at(socket: &SocketAddr, folder: &Utf8Path) -> Option<u8> {
    let path = Utf8Path::from_path(socket.as_pathname()?)?;
    path.strip_prefix(folder).ok()?.as_str().parse().ok()
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

    #[test]
    fn a_member_is_known_by_its_socket() {
        let at = |path: &str| member_at(&SocketAddr::from_pathname(path).unwrap(), Utf8Path::new("/lan"));
        assert_eq!(at("/lan/7"), Some(7));
        for other in ["/lan/lock", "/lan/256", "/lan/7/7", "/other/7", "/lan", "7"] {
            assert_eq!(at(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_member_says_for_another_arrives_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let network = |number| PrivateNetwork { folder: folder.to_owned(), number };
        let mut inherited = Inherited::default();
        start(&network(2), &mut inherited).unwrap();
        // QEMU's end of the second member's connection, and the third member's supervisor.
        let qemu = UnixDatagram::from(inherited.descriptors()[0].try_clone().unwrap());
        let third = UnixDatagram::bind(members::socket(folder, 3)).unwrap();
        let stranger = UnixDatagram::unbound().unwrap();
        for socket in [&qemu, &third] {
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        }
        let frame = |to: u8, from: u8, address: u8| {
            let (to, from) = (PrivateNetwork::mac_of(to), PrivateNetwork::mac_of(from));
            let header = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 3, address, 10, 0, 3, 9];
            [&to[..], &from, &[8, 0], &header].concat()
        };
        let mut heard = [0; 100];
        for (lie, truth) in [(frame(3, 4, 2), frame(3, 2, 2)), (frame(3, 2, 4), frame(3, 2, 2))] {
            qemu.send(&lie).unwrap();
            qemu.send(&truth).unwrap();
            let length = third.recv(&mut heard).unwrap();
            assert_eq!(heard[..length], truth);
        }
        let own = members::socket(folder, 2);
        for (lie, truth) in [(frame(2, 4, 3), frame(2, 3, 3)), (frame(2, 3, 4), frame(2, 3, 3))] {
            third.send_to(&lie, &own).unwrap();
            stranger.send_to(&truth, &own).unwrap();
            third.send_to(&truth, &own).unwrap();
            let length = qemu.recv(&mut heard).unwrap();
            assert_eq!(heard[..length], truth);
        }
        third.set_nonblocking(true).unwrap();
        qemu.set_nonblocking(true).unwrap();
        assert!(qemu.recv(&mut heard).is_err() && third.recv(&mut heard).is_err());
    }
}
