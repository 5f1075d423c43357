//! Requests over netlink whose bodies begin with four bytes, as netfilter's and those of generic netlink do, and the messages of
//! their answers.

use std::io;

use netlink_packet_core::NLM_F_REQUEST;
use netlink_sys::{Socket, SocketAddr};

/// `NLMSG_ERROR` and `NLMSG_DONE` of linux/netlink.h.
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
/// `NLA_F_NESTED` of linux/netlink.h.
pub(crate) const NESTED: u16 = 1 << 15;
/// Bytes that begin each message's body: `struct nfgenmsg` of linux/netfilter/nfnetlink.h (family, version, resource) or
/// `struct genlmsghdr` of linux/genetlink.h (command, version, nothing).
pub(crate) const HEAD: usize = 4;
/// Bytes of a netlink header.
const HEADER: usize = 16;
/// The kernel fills at most 32 KiB per answer.
const RECEIVE_BYTES: usize = 64 * 1024;

/// A connection by a protocol of netlink in the calling thread's namespace.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// What takes an answer.
pub(crate) fn buffer() -> Vec<u8> {
    Vec::with_capacity(RECEIVE_BYTES)
}

/// The next answer.
pub(crate) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A request of a kind: netfilter's subsystem above its message, or the number of a generic family. `first` begins the body: an
/// address family, or the command.
pub(crate) fn request(kind: u16, flags: u16, first: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + HEAD + attributes.len();
    let mut request = Vec::with_capacity(length);
    request.extend_from_slice(&(length as u32).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    // Sequence and port.
    request.extend_from_slice(&[0; 8]);
    // Version 0, of which nobody asks more, and no resource.
    request.extend_from_slice(&[first, 0, 0, 0]);
    request.extend_from_slice(attributes);
    request
}

/// The messages of an answer: kind, and what is behind the netlink header.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let message = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    })
}

/// What an acknowledgement says: 0, or an error's number below it.
pub(crate) fn verdict(message: &[u8]) -> io::Result<()> {
    let code = message.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

/// Adds an attribute; one of 64 KiB or more is of no request.
pub(crate) fn append(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_attribute_is_padded_to_four_bytes() {
        let mut bytes = Vec::new();
        append(&mut bytes, 7, b"abcde");
        assert_eq!((bytes.len(), bytes[0]), (12, 9));
        let whole = request(1 << 8 | 1, 0, 2, &bytes);
        assert_eq!(messages(&whole).map(|(kind, body)| (kind, body.len())).collect::<Vec<_>>(), [(257, 16)]);
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0u32..200) {
            let mut bytes = bytes;
            if let Some(length) = bytes.first_chunk_mut::<4>() {
                *length = cut.to_ne_bytes();
            }
            for (_, message) in messages(&bytes) {
                let _ = verdict(message);
            }
        }
    }
}
