//! The system calls that the test makes.

use core::ptr;
use core::sync::atomic::AtomicU32;

use linux_raw_sys::general::{
    __NR_close, __NR_exit, __NR_exit_group, __NR_fork, __NR_ftruncate, __NR_futex, __NR_madvise, __NR_memfd_create,
    __NR_mprotect, __NR_mremap, __NR_munmap, __NR_open, __NR_read, __NR_rt_sigaction, __NR_sched_getaffinity,
    __NR_sched_yield, __NR_wait4, __NR_write, FUTEX_WAIT, SA_RESTORER, SA_SIGINFO, SIGSEGV, kernel_sigaction,
};

use crate::arch::{MMAP, SignalContext, restore_from_signal, system_call};

/// The size of a page.
pub(crate) const PAGE: usize = 4096;

/// An error's number, as in errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) u32);

impl Errno {
    /// Memory is not mapped.
    pub(crate) const NO_MEMORY: Self = Self(linux_raw_sys::errno::ENOMEM);
    /// A bad address: a range that is not of one mapping.
    pub(crate) const FAULT: Self = Self(linux_raw_sys::errno::EFAULT);
    /// The kernel can't do that.
    pub(crate) const INVALID: Self = Self(linux_raw_sys::errno::EINVAL);
}

/// Makes a system call that has no effect on the memory of Rust's objects but by `arguments`.
fn call(number: u32, arguments: &[usize]) -> Result<usize, Errno> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    // SAFETY: this module's functions make calls whose arguments they have made sure of.
    let result = unsafe { system_call(number, all) };
    match u32::try_from(result.wrapping_neg()) {
        Ok(error @ 1..4096) => Err(Errno(error)),
        _ => Ok(result.cast_unsigned()),
    }
}

/// Ends the process, with all its threads.
pub(crate) fn exit_group(status: u8) -> ! {
    loop {
        let _ = call(__NR_exit_group, &[status.into()]);
    }
}

/// Ends the calling thread.
pub(crate) fn exit_thread() -> ! {
    loop {
        let _ = call(__NR_exit, &[0]);
    }
}

/// Writes to a file, as far as it goes: an output that is gone must not change what the test does.
pub(crate) fn write(file: usize, bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(written @ 1..) = call(__NR_write, &[file, rest.as_ptr().addr(), rest.len()]) {
        rest = rest.get(written..).unwrap_or_default();
    }
}

/// Reads the beginning of a file; the result is what was read.
pub(crate) fn read_file<'b>(path: &core::ffi::CStr, buffer: &'b mut [u8]) -> &'b [u8] {
    let Ok(file) = call(__NR_open, &[path.as_ptr().addr(), 0, 0]) else { return &[] };
    let mut length = 0;
    while let Ok(count @ 1..) = call(__NR_read, &[file, buffer[length..].as_mut_ptr().addr(), buffer.len() - length]) {
        length += count;
    }
    let _ = call(__NR_close, &[file]);
    &buffer[..length]
}

/// The number of CPUs that the process may use.
pub(crate) fn cpus() -> usize {
    let mut mask = [0_u64; 16];
    let _ = call(__NR_sched_getaffinity, &[0, size_of_val(&mask), mask.as_mut_ptr().addr()]);
    mask.iter().map(|word| word.count_ones() as usize).sum()
}

/// Lets others run.
pub(crate) fn yield_now() {
    let _ = call(__NR_sched_yield, &[]);
}

/// Waits while `word` has this value; may return before.
pub(crate) fn wait_while(word: &AtomicU32, value: u32) {
    let _ = call(__NR_futex, &[ptr::from_ref(word).addr(), FUTEX_WAIT as usize, value as usize, 0]);
}

/// An anonymous file of so many pages.
pub(crate) fn memory_file(pages: usize) -> Result<usize, Errno> {
    let file = call(__NR_memfd_create, &[c"stress".as_ptr().addr(), 0])?;
    call(__NR_ftruncate, &[file, pages * PAGE])?;
    Ok(file)
}

