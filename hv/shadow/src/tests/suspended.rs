//! A vCPU that faults on its virtual TLB while another CPU changes the frame of the page, in every interleaving and with every stale
//! read, up to loom's preemption bound: `RUSTFLAGS="--cfg loom" cargo test -p shadow --release --lib`.

use crate::rules::Rule;
use crate::{Backing, BackingPage, FaultOutcome, Memory, NoMemory, Registers, Vtlb};
use addr::{Gpa, Gva, PageSize, Pfn};
use loom::thread::{self, JoinHandle};
use mmu::pool::{self, Pool, PoolPlatform};
use mmu::{Caps, Pae};
use model::sync::{AtomicU64, Ordering};
use model::{Explorer, loom_tests};
use rcu::{Cpu, CpuData, Domain};
use std::sync::Arc;
use walk::{Access, AccessKind, Features, PhysMem, Privilege};

/// Each entry of a table is a step of its own, and a zap reads all of them.
const EXPLORER: Explorer = Explorer { preemptions: 2, signs: &["the old frame"] };

type Format = Pae<Gva>;
type ThisCpu<'d> = Cpu<'d, PoolPlatform<Format>>;

const FEATURES: Features = Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };
const READ: Access = Access { kind: AccessKind::Read, privilege: Privilege::User };
const PAGE: Gva = Gva::new(0);
const OLD: u64 = 0x200;
const NEW: u64 = 0x400;

/// One large page, of a guest without paging.
struct Ram {
    frame: AtomicU64,
}

impl PhysMem for Ram {
    fn read_u64(&self, _: Gpa) -> Option<u64> {
        None
    }
    fn read_u32(&self, _: Gpa) -> Option<u32> {
        None
    }
    fn cmpxchg_u64(&self, _: Gpa, _: u64, _: u64) -> Option<bool> {
        None
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

impl Memory for Ram {
    fn backing(&self, _: Gpa, _: bool) -> Result<Backing, NoMemory> {
        // The shadow itself has to order this behind what it reads before.
        let pfn = Pfn::new(self.frame.load(Ordering::Relaxed));
        Ok(Backing::Page(BackingPage { pfn, write: true, size: PageSize::Size2M }))
    }
}

struct World {
    ram: Ram,
    domain: Domain<PoolPlatform<Format>, [CpuData; 2]>,
    vtlb: Vtlb<Pool<Format>>,
}

impl World {
    fn new() -> Arc<Self> {
        let tables = pool::Memory::new(3);
        let domain = pool::domain(&tables);
        let vtlb = Vtlb::new(Pool::new(&tables, &domain), Caps::new(40, PageSize::Size2M, true), 4);
        Arc::new(Self { ram: Ram { frame: AtomicU64::new(OLD) }, vtlb: vtlb.expect("there are frames"), domain })
    }

    /// Runs `work` on CPU `n`, in a thread.
    fn spawn(self: &Arc<Self>, n: usize, work: impl FnOnce(&Self, &mut ThisCpu<'_>) + 'static) -> JoinHandle<()> {
        let world = self.clone();
        thread::spawn(move || world.on(n, |cpu| work(&world, cpu)))
    }

    fn on(&self, n: usize, work: impl FnOnce(&mut ThisCpu<'_>)) {
        work(&mut self.domain.register(n).expect("no other uses it"));
    }

    fn fault(&self, cpu: &ThisCpu<'_>) -> FaultOutcome {
        self.vtlb.fault(cpu, &self.ram, &Registers::new(FEATURES), PAGE, READ).expect("there are frames")
    }

    fn mapped(&self, cpu: &ThisCpu<'_>) -> Option<u64> {
        self.vtlb.tree().translate(cpu.read(), PAGE).map(|found| found.hpa.frame().raw())
    }

    fn change_frame(&self, cpu: &ThisCpu<'_>) {
        self.vtlb.suspend(cpu);
        self.ram.frame.store(NEW, Ordering::Relaxed);
        self.vtlb.resume();
    }
}

loom_tests! {
    loom_a_fault_while_the_frame_changes = a_fault_while_the_frame_changes;
    mutant_a_fault_that_looks_once_whether_the_frame_changes breaks [LookAgain],
    mutant_a_fault_without_fence_while_the_frame_changes breaks [FenceAtSuspend]
}

fn a_fault_while_the_frame_changes() {
    let world = World::new();
    let changes = world.spawn(1, |world, cpu| world.change_frame(cpu));
    world.on(0, |cpu| _ = world.fault(cpu));
    changes.join().unwrap();
    world.on(0, |cpu| assert_ne!(world.mapped(cpu), Some(OLD), "the old frame is mapped"));
}
