//! What the allocator does with memory that nobody uses any more.

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

/// Gives the pages back to the kernel that the allocator holds and nobody uses: after much was read of which little is kept.
/// It takes milliseconds.
pub fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches nothing but its free blocks.
    unsafe {
        libc::malloc_trim(0);
    }
}
