//! What the loader handed over, for an image of 32 bits. The words of its command line are those of [`handover`].
#![no_std]
#![no_main]

use guest32::handover;

guest32::boot_headers!();
guest32::main!(handover::run);
