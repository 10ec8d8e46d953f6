//! Switches of tasks by hardware, in software (Intel SDM vol. 3, section 8.3; AMD64 APM vol. 2, section 12).
//!
//! The processor has checked the privilege of whatever leads to the switch before it exits, and the new TSS's descriptor as well (Intel
//! SDM vol. 3, section 26.4.2). The descriptor is checked again: the guest may have changed it since.
//!
//! Up to the *commit point* a fault is the old task's, which has not changed then. From there on it is the new task's, before its first
//! instruction.

mod descriptor;
mod selectors;
mod tss;

pub use descriptor::LoadedSegment;

use crate::debug_traps::raise_debug;
use crate::exit::{Event, Exception, TaskSwitch, TaskSwitchSource};
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, Stop};
use crate::open_bus::OpenBus;
use crate::system::NotExecuted;
use crate::trouble::{HALF_DONE, Trouble, second_fault};
use crate::types::Types;
use crate::vcpu::{DebugRegisters, Events, Vcpu};
use addr::Gva;
use arch::{CR0_PG, CR0_TS, DR6_BT, DR7_LOCAL, EFER_LMA, RFLAGS_NT, RFLAGS_RF, RFLAGS_VM};
use descriptor::Descriptor;
use emul::{Gpr, Registers, Segment, SegmentRegister};
use tss::{Dynamic, Format, LARGEST, State};
use walk::{Access, AccessKind, Controls, Fault, Mode, Operands, Paging, PhysMem, Privilege, SetAccessedDirty};
use x86::irq::{
    GENERAL_PROTECTION_FAULT_VECTOR, INVALID_TSS_VECTOR, PAGE_FAULT_VECTOR, SEGMENT_NOT_PRESENT_VECTOR,
    STACK_SEGEMENT_FAULT_VECTOR,
};

/// What a switch of tasks reads and writes, besides what all handlers do. After [`Vcpu::put`].
pub trait TaskState {
    /// Where the GDT is, and the offset of its last byte.
    fn gdt(&self) -> (u64, u32);
    /// The same of the IDT.
    fn idt(&self) -> (u64, u32);
    /// The task register.
    fn task_register(&self) -> LoadedSegment;
    /// Where the LDT is, and the offset of its last byte; none if there is none.
    fn local_table(&mut self) -> Option<(u64, u32)>;
    /// Loads a segment register. The DPL of SS is the CPL.
    fn load_segment(&mut self, register: SegmentRegister, segment: LoadedSegment);
    /// Loads CR3 of a vCPU with nested paging, and the PDPTEs if its paging is PAE's. The caller has checked them.
    fn load_cr3(&mut self, cr3: u64, pdptes: Option<[u64; 4]>);
    /// Where the instruction ends that has led to the switch, if the hardware says.
    fn behind_task_switch(&self) -> Option<u64>;
    /// The event of which the last exit cut the delivery short is delivered: it does not come again. NMIs are blocked if it was one.
    fn complete_delivery(&mut self);
    /// An IRET has been carried out: the next NMI can be taken.
    fn unblock_nmis(&mut self);
}

/// What a switch writes, but for the new task's busy bit.
struct Changes<'a> {
    /// The new task's link to the old one, and where it is.
    link: Option<(u64, [u8; 2])>,
    /// Where the byte is that has the old task's busy bit, if that is cleared.
    freed: Option<u64>,
    /// The old task's state, and where it is in its TSS. Nothing else of that is the processor's to write.
    state: (u64, &'a [u8]),
}

impl Changes<'_> {
    /// Whether all of it can be written now.
    fn check<M: PhysMem>(&self, tables: &Tables<'_, M>) -> Result<(), Fault> {
        tables.check_writable(self.state.0, self.state.1.len() as u64)?;
        if let Some((at, link)) = self.link {
            tables.check_writable(at, link.len() as u64)?;
        }
        self.freed.map_or(Ok(()), |at| tables.check_writable(at, 1))
    }

    fn write<M: PhysMem>(&self, tables: &Tables<'_, M>) -> Result<(), Fault> {
        if let Some(at) = self.freed {
            tables.change_byte(at, |byte| byte & !Descriptor::BUSY)?;
        }
        tables.write(self.state.0, self.state.1)?;
        self.link.map_or(Ok(()), |(at, link)| tables.write(at, &link))
    }
}

