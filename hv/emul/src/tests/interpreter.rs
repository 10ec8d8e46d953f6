//! Tests of the interpreter.

use crate::interpreter::{
    Area, Controls, Exiting, Extension, Extensions, Processor, StepResult, Table, TableRegister, VectorInstruction,
    fault, interrupt, step,
};
use crate::segmentation::{DescriptorCache, Mode, SegmentFault, Segmentation};
use crate::system::System;
use crate::tests::File;
use crate::{Bitness, Gpr, Memory, Registers, Segment, SegmentRegister, Width};
use addr::Gva;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const IF: u64 = 1 << 9;

/// A processor after INIT, with SP at the end of a page.
#[derive(Clone, Debug, Default, PartialEq)]
struct Vcpu {
    file: File,
    selectors: [u16; 6],
    tables: [Option<TableRegister>; 2],
    shadow: bool,
    /// How often.
    unblocked_nmis: u32,
    controls: Controls,
    extensions: Extensions,
    /// Limits and attributes that are not real mode's.
    caches: [Option<(u32, u16)>; 6],
    vector: Vector,
}

/// XMM and MMX registers, and FSW, as far as moves go.
#[derive(Clone, Debug, Default, PartialEq)]
struct Vector {
    xmm: [u128; 16],
    mmx: [u64; 8],
    fsw: u16,
    fcw: u16,
    /// What the next store leaves in FSW.
    raises: u16,
    mxcsr: u32,
    /// The others, as they came.
    log: Vec<VectorInstruction>,
}

impl Vector {
    fn execute(&mut self, instruction: VectorInstruction, area: &mut Area) {
        match instruction {
            VectorInstruction::LoadXmm(n) => {
                self.xmm[usize::from(n)] = u128::from_le_bytes(*area.0.first_chunk().unwrap());
            }
            VectorInstruction::StoreXmm(n) => area.0[..16].copy_from_slice(&self.xmm[usize::from(n)].to_le_bytes()),
            VectorInstruction::LoadMmx(n) => {
                self.mmx[usize::from(n)] = u64::from_le_bytes(*area.0.first_chunk().unwrap());
            }
            VectorInstruction::StoreMmx(n) => area.0[..8].copy_from_slice(&self.mmx[usize::from(n)].to_le_bytes()),
            VectorInstruction::Ldmxcsr => self.mxcsr = u32::from_le_bytes(*area.0.first_chunk().unwrap()),
            VectorInstruction::X87 { opcode: 5, extension: 7, .. } => {
                area.0[..2].copy_from_slice(&self.fsw.to_le_bytes())
            }
            VectorInstruction::X87 { opcode: 1, extension: 7, .. } => {
                area.0[..2].copy_from_slice(&self.fcw.to_le_bytes());
            }
            other => {
                self.fsw |= self.raises;
                area.0.fill(0x5a);
                self.log.push(other);
            }
        }
    }
}

impl Registers for Vcpu {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.file.gpr(gpr)
    }
    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.file.set_gpr(gpr, value);
    }
    fn rip(&self) -> u64 {
        self.file.rip
    }
    fn rflags(&self) -> u64 {
        self.file.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.file.rflags = value;
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        self.file.segment_base(segment)
    }
}

impl Processor for Vcpu {
    fn jump(&mut self, rip: u64) {
        self.file.rip = rip;
        self.shadow = false;
    }
    fn shadow_of_sti(&mut self) {
        self.shadow = true;
    }
    fn selector(&self, segment: Segment) -> u16 {
        self.selectors[segment as usize]
    }
    fn load_segment(&mut self, segment: Segment, selector: u16) {
        self.selectors[segment as usize] = selector;
        self.file.bases[segment as usize] = u64::from(selector) << 4;
    }
    fn segmentation(&mut self, segment: Segment, bitness: Bitness) -> Segmentation {
        let mode = match bitness {
            Bitness::Bits64 => Mode::Long(48),
            _ if self.controls.cr0 & 1 == 0 => Mode::Real,
            _ => Mode::Protected,
        };
        let (limit, attributes) = self.caches[segment as usize].unwrap_or((0xffff, 0x93));
        let cache = DescriptorCache { base: self.segment_base(segment), limit, attributes };
        Segmentation { segment, cache, mode, checks_alignment: false }
    }
    fn controls(&self) -> Controls {
        self.controls
    }
    fn extensions(&self) -> Extensions {
        self.extensions
    }
    fn unblock_nmis(&mut self) {
        self.unblocked_nmis += 1;
    }
    fn execute_vector(&mut self, instruction: VectorInstruction, area: &mut Area) -> u64 {
        self.vector.execute(instruction, area);
        self.rflags()
    }
    fn table(&self, table: Table) -> TableRegister {
        self.tables[table as usize].unwrap_or(TableRegister { base: 0, limit: 0xffff })
    }
    fn set_table(&mut self, table: Table, register: TableRegister) {
        self.tables[table as usize] = Some(register);
    }
}

