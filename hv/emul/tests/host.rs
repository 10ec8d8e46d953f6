//! Compares the emulator with the processor: random instructions with random operands run on both and must give the
//! same registers, flags and memory.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use addr::Gva;
use emul::interpreter::{
    self, Area, Controls, Extensions, Processor, StepResult, Table, TableRegister, VectorInstruction,
};
use emul::mmio::{self, Executed};
use emul::segmentation::{DescriptorCache, Mode, SegmentFault, Segmentation};
use emul::{Bitness, Gpr, Memory, Registers, Segment};
use proptest::prelude::*;
use std::ffi::{c_int, c_long, c_void};

/// General registers by number, then RFLAGS. RSP stays the test's own.
#[repr(C)]
#[derive(Clone, Debug, PartialEq)]
struct Frame {
    gpr: [u64; 16],
    rflags: u64,
}

// run(frame: rdi, code: rsi): loads the frame, calls the code, stores the frame.
core::arch::global_asm!(
    ".globl emul_host_run",
    "emul_host_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rsi",
    "push rdi",
    "push [rdi + 128]",
    "popfq",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "call [rsp + 8]",
    "xchg rdi, [rsp]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "pushfq",
    "pop [rdi + 128]",
    "pop rax",
    "mov [rdi + 56], rax",
    "add rsp, 8",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn emul_host_run(frame: *mut Frame, code: *const u8);
    fn mmap(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: c_long) -> *mut c_void;
    fn munmap(addr: *mut c_void, len: usize) -> c_int;
}

/// A page below 2 GiB that can be written and executed.
struct Page(*mut u8);

const PAGE: usize = 4096;

impl Page {
    fn new() -> Self {
        const READ_WRITE_EXECUTE: c_int = 7;
        /// MAP_PRIVATE, MAP_ANONYMOUS, MAP_32BIT.
        const LOW: c_int = 0x62;
        // SAFETY: a new mapping without a fixed address replaces no existing one.
        let page = unsafe { mmap(std::ptr::null_mut(), PAGE, READ_WRITE_EXECUTE, LOW, -1, 0) };
        assert!(page as isize != -1);
        Self(page.cast())
    }

    fn fill(&self, contents: &[u8]) {
        assert!(contents.len() <= PAGE);
        // SAFETY: `self` owns the page, and `contents` is not longer.
        unsafe { self.0.copy_from(contents.as_ptr(), contents.len()) };
    }

    fn contents(&self) -> Vec<u8> {
        let mut contents = vec![0; PAGE];
        // SAFETY: `self` owns the page.
        unsafe { contents.as_mut_ptr().copy_from(self.0, PAGE) };
        contents
    }

    /// Runs one instruction.
    ///
    /// # Safety
    /// The instruction must access only memory that the caller owns, must not use RSP, and must neither branch nor
    /// fault.
    unsafe fn run(&self, instruction: &[u8], frame: &mut Frame) {
        assert!(instruction.len() <= 15);
        // SAFETY: `self` owns the page, and an instruction is shorter.
        unsafe { self.0.copy_from(instruction.as_ptr(), instruction.len()) };
        // SAFETY: as above.
        let end = unsafe { self.0.add(instruction.len()) };
        const RET: u8 = 0xc3;
        // SAFETY: as above.
        unsafe { end.write(RET) };
        // SAFETY: the function saves the registers that its caller needs; the caller vouches for the instruction.
        unsafe { emul_host_run(frame, self.0) };
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `new` mapped the page with this length, and no reference to it is left.
        unsafe { munmap(self.0.cast(), PAGE) };
    }
}

impl Registers for Frame {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.gpr[gpr.index()]
    }
    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.gpr[gpr.index()] = value;
    }
    fn rip(&self) -> u64 {
        0
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment_base(&self, _: Segment) -> u64 {
        0
    }
}

