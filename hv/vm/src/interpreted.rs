//! A vCPU as the interpreter sees it.

use crate::segments::segmentation;
use crate::task_switch::LoadedSegment;
use crate::vcpu::{ControlRegisters, Shadow, Vcpu};
use emul::interpreter::{Area, Controls, Extensions, Processor, Table, TableRegister, VectorInstruction};
use emul::segmentation::{DescriptorCache, Segmentation};
use emul::{Bitness, Gpr, Registers, Segment, SegmentRegister};

/// A vCPU whose next instruction is interpreted, and what its CPUID offers.
pub(crate) struct Interpreted<'v, V>(pub(crate) &'v mut V, pub(crate) Extensions);

impl<V: Vcpu> Registers for Interpreted<'_, V> {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.0.gpr(gpr)
    }
    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.0.set_gpr(gpr, value);
    }
    fn rip(&self) -> u64 {
        self.0.rip()
    }
    fn rflags(&self) -> u64 {
        self.0.rflags()
    }
    fn set_rflags(&mut self, value: u64) {
        self.0.set_rflags(value);
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        self.0.segment_base(segment)
    }
}

impl<V: Vcpu> Processor for Interpreted<'_, V> {
    fn jump(&mut self, rip: u64) {
        self.0.resume_at(rip);
    }

    fn shadow_of_sti(&mut self) {
        self.0.begin_interrupt_shadow(Shadow::Sti);
    }

    fn selector(&self, segment: Segment) -> u16 {
        self.0.segment(segment).selector
    }

    fn load_segment(&mut self, segment: Segment, selector: u16) {
        let DescriptorCache { limit, attributes, .. } = self.0.descriptor_cache(segment);
        let base = u32::from(selector) << 4;
        self.0.load_segment(SegmentRegister::Segment(segment), LoadedSegment { selector, base, limit, attributes });
    }

    fn segmentation(&mut self, segment: Segment, bitness: Bitness) -> Segmentation {
        segmentation(self.0, bitness, segment)
    }

    fn table(&self, table: Table) -> TableRegister {
        let (base, limit) = match table {
            Table::Global => self.0.gdt(),
            Table::Interrupts => self.0.idt(),
        };
        TableRegister { base, limit: limit as u16 }
    }

    fn set_table(&mut self, table: Table, register: TableRegister) {
        self.0.load_table(table, register);
    }

    fn controls(&self) -> Controls {
        let ControlRegisters { cr0, cr4, cpl, .. } = self.0.control();
        Controls { cr0, cr4, cpl }
    }

    fn extensions(&self) -> Extensions {
        self.1
    }

    fn unblock_nmis(&mut self) {
        self.0.unblock_nmis();
    }

    fn execute_vector(&mut self, instruction: VectorInstruction, area: &mut Area) -> u64 {
        self.0.execute_vector(instruction, area)
    }
}
