//! Whether anything of nftables has changed, asked of the kernel without running a command.

use std::io;

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::error::NetError;

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h above `NFT_MSG_NEWGEN` and `NFT_MSG_GETGEN` of
/// linux/netfilter/nf_tables.h.
const NEWGEN: u16 = 10 << 8 | 15;
const GETGEN: u16 = 10 << 8 | 16;
/// `NLM_F_REQUEST` of linux/netlink.h.
const REQUEST: u16 = 1;
/// `NFTA_GEN_ID` of linux/netfilter/nf_tables.h: 32 bits, the highest first.
const GEN_ID: u16 = 1;
/// Bytes of a netlink header, and with the `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const BODY: usize = HEADER + 4;

/// The number of the last change of nftables in the calling thread's namespace: as long as it is the same, nobody has
/// changed anything.
///
/// # Errors
/// When the kernel has no nftables.
pub fn nft_generation() -> Result<u32, NetError> {
    let action = "ask for the generation of nftables";
    let failed = |source| NetError::Netlink { action: action.to_owned(), source, kernel: None };
    let answer = ask().map_err(failed)?;
    parse(&answer).ok_or_else(|| NetError::Answer {
        action: action.to_owned(),
        reason: format!("{} bytes without a generation", answer.len()),
    })
}

fn ask() -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = Vec::with_capacity(BODY);
    request.extend_from_slice(&(BODY as u32).to_ne_bytes());
    request.extend_from_slice(&GETGEN.to_ne_bytes());
    request.extend_from_slice(&REQUEST.to_ne_bytes());
    // Sequence, port, and the header of netfilter: any family, version 0.
    request.resize(BODY, 0);
    socket.send(&request, 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let attributes = NlasIterator::new(answer.get(BODY..).filter(|_| kind == NEWGEN)?);
    let id = attributes.flatten().find(|attribute| attribute.kind() == GEN_ID)?;
    Some(u32::from_be_bytes(id.value().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), ours in any::<bool>()) {
            let mut bytes = bytes;
            if ours && bytes.len() > 6 {
                bytes[4..6].copy_from_slice(&NEWGEN.to_ne_bytes());
            }
            let _ = parse(&bytes);
        }
    }
}