/// The emulator's copy of the memory that the processor accesses at `base`.
struct Copied {
    base: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Refused;

impl From<SegmentFault> for Refused {
    fn from(_: SegmentFault) -> Self {
        Self
    }
}

impl Copied {
    fn at(&mut self, at: Gva, length: usize) -> Result<&mut [u8], Refused> {
        let start = at.raw().wrapping_sub(self.base) as usize;
        self.bytes.get_mut(start..start.wrapping_add(length)).ok_or(Refused)
    }
}

impl Memory for Copied {
    type Error = Refused;
    fn read(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Refused> {
        bytes.copy_from_slice(self.at(at, bytes.len())?);
        Ok(())
    }
    fn write(&mut self, at: Gva, bytes: &[u8]) -> Result<(), Refused> {
        self.at(at, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }
}

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const FLAGS: u64 = CF | PF | AF | ZF | SF | OF;

/// An instruction whose memory operand is [rbx + displacement] or that of a string instruction.
#[derive(Clone, Debug)]
struct Case {
    /// The encodings of the instruction in one mode or more; the first is for 64-bit mode, where the processor executes
    /// it.
    forms: Vec<(Bitness, Vec<u8>)>,
    /// Addresses have 32 bits.
    short: bool,
    /// Flags that the manuals leave undefined.
    undefined: u64,
    kind: Kind,
}

/// The prefixes before an opcode.
#[derive(Clone, Copy, Debug)]
struct Prefixes {
    /// LOCK or REP.
    first: Option<u8>,
    /// 16-bit operands.
    word: bool,
    /// 32-bit addresses.
    short: bool,
    rex: Option<u8>,
}

impl Prefixes {
    /// The `instruction` with these prefixes in 64-bit mode, and in the other modes if its bytes mean the same there.
    /// The default sizes differ between the modes.
    fn before(self, instruction: &[u8]) -> Vec<(Bitness, Vec<u8>)> {
        let form = |operand: bool, address: bool| {
            let mut bytes: Vec<u8> = self.first.into_iter().collect();
            bytes.extend(operand.then_some(0x66));
            bytes.extend(address.then_some(0x67));
            bytes.extend(self.rex);
            bytes.extend_from_slice(instruction);
            bytes
        };
        let mut forms = vec![(Bitness::Bits64, form(self.word, self.short))];
        // ARPL has MOVSXD's opcode.
        if self.short && self.rex.is_none() && instruction[0] != 0x63 {
            forms.push((Bitness::Bits32, form(self.word, false)));
            // MOVNTI has no operand size of 16 bits.
            let sized = !instruction.starts_with(&[0x0f, 0xc3]);
            forms.push((Bitness::Bits16, form(sized && !self.word, true)));
        }
        forms
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    /// A register holds a bit offset: it must be small.
    BitOffset(u8),
    String,
}

/// An opcode with ModRM, with its possible prefixes and operands.
#[derive(Clone, Debug)]
struct Template {
    opcode: Vec<u8>,
    /// The /n of the manuals; None if the field is a register.
    extension: Option<u8>,
    /// Bytes of the immediate; 4 means the operand size, at most 4.
    immediate: usize,
    lockable: bool,
    undefined: u64,
}

fn templates() -> Vec<Template> {
    let mut all = Vec::new();
    let mut add = |opcode: &[u8], extension, immediate, lockable, undefined| {
        all.push(Template { opcode: opcode.to_vec(), extension, immediate, lockable, undefined });
    };
    // ADD OR ADC SBB AND SUB XOR CMP; logic leaves AF undefined.
    for n in 0..8u8 {
        let undefined = if matches!(n, 1 | 4 | 6) { AF } else { 0 };
        for form in 0..4 {
            add(&[(n << 3) | form], None, 0, form < 2 && n != 7, undefined);
        }
        add(&[0x80], Some(n), 1, n != 7, undefined);
        add(&[0x81], Some(n), 4, n != 7, undefined);
        add(&[0x83], Some(n), 1, n != 7, undefined);
    }
    // TEST, XCHG, MOV, MOVSXD.
    for opcode in 0x84..=0x85 {
        add(&[opcode], None, 0, false, AF);
    }
    for opcode in 0x86..=0x87 {
        add(&[opcode], None, 0, true, 0);
    }
    for opcode in 0x88..=0x8b {
        add(&[opcode], None, 0, false, 0);
    }
    add(&[0x63], None, 0, false, 0);
    add(&[0xc6], Some(0), 1, false, 0);
    add(&[0xc7], Some(0), 4, false, 0);
    // TEST, NOT, NEG, INC, DEC.
    add(&[0xf6], Some(0), 1, false, AF);
    add(&[0xf7], Some(0), 4, false, AF);
    for opcode in [0xf6, 0xf7] {
        add(&[opcode], Some(2), 0, true, 0);
        add(&[opcode], Some(3), 0, true, 0);
    }
    for opcode in [0xfe, 0xff] {
        add(&[opcode], Some(0), 0, true, 0);
        add(&[opcode], Some(1), 0, true, 0);
    }
    // CMPXCHG, XADD, MOVZX, MOVSX.
    for opcode in [0xb0, 0xb1, 0xc0, 0xc1] {
        add(&[0x0f, opcode], None, 0, true, 0);
    }
    for opcode in [0xb6, 0xb7, 0xbe, 0xbf] {
        add(&[0x0f, opcode], None, 0, false, 0);
    }
    // SETcc, MOVNTI.
    for opcode in 0x90..=0x9f {
        add(&[0x0f, opcode], Some(0), 0, false, 0);
    }
    add(&[0x0f, 0xc3], None, 0, false, 0);
    // CMOVcc.
    for opcode in 0x40..=0x4f {
        add(&[0x0f, opcode], None, 0, false, 0);
    }
    // IMUL, MUL, DIV, IDIV.
    const PRODUCT: u64 = SF | ZF | AF | PF;
    add(&[0x0f, 0xaf], None, 0, false, PRODUCT);
    add(&[0x69], None, 4, false, PRODUCT);
    add(&[0x6b], None, 1, false, PRODUCT);
    for opcode in [0xf6, 0xf7] {
        add(&[opcode], Some(4), 0, false, PRODUCT);
        add(&[opcode], Some(5), 0, false, PRODUCT);
        add(&[opcode], Some(6), 0, false, FLAGS);
        add(&[opcode], Some(7), 0, false, FLAGS);
    }
    // BSF, BSR.
    for opcode in 0xbc..=0xbd {
        add(&[0x0f, opcode], None, 0, false, FLAGS & !ZF);
    }
    // Shifts and rotations by 1, by an immediate, by CL; SHLD and SHRD. Beyond the width CF is undefined.
    for n in [0, 1, 2, 3, 4, 5, 7] {
        let (auxiliary, carry) = (if n < 4 { 0 } else { AF }, if n < 4 || n == 7 { 0 } else { CF });
        for wide in [0, 1] {
            add(&[0xd0 | wide], Some(n), 0, false, auxiliary);
            add(&[0xc0 | wide], Some(n), 1, false, auxiliary | OF | carry);
            add(&[0xd2 | wide], Some(n), 0, false, auxiliary | OF | carry);
        }
    }
    for opcode in [0xa4, 0xac] {
        add(&[0x0f, opcode], None, 1, false, OF | AF);
        add(&[0x0f, opcode + 1], None, 0, false, OF | AF);
    }
    // BT, BTS, BTR, BTC.
    for (n, opcode) in [(4, 0xa3), (5, 0xab), (6, 0xb3), (7, 0xbb)] {
        let undefined = OF | SF | AF | PF;
        add(&[0x0f, opcode], None, 0, n != 4, undefined);
        add(&[0x0f, 0xba], Some(n), 1, n != 4, undefined);
    }
    all
}

/// Whether an instruction shifts two operands of 16 bits by more: everything is undefined then.
fn is_undefined(case: &Case, values: &[u64; 16]) -> bool {
    let bytes = &case.forms[0].1;
    let at = bytes.windows(2).position(|pair| pair[0] == 0x0f && matches!(pair[1], 0xa4 | 0xa5 | 0xac | 0xad));
    let Some(at) = at else { return false };
    let count = if bytes[at + 1] & 1 == 0 { u64::from(*bytes.last().unwrap()) } else { values[1] };
    bytes.contains(&0x66) && count & 31 > 16
}

/// Any register but the stack pointer.
fn register() -> impl Strategy<Value = u8> {
    (0..16u8).prop_filter("RSP is the test's", |n| *n != 4)
}

fn plain() -> impl Strategy<Value = Case> {
    (proptest::sample::select(templates()), register(), any::<[bool; 5]>(), any::<[u8; 5]>()).prop_map(
        |(template, register, [lock, word, wide, rex, short], random)| {
            let Template { opcode, extension, immediate, lockable, undefined } = template;
            let register = extension.unwrap_or(register);
            // MOVSXD without REX.W, and byte operations with AH to BH, occur at random.
            let rex_byte = 0x40 | if wide { 8 } else { 0 } | if register >= 8 { 4 } else { 0 };
            // Without REX, byte register 4 is AH; with it, SPL.
            // MOVNTI has no 16-bit form.
            let word = word && opcode != [0x0f, 0xc3];
            let prefixes = Prefixes {
                first: (lock && lockable).then_some(0xf0),
                word,
                short,
                rex: (wide || rex || register >= 8).then_some(rex_byte),
            };
            let mut bytes = opcode.clone();
            let displacement = random[0] & 0x7f;
            bytes.extend([0x40 | ((register & 7) << 3) | 3, displacement]);
            let immediate = if immediate == 4 && word && !wide { 2 } else { immediate };
            bytes.extend_from_slice(&random[1..1 + immediate]);
            let bits = matches!(opcode[..], [0x0f, 0xa3 | 0xab | 0xb3 | 0xbb]);
            let kind = if bits { Kind::BitOffset(register) } else { Kind::Plain };
            Case { forms: prefixes.before(&bytes), short, undefined, kind }
        },
    )
}

fn compare_exchange_8b() -> impl Strategy<Value = Case> {
    any::<(bool, bool)>().prop_map(|(lock, short)| {
        let prefixes = Prefixes { first: lock.then_some(0xf0), word: false, short, rex: None };
        // RBX is the address and half of the new value.
        Case { forms: prefixes.before(&[0x0f, 0xc7, 0x4b, 0x08]), short, undefined: 0, kind: Kind::Plain }
    })
}

/// CMPXCHG16B of [rbx], and XLAT.
fn others() -> impl Strategy<Value = Case> {
    (any::<bool>(), any::<bool>()).prop_map(|(exchanges, short)| {
        let (rex, code): (_, &[u8]) = if exchanges { (Some(0x48), &[0x0f, 0xc7, 0x4b, 0x10]) } else { (None, &[0xd7]) };
        let prefixes = Prefixes { first: None, word: false, short, rex };
        Case { forms: prefixes.before(code), short, undefined: 0, kind: Kind::Plain }
    })
}

fn string() -> impl Strategy<Value = Case> {
    let opcode = proptest::sample::select(vec![0xa4u8, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]);
    let rep = proptest::option::of(prop_oneof![Just(0xf3u8), Just(0xf2)]);
    (opcode, rep, any::<[bool; 3]>()).prop_map(|(opcode, first, [word, wide, short])| {
        let prefixes = Prefixes { first, word, short, rex: wide.then_some(0x48) };
        Case { forms: prefixes.before(&[opcode]), short, undefined: 0, kind: Kind::String }
    })
}

/// Values at which flags change, and random ones.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => any::<u64>(),
        1 => proptest::sample::select(vec![0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000]),
        1 => proptest::sample::select(vec![u64::MAX, u64::MAX - 1, i64::MAX as u64, i64::MIN as u64, 0xffff_ffff]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_processor_agrees(
        case in prop_oneof![24 => plain(), 1 => compare_exchange_8b(), 1 => others(), 3 => string()],
        values in proptest::array::uniform16(value()),
        contents in proptest::array::uniform16(value()),
        equal in any::<bool>(),
        flags in any::<u64>(),
    ) {
        let words: Vec<u64> = (0..PAGE / 8).map(|n| contents[n % 16].rotate_left(n as u32)).collect();
        let contents: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let memory = Page::new();
        let base = memory.0.expose_provenance() as u64;
        let middle = base + PAGE as u64 / 2;

        if is_undefined(&case, &values) {
            return Ok(());
        }
        let mut before = Frame { gpr: values, rflags: (flags & FLAGS) | 2 };
        // The upper half of a 32-bit address is ignored.
        before.gpr[3] = if case.short && case.kind != Kind::String { middle | values[3] << 32 } else { middle };
        match case.kind {
            Kind::Plain => {}
            Kind::BitOffset(register) if register != 3 => {
                before.gpr[register as usize] = (values[register as usize] as u16 as i16 >> 4) as u64;
            }
            // RBX holds the address; as a bit offset it would select a word outside of the memory.
            Kind::BitOffset(_) => return Ok(()),
            Kind::String => {
                before.gpr[1] = values[1] % 20;
                before.gpr[6] = middle + values[6] % 64;
                before.gpr[7] = middle + 512 + values[7] % 64;
                before.rflags |= flags & DF;
            }
        }
        if equal && case.kind == Kind::Plain {
            // This makes the comparisons of CMPXCHG and CMPXCHG8B succeed.
            let displacement = usize::from(case.forms[0].1.last().unwrap() & 0x7f);
            let at = PAGE / 2 + displacement;
            before.gpr[0] = u64::from_le_bytes(contents[at..at + 8].try_into().unwrap());
            before.gpr[2] = before.gpr[0] >> 32;
        }

        let emulate = |(bitness, bytes): &(Bitness, Vec<u8>)| {
            let mut emulated = before.clone();
            let mut copy = Copied { base, bytes: contents.clone() };
            let result = interpret(&mut emulated, &mut copy, bytes, *bitness);
            emulated.rflags = (emulated.rflags & (FLAGS | DF)) & !case.undefined;
            (emulated, copy, result)
        };
        let (_, _, first) = emulate(&case.forms[0]);
        if first == StepResult::Fault(interpreter::fault::DIVIDE) {
            // The processor would raise it as well, in this process.
            return Ok(());
        }
        prop_assert_eq!(first, StepResult::Done, "{:x?}", case);

        memory.fill(&contents);
        let mut real = before.clone();
        // SAFETY: the operand lies within `memory`: RBX is its middle and displacements, bit offsets and string lengths
        // are small; RSP is no operand; none of these instructions branches or faults.
        unsafe { Page::new().run(&case.forms[0].1, &mut real) };
        // The frame's element for RSP is unused; RFLAGS has bits of the process.
        real.rflags = (real.rflags & (FLAGS | DF)) & !case.undefined;

        for form in &case.forms {
            let (interpreted, copy, _) = emulate(form);
            prop_assert_eq!(&interpreted, &real, "{:x?}", form);
            prop_assert!(copy.bytes == memory.contents(), "memory differs of {form:x?}");
            let (bitness, bytes) = form;
            let Ok(decoded) = mmio::decode(bytes, *bitness) else { continue };
            prop_assert_eq!(decoded.length(), bytes.len() as u64);
            let mut emulated = before.clone();
            let mut copy = Copied { base, bytes: contents.clone() };
            while decoded.execute(&mut emulated, &mut copy).unwrap() != Executed::Retired {}
            emulated.rflags = (emulated.rflags & (FLAGS | DF)) & !case.undefined;
            prop_assert_eq!(&emulated, &real, "{:?}", bitness);
            prop_assert!(copy.bytes == memory.contents(), "memory differs as {bitness:?}");
        }
    }
}

/// Interprets one instruction to its end.
fn interpret(frame: &mut Frame, memory: &mut Copied, code: &[u8], bitness: Bitness) -> StepResult {
    loop {
        match interpreter::step(frame, memory, code, bitness).unwrap() {
            StepResult::Iterated => {}
            result => return result,
        }
    }
}

/// Flat segments. In 64-bit mode, but for CR0.PE: instructions on registers are executed in real mode alone.
impl Processor for Frame {
    fn jump(&mut self, _: u64) {}
    fn shadow_of_sti(&mut self) {}
    fn selector(&self, _: Segment) -> u16 {
        0
    }
    fn load_segment(&mut self, _: Segment, _: u16) {}
    fn segmentation(&mut self, segment: Segment, bitness: Bitness) -> Segmentation {
        let mode = if bitness == Bitness::Bits64 { Mode::Long(48) } else { Mode::Real };
        let cache = DescriptorCache { base: 0, limit: u32::MAX, attributes: 0xc93 };
        Segmentation { segment, cache, mode, checks_alignment: false }
    }
    fn table(&self, _: Table) -> TableRegister {
        TableRegister { base: 0, limit: 0 }
    }
    fn set_table(&mut self, _: Table, _: TableRegister) {}
    fn controls(&self) -> Controls {
        Controls::default()
    }
    fn extensions(&self) -> Extensions {
        Extensions::default()
    }
    fn unblock_nmis(&mut self) {}
    fn execute_vector(&mut self, _: VectorInstruction, _: &mut Area) -> u64 {
        self.rflags
    }
}

/// An instruction on registers, as its bytes without the prefix for 16 bits, and the flags that it leaves undefined.
fn on_registers() -> impl Strategy<Value = (Vec<u8>, u64)> {
    // RSP stays the test's own.
    let register = || (0u8..7).prop_map(|number| if number == 4 { 7 } else { number });
    let modrm = move |reg: u8, rm: u8| 0xc0 | reg << 3 | rm;
    let binary = (0u8..8, 0u8..4, register(), register()).prop_map(move |(op, form, reg, rm)| {
        (vec![op << 3 | form, modrm(reg, rm)], if matches!(op, 1 | 4 | 6) { AF } else { 0 })
    });
    let immediate = (0u8..8, register(), any::<u8>()).prop_map(move |(op, rm, value)| {
        (vec![0x83, modrm(op, rm), value], if matches!(op, 1 | 4 | 6) { AF } else { 0 })
    });
    let shift = (prop::sample::select(vec![0u8, 1, 4, 5, 7]), any::<bool>(), register(), 0u8..40).prop_map(
        move |(op, wide, rm, count)| {
            let rotates = op < 2;
            // Beyond the width CF is undefined but for rotations and SAR; OF is defined for one bit.
            let carry = if !rotates && op != 7 && count & 31 >= if wide { 16 } else { 8 } { CF } else { 0 };
            let overflow = if count & 31 == 1 { 0 } else { OF };
            let auxiliary = if rotates { 0 } else { AF };
            (vec![0xc0 | u8::from(wide), modrm(op, rm), count], carry | overflow | auxiliary)
        },
    );
    let product = (4u8..8, any::<bool>(), register()).prop_map(move |(op, wide, rm)| {
        (vec![0xf6 | u8::from(wide), modrm(op, rm)], if op < 6 { SF | ZF | AF | PF } else { FLAGS })
    });
    let through_carry = (2u8..4, any::<bool>(), register(), 0u8..40)
        .prop_map(move |(op, wide, rm, count)| (vec![0xc0 | u8::from(wide), modrm(op, rm), count], OF));
    let scan = (0xbcu8..=0xbd, register(), register())
        .prop_map(move |(opcode, reg, rm)| (vec![0x0f, opcode, modrm(reg, rm)], FLAGS & !ZF));
    let conditional = (0x40u8..0x50, register(), register())
        .prop_map(move |(opcode, reg, rm)| (vec![0x0f, opcode, modrm(reg, rm)], 0));
    let exchange = (prop::sample::select(vec![0xb0u8, 0xb1, 0xc0, 0xc1]), register(), register())
        .prop_map(move |(opcode, reg, rm)| (vec![0x0f, opcode, modrm(reg, rm)], 0));
    let unary = (2u8..4, any::<bool>(), register())
        .prop_map(move |(op, wide, rm)| (vec![0xf6 | u8::from(wide), modrm(op, rm)], 0));
    let step = (0u8..2, any::<bool>(), register())
        .prop_map(move |(op, wide, rm)| (vec![0xfe | u8::from(wide), modrm(op, rm)], 0));
    let bit = (4u8..8, register(), any::<u8>())
        .prop_map(move |(op, rm, n)| (vec![0x0f, 0xba, modrm(op, rm), n], OF | 1 << 7 | AF | 1 << 2));
    let extend = (prop::sample::select(vec![0xb6u8, 0xb7, 0xbe, 0xbf]), register(), register())
        .prop_map(move |(opcode, reg, rm)| (vec![0x0f, opcode, modrm(reg, rm)], 0));
    let moved = (prop::sample::select(vec![0x86u8, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x84, 0x85]), register(), register())
        .prop_map(move |(opcode, reg, rm)| (vec![opcode, modrm(reg, rm)], if opcode < 0x86 { AF } else { 0 }));
    let convert = prop::sample::select(vec![0x98u8, 0x99, 0xf5, 0xf8, 0xf9, 0x90, 0x9e, 0x9f])
        .prop_map(|opcode| (vec![opcode], 0));
    let instruction = prop_oneof![3 => binary, 2 => immediate, 3 => shift, 1 => unary, 1 => step, 1 => bit, 1 => extend, 1 => moved, 1 => convert,
        2 => product, 1 => through_carry, 1 => scan, 1 => conditional, 1 => exchange];
    (instruction, any::<bool>()).prop_map(|((mut bytes, undefined), small)| {
        if small {
            bytes.insert(0, 0x66);
        }
        (bytes, undefined)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_processor_agrees_on_registers(
        (code, undefined) in on_registers(),
        values in proptest::array::uniform16(value()),
        flags in any::<u64>(),
    ) {
        let before = Frame { gpr: values, rflags: (flags & FLAGS) | 2 };
        let mut emulated = before.clone();
        let mut memory = Copied { base: 0, bytes: Vec::new() };
        match interpret(&mut emulated, &mut memory, &code, Bitness::Bits64) {
            StepResult::Fault(interpreter::fault::DIVIDE) => return Ok(()),
            result => prop_assert_eq!(result, StepResult::Done),
        }
        let mut real = before.clone();
        // SAFETY: these instructions change only registers other than RSP and arithmetic flags.
        unsafe { Page::new().run(&code, &mut real) };
        real.rflags = real.rflags & FLAGS & !undefined;
        emulated.rflags = emulated.rflags & FLAGS & !undefined;
        prop_assert_eq!(&emulated, &real);
    }
}