/// Memory of 64 KiB.
struct Ram(Vec<u8>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Refusal {
    Nothing,
    Segment(SegmentFault),
}
use Refusal::Nothing;

impl From<SegmentFault> for Refusal {
    fn from(fault: SegmentFault) -> Self {
        Self::Segment(fault)
    }
}

impl Ram {
    fn range(&mut self, at: Gva, len: usize) -> Result<&mut [u8], Refusal> {
        let at = at.raw() as usize;
        self.0.get_mut(at..at + len).ok_or(Nothing)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
}

impl Memory for Ram {
    type Error = Refusal;
    fn read(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Refusal> {
        bytes.copy_from_slice(self.range(at, bytes.len())?);
        Ok(())
    }
    fn write(&mut self, at: Gva, bytes: &[u8]) -> Result<(), Refusal> {
        self.range(at, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }
    fn compare_exchange(&mut self, at: Gva, width: Width, old: u64, new: u64) -> Result<bool, Refusal> {
        let mut now = [0; 8];
        self.read(at, &mut now[..width.bytes() as usize])?;
        if u64::from_le_bytes(now) != old {
            return Ok(false);
        }
        self.write(at, &new.to_le_bytes()[..width.bytes() as usize]).map(|()| true)
    }
}

fn machine(at: usize, code: &[u8]) -> (Vcpu, Ram) {
    let mut ram = Ram(vec![0; 0x1_0000]);
    ram.0[at..at + code.len()].copy_from_slice(code);
    let mut vcpu = Vcpu::default();
    vcpu.file.rip = at as u64;
    vcpu.file.rflags = 2;
    vcpu.set_gpr(Gpr::RSP, 0x7000);
    (vcpu, ram)
}

fn one(vcpu: &mut Vcpu, ram: &mut Ram) -> Result<StepResult, Refusal> {
    let at = (vcpu.file.bases[Segment::Cs as usize] + vcpu.file.rip) as usize;
    let code: Vec<u8> = ram.0.iter().skip(at).take(15).copied().collect();
    step(vcpu, ram, &code, Bitness::Bits16)
}

/// Whether the step was carried out.
fn goes_on(step: &StepResult) -> bool {
    matches!(
        step,
        StepResult::Done | StepResult::Branched | StepResult::LoadedSs | StepResult::Interrupted | StepResult::Iterated
    )
}

/// Runs up to the first step that the caller has to handle.
fn run(vcpu: &mut Vcpu, ram: &mut Ram) -> StepResult {
    for _ in 0..1000 {
        match one(vcpu, ram) {
            Ok(step) if goes_on(&step) => {}
            Ok(step) => return step,
            Err(refusal) => panic!("{refusal:?} at {vcpu:x?}"),
        }
    }
    panic!("no end");
}

#[rustfmt::skip]
const BOOT: [u8; 133] = [
    0xfa, // cli
    0xfc, // cld
    0x31, 0xc0, // xor %ax,%ax
    0x8e, 0xd8, // mov %ax,%ds
    0x8e, 0xc0, // mov %ax,%es
    0x8e, 0xd0, // mov %ax,%ss
    0xbc, 0x00, 0x70, // mov $0x7000,%sp
    0xc7, 0x06, 0x00, 0x05, 0x34, 0x12, // movw $0x1234,0x500
    0x8b, 0x1e, 0x00, 0x05, // mov 0x500,%bx
    0x53, // push %bx
    0x5a, // pop %dx
    0xe8, 0x3d, 0x00, // call 0x59
    0xf0, 0xff, 0x06, 0x02, 0x05, // lock incw 0x502
    0xbf, 0x00, 0x06, // mov $0x600,%di
    0xb9, 0x20, 0x00, // mov $0x20,%cx
    0xb0, 0x5a, // mov $0x5a,%al
    0xf3, 0xaa, // rep stos %al,%es:(%di)
    0xb9, 0x03, 0x00, // mov $0x3,%cx
    0x83, 0xc6, 0x02, // add $0x2,%si
    0xe2, 0xfb, // loop 0x2e
    0x9c, // pushf
    0x5d, // pop %bp
    0x83, 0xfe, 0x06, // cmp $0x6,%si
    0x75, 0x1e, // jne 0x58
    0xc1, 0xe6, 0x04, // shl $0x4,%si
    0x8d, 0x40, 0x03, // lea 0x3(%bx,%si),%ax
    0xa3, 0x04, 0x05, // mov %ax,0x504
    0xcd, 0x20, // int $0x20
    0x66, 0x0f, 0x01, 0x16, 0x7f, 0x10, // lgdtl 0x107f
    0x66, 0x68, 0x44, 0x33, 0x22, 0x11, // pushl $0x11223344
    0x66, 0x5b, // pop %ebx
    0xea, 0x60, 0x00, 0x00, 0x01, // ljmp $0x100,$0x60
    0xf4, // hlt
    0xb8, 0x77, 0x00, // mov $0x77,%ax
    0xa3, 0x06, 0x05, // mov %ax,0x506
    0xc3, // ret
    0x8c, 0xc8, // mov %cs,%ax
    0xa3, 0x08, 0x05, // mov %ax,0x508
    0xfb, // sti
    0x0f, 0x20, 0xc0, // mov %cr0,%eax
    0x66, 0x83, 0xc8, 0x01, // or $0x1,%eax
    0x0f, 0x22, 0xc0, // mov %eax,%cr0
    0x66, 0xea, 0x00, 0x20, 0x00, 0x00, 0x08, 0x00, // ljmpl $0x8,$0x2000
    0xc7, 0x06, 0x0a, 0x05, 0x99, 0x00, // movw $0x99,0x50a
    0xcf, // iret
    0x17, 0x00, 0x78, 0x56, 0x34, 0x12, // for LGDT
];

#[test]
fn boot_code_runs_up_to_protected_mode() {
    let (mut vcpu, mut ram) = machine(0x1000, &BOOT);
    ram.0[0x80..0x84].copy_from_slice(&[0x78, 0x10, 0, 0]);
    vcpu.file.rflags |= 1 << 10;
    let read = StepResult::System { system: System::ReadCr { cr: 0, to: Gpr::RAX }, next: 0x69 };
    assert_eq!(run(&mut vcpu, &mut ram), read);
    assert!(vcpu.shadow, "of STI");
    assert_eq!(
        [0x500, 0x502, 0x504, 0x506, 0x508, 0x50a].map(|at| ram.word(at)),
        [0x1234, 1, 0x1234 + 0x60 + 3, 0x77, 0x100, 0x99]
    );
    assert_eq!((&ram.0[0x600..0x620], ram.0[0x620]), (&[0x5a; 0x20][..], 0));
    assert_eq!(vcpu.tables, [Some(TableRegister { base: 0x1234_5678, limit: 0x17 }), None]);
    assert_eq!((vcpu.gpr(Gpr::RBX), vcpu.gpr(Gpr::RDX), vcpu.gpr(Gpr::RSP)), (0x1122_3344, 0x1234, 0x7000));
    assert_eq!((vcpu.selectors[1], vcpu.file.rflags & (IF | 1 << 10)), (0x100, IF));
    vcpu.jump(0x69);
    vcpu.set_gpr(Gpr::RAX, 0x10);
    let write = StepResult::System { system: System::WriteCr { cr: 0, from: Gpr::RAX }, next: 0x70 };
    assert_eq!((run(&mut vcpu, &mut ram), vcpu.gpr(Gpr::RAX), vcpu.shadow), (write, 0x11, false));
}

#[test]
fn instructions_that_exit_are_left_to_the_caller() {
    let cases: [(&[u8], Exiting); 8] = [
        (&[0x0f, 0xa2], Exiting::Cpuid),
        (&[0x0f, 0x32], Exiting::Rdmsr),
        (&[0x0f, 0x30], Exiting::Wrmsr),
        (&[0xf4], Exiting::Halt),
        (&[0x0f, 0x01, 0xc1], Exiting::Hypercall),
        (&[0xec], Exiting::In { port: 0x3f8, width: Width::Byte }),
        (&[0x66, 0xef], Exiting::Out { port: 0x3f8, width: Width::Dword }),
        (&[0xe7, 0x80], Exiting::Out { port: 0x80, width: Width::Word }),
    ];
    for (code, exit) in cases {
        let (mut vcpu, mut ram) = machine(0x100, code);
        vcpu.set_gpr(Gpr::RDX, 0xabcd_03f8);
        let before = vcpu.clone();
        assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Exit { exit, next: 0x100 + code.len() as u64 }));
        assert_eq!(vcpu, before);
    }
}

#[test]
fn interrupts_go_by_the_table_and_come_back() {
    // IRET.
    let (mut vcpu, mut ram) = machine(0x2010, &[0xcf]);
    ram.0[0x20..0x24].copy_from_slice(&[0x10, 0, 0, 0x02]);
    vcpu.load_segment(Segment::Cs, 0x300);
    vcpu.file.rip = 0x44;
    vcpu.file.rflags = IF | 3;
    let before = vcpu.clone();
    assert_eq!(interrupt(&mut vcpu, &mut ram, 8, 0x44), Ok(()));
    assert_eq!((vcpu.selectors[1], vcpu.file.rip, vcpu.file.rflags), (0x200, 0x10, 3));
    assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Branched));
    assert_eq!(vcpu, Vcpu { unblocked_nmis: 1, ..before });
    vcpu.set_table(Table::Interrupts, TableRegister { base: 0, limit: 0x22 });
    assert_eq!(interrupt(&mut vcpu, &mut ram, 8, 0x44), Err(Refusal::Segment(SegmentFault::GeneralProtection)));
}

