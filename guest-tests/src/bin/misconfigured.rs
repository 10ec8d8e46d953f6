//! A guest that reads a page whose entry in the nested tables makes no sense: it must not come back from that.
#![no_std]
#![no_main]

use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::hypercall::Microhv;
use guest::{console, println, ram};

guest::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    let frame = ram::free(boot).find(|frame| frame.gpa() >= ram::HIGH_MEMORY);
    let (Some(hypervisor), Some(frame)) = (Microhv::here(), frame) else {
        println!("# there is no hypervisor of this project's, or no memory");
        return GuestStatus::Failed;
    };
    if let Err(refused) = hypervisor.misconfigure(frame) {
        println!("# refused: {refused:?}");
        return GuestStatus::Failed;
    }
    println!("# reading a page that is no more");
    console::drain();
    frame.address(0).read();
    GuestStatus::Failed
}
