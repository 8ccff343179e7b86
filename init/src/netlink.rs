//! The few words of rtnetlink(7) that PID 1 says, as bytes. Pure.

use std::net::Ipv4Addr;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;

/// Brings an interface up: `struct ifinfomsg` with `IFF_UP`.
pub(crate) fn interface_up(index: u32) -> Vec<u8> {
    const IFF_UP: u32 = 1;
    // Address family, padding and device type: any.
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    request(RTM_NEWLINK, &body)
}

/// Gives an interface an address: `struct ifaddrmsg`, then `IFA_LOCAL` and `IFA_BROADCAST`.
pub(crate) fn add_address(index: u32, address: Ipv4Addr, prefix_length: u8) -> Vec<u8> {
    const AF_INET: u8 = 2;
    const IFA_LOCAL: u16 = 2;
    const IFA_BROADCAST: u16 = 4;
    let host_bits = u32::MAX.checked_shr(prefix_length.into()).unwrap_or(0);
    let broadcast = Ipv4Addr::from(u32::from(address) | host_bits);
    // Flags and scope: none and everywhere.
    let mut body = vec![AF_INET, prefix_length, 0, 0];
    body.extend(index.to_ne_bytes());
    for (kind, address) in [(IFA_LOCAL, address), (IFA_BROADCAST, broadcast)] {
        body.extend(8_u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(address.octets());
    }
    request(RTM_NEWADDR, &body)
}

/// `struct nlmsghdr`, then the body.
fn request(kind: u16, body: &[u8]) -> Vec<u8> {
    const NLM_F_REQUEST_AND_ACK: u16 = 1 | 4;
    const HEADER: u32 = 16;
    let mut message = Vec::new();
    message.extend((HEADER + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_REQUEST_AND_ACK.to_ne_bytes());
    // Sequence number and sender.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The error number, negative or 0, in an `NLMSG_ERROR` answer.
pub(crate) fn error(answer: &[u8]) -> Option<i32> {
    const NLMSG_ERROR: u16 = 2;
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernels_layout() {
        let up = interface_up(1);
        assert_eq!(up.len(), 32);
        assert_eq!(up[..8], [32, 0, 0, 0, 16, 0, 5, 0]);
        assert_eq!(up[20..], [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);

        let address = add_address(3, Ipv4Addr::new(10, 0, 3, 2), 24);
        assert_eq!(address[..8], [40, 0, 0, 0, 20, 0, 5, 0]);
        assert_eq!(address[16..24], [2, 24, 0, 0, 3, 0, 0, 0]);
        assert_eq!(address[24..], [8, 0, 2, 0, 10, 0, 3, 2, 8, 0, 4, 0, 10, 0, 3, 255]);

        let mut answer = vec![36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        answer.extend((-1_i32).to_ne_bytes());
        assert_eq!(error(&answer), Some(-1));
        assert_eq!(error(&answer[..18]), None);
    }
}
