//! Control registers and caches.

use guest::boot::Boot;
use guest::ktap::Outcome;
use guest::processor::{self, Cr4};
use guest::{check_eq, ram};

pub(crate) fn cr4_bits_switch(_: &Boot) -> Outcome {
    for bit in [Cr4::De, Cr4::Pge, Cr4::OsFxsr, Cr4::OsXmmExcpt] {
        let before = processor::cr4();
        for on in [true, false] {
            processor::set_cr4(bit, on);
            check_eq!(processor::cr4(), if on { before | bit as u64 } else { before & !(bit as u64) }, "for {bit:?}");
        }
    }
    Ok(())
}

pub(crate) fn wbinvd_keeps_memory(boot: &Boot) -> Outcome {
    let frame = ram::fresh(boot);
    frame.write(17, 0x1122_3344_5566_7788);
    processor::wbinvd();
    check_eq!(frame.read(17), 0x1122_3344_5566_7788);
    Ok(())
}
