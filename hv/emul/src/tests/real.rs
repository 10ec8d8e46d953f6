//! Tests of the real-mode interpreter.

use crate::real::{Exiting, Memory, Processor, StepResult, Table, TableRegister, UNDEFINED, interrupt, step};
use crate::system::System;
use crate::tests::File;
use crate::{Bitness, Gpr, Registers, Segment, Width};
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
    fn shadow(&mut self) {
        self.shadow = true;
    }
    fn selector(&self, segment: Segment) -> u16 {
        self.selectors[segment as usize]
    }
    fn load_segment(&mut self, segment: Segment, selector: u16) {
        self.selectors[segment as usize] = selector;
        self.file.bases[segment as usize] = u64::from(selector) << 4;
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

#[derive(Debug, PartialEq)]
struct Nothing;

impl Ram {
    fn range(&mut self, at: Gva, len: usize) -> Result<&mut [u8], Nothing> {
        let at = at.raw() as usize;
        self.0.get_mut(at..at + len).ok_or(Nothing)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
}

impl Memory for Ram {
    type Error = Nothing;
    fn read(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Nothing> {
        bytes.copy_from_slice(self.range(at, bytes.len())?);
        Ok(())
    }
    fn write(&mut self, at: Gva, bytes: &[u8]) -> Result<(), Nothing> {
        self.range(at, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }
    fn compare_exchange(&mut self, at: Gva, width: Width, old: u64, new: u64) -> Result<bool, Nothing> {
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

fn one(vcpu: &mut Vcpu, ram: &mut Ram) -> Result<StepResult, Nothing> {
    let at = (vcpu.file.bases[Segment::Cs as usize] + vcpu.file.rip) as usize;
    let code: Vec<u8> = ram.0.iter().skip(at).take(15).copied().collect();
    step(vcpu, ram, &code, Bitness::Bits16)
}

/// Runs up to the first step that the caller has to handle.
fn run(vcpu: &mut Vcpu, ram: &mut Ram) -> StepResult {
    for _ in 0..1000 {
        match one(vcpu, ram) {
            Ok(StepResult::Done) => {}
            Ok(step) => return step,
            Err(Nothing) => panic!("no memory at {vcpu:x?}"),
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
    assert_eq!(interrupt(&mut vcpu, &mut ram, 8, 0x44), Ok(true));
    assert_eq!((vcpu.selectors[1], vcpu.file.rip, vcpu.file.rflags), (0x200, 0x10, 3));
    assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Done));
    assert_eq!(vcpu, before);
    vcpu.set_table(Table::Interrupts, TableRegister { base: 0, limit: 0x22 });
    assert_eq!(interrupt(&mut vcpu, &mut ram, 8, 0x44), Ok(false));
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
            assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Done));
            assert_eq!(vcpu.file.rip, if taken { 0x104 } else { 0x102 }, "{condition:x} with {flags:x}");
        }
    }
}

#[test]
fn other_instructions_are_unknown() {
    // FNINIT, DIV, INSB, ADDPS.
    for code in [&[0xdb, 0xe3][..], &[0xf7, 0xf1], &[0x6c], &[0x0f, 0x58, 0xc1]] {
        let (mut vcpu, mut ram) = machine(0x100, code);
        let before = vcpu.clone();
        assert_eq!((one(&mut vcpu, &mut ram), &vcpu), (Ok(StepResult::Unknown), &before));
    }
    let (mut vcpu, mut ram) = machine(0x100, &[0x0f, 0x0b]);
    assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Unknown), "UD2 is an instruction");
    let (mut vcpu, mut ram) = machine(0x100, &[0x0f, 0x04]);
    assert_eq!(one(&mut vcpu, &mut ram), Ok(StepResult::Fault(UNDEFINED)));
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
        if step != Ok(StepResult::Done) {
            prop_assert_eq!(vcpu, before);
        }
    }
}