/// A task may be linked to itself: what is `written` at `at` is part of its `image`, which is at `base`.
fn overlay(image: &mut [u8], base: u32, written: &[u8], at: u32) {
    for (address, byte) in (0..).map(|offset| base.wrapping_add(offset)).zip(image) {
        if let Some(&new) = written.get(address.wrapping_sub(at) as usize) {
            *byte = new;
        }
    }
}

/// The new task of a switch.
struct Incoming {
    /// What the task register gets.
    register: LoadedSegment,
    format: Format,
    state: State,
}

impl<T: Types> ExitHandler<'_, T> {
    #[cold]
    #[inline(never)]
    pub(crate) fn task_switch(&mut self, vcpu: &mut T::Vcpu, switch: TaskSwitch, host: &mut T::Host) -> Flow {
        vcpu.put();
        let flow = self.switch_task(vcpu, switch);
        // `put` has let the host take its interrupts.
        if flow == Flow::Resume { self.interrupted(vcpu, host) } else { flow }
    }

    fn switch_task(&mut self, vcpu: &mut T::Vcpu, switch: TaskSwitch) -> Flow {
        let (switch, delivered) = match self.is_by_int(vcpu, switch) {
            true => (TaskSwitch::new(switch.selector(), TaskSwitchSource::SoftwareInterrupt, None), None),
            false => (switch, vcpu.injected_exception()),
        };
        let incoming = match self.leave_task(vcpu, switch) {
            Ok(incoming) => incoming,
            // Another vCPU is changing tables or code: the instruction runs again, or the event comes again.
            Err(NotExecuted::Trouble(Trouble::Fault(Fault::Contended) | Trouble::Decode(_))) => return Flow::Resume,
            Err(fault) => return raise(vcpu, fault, delivered),
        };
        vcpu.complete_delivery();
        match self.enter_task(vcpu, switch, &incoming) {
            Ok(()) => Flow::Resume,
            Err(fault) => raise(vcpu, fault, delivered),
        }
    }
}

/// Bochs's SVM (as of 2.7) notes no INT n in EXITINTINFO, which then names an earlier event.
impl<T: Types> ExitHandler<'_, T> {
    /// Whether the switch is by INT n although the hardware names an event.
    fn is_by_int(&self, vcpu: &T::Vcpu, switch: TaskSwitch) -> bool {
        switch.vector_in_doubt().is_some_and(|vector| {
            let gate = self.tables(vcpu).descriptor(vcpu.idt(), u16::from(vector) << 3);
            let index = |selector: u16| selector >> 3;
            matches!(gate, Ok(entry) if entry.and_then(|(_, gate)| gate.task()).map(index) != Some(index(switch.selector())))
        })
    }
}

