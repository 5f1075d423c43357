//! What the allocator does with memory that nobody uses any more.

/// Makes large blocks go back to the kernel when they are freed, once and for all. Left alone, glibc's allocator takes a large
/// block that was freed for a sign that it is wanted again, and keeps as much.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 1 << 20;
        // SAFETY: both only set numbers of the allocator, under its own lock.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}
