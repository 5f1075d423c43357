//! What is asked of the kernel's nftables without running a command: whether anything has changed, and a counter.

use std::io;

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::error::NetError;
use crate::nat::{ASTRAY, NAT_TABLE};
use crate::netlink::{self, ERROR, append, messages, receive, verdict};

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h above `NFT_MSG_NEWGEN`, `NFT_MSG_GETGEN`, `NFT_MSG_NEWOBJ` and
/// `NFT_MSG_GETOBJ` of linux/netfilter/nf_tables.h.
const NEWGEN: u16 = 10 << 8 | 15;
const GETGEN: u16 = 10 << 8 | 16;
const NEWOBJ: u16 = 10 << 8 | 18;
const GETOBJ: u16 = 10 << 8 | 19;
/// `NFTA_GEN_ID` of linux/netfilter/nf_tables.h: 32 bits, the highest first.
const GEN_ID: u16 = 1;
/// `NFTA_OBJ_TABLE`, `NFTA_OBJ_NAME`, `NFTA_OBJ_TYPE` and `NFTA_OBJ_DATA`, and `NFT_OBJECT_COUNTER`, which has
/// `NFTA_COUNTER_PACKETS`: 64 bits, the highest first.
const OBJ_TABLE: u16 = 1;
const OBJ_NAME: u16 = 2;
const OBJ_TYPE: u16 = 3;
const OBJ_DATA: u16 = 4;
const COUNTER: u32 = 1;
const COUNTER_PACKETS: u16 = 2;
/// `NFPROTO_INET` of linux/netfilter.h.
const INET: u8 = 1;
const ENOENT: i32 = 2;

/// The number of the last change of nftables in the calling thread's namespace: as long as it is the same, nobody has
/// changed anything.
///
/// # Errors
/// When the kernel has no nftables.
pub fn nft_generation() -> Result<u32, NetError> {
    let action = "ask for the generation of nftables";
    let answer = ask(GETGEN, 0, &[]).map_err(|source| failed(action, source))?;
    generation(&answer).ok_or_else(|| strange(action, &answer))
}

/// How many packets our table of masquerading has dropped, for their connection keeps an address that means nothing on the
/// device by which they would leave; `None` when the table is not there.
///
/// # Errors
/// When the kernel has no nftables.
pub fn astray_packets() -> Result<Option<u64>, NetError> {
    let action = "ask for a counter of nftables";
    let mut attributes = Vec::new();
    append(&mut attributes, OBJ_TABLE, format!("{NAT_TABLE}\0").as_bytes());
    append(&mut attributes, OBJ_NAME, format!("{ASTRAY}\0").as_bytes());
    append(&mut attributes, OBJ_TYPE, &COUNTER.to_be_bytes());
    match ask(GETOBJ, INET, &attributes) {
        Ok(answer) => packets(&answer).map(Some).ok_or_else(|| strange(action, &answer)),
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(None),
        Err(source) => Err(failed(action, source)),
    }
}

fn failed(action: &str, source: io::Error) -> NetError {
    NetError::Netlink { action: action.to_owned(), source, kernel: None }
}

fn strange(action: &str, answer: &[u8]) -> NetError {
    let reason = format!("{} bytes without what was asked for", answer.len());
    NetError::Answer { action: action.to_owned(), reason }
}

fn ask(kind: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let socket = netlink::open(NETLINK_NETFILTER)?;
    socket.send(&netlink::request(kind, 0, family, attributes), 0)?;
    let mut answer = Vec::with_capacity(4096);
    receive(&socket, &mut answer)?;
    if let Some((_, message)) = messages(&answer).find(|(kind, _)| *kind == ERROR) {
        verdict(message)?;
    }
    Ok(answer)
}

/// What the attributes of the first message of a kind are.
fn attributes(answer: &[u8], kind: u16) -> Option<&[u8]> {
    let (_, message) = messages(answer).find(|(of, _)| *of == kind)?;
    message.get(netlink::HEAD..)
}

fn generation(answer: &[u8]) -> Option<u32> {
    let id = NlasIterator::new(attributes(answer, NEWGEN)?).flatten().find(|a| a.kind() == GEN_ID)?;
    Some(u32::from_be_bytes(id.value().try_into().ok()?))
}

fn packets(answer: &[u8]) -> Option<u64> {
    let data = NlasIterator::new(attributes(answer, NEWOBJ)?).flatten().find(|a| a.kind() == OBJ_DATA)?;
    let packets = NlasIterator::new(data.value()).flatten().find(|a| a.kind() == COUNTER_PACKETS)?;
    Some(u64::from_be_bytes(packets.value().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0..3) {
            let kind = [NEWGEN, NEWOBJ, ERROR][kind as usize];
            let answer = netlink::request(kind, 0, INET, &bytes);
            let _ = (generation(&answer), packets(&answer));
            let _ = (generation(&bytes), packets(&bytes));
        }
    }
}
