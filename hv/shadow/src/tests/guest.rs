//! A guest whose vCPUs take turns on a processor that walks shadow tables.

use super::memory::GuestMemory;
use super::oracle::{Oracle, Seen};
use crate::{Change, FaultOutcome, LoadError, NoMemory, Reason, Registers};
use addr::{Gpa, Gva, Hpa, Pfn};
use mmu::Pae;
use mmu::pool;
use rcu::{Cpu, Flush, Space, Tlb};
use std::collections::BTreeMap;
use std::vec::Vec;
use walk::{Access, AccessKind, Controls, PhysMem, Privilege};

pub(super) type Format = Pae<Gva>;
pub(super) type Tables = pool::Memory<Format>;
pub(super) type ThisCpu<'d> = Cpu<'d, pool::PoolPlatform<Format>>;

/// A shadow implementation, for several vCPUs.
pub(super) trait Shadows {
    fn root(&self, vcpu: usize) -> Pfn;
    fn space(&self, vcpu: usize) -> &Space;
    /// How many roots may make way for one fault, one in each attempt.
    fn roots(&self) -> usize;
    fn load(&self, cpu: &ThisCpu<'_>, memory: &GuestMemory, vcpu: usize, registers: &Registers) -> Flush;
    fn invlpg(&self, cpu: &ThisCpu<'_>, memory: &GuestMemory, vcpu: usize, gva: Gva) -> Flush;
    fn fault(
        &self,
        cpu: &ThisCpu<'_>,
        memory: &GuestMemory,
        vcpu: usize,
        registers: &Registers,
        gva: Gva,
        access: Access,
    ) -> Result<FaultOutcome, NoMemory>;
    /// The hypervisor writes guest memory, to emulate an instruction.
    fn write(&self, cpu: &ThisCpu<'_>, memory: &GuestMemory, gpa: Gpa, bytes: &[u8]);
    /// The page at `page` has got another frame.
    fn forget(&self, cpu: &ThisCpu<'_>, page: Gpa);
}

/// One entry of a processor's TLB.
#[derive(Clone, Copy)]
pub(super) struct Translated {
    page: Pfn,
    pub(super) write: bool,
    user: bool,
    execute: bool,
}

pub(super) struct Vcpu {
    pub(super) registers: Registers,
    tag: Tlb,
    translated: BTreeMap<u64, Translated>,
}

/// A guest, its shadow, and the oracle that its accesses are compared with.
pub(super) struct Guest<'m, S> {
    pub(super) tables: &'m Tables,
    pub(super) shadows: &'m S,
    pub(super) memory: &'m GuestMemory,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) oracle: Oracle,
    /// The results of all accesses.
    pub(super) seen: Vec<Seen>,
}

const USER: u64 = 4;

impl<S: Shadows> Guest<'_, S> {
    pub(super) fn vcpu(registers: Registers) -> Vcpu {
        Vcpu { registers, tag: Tlb::new(), translated: BTreeMap::new() }
    }

    fn walk(&self, root: Pfn, gva: Gva) -> Option<Translated> {
        walk(self.tables, root, gva)
    }

    pub(super) fn is_mapped(&self, root: Pfn, gva: Gva) -> bool {
        self.walk(root, gva).is_some()
    }

    pub(super) fn is_writable(&self, root: Pfn, gva: Gva) -> bool {
        self.walk(root, gva).is_some_and(|found| found.write)
    }

    /// The vCPU executes one access in guest mode. None: a page fault.
    fn attempt(&mut self, cpu: &mut ThisCpu<'_>, n: usize, gva: Gva, access: Access) -> Option<Hpa> {
        let vcpu = &mut self.vcpus[n];
        let Controls { cr0, cr4, efer, .. } = vcpu.registers.host();
        assert!(cr0 >> 31 & 1 == 1 && cr0 >> 16 & 1 == 1 && cr4 >> 5 & 1 == 1 && efer >> 11 & 1 == 1);
        let translated = &mut vcpu.translated;
        cpu.guest(self.shadows.space(n), &mut vcpu.tag, |flush| {
            if flush == Flush::Needed {
                translated.clear();
            }
        });
        let found = match self.vcpus[n].translated.get(&(gva.raw() >> 12)) {
            Some(found) if permits(found, cr4, access) => Some(*found),
            // Before a page fault the processor walks the tables again.
            _ => self.walk(self.shadows.root(n), gva),
        };
        let found = found.filter(|found| permits(found, cr4, access))?;
        self.vcpus[n].translated.insert(gva.raw() >> 12, found);
        Some(Hpa::new(found.page.start().raw() + gva.page_offset()))
    }

    /// The vCPU accesses memory. The result is compared with what the manual allows.
    pub(super) fn access(&mut self, cpu: &mut ThisCpu<'_>, n: usize, gva: Gva, access: Access, value: u32) {
        let mut exits = 0;
        let seen = loop {
            if let Some(hpa) = self.attempt(cpu, n, gva, access) {
                break Seen::Page(self.memory.reached(hpa));
            }
            exits += 1;
            assert!(exits < 4 + self.shadows.roots(), "the same fault again and again");
            let (shadows, memory) = (self.shadows, self.memory);
            let outcome = shadows.fault(cpu, memory, n, &self.vcpus[n].registers, gva, access);
            match outcome.expect("there are frames") {
                FaultOutcome::Mapped => {
                    assert!(self.attempt(cpu, n, gva, access).is_some(), "mapped, and still not there");
                }
                FaultOutcome::Retry => {}
                FaultOutcome::Inject { error_code, address } => break Seen::Fault(error_code.bits(), address),
                FaultOutcome::Emulate { gpa, reason: Reason::Mmio } => break Seen::Nothing(gpa),
                FaultOutcome::Emulate { gpa, reason: Reason::ReadOnly } => break Seen::ReadOnly(gpa),
                // The emulator finds out whether there is memory.
                FaultOutcome::Emulate { gpa, .. } => break Seen::of(gpa, access),
                FaultOutcome::Unbacked(gpa) => break Seen::NoTable(gpa),
            }
        };
        let registers = &self.vcpus[n].registers;
        if exits == 0 {
            self.oracle.check_cached(&self.memory.words.borrow(), n, registers, gva, access, seen);
        } else {
            self.oracle.check_fresh(&self.memory.words.borrow(), registers, gva, access, seen);
        }
        self.seen.push(seen);
        // A write may change the tables that translate it.
        self.look();
        if let (AccessKind::Write, Seen::Page(gpa)) = (access.kind, seen) {
            self.store(cpu, n, gva, gpa, access, value);
        }
        self.look();
    }

    /// Writes memory: the processor does if it is allowed to, the emulator otherwise.
    fn store(&mut self, cpu: &mut ThisCpu<'_>, n: usize, gva: Gva, gpa: Gpa, access: Access, value: u32) {
        let bytes = value.to_le_bytes();
        match self.attempt(cpu, n, gva, access) {
            Some(_) => self.memory.write(gpa, &bytes).expect("it is memory"),
            None => self.shadows.write(cpu, self.memory, gpa, &bytes),
        }
        self.oracle.write(gpa, &bytes);
        assert_eq!(*self.memory.words.borrow(), *self.oracle.words.borrow());
    }

    /// A device writes memory.
    pub(super) fn write(&mut self, cpu: &ThisCpu<'_>, gpa: Gpa, bytes: &[u8]) {
        self.shadows.write(cpu, self.memory, gpa, bytes);
        self.oracle.write(gpa, bytes);
        self.look();
    }

    pub(super) fn invlpg(&mut self, cpu: &ThisCpu<'_>, n: usize, gva: Gva) {
        if self.shadows.invlpg(cpu, self.memory, n, gva) == Flush::Needed {
            self.vcpus[n].translated.clear();
        }
        self.oracle.invlpg(n, gva);
        self.look();
    }

    /// Calls `write`, which writes a register.
    pub(super) fn control(
        &mut self,
        cpu: &ThisCpu<'_>,
        n: usize,
        write: impl FnOnce(&mut Registers, &GuestMemory) -> Result<Change, LoadError>,
    ) {
        let change = write(&mut self.vcpus[n].registers, self.memory);
        if change == Ok(Change::Context) {
            self.load(cpu, n);
        }
        self.look();
    }

    /// The vCPU loads its context again, which drops its translations.
    pub(super) fn load(&mut self, cpu: &ThisCpu<'_>, n: usize) {
        if self.shadows.load(cpu, self.memory, n, &self.vcpus[n].registers) == Flush::Needed {
            self.vcpus[n].translated.clear();
        }
        self.oracle.load(n);
        self.look();
    }

    pub(super) fn replace(&mut self, cpu: &ThisCpu<'_>, page: u64) {
        self.memory.replace(page);
        self.shadows.forget(cpu, Gpa::new(page << 12));
    }

    /// Lets the oracle record the translations that a processor may cache now and use later.
    fn look(&mut self) {
        for (n, vcpu) in self.vcpus.iter().enumerate() {
            self.oracle.look(n, &vcpu.registers);
        }
    }
}

/// A processor's walk of the shadow tables, independent of `mmu`.
pub(super) fn walk(tables: &Tables, root: Pfn, gva: Gva) -> Option<Translated> {
    let read = |table: Pfn, index: u64| {
        let entries = tables.table(table).expect("an entry refers to a table");
        entries[index as usize].load(core::sync::atomic::Ordering::Relaxed)
    };
    let frame = |entry: u64| Pfn::new((entry & 0xff_ffff_f000) >> 12);
    let gva = gva.raw();
    let pdpte = read(root, gva >> 30);
    if pdpte & 1 == 0 {
        return None;
    }
    assert_eq!(pdpte & !0xff_ffff_f000, 1, "a PDPTE has P alone");
    let pde = read(frame(pdpte), gva >> 21 & 511);
    if pde & 1 == 0 {
        return None;
    }
    let (entry, within) = match pde & 0x80 {
        0 => (read(frame(pde), gva >> 12 & 511), 0),
        _ => (pde, gva >> 12 & 511),
    };
    let both = entry & pde;
    assert_eq!(entry & 0x7fff_ff00_0000_0000, 0, "reserved bits");
    (entry & 1 != 0).then(|| Translated {
        page: frame(entry).add(within),
        write: both & 2 != 0,
        user: both & USER != 0,
        execute: (entry | pde) >> 63 == 0,
    })
}

/// Whether a processor with CR0.WP set allows the access.
fn permits(entry: &Translated, cr4: u64, access: Access) -> bool {
    let Translated { write, user, execute, .. } = *entry;
    let (smep, smap) = (cr4 >> 20 & 1 == 1, cr4 >> 21 & 1 == 1);
    let closed = match access.privilege {
        Privilege::User => !user,
        Privilege::Supervisor { .. } if access.kind == AccessKind::Fetch => user && smep,
        Privilege::Supervisor { ac } => user && smap && !ac,
    };
    !closed && (access.kind != AccessKind::Write || write) && (access.kind != AccessKind::Fetch || execute)
}
