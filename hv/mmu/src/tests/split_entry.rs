use crate::split_entry::{Interrupts, LocklessSync, SplitEntry};
use crate::{Pte, Rights};

/// One CPU: no other CPU reads.
struct Alone;

impl Interrupts for Alone {
    fn off<R>(&self, read: impl FnOnce() -> R) -> R {
        read()
    }
}

impl LocklessSync for Alone {
    fn lockless_sync(&self) {}
}

#[test]
fn halves_make_the_entry() {
    let pte = Pte::new(0x8000_0012_3456_7063);
    let mut entry = SplitEntry::new(pte);
    assert_eq!(entry.pmdp_get_lockless(&Alone), pte);
    entry.clear().lockless_sync(&Alone).set(Pte::new(0x1_0000_0001));
    assert_eq!(entry.pmdp_get_lockless(&Alone).raw(), 0x1_0000_0001);
    entry.write_high(2);
    entry.write_low(3);
    assert_eq!(entry.pmdp_get_lockless(&Alone).raw(), 0x2_0000_0003);
    entry.fresh().set(pte);
    assert_eq!(entry.pmdp_get_lockless(&Alone), pte);
    assert_eq!(core::mem::size_of::<SplitEntry>(), 8);
    assert!(Rights::ALL.include(Rights::READ_ONLY) && !Rights::READ_ONLY.include(Rights::ALL));
}
