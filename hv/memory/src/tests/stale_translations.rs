//! A processor's TLB, as a record of what its walks have found: a flush that is missing leaves a stale translation in it.

use super::world::{LARGE, World, config};
use crate::arena::Arena;
use abi::hypercall::{FlushPoint, TestCall};
use addr::{Gpa, PAGE_SIZE, Pfn};
use loader::Paging;
use std::collections::BTreeMap;
use vm::Memory;

/// Frames by the guest's pages, since the last flush.
#[derive(Default)]
struct RecordedTlb(BTreeMap<u64, Pfn>);

/// A page is reached where the guest's memory no longer is.
#[derive(Debug, PartialEq, Eq)]
struct Stale(u64);

impl RecordedTlb {
    /// The guest is entered and accesses these addresses.
    fn access(&mut self, world: &mut World<'_>, addresses: &[u64]) -> Result<(), Stale> {
        let now: BTreeMap<u64, Option<Pfn>> = addresses.iter().map(|&at| (at, frame(world, at))).collect();
        world.view().guest(|flush| {
            if flush {
                self.0.clear();
            }
        });
        for (at, frame) in now {
            match (self.0.get(&at), frame) {
                (Some(known), now) if Some(*known) != now => return Err(Stale(at)),
                (Some(_), _) | (None, None) => {}
                (None, Some(frame)) => _ = self.0.insert(at, frame),
            }
        }
        Ok(())
    }
}

fn frame(world: &World<'_>, at: u64) -> Option<Pfn> {
    world.memory.tree.translate(world.cpu.read(), Gpa::new(at)).map(|found| found.hpa.frame())
}

/// The guest uses two pages, `call` takes their frames away, and the guest uses them again: without the flush after operation
/// `skipped`, if there is one.
fn use_change_use(call: TestCall, skipped: Option<FlushPoint>) -> Result<(), Stale> {
    let domain = Arena::domain(4096);
    let mut world = World::new(&domain, &config(2 * LARGE, Paging::Nested));
    let pages = [LARGE, LARGE + PAGE_SIZE];
    world.fault(LARGE);
    world.call(TestCall::Split { at: LARGE }).unwrap();
    pages.iter().for_each(|&at| world.write(at, at));
    let mut tlb = RecordedTlb::default();
    assert_eq!(tlb.access(&mut world, &pages), Ok(()));
    assert_eq!(tlb.0.len(), 2);

    world.call(TestCall::SkipFlush(skipped)).unwrap();
    world.call(call).unwrap();
    let result = tlb.access(&mut world, &pages);
    world.end();
    result
}

const RELEASE: TestCall = TestCall::Release { start: LARGE, bytes: LARGE };
const REPLACE: TestCall = TestCall::Replace { at: LARGE };
const COLLAPSE: TestCall = TestCall::Collapse { at: LARGE };

#[test]
fn no_translation_outlives_its_page() {
    for call in [RELEASE, REPLACE, COLLAPSE] {
        assert_eq!(use_change_use(call, None), Ok(()), "{call:?}");
    }
}

/// A collapse has a second flush, for the table that goes: only a guest that writes meanwhile notices that the first, before the
/// copy, is missing.
#[test]
fn a_missing_flush_leaves_one_that_does() {
    for (call, flush) in [(RELEASE, FlushPoint::Release), (REPLACE, FlushPoint::Replace)] {
        assert_eq!(use_change_use(call, Some(flush)), Err(Stale(LARGE)), "{call:?}");
    }
}
