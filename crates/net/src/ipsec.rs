//! Whether the kernel's IPsec has a say in what this node sends, asked without running a command.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

use crate::error::NetError;

/// Messages of linux/xfrm.h: `XFRM_MSG_NEWSPDINFO`, `XFRM_MSG_GETSPDINFO` and `XFRM_MSG_GETDEFAULT`, which is answered by its own
/// kind. Errors are `NLMSG_ERROR` of linux/netlink.h.
const NEW_SPD_INFO: u16 = 0x24;
const GET_SPD_INFO: u16 = 0x25;
const GET_DEFAULT: u16 = 0x28;
const ERROR: u16 = 2;
/// `NLM_F_REQUEST` of linux/netlink.h.
const REQUEST: u16 = 1;
/// `XFRMA_SPD_INFO` of linux/xfrm.h: how many policies there are for what comes in, goes out and is forwarded, 32 bits each.
const SPD_INFO: u16 = 1;
/// `XFRM_USERPOLICY_BLOCK` of linux/xfrm.h.
const BLOCK: u8 = 1;
/// `XFRMNLGRP_POLICY` of linux/xfrm.h.
const POLICIES: u32 = 4;
/// Bytes of a netlink header, and with the flags before the attributes.
const HEADER: usize = 16;
const BODY: usize = HEADER + 4;

/// Whether the calling thread's namespace has an IPsec policy for what it sends: any, for whatever packets, also one that lets
/// them pass in the clear; or drops what no policy allows.
///
/// # Errors
/// When the kernel has IPsec and does not say.
pub fn has_ipsec_output() -> Result<bool, NetError> {
    let action = "ask whether IPsec has policies for output";
    let failed = |source| NetError::Netlink { action: action.to_owned(), source, kernel: None };
    let Some(socket) = open().map_err(failed)? else { return Ok(false) };
    let answer = ask(&socket, GET_SPD_INFO).map_err(failed)?;
    let policies = output_policies(&answer).ok_or_else(|| NetError::Answer {
        action: action.to_owned(),
        reason: format!("{} bytes without a number of policies", answer.len()),
    })?;
    Ok(policies > 0 || blocks_output(&ask(&socket, GET_DEFAULT).map_err(failed)?))
}

/// Changes of the IPsec policies of a namespace; readable when there was one.
#[derive(Debug)]
pub struct IpsecChanges(Socket);

// === impl IpsecChanges ===

impl IpsecChanges {
    /// Begins to listen in the calling thread's namespace; `None` where the kernel has no IPsec.
    ///
    /// # Errors
    /// When the process may open no more files, or may not listen.
    pub fn open() -> Result<Option<Self>, NetError> {
        let action = "listen to changes of IPsec policies";
        let failed = |source| NetError::Netlink { action: action.to_owned(), source, kernel: None };
        let connect = || {
            let mut socket = match Socket::new(NETLINK_XFRM) {
                Err(error) if is_absent(&error) => return Ok(None),
                socket => socket?,
            };
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(POLICIES)?;
            socket.set_non_blocking(true)?;
            io::Result::Ok(Some(Self(socket)))
        };
        connect().map_err(failed)
    }

    /// Takes all there is; what it says is to be asked anew.
    pub fn take(&self) {
        let mut rest = Vec::with_capacity(4096);
        loop {
            rest.clear();
            match self.0.recv(&mut rest, 0) {
                Ok(_) => {}
                // What the kernel had no room for counts as taken: that there was something is known.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for IpsecChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for IpsecChanges {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn is_absent(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [Errno::PROTONOSUPPORT, Errno::AFNOSUPPORT].iter().any(|none| number == Some(none.raw_os_error()))
}

/// `None` where the kernel has no IPsec.
fn open() -> io::Result<Option<Socket>> {
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Err(error) if is_absent(&error) => return Ok(None),
        socket => socket?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(Some(socket))
}

fn ask(socket: &Socket, what: u16) -> io::Result<Vec<u8>> {
    let mut request = Vec::with_capacity(BODY);
    request.extend_from_slice(&(BODY as u32).to_ne_bytes());
    request.extend_from_slice(&what.to_ne_bytes());
    request.extend_from_slice(&REQUEST.to_ne_bytes());
    // Sequence, port, and the body: flags without a meaning, or nothing that is set.
    request.resize(BODY, 0);
    socket.send(&request, 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    Ok(answer)
}

fn kind(answer: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?))
}

/// How many policies there are for output.
fn output_policies(answer: &[u8]) -> Option<u32> {
    let attributes = NlasIterator::new(answer.get(BODY..).filter(|_| kind(answer) == Some(NEW_SPD_INFO))?);
    let info = attributes.flatten().find(|attribute| attribute.kind() == SPD_INFO)?;
    Some(u32::from_ne_bytes(info.value().get(4..8)?.try_into().ok()?))
}

/// Whether output is dropped that no policy allows. Kernels before 5.15 cannot, and answer with an error.
fn blocks_output(answer: &[u8]) -> bool {
    match kind(answer) {
        Some(GET_DEFAULT) => answer.get(HEADER + 2).is_none_or(|out| *out == BLOCK),
        Some(ERROR) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            of in prop::option::of(prop::sample::select(vec![NEW_SPD_INFO, GET_DEFAULT, ERROR])),
        ) {
            if let (Some(of), true) = (of, bytes.len() > 6) {
                bytes[4..6].copy_from_slice(&of.to_ne_bytes());
            }
            let _ = output_policies(&bytes);
            let _ = blocks_output(&bytes);
        }
    }
}
