//! One call of the C library, in a crate of its own so that `unsafe` stays forbidden in pusherd.

/// Gives the pages that are free within the heap back to the system; `false` where there were none, or where the C
/// library has no such call. It locks one arena of the heap after the other, so it may hold up threads that allocate.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[must_use]
pub fn malloc_trim() -> bool {
    // Source: malloc_trim(3). It takes no pointers and may be called by any thread at any time.
    unsafe extern "C" {
        safe fn malloc_trim(pad: usize) -> core::ffi::c_int;
    }
    malloc_trim(0) == 1
}

/// See above.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
#[must_use]
pub fn malloc_trim() -> bool {
    false
}
