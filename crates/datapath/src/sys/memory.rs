//! What the allocator does with memory that nobody uses any more.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// The largest page that a kernel may have been built for; a multiple of all others.
const PAGE: u64 = 64 << 10;

/// Makes freed memory go back to the kernel, once and for all; to be called before there are threads. Left alone, glibc's
/// allocator takes a large block that was freed for a sign that it is wanted again, and keeps as much; and it gives each
/// thread that meets another in it an arena of its own, whose free blocks no other thread uses.
pub fn spare_memory() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 1 << 20;
        const ARENAS: libc::c_int = 2;
        // SAFETY: they only set numbers of the allocator, under its own lock.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
            libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        }
    }
}

/// Gives pages back to the kernel that nobody uses: those that the allocator holds, after much was read of which little is
/// kept, and those of the program, much of which runs once. Of the latter the ones that are used come back, mostly without
/// being read again; a part of it in which a debugger or a uprobe has set a breakpoint stays as it is. It takes milliseconds.
pub fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches nothing but its free blocks.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the callback fits, and is given nothing of ours.
    unsafe {
        libc::dl_iterate_phdr(Some(return_program), std::ptr::null_mut());
    }
}

/// Called for the program, which comes first, and then for what it is linked to. Returns 1: the rest need not be shown.
///
/// # Safety
/// `info` is what the linker shows.
unsafe extern "C" fn return_program(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the linker shows headers of what is loaded, and as many as it says.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    for header in headers {
        // What may be written to is not as it is in the file.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = base + header.p_vaddr;
        let first = start.next_multiple_of(PAGE);
        let len = (start + header.p_memsz).saturating_sub(first) / PAGE * PAGE;
        if !is_as_in_file(first, len) {
            continue;
        }
        // SAFETY: whole pages of a part of the program that is only read, mapped from its file, each as it is there: whoever
        // needs one gets it from there again.
        unsafe {
            libc::madvise(first as *mut libc::c_void, len as libc::size_t, libc::MADV_DONTNEED);
        }
    }
    1
}

/// Whether no page of these is a copy of its own: that is what a breakpoint makes, and pages that go would take it along.
/// Not, where that can't be told.
fn is_as_in_file(first: u64, len: u64) -> bool {
    /// Bits of an entry, from the kernel's Documentation/admin-guide/mm/pagemap.rst: in memory, in swap, of a file.
    const THERE: u64 = 0b11 << 62;
    const OF_A_FILE: u64 = 1 << 61;
    // SAFETY: no memory is involved.
    let Ok(page @ 1..) = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return false };
    let mut entries = vec![0; (len / page * 8) as usize];
    let pagemap = File::open("/proc/self/pagemap");
    if pagemap.and_then(|map| map.read_exact_at(&mut entries, first / page * 8)).is_err() {
        return false;
    }
    entries.as_chunks().0.iter().all(|entry| {
        let entry = u64::from_ne_bytes(*entry);
        entry & THERE == 0 || entry & OF_A_FILE != 0
    })
}
