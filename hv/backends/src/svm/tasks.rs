//! What a switch of tasks reads and writes.

use super::events::Nmi;
use super::vcpu::SvmVcpu;
use super::vmcb::{SegmentField, misc1};
use crate::translation::Translation;
use vm::{LoadedSegment, Segment, SegmentRegister, TaskState, Vcpu};

impl<T: Translation> TaskState for SvmVcpu<T> {
    fn gdt(&self) -> (u64, u32) {
        let gdtr = &self.vmcb.save.gdtr;
        (gdtr.base, gdtr.limit)
    }

    fn idt(&self) -> (u64, u32) {
        let idtr = &self.vmcb.save.idtr;
        (idtr.base, idtr.limit)
    }

    fn task_register(&self) -> LoadedSegment {
        let SegmentField { selector, attributes, limit, base } = self.vmcb.save.tr;
        LoadedSegment { selector, base: base as u32, limit, attributes }
    }

    fn local_table(&mut self) -> Option<(u64, u32)> {
        self.put_guest();
        let SegmentField { attributes, limit, base, .. } = self.vmcb.save.ldtr;
        (attributes & LoadedSegment::PRESENT != 0).then_some((base, limit))
    }

    fn load_segment(&mut self, register: SegmentRegister, segment: LoadedSegment) {
        // FS, GS, LDTR and TR may be in the processor, from where they would come back.
        self.put_guest();
        let LoadedSegment { selector, base, limit, attributes } = segment;
        let save = &mut self.vmcb.save;
        let field = match register {
            SegmentRegister::Segment(Segment::Es) => &mut save.es,
            SegmentRegister::Segment(Segment::Cs) => &mut save.cs,
            SegmentRegister::Segment(Segment::Ss) => {
                save.cpl = (attributes >> 5 & 3) as u8;
                &mut save.ss
            }
            SegmentRegister::Segment(Segment::Ds) => &mut save.ds,
            SegmentRegister::Segment(Segment::Fs) => &mut save.fs,
            SegmentRegister::Segment(Segment::Gs) => &mut save.gs,
            SegmentRegister::Ldtr => &mut save.ldtr,
            SegmentRegister::Tr => &mut save.tr,
        };
        *field = SegmentField { selector, attributes, limit, base: base.into() };
    }

    /// With nested paging the processor reads PDPTEs when it needs them (APM section 15.25.10).
    fn load_cr3(&mut self, cr3: u64, _pdptes: Option<[u64; 4]>) {
        self.vmcb.save.cr3 = cr3;
        self.flush();
    }

    /// Not among those of which the processor saves the next RIP (APM section 15.7.1).
    fn behind_task_switch(&self) -> Option<u64> {
        None
    }

    /// NMIs are blocked since this one was injected.
    fn complete_delivery(&mut self) {
        self.vmcb.control.event_injection = 0;
    }

    fn unblock_nmis(&mut self) {
        self.nmi = Nmi::None;
        self.step = None;
        self.vmcb.control.intercept_misc1 &= !misc1::IRET;
    }
}