/// The old task: its faults, and its state.
impl<T: Types> ExitHandler<'_, T> {
    /// Up to the commit point.
    fn leave_task(&mut self, vcpu: &T::Vcpu, switch: TaskSwitch) -> Result<Incoming, NotExecuted> {
        self.check_gate(vcpu, switch)?;
        let dynamic = self.outgoing(vcpu, switch)?;
        let (tables, old) = (self.tables(vcpu), vcpu.task_register());
        let old_format = Format::new(old.attributes & 1 << 3 != 0);
        let saved = old_format.dynamic();
        let (new_at, descriptor, format) = tables.new_tss(vcpu.gdt(), switch)?;
        let register = descriptor.loaded(switch.selector(), descriptor.type_byte() | Descriptor::BUSY);
        if (old.limit as usize) < saved.end - 1 {
            return Err(error(INVALID_TSS_VECTOR, old.selector, switch));
        }
        let saved_at = u64::from(old.base) + saved.start as u64;
        let (mut image, mut written) = ([0; LARGEST], [0; LARGEST]);
        let (image_bytes, written) = (&mut image[..format.bytes()], &mut written[..saved.len()]);
        // What could fail comes before the first write.
        tables.read(register.base.into(), image_bytes)?;
        tables.read(saved_at, written)?;
        old_format.save(written, &dynamic);
        overlay(image_bytes, register.base, written, saved_at as u32);
        let changes = Changes {
            link: switch.source().nests().then(|| (register.base.into(), old.selector.to_le_bytes())),
            freed: (!switch.source().nests()).then(|| entry_address(vcpu.gdt(), old.selector) + Descriptor::TYPE_BYTE),
            state: (saved_at, written),
        };
        changes.check(&tables)?;
        // The first write: of two vCPUs that enter one task, one finds it busy.
        let type_byte = descriptor.type_byte();
        if switch.source() != TaskSwitchSource::Iret
            && !tables.replace_byte(new_at + Descriptor::TYPE_BYTE, type_byte, type_byte | Descriptor::BUSY)?
        {
            return Err(Fault::Contended.into());
        }
        changes.write(&tables).map_err(|_| Trouble::Unable(HALF_DONE))?;
        Ok(Incoming { register, format, state: format.load(&image) })
    }

    /// SVM's exit comes before the processor looks whether the gate is for the privilege of an INT n (KVM checks it, too).
    fn check_gate(&self, vcpu: &T::Vcpu, switch: TaskSwitch) -> Result<(), NotExecuted> {
        /// In an error code: the index is one of the IDT.
        const IN_IDT: u32 = 1 << 1;
        let cpl = vcpu.control().cpl;
        if switch.source() != TaskSwitchSource::SoftwareInterrupt || cpl == 0 {
            return Ok(());
        }
        let bitness = Self::bitness(vcpu);
        let Some(vector) = self.decoded(vcpu, bitness, |bytes| emul::software_interrupt(bytes, bitness))? else {
            return Ok(());
        };
        match self.tables(vcpu).descriptor(vcpu.idt(), u16::from(vector) << 3)? {
            Some((_, gate)) if gate.dpl() >= cpl => Ok(()),
            _ => {
                let code = u32::from(vector) << 3 | IN_IDT;
                Err(Event::Exception(Exception::new(GENERAL_PROTECTION_FAULT_VECTOR, Some(code))).into())
            }
        }
    }

    /// What of the old task goes to its TSS.
    fn outgoing(&self, vcpu: &T::Vcpu, switch: TaskSwitch) -> Result<Dynamic, NotExecuted> {
        let mut eflags = vcpu.rflags() as u32;
        if switch.source() == TaskSwitchSource::Iret {
            eflags &= !(RFLAGS_NT as u32);
        }
        match switch.resume_flag() {
            Some(true) => eflags |= RFLAGS_RF as u32,
            Some(false) => eflags &= !(RFLAGS_RF as u32),
            None => {}
        }
        let eip = if switch.source().is_instruction() { self.behind(vcpu)? } else { vcpu.rip() };
        Ok(Dynamic {
            eip: eip as u32,
            eflags,
            gprs: core::array::from_fn(|number| vcpu.gpr(Gpr::new(number as u8)) as u32),
            segments: SEGMENTS.map(|segment| vcpu.segment(segment).selector),
        })
    }

    /// Where the instruction ends that has led to the switch.
    fn behind(&self, vcpu: &T::Vcpu) -> Result<u64, NotExecuted> {
        if let Some(next) = vcpu.behind_task_switch() {
            return Ok(next);
        }
        let bitness = Self::bitness(vcpu);
        let length = self.decoded(vcpu, bitness, |bytes| emul::length(bytes, bitness))?;
        Ok(bitness.advance(vcpu.rip(), length))
    }

    fn tables(&self, vcpu: &T::Vcpu) -> Tables<'_, T::Memory> {
        Tables { memory: &self.memory, paging: self.paging(vcpu), privilege: Privilege::Supervisor { ac: false } }
    }
}

