//! A vCPU that plays a script.

use crate::task_switch::{LoadedSegment, TaskState};
use crate::vcpu::{ControlRegisters, DebugRegisters, Events, SegmentState, Shadow, Start, StateMsr, Stay, Vcpu};
use crate::{DescriptorCache, Event, Exit, Gpr, Known, Registers, Segment};
use arch::msr::DEBUGCTL_BTF;
use arch::{CR0_PE, DR6_BREAKPOINTS, DR6_BS, RFLAGS_IF, RFLAGS_TF};
use core::fmt;
use emul::SegmentRegister;
use emul::interpreter::{Area, Table, TableRegister, VectorInstruction};
use std::boxed::Box;
use std::collections::VecDeque;
use std::vec::Vec;

/// What the guest does until it exits: the state that the exit leaves.
type Stretch = Box<dyn FnOnce(&mut TestVcpu)>;

/// Registers that anyone may set, a queue of exits, and a record of what the handlers did.
pub(super) struct TestVcpu {
    pub(super) gprs: [u64; 16],
    pub(super) rip: u64,
    pub(super) rflags: u64,
    pub(super) control: ControlRegisters,
    pub(super) segments: [SegmentState; 6],
    /// Of the segments.
    pub(super) attributes: [u16; 6],
    pub(super) cr2: u64,
    /// DR0 to DR7.
    pub(super) debug: [u64; 8],
    pub(super) debugctl: u64,
    /// What the hardware has held back behind a load of SS, and as of VMX the step that waits for the end of a shadow.
    pub(super) pending_traps: u64,
    pub(super) pat: u64,
    pub(super) tsc: u64,
    pub(super) shadow: bool,
    /// Takes no interrupt before the script begins: what waits at the start comes with its first exit.
    pub(super) blocked: bool,
    /// An NMI is being handled.
    pub(super) nmi_handled: bool,
    /// Whether an exit was asked for as soon as an NMI can be taken.
    pub(super) nmi_window: bool,
    /// What a processor with next-RIP save tells.
    pub(super) next_rip: Option<u64>,
    /// To be delivered at the next entry.
    pub(super) event: Option<Event>,
    /// Whether an exit was asked for as soon as an interrupt can be taken.
    pub(super) window: bool,
    /// CR8, where the processor keeps it.
    pub(super) cr8: Option<u64>,
    /// Whether an exit was asked for as soon as CR8 falls below this.
    pub(super) watched: Option<u8>,
    /// Interrupts and exceptions that the guest got.
    pub(super) delivered: Vec<Event>,
    /// The window behind an interrupt may be late.
    pub(super) late_windows: bool,
    /// The exit under way.
    pub(super) exit: Exit,
    pub(super) entries: u64,
    pub(super) puts: u64,
    pub(super) powered_on: u64,
    /// At which entries translations were dropped.
    pub(super) flushed: Vec<u64>,
    script: VecDeque<(Exit, Stretch)>,
    /// Its paging registers, if its tables have a shadow.
    pub(super) own: Option<shadow::Registers>,
    pub(super) gdt: (u64, u32),
    pub(super) idt: (u64, u32),
    /// As a switch of tasks has loaded them, LDTR and the task register last.
    pub(super) loaded: [LoadedSegment; 8],
    pub(super) pdptes: Option<[u64; 4]>,
    /// What a processor with EPT holds of them.
    pub(super) held: Option<[u64; 4]>,
    pub(super) xmm: [u128; 16],
    /// The nested fault is of its tables.
    pub(super) faulted_in_walk: bool,
}