#[test]
fn branches_look_at_the_flags() {
    // Each condition's jump over two bytes, with ZF, CF, SF, OF, PF in turn.
    for flags in [0u64, 0x40, 0x01, 0x80, 0x800, 0x880, 0x04] {
        for condition in 0..16u8 {
            let (mut vcpu, mut ram) = machine(0x100, &[0x70 | condition, 2]);
            vcpu.file.rflags = flags | 2;
            let is = |flag: u64| flags & flag != 0;
            let holds = match condition >> 1 {
                0 => is(0x800),
                1 => is(1),
                2 => is(0x40),
                3 => is(0x41),
                4 => is(0x80),
                5 => is(4),
                6 => is(0x80) != is(0x800),
                _ => is(0x40) || is(0x80) != is(0x800),
            };
            let taken = holds != (condition & 1 == 1);
            assert_eq!(one(&mut vcpu, &mut ram), Ok(if taken { StepResult::Branched } else { StepResult::Done }));
            assert_eq!(vcpu.file.rip, if taken { 0x104 } else { 0x102 }, "{condition:x} with {flags:x}");
        }
    }
}

#[test]
fn other_instructions_are_unknown() {
    // ADDPS, CRC32.
    for code in [&[0x0f, 0x58, 0xc1][..], &[0xf2, 0x0f, 0x38, 0xf0, 0xc1]] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        vcpu.controls.cr4 = 0x200;
        let before = vcpu.clone();
        assert_eq!((one(&mut vcpu, &mut ram), &vcpu), (Ok(StepResult::Unknown), &before));
    }
    // UD2, no instruction, LLDT, MOV to CS; VMXOFF, CLGI, XGETBV, MWAIT, SYSCALL, VZEROUPPER.
    for code in [
        &[0x0f, 0x0b][..],
        &[0x0f, 0x04],
        &[0x0f, 0x00, 0xd0],
        &[0x8e, 0xc8],
        &[0x0f, 0x01, 0xc4],
        &[0x0f, 0x01, 0xdd],
        &[0x0f, 0x01, 0xd0],
        &[0x0f, 0x01, 0xc9],
        &[0x0f, 0x05],
        &[0xc5, 0xf8, 0x77],
    ] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Fault(fault::UNDEFINED)), "{code:x?}");
    }
}

