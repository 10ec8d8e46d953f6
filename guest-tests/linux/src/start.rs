//! From the process's entry to `main`, and the end of a panic.

use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;

use crate::exit::{self, GuestStatus};
use crate::println;
use crate::words::Words;

/// Called by the entry with the initial stack: the number of arguments, then their addresses (System V ABI, "Process
/// initialization").
///
/// # Safety
/// `stack` is what the kernel left in the stack pointer.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel's word for the number of arguments.
    let count = unsafe { stack.read() };
    let mut words = Words::usual();
    for index in 1..count {
        // SAFETY: one of the addresses behind that word.
        let address = unsafe { stack.wrapping_add(1 + index).read() };
        // SAFETY: the kernel put a C string there, for as long as the process lives.
        let word = unsafe { CStr::from_ptr(address as *const c_char) };
        if words.take(word).is_none() {
            println!("Bail out! bad word {word:?}: expected seed=N, ops=N, threads=N, inject=content or inject=fault");
            exit::end(GuestStatus::Usage);
        }
    }
    exit::end(crate::main(words))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("Bail out! {info}");
    exit::end(GuestStatus::Panicked)
}
