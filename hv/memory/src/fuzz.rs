//! Arbitrary test calls, between accesses by the guest and by software: what the fuzzer and a property test run.

use crate::arena::Arena;
use crate::{HostMemory, View, ViewState, VmMemory};
use abi::hypercall::{Number, Refused, TestCall};
use addr::{Gpa, PAGE_SIZE, PageSize};
use core::ops::Range;
use loader::{GuestRam, VmConfig};
use mmu::{Caps, Npt};
use rcu::{Cpu, Tlb};
use std::vec;
use std::vec::Vec;
use vm::{Memory, NestedFault, Resolved};
use walk::PhysMem;

/// The guest's pages.
const PAGES: u64 = 2 * PageSize::Size2M.frames();
/// The machine's frames: fewer than the guest's pages, the tables, and a large page to collapse into take together.
const FRAMES: usize = PAGES as usize + 256;
/// Each page's tag is there: behind what a dirty log's bitmap can be of this guest's.
const TAG: u64 = PAGE_SIZE - 8;
/// More steps than any call on this guest's memory has.
const MOST_STEPS: u64 = 2 * PAGES;
/// The calls, of which one is chosen by a byte.
const CALLS: [Number; 9] = [
    Number::Release,
    Number::Split,
    Number::Collapse,
    Number::LogDirty,
    Number::Replace,
    Number::Report,
    Number::Stat,
    Number::FailAllocations,
    Number::SkipFlush,
];

/// Carries out what `data` says on a VM's memory: reads, writes, faults, entries, and test calls with arguments that make sense or
/// do not. A page has to keep what was written to it, or to be zero once it was released; calls have to end, and to return what
/// they may; and at the end all frames have to be back.
///
/// # Panics
/// One of that does not hold.
pub fn test_calls(data: &[u8]) {
    let domain = Arena::domain(FRAMES);
    let free = domain.platform().frames().available();
    let mut cpu = domain.register(0).expect("it is the first");
    let ram = GuestRam::new(PAGES * PAGE_SIZE).expect("it is as large as a guest's can be");
    let config = VmConfig { ram, vcpus: VCPUS, ..VmConfig::nth(0) };
    let caps = Caps::new(40, PageSize::Size2M, true);
    let memory = VmMemory::<Npt, _>::new(&mut cpu, &config, (caps, caps), None).expect("there are frames");
    let mut guest =
        Guest { memory: &memory, cpu: &mut cpu, vcpus: Default::default(), tags: Some(vec![0; PAGES as usize]) };
    let mut input = Input(data);
    while let Some(choice) = input.byte() {
        guest.act(choice, &mut input);
    }
    guest.end();
    assert_eq!(memory.free(&mut cpu).accounts.left, 0);
    assert_eq!(domain.platform().frames().available(), free, "the frames that are free");
}

const VCPUS: usize = 2;

/// What is left of the input. It ends in zeroes.
struct Input<'d>(&'d [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }

    fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte().unwrap_or(0)))
    }

    /// A page of the guest's, or the one after the last.
    fn page(&mut self) -> u64 {
        self.number(2) % (PAGES + 1)
    }

    fn address(&mut self) -> u64 {
        self.page() * PAGE_SIZE
    }

    fn call(&mut self) -> Number {
        CALLS[self.number(1) as usize % CALLS.len()]
    }
}

/// A guest, and what its pages have to hold.
struct Guest<'g, 'm> {
    memory: &'g VmMemory<'m, Npt, Arena>,
    cpu: &'g mut Cpu<'m, Arena>,
    vcpus: [(Tlb, ViewState); VCPUS],
    /// By page. None once a flush may have been skipped: an access may then find a frame that is in other use, which is the fault
    /// that the call is there to cause.
    tags: Option<Vec<u64>>,
}