/// The new task: its state, and its faults.
impl<T: Types> ExitHandler<'_, T> {
    /// From the commit point on.
    fn enter_task(&mut self, vcpu: &mut T::Vcpu, switch: TaskSwitch, new: &Incoming) -> Result<(), NotExecuted> {
        let State { dynamic, ldtr, cr3, traps } = new.state;
        let is_virtual_8086 = dynamic.eflags & RFLAGS_VM as u32 != 0;
        let cpl = if is_virtual_8086 { 3 } else { (dynamic.segments[Segment::Cs as usize] & 3) as u8 };
        let first = SEGMENTS.map(|register| {
            let selector = dynamic.segments[register as usize];
            match is_virtual_8086 {
                true => LoadedSegment::virtual_8086(selector),
                false => LoadedSegment::unloaded(register, selector, cpl),
            }
        });
        Self::load_dynamic(vcpu, switch, new, first);
        self.set_task_switched(vcpu)?;
        if let Some(cr3) = cr3.filter(|_| vcpu.control().cr0 & CR0_PG != 0) {
            self.load_cr3(vcpu, cr3.into())?;
        }
        let ldt = self.load_ldtr(vcpu, ldtr, switch)?;
        let mut loaded = first;
        for register in LOAD_ORDER.into_iter().filter(|_| !is_virtual_8086) {
            let selector = dynamic.segments[register as usize];
            let segment = self.segment_of(vcpu, register, selector, &ldt, cpl, switch)?;
            vcpu.load_segment(SegmentRegister::Segment(register), segment);
            loaded[register as usize] = segment;
        }
        if let Some(code) = switch.error_code() {
            self.push(vcpu, &loaded[Segment::Ss as usize], new.format, code, switch)?;
        }
        if dynamic.eip > loaded[Segment::Cs as usize].limit {
            return Err(error(GENERAL_PROTECTION_FAULT_VECTOR, 0, switch));
        }
        if traps {
            raise_debug(vcpu, DR6_BT);
        }
        Ok(())
    }

    /// What can't fail. The segment registers have their selectors, and no segments yet but in virtual-8086 mode.
    fn load_dynamic(vcpu: &mut T::Vcpu, switch: TaskSwitch, new: &Incoming, segments: [LoadedSegment; 6]) {
        let Dynamic { eip, eflags, gprs, .. } = new.state.dynamic;
        if switch.source() == TaskSwitchSource::Iret {
            vcpu.unblock_nmis();
        }
        vcpu.set_dr7(vcpu.dr7() & !DR7_LOCAL);
        // One of the old task's, by its TF.
        vcpu.forget_pending_step();
        vcpu.load_segment(SegmentRegister::Tr, new.register);
        let ldtr = LoadedSegment { selector: new.state.ldtr, ..LoadedSegment::default() };
        vcpu.load_segment(SegmentRegister::Ldtr, ldtr);
        for (register, segment) in SEGMENTS.into_iter().zip(segments) {
            vcpu.load_segment(SegmentRegister::Segment(register), segment);
        }
        for (number, value) in (0..).zip(gprs) {
            vcpu.set_gpr(Gpr::new(number), value.into());
        }
        let nested = if switch.source().nests() { RFLAGS_NT } else { 0 };
        vcpu.set_rflags(u64::from(eflags) | nested);
        vcpu.resume_at(eip.into());
    }

    fn set_task_switched(&mut self, vcpu: &mut T::Vcpu) -> Result<(), Event> {
        let cr0 = vcpu.control().cr0 | CR0_TS;
        if vcpu.own_paging().is_some() {
            return self
                .write_own_paging(vcpu, |own, memory| own.write(memory, Controls { cr0, ..own.paging().controls }));
        }
        vcpu.set_cr0(cr0, None);
        Ok(())
    }

    /// As MOV to CR3 does, with its fault.
    fn load_cr3(&mut self, vcpu: &mut T::Vcpu, cr3: u64) -> Result<(), Event> {
        if vcpu.own_paging().is_some() {
            return self.write_own_paging(vcpu, |own, memory| own.write_cr3(memory, cr3));
        }
        let pdptes = self.pdptes(vcpu, Controls { cr3, ..Self::controls(vcpu) })?;
        vcpu.load_cr3(cr3, pdptes);
        Ok(())
    }

    /// What the processor loads as PDPTEs with `controls`, if their paging is PAE's. Where no memory is, it finds ones, which have reserved
    /// bits.
    pub(crate) fn pdptes(&self, vcpu: &T::Vcpu, controls: Controls) -> Result<Option<[u64; 4]>, Event> {
        if controls.mode() != Mode::Pae {
            return Ok(None);
        }
        let paging = Paging { controls, pdptes: None, ..self.paging(vcpu) };
        walk::load_pdptes(&OpenBus(&self.memory), &paging).map(Some).map_err(|_| Event::GENERAL_PROTECTION)
    }

    /// The LDT, which may be none.
    fn load_ldtr(&self, vcpu: &mut T::Vcpu, selector: u16, switch: TaskSwitch) -> Result<LoadedSegment, NotExecuted> {
        let refused = error(INVALID_TSS_VECTOR, selector, switch);
        if selector & IN_LDT != 0 {
            return Err(refused);
        }
        if selector & INDEX == 0 {
            return Ok(LoadedSegment::default());
        }
        let Some((_, descriptor)) = self.tables(vcpu).descriptor(vcpu.gdt(), selector)? else { return Err(refused) };
        if !descriptor.is_ldt() {
            return Err(refused);
        }
        let ldt = descriptor.loaded(selector, descriptor.type_byte());
        vcpu.load_segment(SegmentRegister::Ldtr, ldt);
        Ok(ldt)
    }

    /// The segment that `selector` names for `register`; its descriptor counts as accessed from now on.
    fn segment_of(
        &self,
        vcpu: &T::Vcpu,
        register: Segment,
        selector: u16,
        ldt: &LoadedSegment,
        cpl: u8,
        switch: TaskSwitch,
    ) -> Result<LoadedSegment, NotExecuted> {
        let refused = |vector| error(vector, selector, switch);
        if selector & (INDEX | IN_LDT) == 0 {
            return match register {
                Segment::Cs | Segment::Ss => Err(refused(INVALID_TSS_VECTOR)),
                _ => Ok(LoadedSegment::unloaded(register, selector, cpl)),
            };
        }
        let table = match selector & IN_LDT != 0 {
            true if !ldt.is_usable() => return Err(refused(INVALID_TSS_VECTOR)),
            true => (ldt.base.into(), ldt.limit),
            false => vcpu.gdt(),
        };
        let tables = self.tables(vcpu);
        let Some((at, descriptor)) = tables.descriptor(table, selector)? else {
            return Err(refused(INVALID_TSS_VECTOR));
        };
        descriptor.check(register, (selector & 3) as u8, cpl).map_err(refused)?;
        let type_byte = descriptor.type_byte() | Descriptor::ACCESSED;
        if type_byte != descriptor.type_byte() {
            tables.change_byte(at + Descriptor::TYPE_BYTE, |byte| byte | Descriptor::ACCESSED)?;
        }
        Ok(descriptor.loaded(selector, type_byte))
    }

    /// Pushes the error code of the exception that has led to the switch, as wide as the new task's state is.
    fn push(
        &self,
        vcpu: &mut T::Vcpu,
        stack: &LoadedSegment,
        format: Format,
        code: u32,
        switch: TaskSwitch,
    ) -> Result<(), NotExecuted> {
        let bytes: u32 = if format == Format::Bits32 { 4 } else { 2 };
        let mask = if stack.is_big() { u32::MAX } else { 0xffff };
        let esp = vcpu.gpr(Gpr::RSP) as u32;
        let top = esp.wrapping_sub(bytes) & mask;
        if !stack.contains(top, bytes) {
            return Err(error(STACK_SEGEMENT_FAULT_VECTOR, 0, switch));
        }
        let tables = Tables { privilege: Self::privilege(vcpu), ..self.tables(vcpu) };
        tables.write(u64::from(stack.base) + u64::from(top), &code.to_le_bytes()[..bytes as usize])?;
        vcpu.set_gpr(Gpr::RSP, (esp & !mask | top).into());
        Ok(())
    }
}

