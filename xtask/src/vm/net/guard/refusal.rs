//! Says no to a connection, so that nobody waits for it: its first segment goes on as one that begins nothing, and which
//! libslirp, knowing of no such connection, answers with a reset.

use super::{GATEWAY, GATEWAY_V6, NAMESERVER, NAMESERVER_V6};
use crate::vm::net::packet::{ACK, FIN, Packet, SYN, TCP, V4, V6};

/// Turns the beginning of a connection to the gateway or the name server into an end, of the number that is next after
/// it: what is reset then is what the guest has just begun. `None` for any other frame, which is left as it is.
pub(super) fn refuse_connection(frame: &mut [u8]) -> Option<()> {
    let segment = match Packet::read(frame)? {
        Packet::V4(V4 { protocol: TCP, destination: GATEWAY | NAMESERVER, has_options: false, .. }) => 34,
        Packet::V6(V6 { protocol: TCP, destination: GATEWAY_V6 | NAMESERVER_V6, .. }) => 54,
        _ => return None,
    };
    let header: &mut [u8; 20] = frame[segment..].first_chunk_mut()?;
    if header[13] & (SYN | ACK) != SYN {
        return None;
    }
    let before = *header;
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]).wrapping_add(1);
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[13] = FIN;
    let checksum = updated_checksum(&before, header);
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

/// The checksum of a segment whose header has changed (RFC 1624).
fn updated_checksum(before: &[u8; 20], after: &[u8; 20]) -> u16 {
    let words = |bytes: &[u8; 20]| {
        bytes[..16].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>()
    };
    let checksum = u16::from_be_bytes([before[16], before[17]]);
    let mut sum = u32::from(!checksum) + words(after) + 8 * 0xffff - words(before);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}
