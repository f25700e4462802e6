//! How the daemon's heap is kept: what crowds have taken must come back. Not how much is taken.

/// Larger pieces are the kernel's own, and go back to it when they are freed. Left alone, glibc takes the
/// largest that was ever freed for the limit: bodies that come and go lie between small things that stay.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM: libc::c_int = 128 << 10;

/// Sets how many heaps there are, and from which size on pieces are the kernel's. glibc has eight heaps a
/// processor, which hundreds of threads that read from disk fill with gaps; as many as there are processors
/// are enough. To be called before there are other threads. Where there is no glibc nothing is done.
pub(super) fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let heaps = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        set(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        set(libc::M_ARENA_MAX, heaps.try_into().unwrap_or(libc::c_int::MAX));
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc's allocator is told by no other way")]
fn set(parameter: libc::c_int, value: libc::c_int) {
    // SAFETY: it takes two numbers and no pointers; glibc locks what it sets.
    unsafe { libc::mallopt(parameter, value) };
}