/// Executes `code`, which is one instruction.
#[track_caller]
fn execute(vcpu: &mut Vcpu, ram: &mut Ram, code: &[u8]) {
    vcpu.file.rip = 0x100;
    ram.0[0x100..0x100 + code.len()].copy_from_slice(code);
    assert_eq!(one(vcpu, ram), Ok(StepResult::Done), "{code:x?}");
    assert_eq!(vcpu.file.rip, 0x100 + code.len() as u64, "{code:x?}");
}

#[test]
fn all_registers_are_pushed_and_popped() {
    for (width, push, pop) in [(2, &[0x60][..], &[0x61][..]), (4, &[0x66, 0x60], &[0x66, 0x61])] {
        let (mut vcpu, mut ram) = machine(0x100, &[]);
        for number in 0..8 {
            vcpu.set_gpr(Gpr::new(number), 0x1111_1111 * u64::from(number + 1));
        }
        vcpu.set_gpr(Gpr::RSP, 0x7000);
        let before = vcpu.file.gpr;
        execute(&mut vcpu, &mut ram, push);
        assert_eq!(vcpu.gpr(Gpr::RSP), 0x7000 - 8 * width);
        assert_eq!((ram.word(0x7000 - width as usize), ram.word(0x7000 - 5 * width as usize)), (0x1111, 0x7000));
        vcpu.file.gpr = [0; 16];
        vcpu.set_gpr(Gpr::RSP, 0x7000 - 8 * width);
        execute(&mut vcpu, &mut ram, pop);
        let mask = if width == 2 { 0xffff } else { 0xffff_ffff };
        let expected = before.map(|value| value & mask);
        assert_eq!(vcpu.file.gpr, expected);
    }
}

#[test]
fn a_frame_is_entered_and_left() {
    // ENTER 8, 0; ENTER 8, 2; LEAVE.
    let (mut vcpu, mut ram) = machine(0x100, &[]);
    vcpu.set_gpr(Gpr::RBP, 0x7100);
    execute(&mut vcpu, &mut ram, &[0xc8, 8, 0, 0]);
    assert_eq!((vcpu.gpr(Gpr::RBP), vcpu.gpr(Gpr::RSP), ram.word(0x6ffe)), (0x6ffe, 0x6ff6, 0x7100));
    ram.0[0x6ffc..0x6ffe].copy_from_slice(&[0x34, 0x12]);
    execute(&mut vcpu, &mut ram, &[0xc8, 8, 0, 2]);
    assert_eq!((vcpu.gpr(Gpr::RBP), vcpu.gpr(Gpr::RSP)), (0x6ff4, 0x6fe8));
    assert_eq!([0x6ff4, 0x6ff2, 0x6ff0].map(|at| ram.word(at)), [0x6ffe, 0x1234, 0x6ff4]);
    execute(&mut vcpu, &mut ram, &[0xc9]);
    assert_eq!((vcpu.gpr(Gpr::RBP), vcpu.gpr(Gpr::RSP)), (0x6ffe, 0x6ff6));
}

#[test]
fn a_pop_to_memory_by_the_stack_pointer_counts_it_popped() {
    // POP DWORD [ESP + 4], with 32-bit addresses and operands.
    let (mut vcpu, mut ram) = machine(0x100, &[]);
    ram.0[0x7000..0x7004].copy_from_slice(&[1, 2, 3, 4]);
    execute(&mut vcpu, &mut ram, &[0x66, 0x67, 0x8f, 0x44, 0x24, 4]);
    assert_eq!((&ram.0[0x7008..0x700c], vcpu.gpr(Gpr::RSP)), (&[1, 2, 3, 4][..], 0x7004));
}

#[test]
fn decimal_digits_are_adjusted() {
    // AX, CF and AF before and after, by the tables of the manual's examples.
    for (code, ax, flags, expected, carries) in [
        (&[0x27][..], 0xae, 0, 0x14, true),
        (&[0x27], 0x0b, 0, 0x11, false),
        (&[0x27], 0x13, 0x10, 0x19, false),
        (&[0x2f], 0xee, 0x10, 0x88, true),
        (&[0x2f], 0x42, 0, 0x42, false),
        (&[0x37], 0x000b, 0, 0x0101, true),
        (&[0x37], 0x0105, 0, 0x0105, false),
        (&[0x3f], 0x02fe, 0x10, 0x0108, true),
        (&[0xd4, 10], 0x0048, 0, 0x0702, false),
        (&[0xd5, 10], 0x0702, 0, 0x0048, false),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, &[]);
        vcpu.set_gpr(Gpr::RAX, 0xdead_0000 | ax);
        vcpu.file.rflags |= flags;
        execute(&mut vcpu, &mut ram, code);
        assert_eq!(vcpu.gpr(Gpr::RAX), 0xdead_0000 | expected, "{code:x?} of {ax:x}");
        assert_eq!(vcpu.file.rflags & 1 != 0, carries, "{code:x?} of {ax:x}");
    }
    let (mut vcpu, mut ram) = machine(0x100, &[0xd4, 0]);
    assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Fault(fault::DIVIDE)));
}

#[test]
fn bounds_are_checked() {
    // BOUND AX, [0x500].
    for (index, result) in [(5, StepResult::Done), (0xfffe, StepResult::Done), (6, StepResult::Fault(fault::BOUND))] {
        let (mut vcpu, mut ram) = machine(0x100, &[0x62, 0x06, 0x00, 0x05]);
        ram.0[0x500..0x504].copy_from_slice(&[0xfe, 0xff, 5, 0]);
        vcpu.set_gpr(Gpr::RAX, index);
        assert_eq!(one(&mut vcpu, &mut ram), Ok(result));
    }
}

