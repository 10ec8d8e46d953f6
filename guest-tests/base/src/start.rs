//! The way from the entry code to the guest.

use crate::boot::{Boot, EntryState};
use crate::exit::{self, GuestStatus};
use crate::println;

/// Names the function `fn(&Boot) -> GuestStatus` that the guest runs.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        // SAFETY: the library declares this symbol with this signature, and nothing else defines it.
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main(boot: &$crate::boot::Boot) -> $crate::exit::GuestStatus {
            $main(boot)
        }
    };
}

unsafe extern "Rust" {
    // Defined by `main!`.
    fn guest_main(boot: &Boot) -> GuestStatus;
}

/// Runs the guest with what the loader handed over, and ends it with its status.
pub fn run(entry: &'static EntryState) -> ! {
    let boot = match Boot::new(entry) {
        Ok(boot) => boot,
        Err(why) => {
            println!("Bail out! {why}");
            exit::end(GuestStatus::Panicked)
        }
    };
    // SAFETY: `main!` defines it with this signature; without it the image does not link.
    exit::end(unsafe { guest_main(&boot) })
}
