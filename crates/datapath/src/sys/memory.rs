//! The allocator's free memory.

/// Gives what the allocator holds and nobody uses back to the kernel.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches nothing but its free blocks.
    unsafe {
        libc::malloc_trim(0);
    }
}
