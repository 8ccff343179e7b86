//! Frames for tests.

use std::net::Ipv6Addr;

use crate::vm::net::packet::{TCP, UDP};

pub(in crate::vm::net) const GUEST: [u8; 4] = [10, 0, 2, 15];
pub(in crate::vm::net) const GUEST_V6: &str = "fec0::5054:ff:fe12:3456";

pub(in crate::vm::net) fn frame(kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&[0x52; 12][..], &kind, packet].concat()
}

pub(in crate::vm::net) fn v4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let total = 20 + payload.len() as u16;
    let header = [&[0x45, 0][..], &total.to_be_bytes(), &[0, 0, 0, 0, 64, protocol, 0, 0], &from, &to];
    frame([0x08, 0x00], &[&header.concat(), payload].concat())
}

pub(in crate::vm::net) fn v6(protocol: u8, to: &str, payload: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    let length = (payload.len() as u16).to_be_bytes();
    let header = [&[0x60, 0, 0, 0][..], &length, &[protocol, 64], &address(GUEST_V6), &address(to)];
    frame([0x86, 0xdd], &[&header.concat(), payload].concat())
}

pub(in crate::vm::net) fn segment(to: u16, flags: u8) -> Vec<u8> {
    let rest = [0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0];
    [&40000_u16.to_be_bytes()[..], &to.to_be_bytes(), &rest].concat()
}

pub(in crate::vm::net) fn datagram(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), 8_u16.to_be_bytes(), [0, 0]].concat()
}

pub(in crate::vm::net) fn tcp(to: [u8; 4], port: u16, flags: u8) -> Vec<u8> {
    v4(TCP, GUEST, to, &segment(port, flags))
}

pub(in crate::vm::net) fn udp(to: [u8; 4], from: u16, port: u16) -> Vec<u8> {
    v4(UDP, GUEST, to, &datagram(from, port))
}

/// Changes an IPv4 packet's flags and offset.
pub(in crate::vm::net) fn fragment(mut frame: Vec<u8>, more: bool, offset: u16) -> Vec<u8> {
    let word = u16::from(more) << 13 | offset;
    frame[20..22].copy_from_slice(&word.to_be_bytes());
    frame
}

/// Puts four bytes of options behind an IPv4 header.
pub(in crate::vm::net) fn with_options(mut frame: Vec<u8>) -> Vec<u8> {
    frame[14] = 0x46;
    frame.splice(34..34, [1, 1, 1, 1]);
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame
}