impl TestVcpu {
    pub(super) const fn new(control: ControlRegisters, code: SegmentState) -> Self {
        let data = SegmentState { selector: 0x10, base: 0, limit: u32::MAX, default_big: true, long: false };
        Self {
            gprs: [0; 16],
            rip: 0,
            rflags: 2,
            control,
            segments: [data, code, data, data, data, data],
            attributes: [0xc93, 0xc9b, 0xc93, 0xc93, 0xc93, 0xc93],
            cr2: 0,
            debug: [0; 8],
            debugctl: 0,
            pending_traps: 0,
            pat: arch::reset::PAT,
            tsc: 0,
            shadow: false,
            blocked: false,
            nmi_handled: false,
            nmi_window: false,
            next_rip: None,
            event: None,
            window: false,
            cr8: None,
            watched: None,
            delivered: Vec::new(),
            late_windows: false,
            exit: Exit::Unknown,
            entries: 0,
            puts: 0,
            powered_on: 0,
            flushed: Vec::new(),
            script: VecDeque::new(),
            own: None,
            gdt: (0, 0),
            idt: (0, 0),
            loaded: [LoadedSegment { selector: 0, base: 0, limit: 0, attributes: 0 }; 8],
            pdptes: None,
            held: None,
            xmm: [0; 16],
            faulted_in_walk: false,
        }
    }

    /// Adds to the script: the guest does `stretch`, then exits.
    pub(super) fn then(&mut self, exit: Exit, stretch: impl FnOnce(&mut Self) + 'static) {
        self.script.push_back((exit, Box::new(stretch)));
    }

    /// Vector and error code of the exception that waits for the next entry.
    pub(super) fn raised(&self) -> Option<(u8, Option<u32>)> {
        match self.event {
            Some(Event::Exception(exception)) => Some((exception.vector(), exception.error_code())),
            Some(event) => panic!("{event:?} in place of an exception"),
            None => None,
        }
    }

    /// Has a step be pending if TF makes one behind each instruction, as VMX has it in an interrupt shadow.
    pub(super) fn hold_step(&mut self) {
        let step = if self.has_steps() { DR6_BS } else { 0 };
        self.pending_traps = self.pending_traps & !DR6_BS | step;
    }

    fn has_steps(&self) -> bool {
        self.rflags & RFLAGS_TF != 0 && self.debugctl & DEBUGCTL_BTF == 0
    }

    /// What an entry makes of pending traps: outside of a shadow they come before the first instruction (Intel SDM vol. 3, sections
    /// 27.3.1.5 and 27.7.3).
    fn end_pending_traps(&mut self) {
        if self.shadow {
            let is_pending = self.pending_traps & DR6_BS != 0;
            assert_eq!(is_pending, self.has_steps(), "the entry would be refused");
            return;
        }
        let pending = core::mem::take(&mut self.pending_traps);
        if pending != 0 {
            self.debug[6] |= pending;
            self.delivered.push(Event::DEBUG);
        }
    }

    pub(super) fn forget_script(&mut self) {
        self.script.clear();
    }

    /// How many exits are left.
    pub(super) fn script_left(&self) -> usize {
        self.script.len()
    }
}

impl Registers for TestVcpu {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.gprs[gpr.index()]
    }
    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.gprs[gpr.index()] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        self.segments[segment as usize].base
    }
}

impl TaskState for TestVcpu {
    fn gdt(&self) -> (u64, u32) {
        self.gdt
    }
    fn idt(&self) -> (u64, u32) {
        self.idt
    }
    fn task_register(&self) -> LoadedSegment {
        self.loaded[SegmentRegister::Tr.index()]
    }
    fn local_table(&mut self) -> Option<(u64, u32)> {
        let ldt = self.loaded[SegmentRegister::Ldtr.index()];
        ldt.is_usable().then(|| (ldt.base.into(), ldt.limit))
    }
    fn load_segment(&mut self, register: SegmentRegister, segment: LoadedSegment) {
        self.loaded[register.index()] = segment;
        if let SegmentRegister::Segment(name) = register {
            let LoadedSegment { selector, base, limit, .. } = segment;
            let default_big = segment.is_big();
            self.segments[name as usize] =
                SegmentState { selector, base: base.into(), limit, default_big, long: false };
            if name == Segment::Ss {
                self.control.cpl = (segment.attributes >> 5 & 3) as u8;
            }
        }
    }
    fn load_cr3(&mut self, cr3: u64, pdptes: Option<[u64; 4]>) {
        (self.control.cr3, self.pdptes) = (cr3, pdptes);
    }
    fn behind_task_switch(&self) -> Option<u64> {
        self.next_rip
    }
    fn complete_delivery(&mut self) {
        self.nmi_handled |= self.event.take() == Some(Event::Nmi);
    }
    fn unblock_nmis(&mut self) {
        self.nmi_handled = false;
    }
}

