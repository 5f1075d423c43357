//! One rtnetlink connection: requests that are acknowledged, and listings.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::NetError;

/// A listing that other changes kept interrupting is begun anew this often.
const DUMP_ATTEMPTS: u32 = 16;

/// The kernel fills at most 32 KiB per answer; a link with many virtual functions may need more.
const RECEIVE_BYTES: usize = 128 * 1024;

/// Multicast groups of linux/rtnetlink.h.
pub(crate) mod groups {
    pub const LINK: u32 = 1;
    pub const IPV4_IFADDR: u32 = 5;
    pub const IPV4_ROUTE: u32 = 7;
    pub const IPV6_IFADDR: u32 = 9;
    pub const IPV6_ROUTE: u32 = 11;
}

/// A connection to the kernel's network configuration, in the namespace of the thread that opened it.
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

// === impl Rtnl ===

impl Rtnl {
    /// Opens a connection in the calling thread's namespace.
    ///
    /// # Errors
    /// When the process may open no more files.
    pub fn open() -> Result<Self, NetError> {
        let connect = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Filters of listings; kernels before 4.20 ignore them, and so every listing is filtered here as well.
            let _ = socket.set_netlink_get_strict_chk(true);
            io::Result::Ok(socket)
        };
        let socket = connect().map_err(|source| failed("open a netlink connection", source, None))?;
        Ok(Rtnl { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Sends one change and waits for its acknowledgement.
    pub(super) fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl Fn() -> String,
    ) -> Result<(), NetError> {
        self.send(message, flags | NLM_F_ACK, &action)?;
        loop {
            for answer in self.receive(&action)? {
                if let NetlinkPayload::Error(ack) = answer.payload {
                    return verdict(&ack, &action);
                }
            }
        }
    }

    /// Asks for one object. An answer of `ENODEV` is an error like any other.
    pub(super) fn get(
        &mut self,
        message: RouteNetlinkMessage,
        action: impl Fn() -> String,
    ) -> Result<RouteNetlinkMessage, NetError> {
        self.send(message, 0, &action)?;
        loop {
            for answer in self.receive(&action)? {
                match answer.payload {
                    NetlinkPayload::InnerMessage(object) => return Ok(object),
                    NetlinkPayload::Error(ack) => verdict(&ack, &action)?,
                    _ => {}
                }
            }
        }
    }

    /// Asks for all objects of a kind. Begins anew when the kernel says that they changed meanwhile.
    pub(super) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        action: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        for _ in 1..DUMP_ATTEMPTS {
            let (objects, consistent) = self.dump_once(message.clone(), &action)?;
            if consistent {
                return Ok(objects);
            }
        }
        Ok(self.dump_once(message.clone(), &action)?.0)
    }

    fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
        action: &impl Fn() -> String,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetError> {
        self.send(message, NLM_F_DUMP, action)?;
        let (mut objects, mut consistent) = (Vec::new(), true);
        loop {
            for answer in self.receive(action)? {
                consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        let source = io::Error::from_raw_os_error(done.code.saturating_neg());
                        return Err(failed(&action(), source, None));
                    }
                    NetlinkPayload::Done(_) => return Ok((objects, consistent)),
                    NetlinkPayload::Error(ack) => verdict(&ack, action)?,
                    _ => {}
                }
            }
        }
    }

    fn send(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: &impl Fn() -> String,
    ) -> Result<(), NetError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        retrying(|| self.socket.send(&bytes, 0)).map_err(|source| failed(&action(), source, None))?;
        Ok(())
    }

    /// The next answers to the last request; answers to earlier ones are dropped.
    fn receive(
        &mut self,
        action: &impl Fn() -> String,
    ) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetError> {
        self.buffer.clear();
        let buffer = &mut self.buffer;
        let length = retrying(|| {
            buffer.clear();
            self.socket.recv(buffer, MSG_TRUNC)
        })
        .map_err(|source| failed(&action(), source, None))?;
        if length > self.buffer.len() {
            return Err(NetError::Answer {
                action: action(),
                reason: format!("{length} bytes in one answer"),
            });
        }
        let answers = decode_all(&self.buffer);
        Ok(answers.filter(|answer| answer.header.sequence_number == self.sequence).collect())
    }
}

impl std::fmt::Debug for Rtnl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rtnl").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// `MSG_TRUNC` of linux/socket.h: tell the true length of what did not fit.
const MSG_TRUNC: i32 = 0x20;

/// All messages of a datagram. One that cannot be decoded is left out and reported to the log: a device with an
/// attribute nobody knows must not hide all others.
pub(crate) fn decode_all(bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
            let (message, after) = rest.split_at_checked(length)?;
            rest = after.get(length.next_multiple_of(4) - length..).unwrap_or_default();
            match NetlinkMessage::deserialize(message) {
                Ok(message) => return Some(message),
                Err(error) => tracing::debug!(%error, "a netlink message was not understood and is left out"),
            }
        }
        None
    })
}

fn retrying<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn verdict(ack: &ErrorMessage, action: &impl Fn() -> String) -> Result<(), NetError> {
    match ack.code {
        None => Ok(()),
        Some(_) => Err(failed(&action(), ack.to_io(), kernel_words(&ack.header))),
    }
}

/// `NLMSGERR_ATTR_MSG`: the kernel's explanation, behind the 16 bytes of the request's header.
fn kernel_words(after_code: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attributes = NlasIterator::new(after_code.get(16..)?);
    let message = attributes.flatten().find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(message.value());
    Some(text.trim_end_matches('\0').to_owned())
}

fn failed(action: &str, source: io::Error, kernel: Option<String>) -> NetError {
    NetError::Netlink { action: action.to_owned(), source, kernel }
}

/// The family number of an address.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_left_out(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all(&bytes).count();
            let _ = kernel_words(&bytes);
        }

        #[test]
        fn any_body_of_a_route_message_is_decoded_or_left_out(
            kind in 16u16..100, body in prop::collection::vec(any::<u8>(), 0..160)
        ) {
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(&body);
            let _ = decode_all(&bytes).count();
        }
    }
}