#[test]
fn counts_of_bits_are_scans_where_the_processor_lacks_them() {
    // TZCNT, LZCNT, POPCNT and MOVBE of CX or [0x500] to AX.
    let undefined = Ok(StepResult::Fault(fault::UNDEFINED));
    for (code, extension, with, without) in [
        (&[0xf3, 0x0f, 0xbc, 0xc1][..], Extension::Bmi1, 4, Ok(4)),
        (&[0xf3, 0x0f, 0xbd, 0xc1], Extension::Lzcnt, 10, Ok(5)),
        (&[0xf3, 0x0f, 0xb8, 0xc1], Extension::Popcnt, 2, Err(undefined)),
        (&[0x0f, 0x38, 0xf0, 0x06, 0x00, 0x05], Extension::Movbe, 0x3000, Err(undefined)),
    ] {
        let result = |extensions, cx| {
            let (mut vcpu, mut ram) = machine(0x100, code);
            ram.0[0x500] = 0x30;
            vcpu.extensions = extensions;
            vcpu.set_gpr(Gpr::RAX, 0x7777);
            vcpu.set_gpr(Gpr::RCX, cx);
            let step = one(&mut vcpu, &mut ram);
            if step == Ok(StepResult::Done) { Ok(vcpu.gpr(Gpr::RAX)) } else { Err(step) }
        };
        assert_eq!(result(Extensions::of([extension]), 0x30), Ok(with), "{code:x?}");
        assert_eq!(result(Extensions::default(), 0x30), without, "{code:x?}");
    }
    // Of no bit: the destination stays, and ZF is set, where TZCNT gives the width, and CF.
    let (mut vcpu, mut ram) = machine(0x100, &[0xf3, 0x0f, 0xbc, 0xc1]);
    vcpu.set_gpr(Gpr::RAX, 0x7777);
    assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Done));
    assert_eq!((vcpu.gpr(Gpr::RAX), vcpu.file.rflags & 0x41), (0x7777, 0x40));
}

#[test]
fn branches_that_are_taken_and_loads_of_ss_are_told_from_others() {
    let (done, taken) = (StepResult::Done, StepResult::Branched);
    // JMP, CALL, RET, far JMP, RETF, IRET; JZ, JNZ, LOOP, JCXZ, INTO; INT 20h, INT3; BOUND, STI; MOV SS, POP SS, MOV DS.
    for (code, expected) in [
        (&[0xeb, 0x00][..], taken),
        (&[0xe8, 0x00, 0x00], taken),
        (&[0xc3], taken),
        (&[0xea, 0x00, 0x02, 0x00, 0x00], taken),
        (&[0xcb], taken),
        (&[0xcf], taken),
        (&[0x74, 0x10], taken),
        (&[0x75, 0x10], done),
        (&[0x74, 0x00], taken),
        (&[0xe2, 0x10], done),
        (&[0xe3, 0x10], done),
        (&[0xce], done),
        (&[0xcd, 0x20], StepResult::Interrupted),
        (&[0xcc], StepResult::Interrupted),
        (&[0x62, 0x06, 0x00, 0x05], done),
        (&[0xfb], done),
        (&[0x8e, 0xd0], StepResult::LoadedSs),
        (&[0x17], StepResult::LoadedSs),
        (&[0x8e, 0xd8], done),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        vcpu.file.rflags |= 0x40;
        vcpu.set_gpr(Gpr::RCX, 1);
        assert_eq!(one(&mut vcpu, &mut ram), Ok(expected), "{code:x?}");
    }
}

#[test]
fn an_iret_unblocks_nmis_even_if_it_faults() {
    // IRET, RETF, IRETD to 10000h.
    for (code, expected, times) in [
        (&[0xcf][..], StepResult::Branched, 1),
        (&[0xcb], StepResult::Branched, 0),
        (&[0x66, 0xcf], StepResult::Fault(fault::GENERAL_PROTECTION), 1),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        ram.0[0x7002] = 1;
        assert_eq!((one(&mut vcpu, &mut ram), vcpu.unblocked_nmis), (Ok(expected), times), "{code:x?}");
    }
}

#[test]
fn an_instruction_that_goes_on_behind_its_bytes_is_left_alone() {
    let (mut vcpu, mut ram) = machine(0x100, &[]);
    let before = vcpu.clone();
    for code in [&[][..], &[0xb8, 0x12]] {
        assert_eq!(step(&mut vcpu, &mut ram, code, Bitness::Bits16), Ok(StepResult::Truncated));
        assert_eq!(vcpu, before);
    }
}

#[test]
fn far_pointers_are_loaded() {
    // LES BX, [0x500].
    let (mut vcpu, mut ram) = machine(0x100, &[]);
    ram.0[0x500..0x504].copy_from_slice(&[0x34, 0x12, 0x00, 0x02]);
    execute(&mut vcpu, &mut ram, &[0xc4, 0x1e, 0x00, 0x05]);
    assert_eq!((vcpu.gpr(Gpr::RBX), vcpu.selectors[0], vcpu.file.bases[0]), (0x1234, 0x200, 0x2000));
}

