//! What the node's connection tracking remembers: a connection that it has seen under a workload's own address keeps that
//! address on whatever device it leaves by later, for rules of NAT are asked about first packets only.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NlasIterator};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::error::NetError;
use crate::netlink::{self, DONE, ERROR, NESTED, append, messages, receive, verdict};

/// `NFNL_SUBSYS_CTNETLINK` of linux/netfilter/nfnetlink.h above `IPCTNL_MSG_CT_NEW`, `_GET` and `_DELETE` of
/// linux/netfilter/nfnetlink_conntrack.h.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// Attributes of linux/netfilter/nfnetlink_conntrack.h: `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_ZONE`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `CTA_TUPLE_IP`, in it source and destination: `CTA_IP_V4_SRC`, `CTA_IP_V4_DST`, `CTA_IP_V6_SRC`, `CTA_IP_V6_DST`.
const TUPLE_IP: u16 = 1;
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
/// Address families of linux/socket.h.
const INET: u8 = 2;
const INET6: u8 = 10;
const ENOENT: i32 = 2;

/// A connection as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tracked {
    /// Who opened it, and where its packets go after every NAT.
    src: IpAddr,
    dst: IpAddr,
    /// Whom answers are sent to: `src`, or what some NAT has lent it.
    answered: IpAddr,
    /// Its attributes that a deletion repeats: the first direction, zone and id.
    names: Vec<u8>,
}

/// Makes the connection tracking of the calling thread's namespace forget connections that leave with the address of who
/// opened them, of those that `is_wanted` says yes to, by their source and by where they go. Their next packets are the first
/// ones for every rule of NAT. Says how many were forgotten.
///
/// # Errors
/// When the kernel cannot list connections (it has no `nf_conntrack_netlink`), or refuses.
pub fn forget_untranslated(is_wanted: impl FnMut(IpAddr, IpAddr) -> bool) -> Result<usize, NetError> {
    let failed = |source| NetError::Netlink {
        action: "look through tracked connections".into(),
        source,
        kernel: None,
    };
    forget(is_wanted).map_err(failed)
}

fn forget(mut is_wanted: impl FnMut(IpAddr, IpAddr) -> bool) -> io::Result<usize> {
    let socket = netlink::open(NETLINK_NETFILTER)?;
    let mut forgotten = 0;
    for family in [INET, INET6] {
        let mut found = Vec::new();
        list(&socket, family, |tracked| {
            if tracked.answered == tracked.src && is_wanted(tracked.src, tracked.dst) {
                found.push(tracked.names);
            }
        })?;
        for names in found {
            forgotten += usize::from(delete(&socket, family, &names)?);
        }
    }
    Ok(forgotten)
}

fn list(socket: &Socket, family: u8, mut take: impl FnMut(Tracked)) -> io::Result<()> {
    socket.send(&netlink::request(GET, NLM_F_DUMP, family, &[]), 0)?;
    let mut buffer = netlink::buffer();
    loop {
        receive(socket, &mut buffer)?;
        for (kind, message) in messages(&buffer) {
            match kind {
                NEW => parse(message).into_iter().for_each(&mut take),
                DONE => return Ok(()),
                ERROR => return verdict(message),
                _ => {}
            }
        }
    }
}

/// Deletes a connection; says whether it was still there.
fn delete(socket: &Socket, family: u8, names: &[u8]) -> io::Result<bool> {
    socket.send(&netlink::request(DELETE, NLM_F_ACK, family, names), 0)?;
    let mut buffer = netlink::buffer();
    loop {
        receive(socket, &mut buffer)?;
        if let Some((_, message)) = messages(&buffer).find(|(kind, _)| *kind == ERROR) {
            return match verdict(message) {
                Ok(()) => Ok(true),
                Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(false),
                Err(error) => Err(error),
            };
        }
    }
}

/// A connection, of the body of a message; `None` where something of it is missing.
fn parse(message: &[u8]) -> Option<Tracked> {
    let (mut first, mut answer, mut names) = (None, None, Vec::new());
    for attribute in NlasIterator::new(message.get(netlink::HEAD..)?).flatten() {
        match attribute.kind() {
            TUPLE_ORIG => {
                first = addresses(attribute.value());
                append(&mut names, TUPLE_ORIG | NESTED, attribute.value());
            }
            TUPLE_REPLY => answer = addresses(attribute.value()),
            kind @ (ID | ZONE) => append(&mut names, kind, attribute.value()),
            _ => {}
        }
    }
    let ((src, _), (dst, answered)) = (first?, answer?);
    Some(Tracked { src, dst, answered, names })
}

/// Source and destination of a tuple.
fn addresses(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = NlasIterator::new(tuple).flatten().find(|attribute| attribute.kind() == TUPLE_IP)?;
    let (mut src, mut dst) = (None, None);
    for attribute in NlasIterator::new(ip.value()).flatten() {
        let place = match attribute.kind() {
            V4_SRC | V6_SRC => &mut src,
            V4_DST | V6_DST => &mut dst,
            _ => continue,
        };
        *place = address(attribute.value());
    }
    Some((src?, dst?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nested(kind: u16, parts: &[(u16, &[u8])]) -> Vec<u8> {
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        parts.iter().for_each(|(kind, value)| append(&mut inner, *kind, value));
        append(&mut outer, kind | NESTED, &inner);
        outer
    }

    #[test]
    fn a_connection_is_read_and_named_again() {
        let tuple = |src: [u8; 4], dst: [u8; 4]| nested(TUPLE_IP, &[(V4_SRC, &src), (V4_DST, &dst)]);
        let mut message = vec![INET, 0, 0, 0];
        let orig = tuple([10, 0, 0, 1], [10, 96, 0, 1]);
        append(&mut message, TUPLE_ORIG | NESTED, &orig);
        append(&mut message, TUPLE_REPLY | NESTED, &tuple([192, 0, 2, 1], [10, 0, 0, 1]));
        append(&mut message, ID, &[1, 2, 3, 4]);
        append(&mut message, ZONE, &[0, 7]);
        let tracked = parse(&message).unwrap();
        assert_eq!(tracked.src, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(tracked.dst, IpAddr::from([192, 0, 2, 1]), "after the translation");
        assert_eq!(tracked.answered, tracked.src, "no address is lent");
        let kinds: Vec<u16> = NlasIterator::new(&tracked.names).flatten().map(|a| a.kind()).collect();
        assert_eq!(kinds, [TUPLE_ORIG, ID, ZONE]);
        assert_eq!(NlasIterator::new(&tracked.names).flatten().next().unwrap().value(), orig);
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