impl DebugRegisters for TestVcpu {
    fn dr6(&self) -> u64 {
        self.debug[6]
    }
    fn set_dr6(&mut self, dr6: u64) {
        self.debug[6] = dr6;
    }
    fn dr7(&self) -> u64 {
        self.debug[7]
    }
    fn set_dr7(&mut self, dr7: u64) {
        self.debug[7] = dr7;
    }
    fn debugctl(&self) -> u64 {
        self.debugctl
    }
    fn set_debugctl(&mut self, debugctl: u64) {
        self.debugctl = debugctl;
    }
    fn breakpoints(&self) -> [u64; 4] {
        let [dr0, dr1, dr2, dr3, ..] = self.debug;
        [dr0, dr1, dr2, dr3]
    }
    fn take_pending_traps(&mut self) -> u64 {
        self.shadow = false;
        core::mem::take(&mut self.pending_traps) & DR6_BREAKPOINTS
    }
}

impl Vcpu for TestVcpu {
    const HYPERCALL: Known = Known::Vmmcall;

    fn load(&mut self) {}
    fn holds_pdptes(&self, control: &ControlRegisters) -> bool {
        self.held.is_some() && control.cr0 & arch::CR0_PG != 0 && control.cr4 & arch::CR4_PAE != 0
    }
    fn held_pdptes(&self) -> [u64; 4] {
        self.held.expect("it holds some")
    }
    fn own_paging(&self) -> Option<&shadow::Registers> {
        self.own.as_ref()
    }

    fn reset(&mut self, start: Start) {
        (self.event, self.watched) = (None, None);
        self.cr8 = self.cr8.map(|_| 0);
        (self.shadow, self.pending_traps) = (false, 0);
        if let Start::Sipi(vector) = start {
            self.rip = 0;
            self.segments[Segment::Cs as usize].base = u64::from(vector) << 12;
        }
    }
    fn power_on(&mut self, start: Start) {
        (self.pat, self.tsc, self.powered_on) = (arch::reset::PAT, 0, self.powered_on + 1);
        self.reset(start);
    }
    fn enter(&mut self) {
        self.entries += 1;
        self.blocked = false;
        self.delivered.extend(self.event.take());
        self.end_pending_traps();
        let (exit, stretch) = self.script.pop_front().expect("entered after the script's end");
        self.exit = exit;
        stretch(self);
    }
    fn exit(&self) -> Exit {
        self.exit
    }
    /// Behind [`Exit::Emulate`], which others do not report.
    fn is_emulated(&self) -> bool {
        self.control.cr0 & CR0_PE == 0
    }
    fn flush(&mut self) {
        self.flushed.push(self.entries + 1);
    }
    fn put(&mut self) {
        self.puts += 1;
    }
    /// Exits take 10 ticks to handle, the guest runs for 1000.
    fn stay(&self) -> Stay {
        let entry = self.entries * 1010;
        Stay { entry, exit: entry + 1000 }
    }
    fn resume_at(&mut self, rip: u64) {
        self.rip = rip;
        self.shadow = false;
    }
    fn faulted_in_walk(&self) -> bool {
        self.faulted_in_walk
    }
    fn begin_interrupt_shadow(&mut self, _: Shadow) {
        assert_eq!(self.event, None, "an event is on its way");
        self.shadow = true;
        self.hold_step();
    }
    fn load_table(&mut self, table: Table, register: TableRegister) {
        let loaded = (register.base, register.limit.into());
        match table {
            Table::Global => self.gdt = loaded,
            Table::Interrupts => self.idt = loaded,
        }
    }
    /// XMM registers alone.
    fn execute_vector(&mut self, instruction: VectorInstruction, area: &mut Area) -> u64 {
        match instruction {
            VectorInstruction::LoadXmm(n) => {
                self.xmm[usize::from(n)] = u128::from_le_bytes(*area.0.first_chunk().expect("it has 512 bytes"));
            }
            VectorInstruction::StoreXmm(n) => area.0[..16].copy_from_slice(&self.xmm[usize::from(n)].to_le_bytes()),
            _ => {}
        }
        self.rflags
    }
    fn next_rip(&self) -> Option<u64> {
        self.next_rip
    }
    fn control(&self) -> ControlRegisters {
        self.control
    }
    fn segment(&self, register: Segment) -> SegmentState {
        self.segments[register as usize]
    }
    fn descriptor_cache(&mut self, register: Segment) -> DescriptorCache {
        let SegmentState { base, limit, .. } = self.segments[register as usize];
        DescriptorCache { base, limit, attributes: self.attributes[register as usize] }
    }
    fn cr2(&self) -> u64 {
        self.cr2
    }
    fn set_cr2(&mut self, address: u64) {
        self.cr2 = address;
    }
    fn tsc(&self) -> u64 {
        self.tsc
    }
    fn adjust_tsc(&mut self, ticks: u64) {
        self.tsc = self.tsc.wrapping_add(ticks);
    }
    fn state_msr(&self, msr: StateMsr) -> u64 {
        match msr {
            StateMsr::Efer => self.control.efer,
            StateMsr::Pat => self.pat,
        }
    }
    fn set_debug_register(&mut self, register: u8, value: u64) {
        self.debug[usize::from(register)] = value;
    }
    fn set_cr0(&mut self, cr0: u64, pdptes: Option<[u64; 4]>) {
        (self.control.cr0, self.pdptes) = (cr0, pdptes);
    }
    fn set_cr4(&mut self, cr4: u64) {
        self.control.cr4 = cr4;
    }
    fn set_state_msr(&mut self, msr: StateMsr, value: u64) {
        match msr {
            StateMsr::Efer => self.control.efer = value,
            StateMsr::Pat => self.pat = value,
        }
    }
    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "rip {:x}", self.rip)
    }
}