#[test]
fn operands_are_checked_by_their_segments() {
    let general = Err(Refusal::Segment(SegmentFault::GeneralProtection));
    let stack = Err(Refusal::Segment(SegmentFault::Stack));
    // MOV AX, [0xffff]; SHL WORD [0xffff], 1; PUSH AX with SP of 1; MOV AX, SS:[0xffff]; REP MOVSW from 0xffff.
    for (code, expected) in [
        (&[0xa1, 0xff, 0xff][..], general),
        (&[0xd1, 0x26, 0xff, 0xff], general),
        (&[0x50], stack),
        (&[0x36, 0xa1, 0xff, 0xff], stack),
        (&[0xf3, 0xa5], general),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        vcpu.set_gpr(Gpr::RSP, 1);
        vcpu.set_gpr(Gpr::RSI, 0xffff);
        vcpu.set_gpr(Gpr::RCX, 1);
        let before = vcpu.clone();
        assert_eq!((one(&mut vcpu, &mut ram), vcpu), (expected, before), "{code:x?}");
    }
}

#[test]
fn a_jump_behind_the_end_of_the_code_is_refused() {
    // JMP EAX, CALL EAX, RET of 32 bits, JNZ far ahead, a far JMP of 32 bits.
    for code in [
        &[0x66, 0xff, 0xe0][..],
        &[0x66, 0xff, 0xd0],
        &[0x66, 0xc3],
        &[0x66, 0x0f, 0x85, 0x00, 0x00, 0x01, 0x00],
        &[0x66, 0xea, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00],
    ] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        ram.0[0x7000..0x7004].copy_from_slice(&[0, 0, 1, 0]);
        vcpu.set_gpr(Gpr::RAX, 0x1_0000);
        let before = vcpu.clone();
        assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Fault(fault::GENERAL_PROTECTION)));
        assert_eq!(vcpu, before, "{code:x?}");
    }
}

#[test]
fn vector_registers_are_moved_whole_and_in_parts() {
    const ONES: u128 = u128::MAX;
    const MEMORY: u128 = 0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110;
    // From memory at 0x500: MOVUPS, MOVAPS, MOVSS, MOVSD, MOVD, MOVQ, MOVLPS, MOVHPS of XMM1.
    for (code, expected) in [
        (&[0x0f, 0x10, 0x0e, 0x00, 0x05][..], MEMORY),
        (&[0x0f, 0x28, 0x0e, 0x00, 0x05], MEMORY),
        (&[0xf3, 0x0f, 0x10, 0x0e, 0x00, 0x05], MEMORY & 0xffff_ffff),
        (&[0xf2, 0x0f, 0x10, 0x0e, 0x00, 0x05], MEMORY & u128::from(u64::MAX)),
        (&[0x66, 0x0f, 0x6e, 0x0e, 0x00, 0x05], MEMORY & 0xffff_ffff),
        (&[0xf3, 0x0f, 0x7e, 0x0e, 0x00, 0x05], MEMORY & u128::from(u64::MAX)),
        (&[0x0f, 0x12, 0x0e, 0x00, 0x05], ONES << 64 | MEMORY & u128::from(u64::MAX)),
        (&[0x0f, 0x16, 0x0e, 0x00, 0x05], MEMORY << 64 | u128::from(u64::MAX)),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, &[]);
        vcpu.controls.cr4 = 0x200;
        vcpu.vector.xmm = [ONES; 16];
        ram.0[0x500..0x510].copy_from_slice(&MEMORY.to_le_bytes());
        execute(&mut vcpu, &mut ram, code);
        assert_eq!((vcpu.vector.xmm[0], vcpu.vector.xmm[1]), (ONES, expected), "{code:x?}");
    }
    // MOVHPS [0x500], XMM1; MOVQ [0x500], MM1.
    let (mut vcpu, mut ram) = machine(0x100, &[]);
    vcpu.controls.cr4 = 0x200;
    vcpu.vector.xmm[1] = MEMORY;
    vcpu.vector.mmx[1] = 7;
    execute(&mut vcpu, &mut ram, &[0x0f, 0x17, 0x0e, 0x00, 0x05]);
    assert_eq!((ram.word(0x500), ram.word(0x508)), (0x1918, 0));
    execute(&mut vcpu, &mut ram, &[0x0f, 0x7f, 0x0e, 0x00, 0x05]);
    assert_eq!((ram.word(0x500), ram.word(0x502)), (7, 0));
}

#[test]
fn vector_instructions_fault_as_the_control_registers_say() {
    const EM: u64 = 4;
    const TS: u64 = 8;
    let (undefined, unavailable) =
        (StepResult::Fault(fault::UNDEFINED), StepResult::Fault(fault::DEVICE_NOT_AVAILABLE));
    // MOVUPS, MOVQ MM0, FLD DWORD, FXSAVE, each of [0x500].
    let (sse, mmx, x87, fxsave): (&[u8], &[u8], &[u8], &[u8]) =
        (&[0x0f, 0x10, 6, 0, 5], &[0x0f, 0x6f, 6, 0, 5], &[0xd9, 6, 0, 5], &[0x0f, 0xae, 6, 0, 5]);
    for (cr0, cr4, code, expected) in [
        (0, 0, sse, undefined),
        (EM, 0x200, sse, undefined),
        (TS, 0x200, sse, unavailable),
        (EM, 0, mmx, undefined),
        (TS, 0, mmx, unavailable),
        (EM, 0, x87, unavailable),
        (TS, 0, x87, unavailable),
        (EM, 0, fxsave, unavailable),
        (0, 0x200, sse, StepResult::Done),
        (0, 0, mmx, StepResult::Done),
        (0, 0, x87, StepResult::Done),
        (0, 0, fxsave, StepResult::Done),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        vcpu.controls = Controls { cr0, cr4, cpl: 0 };
        assert_eq!(one(&mut vcpu, &mut ram), Ok(expected), "{code:x?} with {cr0:x} and {cr4:x}");
    }
}

