//! A kernel that does not take some of our programs: a filter of system calls between an agent and it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// `BPF_PROG_LOAD` of linux/bpf.h, and where its `union bpf_attr` has the name, of at most 15 characters.
const PROG_LOAD: u32 = 5;
const NAME_AT: u64 = 48;
const NAME_BYTES: usize = 16;
/// Where `struct seccomp_data` of linux/seccomp.h has the call's number and the lower half of its first argument.
const NUMBER_AT: u32 = 0;
#[cfg(target_endian = "little")]
const COMMAND_AT: u32 = 16;
#[cfg(target_endian = "big")]
const COMMAND_AT: u32 = 20;

/// Refuses programs, as long as it is told to, to the calling thread and every process that it starts from now on.
pub struct Refusal(Arc<AtomicBool>);

impl Refusal {
    /// Of those whose name `is_refused` says yes to.
    pub fn of(is_refused: fn(&str) -> bool) -> Self {
        let refuses = Arc::new(AtomicBool::new(true));
        let listener = listen().unwrap();
        let asked = refuses.clone();
        std::thread::spawn(move || {
            while let Ok(call) = next(&listener) {
                let refused =
                    asked.load(Ordering::Relaxed) && name_of(&call).is_some_and(|name| is_refused(&name));
                answer(&listener, call.id, refused);
            }
        });
        Self(refuses)
    }

    pub fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Has every loading of a program by this thread and its children asked about.
fn listen() -> io::Result<OwnedFd> {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut steps = [
        step(load, 0, 0, NUMBER_AT),
        step(is_equal, 0, 3, libc::SYS_bpf as u32),
        step(load, 0, 0, COMMAND_AT),
        step(is_equal, 0, 1, PROG_LOAD),
        step(end, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(end, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the kernel copies the filter, which lives until the call returns.
    let fd =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits for the next call; an error when nobody is left who could make one.
fn next(listener: &OwnedFd) -> io::Result<libc::seccomp_notif> {
    loop {
        // SAFETY: these are numbers only, of which each may be zero, and the kernel wants them so.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one of these.
        let done =
            unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
        if done == 0 {
            return Ok(call);
        }
        let error = io::Error::last_os_error();
        // Interrupted, or who called has ended meanwhile.
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) {
            return Err(error);
        }
    }
}

/// The name of the program that a call is to load.
fn name_of(call: &libc::seccomp_notif) -> Option<String> {
    let memory = File::open(format!("/proc/{}/mem", call.pid)).ok()?;
    let mut name = [0; NAME_BYTES];
    memory.read_exact_at(&mut name, call.data.args[1] + NAME_AT).ok()?;
    let end = name.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&name[..end]).into_owned())
}

fn answer(listener: &OwnedFd, id: u64, refused: bool) {
    let (error, flags) =
        if refused { (-libc::EACCES, 0) } else { (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32) };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the kernel reads one of these. That who called has ended meanwhile is no error.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
}
