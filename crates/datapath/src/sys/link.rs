//! Links of the kernel: TCX attachment that outlives the process and is replaced atomically.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{Cmd, addr_mut, bpf, bpf_fd, expect_kind, fd_by_id, info, next_id, raw};

/// Where a TCX program is attached; numbers of `enum bpf_attach_type`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum TcxHook {
    /// `BPF_TCX_INGRESS`.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`.
    Egress = 47,
}

/// `BPF_LINK_TYPE_TCX`.
const LINK_TYPE_TCX: u32 = 11;

/// What the kernel says about a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// The kernel's id, unique while the machine is up.
    pub id: u32,
    /// Id of the program it runs now.
    pub program: u32,
    /// Interface index of a TCX link; 0 when the device is gone, `None` for other links.
    pub ifindex: Option<u32>,
    /// Number of `enum bpf_attach_type` of a TCX link.
    pub attach_type: u32,
}

#[repr(C)]
struct CreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct DetachAttr {
    link_fd: u32,
}

#[repr(C)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `struct bpf_link_info`, as far as we read it.
#[repr(C)]
#[derive(Default)]
struct RawInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    detail: [u32; 16],
}

/// Attaches a tc program by a TCX link, behind those that are there.
///
/// # Errors
/// `EINVAL` before Linux 6.6, `ENODEV` when the interface is gone.
pub fn tcx_create(program: BorrowedFd<'_>, ifindex: u32, hook: TcxHook) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        prog_fd: raw(program),
        target_ifindex: ifindex,
        attach_type: hook as u32,
        flags: 0,
        relative_fd: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: `CreateAttr` is the LINK_CREATE member for TCX; no pointers; returns a descriptor.
    unsafe { bpf_fd(Cmd::LinkCreate, &mut attr) }
}

/// Puts another program behind a link, atomically.
///
/// # Errors
/// `ENOLINK` when the link's device is gone.
pub fn tcx_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = UpdateAttr { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    // SAFETY: `UpdateAttr` is the LINK_UPDATE member; no pointers.
    unsafe { bpf(Cmd::LinkUpdate, &mut attr) }.map(drop)
}

/// Detaches a link at once, whoever still holds it.
///
/// # Errors
/// Whatever the kernel says.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = DetachAttr { link_fd: raw(link) };
    // SAFETY: `DetachAttr` is the LINK_DETACH member; no pointers.
    unsafe { bpf(Cmd::LinkDetach, &mut attr) }.map(drop)
}

/// Ids of the programs that are attached to an interface by TCX, in order.
///
/// # Errors
/// `EINVAL` before Linux 6.6, `ENODEV` when the interface is gone.
pub fn tcx_programs(ifindex: u32, hook: TcxHook) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: addr_mut(&mut ids),
        prog_cnt: 64,
        pad: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: QUERY member; its one pointer has room for the 64 ids announced.
    match unsafe { bpf(Cmd::ProgQuery, &mut attr) } {
        Ok(_) => {}
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}

/// Asks the kernel about a link.
///
/// # Errors
/// Whatever the kernel says.
pub fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    expect_kind(fd, "bpf-link")?;
    let mut out = RawInfo::default();
    // SAFETY: `RawInfo` begins like `bpf_link_info`; zeros in the detail mean no buffers.
    unsafe { info(fd, &mut out)? };
    let tcx = out.kind == LINK_TYPE_TCX;
    Ok(LinkInfo {
        id: out.id,
        program: out.prog_id,
        ifindex: tcx.then_some(out.detail[0]),
        attach_type: if tcx { out.detail[1] } else { 0 },
    })
}

/// Opens a link by its id.
///
/// # Errors
/// `NotFound` when it is gone.
pub fn link_fd_by_id(id: u32) -> io::Result<OwnedFd> {
    fd_by_id(Cmd::LinkFdById, id)
}

/// The link id after `after` (0 begins).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn next_link_id(after: u32) -> io::Result<Option<u32>> {
    next_id(Cmd::LinkNextId, after)
}