#[test]
fn an_x87_exception_that_waits_comes_first() {
    // FLD DWORD [0x500] and FSTP; FNSTCW does not wait.
    for (code, expected) in [
        (&[0xd9, 0x06, 0x00, 0x05][..], StepResult::Fault(fault::FLOATING_POINT)),
        (&[0xd9, 0x1e, 0x00, 0x05], StepResult::Fault(fault::FLOATING_POINT)),
        (&[0xd9, 0x3e, 0x00, 0x05], StepResult::Done),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        vcpu.vector.fsw = 0x80;
        assert_eq!(one(&mut vcpu, &mut ram), Ok(expected), "{code:x?}");
        assert!(vcpu.vector.log.is_empty());
    }
    let (mut vcpu, mut ram) = machine(0x100, &[]);
    execute(&mut vcpu, &mut ram, &[0xda, 0xc9]);
    execute(&mut vcpu, &mut ram, &[0xd9, 0x1e, 0x00, 0x05]);
    let store = VectorInstruction::X87 { opcode: 1, extension: 3, short: false };
    assert_eq!(vcpu.vector.log, [VectorInstruction::X87Registers { opcode: 2, modrm: 0xc9 }, store]);
    assert_eq!((ram.word(0x500), ram.word(0x502), ram.word(0x504)), (0x5a5a, 0x5a5a, 0));
}

#[test]
fn emms_looks_for_what_would_fault() {
    const EM: u64 = 4;
    const TS: u64 = 8;
    for (cr0, fsw, expected) in [
        (0, 0x80, StepResult::Fault(fault::FLOATING_POINT)),
        (EM, 0, StepResult::Fault(fault::UNDEFINED)),
        (TS, 0, StepResult::Fault(fault::DEVICE_NOT_AVAILABLE)),
        (0, 0, StepResult::Done),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, &[0x0f, 0x77]);
        (vcpu.controls.cr0, vcpu.vector.fsw) = (cr0, fsw);
        assert_eq!(one(&mut vcpu, &mut ram), Ok(expected));
        assert_eq!(vcpu.vector.log.is_empty(), expected != StepResult::Done);
    }
}

/// FWAIT looks at TS if MP is set.
#[test]
fn wait_goes_by_two_bits() {
    let unavailable = StepResult::Fault(fault::DEVICE_NOT_AVAILABLE);
    for (cr0, expected) in [(4, StepResult::Done), (8, StepResult::Done), (2, StepResult::Done), (10, unavailable)] {
        let (mut vcpu, mut ram) = machine(0x100, &[0x9b]);
        vcpu.controls.cr0 = cr0;
        assert_eq!(one(&mut vcpu, &mut ram), Ok(expected), "{cr0:x}");
    }
}

/// FSTP DWORD [0x500], with the exceptions that it leaves in FSW, and those that FCW masks.
#[test]
fn a_result_is_stored_unless_an_exception_that_is_not_masked_holds_it_back() {
    const PRECISION: u16 = 0x20;
    const OVERFLOW: u16 = 8;
    for (raised, masked, stores) in [
        (0, 0x3f, true),
        (OVERFLOW, 0x3f, true),
        (OVERFLOW, 0x37, false),
        (PRECISION, 0x1f, true),
        (PRECISION | OVERFLOW, 0x17, false),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, &[]);
        (vcpu.vector.raises, vcpu.vector.fcw) = (raised, masked);
        execute(&mut vcpu, &mut ram, &[0xd9, 0x1e, 0x00, 0x05]);
        assert_eq!(ram.word(0x500) != 0, stores, "{raised:x} with {masked:x}");
    }
}

/// FNSTENV and FNSAVE in 16-bit code, and with a prefix for the other size.
#[test]
fn the_x87s_environment_has_two_sizes() {
    for (code, opcode, extension, short, bytes) in [
        (&[0xd9, 0x36, 0x00, 0x05][..], 1, 6, true, 14),
        (&[0x66, 0xd9, 0x36, 0x00, 0x05], 1, 6, false, 28),
        (&[0xdd, 0x36, 0x00, 0x05], 5, 6, true, 94),
        (&[0x66, 0xdd, 0x36, 0x00, 0x05], 5, 6, false, 108),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, &[]);
        execute(&mut vcpu, &mut ram, code);
        assert_eq!(vcpu.vector.log, [VectorInstruction::X87 { opcode, extension, short }]);
        assert!(ram.0[0x500..0x500 + bytes].iter().all(|&byte| byte == 0x5a) && ram.0[0x500 + bytes] == 0, "{code:x?}");
    }
}

/// SGDT, SIDT and SMSW to memory, at CPL 3.
#[test]
fn umip_keeps_tables_from_user_programs() {
    const UMIP: u64 = 1 << 11;
    let general = StepResult::Fault(fault::GENERAL_PROTECTION);
    for modrm in [0x05, 0x0d, 0x25] {
        for (cr4, cpl, expected) in [(UMIP, 3, general), (UMIP, 0, StepResult::Done), (0, 3, StepResult::Done)] {
            let code = [0x0f, 0x01, modrm, 0, 5, 0, 0];
            let (mut vcpu, mut ram) = protected(&code, cpl);
            vcpu.controls.cr4 = cr4;
            assert_eq!(
                step(&mut vcpu, &mut ram, &code, Bitness::Bits32),
                Ok(expected),
                "{modrm:x}, {cr4:x}, CPL {cpl}"
            );
        }
    }
}

