//! Tests that operands are accessed atomically, and that no concurrent write beside them is lost.

use super::*;
use crate::Operands;
use core::sync::atomic::{AtomicU64, Ordering};
use proptest::prelude::*;

/// Memory that several threads access.
struct Shared([AtomicU64; 2]);

impl Shared {
    fn word(&self, at: Gpa) -> Option<&AtomicU64> {
        assert!(at.is_aligned(8));
        self.0.get(at.raw() as usize / 8)
    }
}

impl PhysMem for Shared {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        self.word(at).map(|word| word.load(Ordering::Acquire))
    }
    fn read_u32(&self, _: Gpa) -> Option<u32> {
        None
    }
    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.word(at).map(|word| word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }
    fn cmpxchg_u32(&self, _: Gpa, _: u32, _: u32) -> Option<bool> {
        None
    }
    fn read(&self, _: Gpa, _: &mut [u8]) -> Option<()> {
        None
    }
    fn write(&self, _: Gpa, _: &[u8]) -> Option<()> {
        None
    }
}

/// Operands of a guest without paging.
fn operands<'a, M>(mem: &'a M, paging: &'a Paging) -> Operands<'a, M> {
    Operands { mem, paging, privilege: SUPERVISOR }
}

#[test]
fn two_halves_of_an_entry_are_written_at_once_and_both_are_there() {
    const WRITES: u32 = 50_000;
    let (shared, paging) = (Shared(Default::default()), paging(0, 0, 0, 0));
    std::thread::scope(|threads| {
        for half in [0, 4] {
            let (shared, paging) = (&shared, &paging);
            threads.spawn(move || {
                for n in 1..=WRITES {
                    let value = n.to_le_bytes();
                    while operands(shared, paging).store(Gva::new(half), &value) == Err(Fault::Contended) {}
                    // No other thread writes this half.
                    let mut found = [0; 4];
                    operands(shared, paging).load(Gva::new(half), &mut found).unwrap();
                    assert_eq!(found, value);
                }
            });
        }
    });
}

#[test]
fn no_locked_addition_is_lost() {
    const ADDITIONS: u64 = 20_000;
    let (shared, paging) = (Shared(Default::default()), paging(0, 0, 0, 0));
    std::thread::scope(|threads| {
        // Three add to the same word, one to the word beside it.
        for at in [2, 2, 2, 4] {
            let (shared, paging) = (&shared, &paging);
            threads.spawn(move || {
                let operands = operands(shared, paging);
                for _ in 0..ADDITIONS {
                    let mut old = [0; 2];
                    loop {
                        operands.load(Gva::new(at), &mut old).unwrap();
                        let new = u16::from_le_bytes(old).wrapping_add(1).to_le_bytes();
                        if operands.compare_exchange(Gva::new(at), &old, &new).unwrap() {
                            break;
                        }
                    }
                }
            });
        }
    });
    let expected = (((3 * ADDITIONS) & 0xffff) << 16) | ((ADDITIONS & 0xffff) << 32);
    assert_eq!(shared.0[0].load(Ordering::Relaxed), expected);
}

#[test]
fn a_store_that_always_loses_the_race_gives_up() {
    let (ram, paging) = (Ram::new(1), paging(0, 0, 0, 0));
    ram.contention.set(ATTEMPTS - 1);
    assert_eq!(operands(&ram, &paging).store(Gva::new(8), &[1]), Ok(()));
    ram.contention.set(ATTEMPTS);
    assert_eq!(operands(&ram, &paging).store(Gva::new(8), &[2]), Err(Fault::Contended));
    assert_eq!(ram.get(8), 1);
}

#[test]
fn an_exchange_needs_the_right_to_write_even_where_it_would_fail() {
    let (ram, paging) = rules::long(1);
    let fault = operands(&ram, &paging).compare_exchange(Gva::new(0x2340), &[1], &[2]);
    assert!(
        matches!(fault, Err(Fault::Page { error_code, .. }) if error_code.contains(ErrorCode::WRITE | ErrorCode::PRESENT))
    );
}

#[test]
fn an_exchange_at_a_physical_address_may_cross_eight_bytes() {
    let ram = Ram::new(1);
    ram.set(0, 0x0201_0000_0000_0000);
    ram.set(8, 0x0403);
    let exchange = |old: &[u8], new: &[u8]| crate::operand::compare_exchange(&ram, Gpa::new(6), old, new);
    assert_eq!(exchange(&[1, 2, 3, 5], &[9; 4]), Ok(false));
    assert_eq!((ram.get(0), ram.get(8)), (0x0201_0000_0000_0000, 0x0403));
    assert_eq!(exchange(&[1, 2, 3, 4], &[5, 6, 7, 8]), Ok(true));
    assert_eq!((ram.get(0), ram.get(8)), (0x0605_0000_0000_0000, 0x0807));
}

proptest! {
    /// At each address and of each length, an operand is what the bytes there are one by one.
    #[test]
    fn operands_are_the_bytes_at_their_address(
        at in 0u64..40,
        bytes in proptest::collection::vec(any::<u8>(), 1..=8),
        new in any::<u64>(),
        miss in any::<bool>(),
    ) {
        let (ram, paging) = (Ram::new(1), paging(0, 0, 0, 0));
        (0..8).for_each(|n| ram.set(8 * n, new.rotate_left(n as u32) | 1));
        let model: Vec<u8> = (0..8).flat_map(|n| ram.get(8 * n).to_le_bytes()).collect();
        let place = at as usize..at as usize + bytes.len();
        let all = |ram: &Ram| -> Vec<u8> { (0..8).flat_map(|n| ram.get(8 * n).to_le_bytes()).collect() };

        let mut loaded = bytes.clone();
        operands(&ram, &paging).load(Gva::new(at), &mut loaded).unwrap();
        prop_assert_eq!(&loaded, &model[place.clone()]);

        operands(&ram, &paging).store(Gva::new(at), &bytes).unwrap();
        let mut stored = model;
        stored[place.clone()].copy_from_slice(&bytes);
        prop_assert_eq!(&all(&ram), &stored);

        let mut old = bytes.clone();
        old[0] ^= u8::from(miss);
        let new = &new.to_le_bytes()[..bytes.len()];
        prop_assert_eq!(operands(&ram, &paging).compare_exchange(Gva::new(at), &old, new), Ok(!miss));
        if !miss {
            stored[place].copy_from_slice(new);
        }
        prop_assert_eq!(all(&ram), stored);
    }
}
