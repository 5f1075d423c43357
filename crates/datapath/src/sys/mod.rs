//! bpf(2) with checked lengths, and memory shared with maps: the only unsafe code of this crate.
//!
//! Every function here is safe to call: buffers are slices whose lengths are compared with what the kernel
//! object says about itself before the kernel sees a pointer.

mod link;
mod map;
mod memory;
mod prog;
mod shared;

pub use link::{
    LinkInfo, TcxHook, link_detach, link_fd_by_id, link_info, next_link_id, tcx_create, tcx_programs,
    tcx_update,
};
pub use map::{Kind, MapInfo, MapSpec, NO_PREALLOC, RawMap, Update, map_by_id, next_map_id};
pub use memory::{return_memory, spare_memory};
pub use prog::{
    ProgInfo, SkbContext, TestRun, next_prog_id, prog_fd_by_id, prog_info, prog_load_tc, test_run,
};
pub use shared::{MMAPABLE, SharedWords};

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Commands of bpf(2), numbers of `enum bpf_cmd`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Cmd {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgNextId = 11,
    MapNextId = 12,
    ProgFdById = 13,
    MapFdById = 14,
    ObjInfo = 15,
    ProgQuery = 16,
    MapLookupAndDelete = 21,
    MapLookupBatch = 24,
    MapLookupAndDeleteBatch = 25,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkFdById = 30,
    LinkNextId = 31,
    LinkDetach = 34,
}

/// Calls bpf(2).
///
/// # Safety
/// `A` is `repr(C)` without padding and laid out as the member of `union bpf_attr` that `cmd` reads; every
/// pointer in it is valid for what `cmd` reads or writes through it.
unsafe fn bpf<A>(cmd: Cmd, attr: &mut A) -> io::Result<u32> {
    // SAFETY: the caller vouches for the contents of `attr`; its size is passed along.
    let ret = unsafe {
        libc::syscall(libc::SYS_bpf, cmd as libc::c_int, core::ptr::from_mut(attr), size_of::<A>())
    };
    u32::try_from(ret).map_err(|_| io::Error::last_os_error())
}

/// As [`bpf`], for commands that return a new file descriptor.
///
/// # Safety
/// As [`bpf`], and `cmd` returns a descriptor.
unsafe fn bpf_fd<A>(cmd: Cmd, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for `attr`.
    let fd = unsafe { bpf(cmd, attr)? };
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn addr<T>(data: &[T]) -> u64 {
    data.as_ptr() as u64
}

fn addr_mut<T>(data: &mut [T]) -> u64 {
    data.as_mut_ptr() as u64
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_owned())
}

/// An object name as the kernel takes it: 15 characters of `[A-Za-z0-9_.]`.
fn object_name(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    let ok = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_' || *c == b'.';
    for (to, from) in out[..15].iter_mut().zip(name.bytes().filter(ok)) {
        *to = from;
    }
    out
}

fn text(name: &[u8; 16]) -> String {
    let end = name.iter().position(|&c| c == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| invalid("a path with a NUL byte"))
}

/// Pins a map, program or link at a path on a bpffs that does not exist yet.
///
/// # Errors
/// `AlreadyExists`, or whatever the kernel says (`EPERM` when the path is not on a bpffs).
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: raw(fd), file_flags: 0 };
    // SAFETY: `ObjAttr` is the OBJ_PIN member; `path` is a C string that lives across the call.
    unsafe { bpf(Cmd::ObjPin, &mut attr) }.map(drop)
}

/// Opens what is pinned at a path.
///
/// # Errors
/// `NotFound`, or whatever the kernel says.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `ObjAttr` is the OBJ_GET member; `path` is a C string that lives across the call.
    unsafe { bpf_fd(Cmd::ObjGet, &mut attr) }
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Refuses a descriptor that is not of the kind of object meant: `bpf-map`, `bpf-prog`, `bpf-link`. A new link
/// is called `bpf_link` by the kernel, one from a pin `bpf-link`.
fn expect_kind(fd: BorrowedFd<'_>, kind: &str) -> io::Result<()> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", raw(fd)))?;
    let name = link.to_string_lossy().replace('_', "-");
    if name.strip_prefix("anon-inode:") == Some(kind) {
        return Ok(());
    }
    Err(invalid(&format!("not a {kind} but {}", link.display())))
}

/// Reads an object's info struct.
///
/// # Safety
/// `T` is `repr(C)`, plain data, and begins like the kernel's info struct of this kind of object; pointers in
/// it, as given, are valid for the element counts given beside them.
unsafe fn info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let len = u32::try_from(size_of::<T>()).map_err(|_| invalid("info too large"))?;
    let mut attr = InfoAttr { bpf_fd: raw(fd), info_len: len, info: core::ptr::from_mut(info) as u64 };
    // SAFETY: `InfoAttr` is the info member; `info` points to `info_len` writable bytes.
    unsafe { bpf(Cmd::ObjInfo, &mut attr) }.map(drop)
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

fn fd_by_id(cmd: Cmd, id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr { id, next_id: 0, open_flags: 0 };
    // SAFETY: `IdAttr` is the get-by-id member; no pointers; the command returns a descriptor.
    unsafe { bpf_fd(cmd, &mut attr) }
}

fn next_id(cmd: Cmd, after: u32) -> io::Result<Option<u32>> {
    let mut attr = IdAttr { id: after, next_id: 0, open_flags: 0 };
    // SAFETY: `IdAttr` is the get-next-id member; no pointers.
    match unsafe { bpf(cmd, &mut attr) } {
        Ok(_) => Ok(Some(attr.next_id)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