#[test]
fn unaligned_and_reserved_vector_state_is_refused() {
    let general = Err(Refusal::Segment(SegmentFault::GeneralProtection));
    // MOVAPS and FXSAVE of [0x508]; LDMXCSR of a reserved bit.
    for (code, expected) in [
        (&[0x0f, 0x28, 0x06, 0x08, 0x05][..], general),
        (&[0x0f, 0xae, 0x06, 0x08, 0x05], general),
        (&[0x0f, 0xae, 0x16, 0x00, 0x05], Ok(StepResult::Fault(fault::GENERAL_PROTECTION))),
    ] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        vcpu.controls.cr4 = 0x200;
        ram.0[0x502] = 1;
        assert_eq!(one(&mut vcpu, &mut ram), expected, "{code:x?}");
    }
}

/// A machine in flat 32-bit protected mode.
fn protected(code: &[u8], cpl: u8) -> (Vcpu, Ram) {
    let (mut vcpu, ram) = machine(0x100, code);
    vcpu.controls = Controls { cr0: 1, cr4: 0x200, cpl };
    vcpu.caches = [Some((u32::MAX, 0xc93)); 6];
    vcpu.caches[1] = Some((u32::MAX, 0xc9b));
    (vcpu, ram)
}

#[test]
fn in_protected_mode_the_code_may_not_be_what_has_exited() {
    let general = StepResult::Fault(fault::GENERAL_PROTECTION);
    let load = |register, also, next| StepResult::LoadSegment { register, selector: 0x18, also, shadows: false, next };
    let far = |offset, pushes, next| StepResult::FarTransfer { selector: 0x18, offset, pushes, next };
    let [ds, ldtr, tr] = [SegmentRegister::Segment(Segment::Ds), SegmentRegister::Ldtr, SegmentRegister::Tr];
    // CLI, MOV EAX, EBX, LGDT, MOV DS from memory, a far JMP and CALL through memory, a far CALL and JMP, POP DS, LDS EBX, IRET, LLDT, LTR.
    for (code, cpl, expected) in [
        (&[0xfa][..], 3, StepResult::Again),
        (&[0x89, 0xd8], 0, StepResult::Again),
        (&[0x0f, 0x01, 0x15, 0, 5, 0, 0], 3, general),
        (&[0x0f, 0x01, 0x15, 0, 5, 0, 0], 0, StepResult::Done),
        (&[0x8e, 0x1d, 4, 5, 0, 0], 3, load(ds, None, 0x106)),
        (&[0xff, 0x2d, 0, 5, 0, 0], 3, far(0x55, None, 0x106)),
        (&[0xff, 0x1d, 0, 5, 0, 0], 0, far(0x55, Some(Width::Dword), 0x106)),
        (&[0x66, 0x9a, 4, 5, 0x18, 0], 0, far(0x504, Some(Width::Word), 0x106)),
        (&[0xea, 4, 5, 0, 0, 0x18, 0], 0, StepResult::Again),
        (&[0x1f], 0, load(ds, Some((Gpr::RSP, 0x7004)), 0x101)),
        (&[0xc5, 0x1d, 0, 5, 0, 0], 0, load(ds, Some((Gpr::RBX, 0x55)), 0x106)),
        (&[0x0f, 0x00, 0x15, 4, 5, 0, 0], 0, load(ldtr, None, 0x107)),
        (&[0x0f, 0x00, 0x1d, 4, 5, 0, 0], 0, load(tr, None, 0x107)),
        (&[0x0f, 0x00, 0x1d, 4, 5, 0, 0], 3, general),
        (&[0xcf], 0, StepResult::Unknown),
    ] {
        let (mut vcpu, mut ram) = protected(code, cpl);
        (ram.0[0x500], ram.0[0x504], ram.0[0x7000]) = (0x55, 0x18, 0x18);
        let bytes = ram.0[0x100..0x10f].to_vec();
        assert_eq!(step(&mut vcpu, &mut ram, &bytes, Bitness::Bits32), Ok(expected), "{code:x?} at CPL {cpl}");
    }
}

#[test]
fn flags_are_popped_as_the_privilege_allows() {
    const IOPL: u64 = 3 << 12;
    for (cpl, iopl, expected) in [(0, 0, IOPL | IF), (3, 3, IOPL | IF), (3, 0, 0), (1, 1, IF | 1 << 12)] {
        let (mut vcpu, mut ram) = protected(&[0x9d], cpl);
        vcpu.file.rflags = 2 | iopl << 12;
        ram.0[0x7000..0x7004].copy_from_slice(&0x3202u32.to_le_bytes());
        assert_eq!(step(&mut vcpu, &mut ram, &[0x9d], Bitness::Bits32), Ok(StepResult::Done));
        assert_eq!(vcpu.file.rflags & (IOPL | IF), expected, "CPL {cpl}, IOPL {iopl}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// Any bytes: no panic, and a step that is not done changes nothing.
    #[test]
    fn any_code(code in prop::collection::vec(any::<u8>(), 15), gprs in any::<[u16; 8]>(), rflags in any::<u16>()) {
        let (mut vcpu, mut ram) = machine(0x100, &code);
        for (number, value) in (0..).zip(gprs) {
            vcpu.set_gpr(Gpr::new(number), value.into());
        }
        vcpu.file.rflags = u64::from(rflags) | 2;
        let before = vcpu.clone();
        let step = one(&mut vcpu, &mut ram);
        let unblocked_nmis = vcpu.unblocked_nmis;
        match step {
            Ok(step) if goes_on(&step) => {}
            // Also of an IRET that faults.
            _ => prop_assert_eq!(vcpu, Vcpu { unblocked_nmis, ..before }),
        }
    }
}