/// Forks: 0 is returned in the child, its number in the parent.
pub(crate) fn fork() -> Result<usize, Errno> {
    call(__NR_fork, &[])
}

/// Waits for a child's end; the result is its status as of wait(2).
pub(crate) fn wait_for(child: usize) -> Result<u32, Errno> {
    let mut status = 0_u32;
    call(__NR_wait4, &[child, (&raw mut status).addr(), 0, 0])?;
    Ok(status)
}

/// What is called for a signal: its number, what it is about, and the registers that it interrupted.
pub(crate) type Handler = extern "C" fn(i32, *const SignalInfo, *mut SignalContext);

/// Has `handler` called for each SIGSEGV; one in the handler ends the process.
pub(crate) fn handle_sigsegv(handler: Handler) {
    // SAFETY: a null pointer is None, and zero is a value of every other field.
    let mut action: kernel_sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel calls it with these three arguments, as SA_SIGINFO asks.
    action.sa_handler_kernel = Some(unsafe { core::mem::transmute::<Handler, unsafe extern "C" fn(i32)>(handler) });
    action.sa_flags = (SA_SIGINFO | SA_RESTORER).into();
    action.sa_restorer = Some(restore);
    let size = size_of_val(&action.sa_mask);
    let result = call(__NR_rt_sigaction, &[SIGSEGV as usize, (&raw const action).addr(), 0, size]);
    assert_eq!(result, Ok(0), "no handler for SIGSEGV");
}

unsafe extern "C" fn restore() {
    // SAFETY: the kernel returns here from a handler.
    unsafe { restore_from_signal() }
}

/// The part of `siginfo_t` that a fault has.
#[repr(C)]
pub(crate) struct SignalInfo {
    number: i32,
    error: i32,
    /// SEGV_MAPERR or SEGV_ACCERR.
    pub(crate) code: i32,
    #[cfg(target_pointer_width = "64")]
    padding: i32,
    /// What was accessed.
    pub(crate) address: usize,
}

/// What is mapped.
#[derive(Clone, Copy)]
pub(crate) struct Mapping {
    /// PROT_*.
    pub(crate) protection: u32,
    /// MAP_*.
    pub(crate) flags: u32,
    /// The file, if not MAP_ANONYMOUS.
    pub(crate) file: usize,
    /// The first page of the file.
    pub(crate) file_page: usize,
}

/// Maps `pages` pages, at `address` if the flags have MAP_FIXED.
///
/// # Safety
/// No Rust object is in what was there.
pub(crate) unsafe fn map(address: usize, pages: usize, mapping: Mapping) -> Result<usize, Errno> {
    let (number, unit) = MMAP;
    let Mapping { protection, flags, file, file_page } = mapping;
    call(number, &[address, pages * PAGE, protection as usize, flags as usize, file, file_page * PAGE / unit])
}

/// Unmaps.
///
/// # Safety
/// No Rust object is there.
pub(crate) unsafe fn unmap(address: usize, pages: usize) -> Result<(), Errno> {
    call(__NR_munmap, &[address, pages * PAGE]).map(drop)
}

/// Changes what is permitted: PROT_*.
///
/// # Safety
/// No Rust object is there.
pub(crate) unsafe fn protect(address: usize, pages: usize, protection: u32) -> Result<(), Errno> {
    call(__NR_mprotect, &[address, pages * PAGE, protection as usize]).map(drop)
}

/// Moves or resizes a mapping: MREMAP_*.
///
/// # Safety
/// No Rust object is at either place.
pub(crate) unsafe fn remap(from: usize, pages: usize, new_pages: usize, flags: u32, to: usize) -> Result<usize, Errno> {
    call(__NR_mremap, &[from, pages * PAGE, new_pages * PAGE, flags as usize, to])
}

/// Advises: MADV_*.
///
/// # Safety
/// No Rust object is there.
pub(crate) unsafe fn advise(address: usize, pages: usize, advice: u32) -> Result<(), Errno> {
    call(__NR_madvise, &[address, pages * PAGE, advice as usize]).map(drop)
}