/// In the order of their fields.
const SEGMENTS: [Segment; 6] = [Segment::Es, Segment::Cs, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs];
/// In the order in which they are loaded.
const LOAD_ORDER: [Segment; 6] = [Segment::Cs, Segment::Ss, Segment::Ds, Segment::Es, Segment::Fs, Segment::Gs];

/// TI of a selector: it is in the LDT.
const IN_LDT: u16 = 1 << 2;
/// The index of a selector.
const INDEX: u16 = !7;

/// An exception that names `selector`. EXT is set if what led to the switch is no instruction of the program's.
fn error(vector: u8, selector: u16, switch: TaskSwitch) -> NotExecuted {
    let external = u32::from(!switch.source().is_instruction());
    NotExecuted::Event(Event::Exception(Exception::new(vector, Some(u32::from(selector & !3) | external))))
}

/// Where the descriptor of `selector` is in a table. Outside of long mode 32 bits of its base count.
fn entry_address((base, _): (u64, u32), selector: u16) -> u64 {
    (base & 0xffff_ffff) + u64::from(selector & INDEX)
}

/// How often a write is repeated that another vCPU's writes to the bytes around it come before.
const ATTEMPTS: usize = 1000;

/// Memory at linear addresses, for the processor itself.
struct Tables<'a, M> {
    memory: &'a M,
    paging: Paging,
    privilege: Privilege,
}

