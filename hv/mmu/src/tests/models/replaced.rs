//! Models of the replacement of a page's frame while CPUs write the page.

use super::EXPLORER;
use super::world::{A, B, WHOLE, World, at};
use crate::rules::Rule;
use crate::{CollapseError, Fault, ReplaceError};
use addr::{PageSize, Pfn};
use model::loom_tests;
use model::sync::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::vec::Vec;

/// The first frame that pages are copied to, aligned to a large page.
const NEW: u64 = 0x2000;

/// The content of the frames: one word each, old and new.
#[derive(Clone)]
struct Frames(Arc<[AtomicU64; 4]>);

impl Frames {
    fn new() -> Self {
        Self(Arc::new(core::array::from_fn(|_| AtomicU64::new(0))))
    }

    fn of(&self, pfn: Pfn) -> &AtomicU64 {
        let (base, first) = if pfn.raw() >= NEW { (NEW, 2) } else { (A, 0) };
        &self.0[(pfn.raw() - base) as usize + first]
    }

    fn copy(&self, from: Pfn, to: Pfn) {
        self.of(to).store(self.of(from).load(Ordering::Acquire), Ordering::Release);
    }
}

/// A guest that writes page `gfn` twice: after a walk, and then by the cached translation. Whether it wrote.
fn guest_writes(
    world: &World,
    cpu: &mut rcu::Cpu<'_, crate::pool::PoolPlatform<super::world::F>>,
    gfn: u64,
    frames: &Frames,
) -> bool {
    cpu.guest(world.tree.space(), &mut rcu::Tlb::new(), |_| {
        let Some(leaf) = world.leaf(gfn).filter(|_| world.hardware_write(gfn)) else { return false };
        frames.of(leaf.pfn).store(1, Ordering::Release);
        true
    })
}

fn content(world: &World, frames: &Frames, gfn: u64) -> u64 {
    frames.of(world.leaf(gfn).expect("it is mapped").pfn).load(Ordering::Acquire)
}

loom_tests! {
    loom_replace_under_a_writing_guest = replace_loses_no_write;
    mutant_replace_without_flush breaks [Flush],
    mutant_replace_without_freeze breaks [Freeze]
}

fn replace_loses_no_write() {
    let (world, frames) = (World::two_pages(), Frames::new());
    let theirs = frames.clone();
    let other = world.spawn(move |world, cpu| guest_writes(world, cpu, 1, &theirs));
    let old = world.on(0, |cpu| {
        world.tree.replace(cpu, at(1), PageSize::Size4K, Pfn::new(NEW), |old| frames.copy(old.pfn, Pfn::new(NEW)))
    });
    assert_eq!(old.map(|old| old.pfn), Ok(Pfn::new(B)));
    let written = other.join().unwrap();
    assert_eq!(world.pfn(1), Some(NEW));
    assert_eq!(content(&world, &frames, 1), u64::from(written), "a write is lost");
    assert_eq!(world.leaf(1).unwrap().dirty, written);
    world.check_tables();
}

loom_tests! {
    loom_replace_under_writing_software = software_writes_under_replace;
    mutant_software_writes_without_lock breaks [Lock]
}

fn software_writes_under_replace() {
    let (world, frames) = (World::two_pages(), Frames::new());
    let theirs = frames.clone();
    let other = world.spawn(move |world, cpu| {
        world.tree.write(cpu.read(), at(1), |found| theirs.of(found.leaf.pfn).store(1, Ordering::Release)).is_ok()
    });
    world
        .on(0, |cpu| {
            world.tree.replace(cpu, at(1), PageSize::Size4K, Pfn::new(NEW), |old| frames.copy(old.pfn, Pfn::new(NEW)))
        })
        .unwrap();
    assert!(other.join().unwrap(), "it is mapped all the time");
    assert_eq!(content(&world, &frames, 1), 1, "a write is lost");
    assert!(world.leaf(1).unwrap().dirty);
}

loom_tests! {
    loom_dirty_log_under_writing_software = software_writes_under_the_log;
    mutant_software_writes_without_dirty_bit breaks [MarkDirty]
}

/// Software writes, and the log copies dirty pages: a write that was not copied leaves the page dirty.
fn software_writes_under_the_log() {
    let (world, frames) = (World::two_pages(), Frames::new());
    let theirs = frames.clone();
    let other = world.spawn(move |world, cpu| {
        world.tree.write(cpu.read(), at(1), |found| theirs.of(found.leaf.pfn).store(1, Ordering::Release)).unwrap();
    });
    let mut copied = 0;
    world.on(0, |cpu| world.tree.dirty_log(cpu, WHOLE, |_| copied = frames.0[1].load(Ordering::Acquire)).unwrap());
    other.join().unwrap();
    assert!(copied == 1 || world.leaf(1).unwrap().dirty, "a write was neither copied nor will be");
}

loom_tests! {
    loom_replace_against_zap = replace_against_zap;
    mutant_replace_against_zap_without_lock breaks [Lock]
}

fn replace_against_zap() {
    let world = World::two_pages();
    let other = world.spawn(|world, cpu| {
        world.tree.replace(cpu, at(0), PageSize::Size4K, Pfn::new(NEW), |_| {}).map(|old| old.pfn.raw())
    });
    let mut zapped = Vec::new();
    world.on(0, |cpu| world.tree.zap(cpu, at(0)..at(1), |page| zapped.push(page.leaf.pfn.raw())).unwrap());
    match other.join().unwrap() {
        Ok(old) => assert_eq!((old, &zapped[..]), (A, &[NEW][..])),
        Err(ReplaceError::NoPage) => assert_eq!(zapped, [A]),
        Err(wrong) => panic!("{wrong:?}"),
    }
    assert_eq!(world.pfn(0), None);
    world.check_tables();
}

