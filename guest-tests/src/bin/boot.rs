//! What the loader handed over. The words of its command line are those of [`handover`].
#![no_std]
#![no_main]

use guest::handover;

guest::boot_headers!();
guest::main!(handover::run);
