//! Attachment by clsact and cls_bpf, for kernels without TCX: four messages of rtnetlink, by interface index.
//!
//! A filter has no link that could be pinned. Ours is found again by its priority, handle and name, and it
//! is replaced in place, atomically.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send, socket_with,
};

/// Preference of our filters: low, so that they come first, but not the first that others take by default.
pub const PRIORITY: u16 = 16;
/// Handle of our filters.
pub const HANDLE: u32 = 0x7631;
/// What the names of our filters begin with; the program's name follows.
pub const NAME_PREFIX: &str = "villus_";

// include/uapi/linux/rtnetlink.h, pkt_sched.h, pkt_cls.h, netlink.h
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const PROTOCOL_ALL: u32 = (3_u16.to_be()) as u32;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const ACT_DIRECT: u32 = 1;
const INGRESS_INSTEAD: &str = "a queue of kind `ingress` stands where a clsact would; remove it (`tc qdisc del dev … ingress`) or use \
                               attach-mode tcx";
/// Bytes of the netlink and of the tc header.
const HEADERS: usize = 16 + 20;

/// Which side of clsact; the number is the filter's parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Side {
    /// What the device receives.
    Ingress = 0xffff_fff2,
    /// What the device sends.
    Egress = 0xffff_fff3,
}

/// A BPF filter on an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// Preference.
    pub priority: u16,
    /// Handle within the preference.
    pub handle: u32,
    /// Name its maker gave it.
    pub name: String,
    /// Id of its program.
    pub program: u32,
}

impl Filter {
    /// Whether it stands where ours stands.
    #[must_use]
    pub const fn in_our_place(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE
    }

    /// Whether it is ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.program_name().is_some()
    }

    /// The name of the program of ours that it is. An `ingress` queue, which has one side only, lists its filters for either.
    #[must_use]
    pub fn program_name(&self) -> Option<&str> {
        self.name.strip_prefix(NAME_PREFIX).filter(|_| self.in_our_place())
    }
}

/// One request to rtnetlink.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, ifindex: u32, handle: u32, parent: u32, info: u32) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        for word in [1, 0, 0, ifindex, handle, parent, info] {
            bytes.extend_from_slice(&u32::to_ne_bytes(word));
        }
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // Lengths here are of short names and words.
        let length = (value.len() + 4) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn kind(self, name: &str) -> Self {
        self.attribute(TCA_KIND, &[name.as_bytes(), b"\0"].concat())
    }

    /// Sends it and hands every answer's payload, its headers included, to `each`.
    fn ask(mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let length = u32::try_from(self.0.len()).map_err(io::Error::other)?;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let socket = socket()?;
        send(&socket, &self.0, SendFlags::empty())?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(message) = next_message(&mut rest) {
                match u16_at(message, 4) {
                    Some(NLMSG_DONE) => return Ok(()),
                    Some(NLMSG_ERROR) => return error_of(message),
                    _ => each(message),
                }
            }
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

fn next_message<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32_at(rest, 0)? as usize;
    let message = rest.get(..length).filter(|message| message.len() >= 16)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(message)
}

