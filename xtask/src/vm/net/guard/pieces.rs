//! Puts datagrams together that a guest sends in pieces, so that libslirp sees none: it follows pointers that it takes from
//! a piece's contents (4.7, a last piece without a first), which is memory of QEMU's in a guest's hands.
//!
//! Pieces are taken in their order, as Linux sends them; any other is dropped, and its datagram with it.

use std::collections::VecDeque;

use crate::vm::net::packet::{ETHERNET_HEADER, IPV4_HEADER, V4};

/// So many datagrams at one time; the oldest gives way.
pub(super) const MOST: usize = 16;

/// The longest IPv4 packet.
const LONGEST: usize = u16::MAX as usize;

/// Identification, source, destination and protocol: what the pieces of a datagram have in common (RFC 791).
type Key = [u8; 11];

/// Beginnings of datagrams, as frames.
#[derive(Debug, Default)]
pub(super) struct Pieces(VecDeque<(Key, Vec<u8>)>);

impl Pieces {
    /// Takes a frame that is a piece, and gives the frame of the whole where this was the last.
    pub(super) fn put(&mut self, frame: &[u8], packet: &V4<'_>) -> Option<Vec<u8>> {
        const BEGIN: usize = ETHERNET_HEADER + IPV4_HEADER;
        let header: &[u8; IPV4_HEADER] = frame.get(ETHERNET_HEADER..)?.first_chunk()?;
        let mut key = [header[9]; 11];
        key[1..3].copy_from_slice(&header[4..6]);
        key[3..].copy_from_slice(&header[12..]);
        let earlier = self.0.iter().position(|(known, _)| *known == key).and_then(|at| self.0.remove(at));
        if packet.has_options || packet.payload.is_empty() {
            return None;
        }
        let mut whole = match earlier {
            Some((_, whole))
                if packet.offset > 0 && whole.len() - BEGIN == usize::from(packet.offset) * 8 =>
            {
                whole
            }
            _ if packet.offset == 0 => frame[..BEGIN].to_vec(),
            _ => return None,
        };
        whole.extend(packet.payload);
        if whole.len() - ETHERNET_HEADER > LONGEST {
            return None;
        }
        if packet.more_fragments {
            if self.0.len() == MOST {
                self.0.pop_front();
            }
            self.0.push_back((key, whole));
            return None;
        }
        let total = (whole.len() - ETHERNET_HEADER) as u16;
        let header = &mut whole[ETHERNET_HEADER..BEGIN];
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].fill(0);
        header[10..12].fill(0);
        let checksum = checksum(header);
        whole[ETHERNET_HEADER + 10..][..2].copy_from_slice(&checksum.to_be_bytes());
        Some(whole)
    }
}

/// A header's checksum (RFC 1071), where its field is 0.
fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    !((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::super::frames::*;
    use super::*;
    use crate::vm::net::packet::{Packet, UDP};

    fn piece(id: u8, offset: u16, more: bool, data: &[u8]) -> Vec<u8> {
        let mut frame = fragment(v4(UDP, GUEST, [192, 0, 2, 1], data), more, offset);
        frame[ETHERNET_HEADER + 5] = id;
        frame
    }

    fn put(pieces: &mut Pieces, frame: &[u8]) -> Option<Vec<u8>> {
        let Some(Packet::V4(packet)) = Packet::read(frame) else { panic!("{frame:x?} is none") };
        pieces.put(frame, &packet)
    }

    #[test]
    fn pieces_in_their_order_become_a_packet_with_its_length_and_checksum() {
        let mut pieces = Pieces::default();
        assert_eq!(put(&mut pieces, &piece(7, 0, true, &[1; 16])), None);
        assert_eq!(put(&mut pieces, &piece(8, 0, true, &[9; 8])), None, "another datagram between them");
        assert_eq!(put(&mut pieces, &piece(7, 2, true, &[2; 8])), None);
        let whole = put(&mut pieces, &piece(7, 3, false, &[3; 5])).unwrap();
        let mut expected = piece(7, 0, false, &[&[1; 16][..], &[2; 8], &[3; 5]].concat());
        // 0x4500 + 0x0031 + 0x0007 + 0x4011 + 0x0a00 + 0x020f + 0xc000 + 0x0201, complemented.
        expected[24..26].copy_from_slice(&0xaca5_u16.to_be_bytes());
        assert_eq!(whole, expected);
        assert!(put(&mut pieces, &piece(8, 1, false, &[9; 8])).is_some());
        assert!(pieces.0.is_empty());
    }

    #[test]
    fn a_piece_out_of_order_ends_its_datagram() {
        for odd in [
            piece(7, 1, false, &[0; 8]),
            piece(7, 3, false, &[0; 8]),
            piece(7, 2, false, &[]),
            with_options(piece(7, 2, false, &[0; 8])),
        ] {
            let mut pieces = Pieces::default();
            put(&mut pieces, &piece(7, 0, true, &[1; 16]));
            assert_eq!(put(&mut pieces, &odd), None);
            assert_eq!(put(&mut pieces, &piece(7, 2, false, &[3; 8])), None);
        }
        let mut pieces = Pieces::default();
        assert_eq!(put(&mut pieces, &piece(7, 2, false, &[3; 8])), None, "a last one without a first");
        assert_eq!(put(&mut pieces, &piece(7, 2, true, &[3; 8])), None);
        assert!(pieces.0.is_empty());
    }

    #[test]
    fn a_beginning_takes_the_place_of_an_earlier_one() {
        let mut pieces = Pieces::default();
        put(&mut pieces, &piece(7, 0, true, &[1; 8]));
        put(&mut pieces, &piece(7, 0, true, &[2; 8]));
        let whole = put(&mut pieces, &piece(7, 1, false, &[3])).unwrap();
        assert_eq!(whole[34..], [2, 2, 2, 2, 2, 2, 2, 2, 3]);
    }

    #[test]
    fn pieces_belong_together_by_identification_addresses_and_protocol() {
        for at in [18, 19, 23, 26, 29, 30, 33] {
            let mut pieces = Pieces::default();
            put(&mut pieces, &piece(7, 0, true, &[1; 8]));
            let mut other = piece(7, 1, false, &[3; 8]);
            other[at] ^= 0x10;
            assert_eq!(put(&mut pieces, &other), None, "{at}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut pieces = Pieces::default();
        for id in 0..=MOST as u8 {
            put(&mut pieces, &piece(id, 0, true, &[1; 8]));
        }
        assert_eq!(pieces.0.len(), MOST);
        assert_eq!(put(&mut pieces, &piece(0, 1, false, &[3; 8])), None, "the oldest has given way");
        assert!(put(&mut pieces, &piece(1, 1, false, &[3; 8])).is_some());

        // As long as a packet can be, and a byte more.
        for (last, is_whole) in [(65515 - 65512, true), (65516 - 65512, false)] {
            let mut pieces = Pieces::default();
            for offset in (0..65512).step_by(8 * 19) {
                put(&mut pieces, &piece(7, offset / 8, true, &[1; 8 * 19]));
            }
            assert_eq!(put(&mut pieces, &piece(7, 65512 / 8, false, &vec![3; last])).is_some(), is_whole);
        }
    }
}