impl<M: PhysMem> Tables<'_, M> {
    const fn operands(&self) -> Operands<'_, M> {
        Operands { mem: self.memory, paging: &self.paging, privilege: self.privilege }
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.patiently(|operands| operands.load(Gva::new(at), bytes))
    }

    fn read_wide(&self, at: u64) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.patiently(|operands| operands.store(Gva::new(at), bytes))
    }

    /// Has the byte at `at` be `new` if it is `old`. False if it is another one, or if another vCPU writes beside it.
    fn replace_byte(&self, at: u64, old: u8, new: u8) -> Result<bool, Fault> {
        self.operands().compare_exchange(Gva::new(at), &[old], &[new])
    }

    /// Changes a byte that other vCPUs may change as well, without losing what they do.
    fn change_byte(&self, at: u64, change: impl Fn(u8) -> u8) -> Result<(), Fault> {
        for _ in 0..ATTEMPTS {
            let mut byte = [0];
            self.read(at, &mut byte)?;
            if self.replace_byte(at, byte[0], change(byte[0]))? {
                return Ok(());
            }
        }
        Err(Fault::Contended)
    }

    /// A switch can't be left half done.
    fn patiently(&self, mut access: impl FnMut(Operands<'_, M>) -> Result<(), Fault>) -> Result<(), Fault> {
        for _ in 0..ATTEMPTS {
            match access(self.operands()) {
                Err(Fault::Contended) => {}
                done => return done,
            }
        }
        Err(Fault::Contended)
    }

    /// Whether `length` bytes at `at`, which lie in two pages at most, can be written.
    fn check_writable(&self, at: u64, length: u64) -> Result<(), Fault> {
        let access = Access { kind: AccessKind::Write, privilege: self.privilege };
        for at in [at, at + length - 1] {
            walk::translate(self.memory, &self.paging, Gva::new(at), access, SetAccessedDirty::Yes)?;
        }
        Ok(())
    }

    /// The descriptor of `selector` in a table, and where it is; none beyond the table's end.
    fn descriptor(&self, table: (u64, u32), selector: u16) -> Result<Option<(u64, Descriptor)>, Fault> {
        if u32::from(selector | 7) > table.1 {
            return Ok(None);
        }
        let at = match self.paging.controls.efer & EFER_LMA != 0 {
            true => table.0.wrapping_add((selector & INDEX).into()),
            false => entry_address(table, selector),
        };
        Ok(Some((at, Descriptor(self.read_wide(at)?))))
    }

    /// The descriptor of the new task's TSS, checked, and where it is.
    fn new_tss(&self, gdt: (u64, u32), switch: TaskSwitch) -> Result<(u64, Descriptor, Format), NotExecuted> {
        let selector = switch.selector();
        let returns = switch.source() == TaskSwitchSource::Iret;
        let wrong = error(if returns { INVALID_TSS_VECTOR } else { GENERAL_PROTECTION_FAULT_VECTOR }, selector, switch);
        if selector & IN_LDT != 0 || selector & INDEX == 0 {
            return Err(wrong);
        }
        let Some((at, descriptor)) = self.descriptor(gdt, selector)? else { return Err(wrong) };
        let format = match descriptor.as_tss() {
            Some((is_32_bit, is_busy)) if is_busy == returns => Format::new(is_32_bit),
            _ => return Err(wrong),
        };
        if !descriptor.is_present() {
            return Err(error(SEGMENT_NOT_PRESENT_VECTOR, selector, switch));
        }
        if (descriptor.limit() as usize) < format.bytes() - 1 {
            return Err(error(INVALID_TSS_VECTOR, selector, switch));
        }
        Ok((at, descriptor, format))
    }
}

/// Raises what came between, where the exception `delivered` was on its way through the task gate, if one was.
fn raise<V: Vcpu>(vcpu: &mut V, fault: NotExecuted, delivered: Option<u8>) -> Flow {
    let exception = match fault {
        NotExecuted::Event(Event::Exception(exception)) => exception,
        NotExecuted::Trouble(Trouble::Fault(Fault::Page { error_code, address })) => {
            vcpu.set_cr2(address.raw());
            Exception::new(PAGE_FAULT_VECTOR, Some(error_code.bits()))
        }
        NotExecuted::Trouble(Trouble::Unable(HALF_DONE)) => return Flow::Stop(Stop::Unhandled(HALF_DONE)),
        NotExecuted::Trouble(Trouble::Fault(Fault::Contended)) => {
            return Flow::Stop(Stop::Unhandled("other vCPUs keep changing what a switch of tasks writes"));
        }
        NotExecuted::Event(_) | NotExecuted::Trouble(_) => {
            return Flow::Stop(Stop::Unhandled("a task state, a descriptor or a page table is not in memory"));
        }
    };
    let event = match delivered.map_or(Some(Event::Exception(exception)), |first| second_fault(first, exception)) {
        Some(event) => event,
        None => return Flow::Stop(Stop::TripleFault),
    };
    vcpu.complete_delivery();
    vcpu.inject(event);
    Flow::Resume
}