fn error_of(message: &[u8]) -> io::Result<()> {
    match u32_at(message, 16).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("a netlink answer cut short")),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The attributes of a message or of a nested attribute.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn filter_of(message: &[u8]) -> Option<Filter> {
    let handle = u32_at(message, 24)?;
    let priority = (u32_at(message, 32)? >> 16) as u16;
    let of = |kind| {
        attributes(message.get(HEADERS..).unwrap_or_default()).find(|(k, _)| *k == kind).map(|(_, v)| v)
    };
    if of(TCA_KIND)?.strip_suffix(b"\0")? != b"bpf" || handle == 0 {
        return None;
    }
    let mut filter = Filter { priority, handle, name: String::new(), program: 0 };
    for (kind, value) in attributes(of(TCA_OPTIONS)?) {
        match kind {
            TCA_BPF_NAME => filter.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            TCA_BPF_ID => filter.program = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(filter)
}

/// BPF filters on one side of an interface; none when it has no clsact.
///
/// # Errors
/// `ENODEV` when the interface is gone.
pub fn filters(ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    let request = Request::new(RTM_GETTFILTER, DUMP, ifindex, 0, side as u32, 0);
    match request.ask(|message| found.extend(filter_of(message))) {
        // Without the qdisc there is nothing to list.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        result => result.map(|()| found),
    }
}

/// Whether one side of an interface's clsact holds no filter of any kind, or there is none.
///
/// # Errors
/// `ENODEV` when the interface is gone.
pub fn is_empty(ifindex: u32, side: Side) -> io::Result<bool> {
    let mut empty = true;
    let request = Request::new(RTM_GETTFILTER, DUMP, ifindex, 0, side as u32, 0);
    match request.ask(|_| empty = false) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(true),
        result => result.map(|()| empty),
    }
}

/// Makes sure that an interface has a clsact, or for what it receives a queue of kind `ingress` in its place.
///
/// # Errors
/// `ENODEV` when the interface is gone, `EPERM`; `AlreadyExists` when an `ingress` stands where a clsact would, which would
/// take filters of what is sent for filters of what is received.
pub fn ensure_clsact(ifindex: u32, side: Side) -> io::Result<()> {
    let request = Request::new(RTM_NEWQDISC, ACK | CREATE, ifindex, CLSACT_HANDLE, CLSACT, 0).kind("clsact");
    match request.ask(|_| ()) {
        // There is a queue, and it is of the other kind.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => match side {
            Side::Ingress => Ok(()),
            Side::Egress => Err(io::Error::new(io::ErrorKind::AlreadyExists, INGRESS_INSTEAD)),
        },
        result => result,
    }
}

/// Removes an interface's clsact with whatever hangs on it.
///
/// # Errors
/// `ENOENT` when there is none.
pub fn remove_clsact(ifindex: u32) -> io::Result<()> {
    Request::new(RTM_DELQDISC, ACK, ifindex, CLSACT_HANDLE, CLSACT, 0).kind("clsact").ask(|_| ())
}

/// Puts a program into our place on one side of an interface, atomically if one is there.
///
/// # Errors
/// `AlreadyExists` when a filter of somebody else stands in our place; `ENODEV`, `EPERM`.
pub fn attach(program: BorrowedFd<'_>, name: &str, ifindex: u32, side: Side) -> io::Result<()> {
    ensure_clsact(ifindex, side)?;
    if let Some(other) = filters(ifindex, side)?.into_iter().find(|f| f.in_our_place() && !f.is_ours()) {
        let text = format!(
            "the filter `{}` of somebody else has preference {PRIORITY} and handle {HANDLE:#x}",
            other.name
        );
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    let options = Request(Vec::new())
        .attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
        .attribute(TCA_BPF_NAME, &[NAME_PREFIX.as_bytes(), name.as_bytes(), b"\0"].concat())
        .attribute(TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes());
    Request::new(RTM_NEWTFILTER, ACK | CREATE, ifindex, HANDLE, side as u32, info())
        .kind("bpf")
        .attribute(TCA_OPTIONS, &options.0)
        .ask(|_| ())
}

/// Removes our filter of this name from one side of an interface; says whether it was there.
///
/// # Errors
/// `EPERM`; not that the interface is gone.
pub fn detach(name: &str, ifindex: u32, side: Side) -> io::Result<bool> {
    match filters(ifindex, side) {
        Ok(filters) if filters.iter().any(|filter| filter.program_name() == Some(name)) => {}
        Ok(_) => return Ok(false),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        Err(e) => return Err(e),
    }
    Request::new(RTM_DELTFILTER, ACK, ifindex, HANDLE, side as u32, info()).kind("bpf").ask(|_| ())?;
    Ok(true)
}

fn info() -> u32 {
    u32::from(PRIORITY) << 16 | PROTOCOL_ALL
}