impl<'m> Guest<'_, 'm> {
    fn view(&mut self, vcpu: u8) -> View<'_, 'm, Npt, Arena> {
        let vcpu = usize::from(vcpu) % VCPUS;
        let (tlb, state) = &mut self.vcpus[vcpu];
        self.memory.view_of(vcpu, self.cpu, tlb, state)
    }

    fn act(&mut self, choice: u8, input: &mut Input<'_>) {
        let vcpu = choice >> 7;
        match choice & 0x0f {
            0..=2 => self.write(vcpu, input.page(), input.number(1)),
            3 => self.check(input.page(), vcpu),
            4 | 5 => self.fault(vcpu, input.page(), choice & 0x10 != 0),
            6 => {
                let mut view = self.view(vcpu);
                view.guest(|_flush| ());
                view.poll();
            }
            7 => {
                let args = [input.number(8), input.number(8), input.number(8), 0];
                self.call(vcpu, input.call(), args, MOST_STEPS);
            }
            // A step alone, so that another call comes in between.
            8 => self.call(vcpu, Number::Release, [input.address(), input.address(), 0, 0], 1),
            _ => {
                let number = input.call();
                let args = match number {
                    Number::FailAllocations | Number::SkipFlush | Number::Stat => [input.number(1) % 8, 0, 0, 0],
                    _ => [input.address(), input.address(), input.address(), 0],
                };
                self.call(vcpu, number, args, MOST_STEPS);
            }
        }
    }

    fn write(&mut self, vcpu: u8, page: u64, tag: u64) {
        if self.view(vcpu).write(Gpa::new(page * PAGE_SIZE + TAG), &tag.to_le_bytes()).is_some() {
            self.set_tag(page, tag);
        }
    }

    fn set_tag(&mut self, page: u64, tag: u64) {
        if let Some(tags) = &mut self.tags {
            tags[page as usize] = tag;
        }
    }

    /// The page's tag. None if it is no page, or no frame is left to show it.
    fn read(&mut self, vcpu: u8, page: u64) -> Option<u64> {
        self.view(vcpu).read_u64(Gpa::new(page * PAGE_SIZE + TAG))
    }

    fn check(&mut self, page: u64, vcpu: u8) {
        if let (Some(tag), Some(tags)) = (self.read(vcpu, page), &self.tags) {
            assert_eq!(tag, tags[page as usize], "the tag of page {page}");
        }
    }

    fn fault(&mut self, vcpu: u8, page: u64, write: bool) {
        let fault = NestedFault::new(Gpa::new(page * PAGE_SIZE), write, false, false);
        let resolved = self.view(vcpu).fault(fault);
        assert_eq!(resolved == Resolved::NotMemory, page == PAGES, "page {page}: {resolved:?}");
    }

    fn call(&mut self, vcpu: u8, number: Number, args: [u64; 4], most_steps: u64) {
        let Ok(call) = TestCall::decode(number.into(), args) else { return };
        let mut view = self.view(vcpu);
        let result = (0..most_steps).find_map(|_| view.test_call(call));
        if let Some(Err(refused)) = result {
            assert!(number.errors().contains(&refused), "{call:?} returned {refused:?}");
        }
        assert!(result.is_some() || most_steps < MOST_STEPS, "{call:?} does not end");
        match call {
            TestCall::Release { start, bytes } => {
                self.released(vcpu, start / PAGE_SIZE..start.saturating_add(bytes) / PAGE_SIZE, result);
            }
            TestCall::SkipFlush(Some(_)) => self.tags = None,
            _ => {}
        }
    }

    /// What was in these pages is gone, if the call was carried out wholly; otherwise it may be. What reads as nothing, since no frame
    /// is left to show it, is gone, too.
    fn released(&mut self, vcpu: u8, pages: Range<u64>, result: Option<Result<u64, Refused>>) {
        for page in pages.start..pages.end.min(PAGES) {
            if matches!(result, Some(Ok(_))) || matches!(self.read(vcpu, page), None | Some(0)) {
                self.set_tag(page, 0);
            }
        }
    }

    /// With all allocations possible, all pages hold what they have to, as far as there are frames for them.
    fn end(mut self) {
        self.call(0, Number::FailAllocations, [0; 4], 1);
        (0..PAGES).for_each(|page| self.check(page, 0));
        self.vcpus.iter().for_each(|(_, state)| _ = self.memory.forget(state));
    }
}