loom_tests! {
    loom_replace_under_a_fault = replace_under_a_fault;
    mutant_replace_that_clears_instead_of_freezing breaks [FrozenIsNotNone]
}

fn replace_under_a_fault() {
    let world = World::two_pages();
    let other = world.spawn(|world, cpu| match world.tree.fault(cpu.read(), at(0), PageSize::Size4K).unwrap() {
        Fault::Present(found) => assert!([A, NEW].contains(&found.leaf.pfn.raw())),
        Fault::Room(_) => panic!("it is mapped all the time"),
    });
    world.on(0, |cpu| world.tree.replace(cpu, at(0), PageSize::Size4K, Pfn::new(NEW), |_| {})).unwrap();
    other.join().unwrap();
    world.check_tables();
}

fn collapse_into(
    world: &World,
    cpu: &rcu::Cpu<'_, crate::pool::PoolPlatform<super::world::F>>,
    frames: &Frames,
) -> Result<Vec<u64>, CollapseError> {
    let mut back = Vec::new();
    let copy = |index: usize, leaf: crate::Leaf| frames.copy(leaf.pfn, Pfn::new(NEW + index as u64));
    let result = world.tree.collapse_into(cpu, at(0), PageSize::Size2M, Pfn::new(NEW), copy, |page| {
        back.push(page.leaf.pfn.raw());
    });
    result.map(|()| back)
}

loom_tests! {
    loom_collapse_into_another_frame_under_a_writing_guest = collapse_into_loses_no_write;
    mutant_collapse_into_another_frame_without_flush breaks [Flush],
    mutant_collapse_into_another_frame_without_freeze breaks [Freeze]
}

fn collapse_into_loses_no_write() {
    let (world, frames) = (World::two_pages(), Frames::new());
    let theirs = frames.clone();
    let other = world.spawn(move |world, cpu| guest_writes(world, cpu, 1, &theirs));
    let back = world.on(0, |cpu| collapse_into(&world, cpu, &frames));
    assert_eq!(back.unwrap(), [A, B]);
    let written = other.join().unwrap();
    assert_eq!((world.pfn(0), world.pfn(1)), (Some(NEW), Some(NEW + 1)));
    assert_eq!(content(&world, &frames, 1), u64::from(written), "a write is lost");
    assert_eq!(world.leaf(1).unwrap().dirty, written);
    world.check_tables();
}

loom_tests! {
    loom_collapse_into_another_frame_against_zap = collapse_into_against_zap;
    mutant_collapse_into_another_frame_against_zap_without_recheck_and_freeze breaks [RecheckPmd, Freeze]
}

fn collapse_into_against_zap() {
    let (world, frames) = (World::two_pages(), Frames::new());
    let other = world.spawn(move |world, cpu| collapse_into(world, cpu, &frames));
    let mut zapped = Vec::new();
    world.on(0, |cpu| world.tree.zap(cpu, at(0)..at(1), |page| zapped.push(page.leaf.pfn.raw())).unwrap());
    match other.join().unwrap() {
        Ok(back) => {
            assert_eq!((&back[..], &zapped[..]), (&[A, B][..], &[NEW][..]));
            assert_eq!(world.pfn(1), Some(NEW + 1));
        }
        Err(CollapseError::NotUniform | CollapseError::Changed) => {
            assert_eq!(zapped, [A]);
            assert_eq!(world.pfn(1), Some(B));
        }
        Err(wrong) => panic!("{wrong:?}"),
    }
    assert_eq!(world.pfn(0), None);
    world.check_tables();
}

loom_tests! {
    loom_collapse_into_another_frame_against_unprotect = collapse_into_against_unprotect;
    mutant_collapse_into_another_frame_against_unprotect_by_load_and_store breaks [AtomicChange]
}

/// A guest that writes after the write fault.
fn collapse_into_against_unprotect() {
    let (world, frames) = (World::two_pages(), Frames::new());
    world.on(0, |cpu| world.tree.dirty_log(cpu, WHOLE, |_| {}).unwrap());
    let other = world.spawn(|world, cpu| world.tree.unprotect(cpu.read(), at(1)) && world.hardware_write(1));
    let collapsed = world.on(0, |cpu| collapse_into(&world, cpu, &frames).is_ok());
    let written = other.join().unwrap();
    let leaf = world.leaf(1).unwrap();
    assert_eq!(leaf.pfn.raw(), if collapsed { NEW + 1 } else { B });
    assert!(leaf.dirty || !written, "a write is lost");
    world.check_tables();
}

loom_tests! {
    loom_a_replaced_frame_waits_for_software_readers = old_frames_wait;
    mutant_a_replaced_frame_is_reused_at_once breaks [FreeLate]
}

/// Software reads by a translation that is older than the replacement.
fn old_frames_wait() {
    let world = World::two_pages();
    let reused = Arc::new(AtomicBool::new(false));
    let seen = reused.clone();
    let other = world.spawn(move |world, cpu| {
        if world.tree.translate(cpu.read(), at(0)).is_some_and(|found| found.leaf.pfn.raw() == A) {
            assert!(!seen.load(Ordering::Acquire), "software reads a page that was reused");
        }
        cpu.quiescent();
    });
    world.on(0, |cpu| {
        world.tree.replace(cpu, at(0), PageSize::Size4K, Pfn::new(NEW), |_| {}).unwrap();
        if model::kept(Rule::FreeLate) {
            cpu.synchronize();
        }
        reused.store(true, Ordering::Release);
    });
    other.join().unwrap();
}
