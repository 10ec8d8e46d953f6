//! Copies of every length and alignment.

use super::world::{LARGE, World, config};
use crate::arena::Arena;
use addr::{Gpa, PAGE_SIZE};
use loader::{GuestMemory, Paging};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;
use walk::PhysMem;

/// Room for reads: three pages from the second on.
const PAGES: u64 = 3;

fn all(world: &mut World<'_>) -> Vec<u8> {
    let mut bytes = vec![0; (PAGES * PAGE_SIZE) as usize];
    for (page, bytes) in (1..).zip(bytes.chunks_mut(PAGE_SIZE as usize)) {
        world.view().read(Gpa::new(page * PAGE_SIZE), bytes).unwrap();
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn bytes_are_written_where_they_belong_and_nowhere_else(
        writes in proptest::collection::vec((0..2 * PAGE_SIZE, proptest::collection::vec(any::<u8>(), 0..40), 0..5000_u64), 1..20),
    ) {
        let domain = Arena::domain(2048);
        let mut world = World::new(&domain, &config(LARGE, Paging::Nested));
        let mut expected = vec![0; (PAGES * PAGE_SIZE) as usize];
        for (at, bytes, zeroes) in writes {
            let start = at as usize;
            let zeroes = zeroes.min(PAGES * PAGE_SIZE - at);
            GuestMemory::zero(&mut world.view(), Gpa::new(PAGE_SIZE + at), zeroes).unwrap();
            expected[start..start + zeroes as usize].fill(0);
            GuestMemory::write(&mut world.view(), Gpa::new(PAGE_SIZE + at), &bytes).unwrap();
            expected[start..start + bytes.len()].copy_from_slice(&bytes);
            prop_assert!(all(&mut world) == expected);
        }
        world.end();
    }
}