impl Events for TestVcpu {
    fn interruptible(&self) -> bool {
        !self.blocked && self.rflags & RFLAGS_IF != 0 && !self.shadow && self.event.is_none()
    }
    fn in_interrupt_shadow(&self) -> bool {
        self.shadow
    }
    fn forget_pending_step(&mut self) {
        self.pending_traps &= !DR6_BS;
        self.shadow &= self.debugctl & DEBUGCTL_BTF != 0;
    }
    fn set_event(&mut self, event: Event) {
        assert_eq!(self.event, None, "{event:?} comes on top");
        match event {
            Event::Exception(_) => {}
            Event::Interrupt(_) => assert!(self.interruptible(), "{event:?} is not taken here"),
            Event::Nmi => assert!(self.takes_nmi(), "{event:?} is not taken here"),
        }
        self.event = Some(event);
    }
    fn injecting(&self) -> bool {
        self.event.is_some()
    }
    fn injected_exception(&self) -> Option<u8> {
        match self.event {
            Some(Event::Exception(exception)) => Some(exception.vector()),
            _ => None,
        }
    }
    fn injected_vector(&self) -> Option<u8> {
        self.event.map(|event| match event {
            Event::Interrupt(vector) => vector,
            Event::Nmi => x86::irq::NONMASKABLE_INTERRUPT_VECTOR,
            Event::Exception(exception) => exception.vector(),
        })
    }
    fn request_window(&mut self, wanted: bool) {
        self.window = wanted;
        // On SVM there is one for both.
        self.nmi_window &= wanted;
    }
    fn window_may_be_late(&self) -> bool {
        self.late_windows && self.window && self.event.is_some()
    }
    fn cr8(&self) -> Option<u64> {
        self.cr8
    }
    fn set_cr8(&mut self, value: u64) {
        self.cr8 = self.cr8.map(|_| value);
        self.watched = None;
    }
    fn watch_cr8(&mut self, class: Option<u8>) {
        assert!(class.is_none_or(|class| self.cr8.is_none_or(|cr8| cr8 >= class.into())), "the entry would be refused");
        self.watched = class;
    }
    fn handles_nmi(&self) -> bool {
        self.nmi_handled || self.event == Some(Event::Nmi)
    }
    fn takes_nmi(&self) -> bool {
        !self.shadow && self.event.is_none() && !self.nmi_handled
    }
    fn request_nmi_window(&mut self, wanted: bool) {
        self.nmi_window = wanted;
    }
}
