//! The fuzz targets, which property tests run too.

use crate::interpreter::{
    self, Area, Controls, Extensions, Processor, StepResult, Table, TableRegister, VectorInstruction,
};
use crate::mmio::Executed;
use crate::segmentation::{DescriptorCache, Mode, SegmentFault, Segmentation};
use crate::{Bitness, Gpr, Known, Memory, Registers, Segment, Width, length, mmio, string_io, system};
use addr::Gva;

const MODES: [Bitness; 3] = [Bitness::Bits16, Bitness::Bits32, Bitness::Bits64];

/// Decodes any bytes by every decoder.
///
/// # Panics
/// If two decoders disagree about the same instruction.
pub fn emul_decode(data: &[u8]) {
    for bitness in MODES {
        let whole = length(data, bitness);
        mmio::same_on_both_paths(data, bitness);
        let lengths = [
            mmio::decode(data, bitness).map(|decoded| decoded.length()),
            string_io::decode(data, bitness).map(|decoded| decoded.length()),
            system::decode(data, bitness).map(|decoded| decoded.length),
            Known::Cpuid.decode(data, bitness),
        ];
        for found in lengths.into_iter().flatten() {
            assert_eq!(Ok(found), whole);
        }
        let mut memo = mmio::Memo::new();
        if let (Ok(decoded), Some((first, rest))) = (memo.decode(data, bitness), data.split_first_chunk()) {
            let first = u64::from_le_bytes(*first);
            let mut second = [0; 8];
            rest.iter().zip(&mut second).for_each(|(&byte, place)| *place = byte);
            let second = u64::from_le_bytes(second);
            assert_eq!(memo.get(first, || Some(second), bitness), Some(&decoded));
            // A change of the last byte makes another instruction.
            let last = 8 * (decoded.length().max(9) - 9);
            let known = memo.get(first, || Some(second ^ 1 << last), bitness);
            assert_eq!(known, (decoded.length() <= 8).then_some(&decoded));
            // The bytes after the instruction must not matter.
            let alone = mmio::decode(&data[..decoded.length() as usize], bitness);
            assert_eq!(alone, Ok(decoded));
        }
        if let Some(first) = data.first_chunk()
            && let Some(found) = Known::Cpuid.length(u32::from_le_bytes(*first))
        {
            assert_eq!(Ok(found), whole);
        }
    }
}

/// Registers with values from the fuzzer.
#[derive(Clone, Debug, PartialEq)]
struct File {
    gpr: [u64; 16],
    rflags: u64,
}

impl Registers for File {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.gpr[gpr.index()]
    }
    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.gpr[gpr.index()] = value;
    }
    fn rip(&self) -> u64 {
        self.gpr[0]
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        self.gpr[segment as usize]
    }
}

/// Memory that gives values from the fuzzer and refuses all accesses after a number of them.
struct Values<'a> {
    values: &'a [u8],
    accesses: usize,
}

#[derive(Debug, PartialEq)]
struct Refused;

impl From<SegmentFault> for Refused {
    fn from(_: SegmentFault) -> Self {
        Self
    }
}

impl Values<'_> {
    fn access(&mut self) -> Result<u8, Refused> {
        let (&value, rest) = self.values.split_first().ok_or(Refused)?;
        self.values = rest;
        self.accesses += 1;
        Ok(value)
    }
}

impl Memory for Values<'_> {
    type Error = Refused;
    fn read(&mut self, _: Gva, bytes: &mut [u8]) -> Result<(), Refused> {
        bytes.fill(self.access()?);
        Ok(())
    }
    fn write(&mut self, _: Gva, _: &[u8]) -> Result<(), Refused> {
        self.access().map(|_| ())
    }
    fn compare_exchange(&mut self, _: Gva, width: Width, old: u64, new: u64) -> Result<bool, Refused> {
        assert_eq!((old | new) & !width.mask(), 0);
        self.access().map(|value| value & 1 == 1)
    }
}

/// What the interpreter asks of a vCPU, from the fuzzer.
#[derive(Clone, Debug, PartialEq)]
struct Cpu {
    file: File,
    controls: Controls,
}

impl Registers for Cpu {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.file.gpr(gpr)
    }
    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.file.set_gpr(gpr, value);
    }
    fn rip(&self) -> u64 {
        self.file.rip()
    }
    fn rflags(&self) -> u64 {
        self.file.rflags()
    }
    fn set_rflags(&mut self, value: u64) {
        self.file.set_rflags(value);
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        self.file.segment_base(segment)
    }
}

impl Processor for Cpu {
    fn jump(&mut self, _: u64) {}
    fn shadow_of_sti(&mut self) {}
    fn selector(&self, _: Segment) -> u16 {
        0
    }
    fn load_segment(&mut self, _: Segment, _: u16) {
        assert_eq!(self.controls.cr0 & 1, 0, "a segment is loaded without a descriptor");
    }
    fn segmentation(&mut self, segment: Segment, bitness: Bitness) -> Segmentation {
        let mode = match bitness {
            Bitness::Bits64 => Mode::Long(48),
            _ if self.controls.cr0 & 1 == 0 => Mode::Real,
            _ => Mode::Protected,
        };
        let cache = DescriptorCache { base: 0, limit: u32::MAX, attributes: 0xc93 };
        Segmentation { segment, cache, mode, checks_alignment: false }
    }
    fn table(&self, _: Table) -> TableRegister {
        TableRegister { base: 0, limit: 0xffff }
    }
    fn set_table(&mut self, _: Table, _: TableRegister) {
        assert!(self.controls.cr0 & 1 == 0 || self.controls.cpl == 0, "LGDT and LIDT are privileged");
    }
    fn controls(&self) -> Controls {
        self.controls
    }
    fn extensions(&self) -> Extensions {
        Extensions::default()
    }
    fn unblock_nmis(&mut self) {
        assert_eq!(self.controls.cr0 & 1, 0, "an IRET is executed");
    }
    fn execute_vector(&mut self, _: VectorInstruction, _: &mut Area) -> u64 {
        self.file.rflags
    }
}

/// Interprets an instruction, in real mode or, with a CPL of 0 or 3, in protected mode.
///
/// # Panics
/// If a refused access changes a register, if a system flag changes at CPL 3, or if code without memory operands is executed in
/// protected mode.
pub fn emul_interpret(data: &[u8]) {
    /// All but arithmetic flags and those that POPF may change at CPL 3: TF, DF, NT, AC, ID.
    const SYSTEM: u64 = !(0x8d5 | 0x24_4500);
    let Some((&[mode, kind, ref code @ .., seed], rest)) = data.split_first_chunk::<18>() else { return };
    let bitness = MODES[usize::from(mode) % 3];
    let is_real = kind & 1 == 0 && bitness != Bitness::Bits64;
    let (cr0, cpl) = (if is_real { 0 } else { 1 }, if is_real || kind & 2 == 0 { 0 } else { 3 });
    let gpr = core::array::from_fn(|n| u64::from(seed) << (n % 32) | n as u64);
    let rflags = 2 | u64::from(seed) & 0xd5;
    let mut cpu = Cpu { file: File { gpr, rflags }, controls: Controls { cr0, cr4: 0x200, cpl } };
    let before = cpu.clone();
    let mut memory = Values { values: rest, accesses: 0 };
    match interpreter::step(&mut cpu, &mut memory, code, bitness) {
        Ok(StepResult::Done | StepResult::Branched | StepResult::LoadedSs) => {
            assert!(cpl == 0 || (cpu.file.rflags ^ before.file.rflags) & SYSTEM == 0, "{code:x?}");
            assert!(is_real || length(code, bitness).is_ok());
        }
        Ok(StepResult::Exit { .. } | StepResult::System { .. } | StepResult::Interrupted) => {
            assert!(is_real, "{code:x?}");
        }
        Ok(StepResult::Iterated) => {}
        Ok(StepResult::LoadSegment { .. } | StepResult::FarTransfer { .. }) => {
            assert!(!is_real, "{code:x?}");
            assert_eq!(cpu, before, "{code:x?}");
        }
        Ok(StepResult::Again | StepResult::Fault(_) | StepResult::Truncated | StepResult::Unknown) => {
            assert_eq!(cpu, before, "{code:x?}");
        }
        // What some iterations have done stays.
        Err(Refused) if memory.accesses > 2 => {}
        Err(Refused) => assert!(cpu == before || code.contains(&0xf2) || code.contains(&0xf3), "{code:x?}"),
    }
}

/// Emulates an instruction: the first bytes of `data` are the mode, the instruction and the registers, the other bytes
/// are the values that memory gives.
///
/// # Panics
/// If a refused access changes a register, if flags change that no emulated instruction changes, or if one step
/// accesses memory more than twice.
pub fn emul_execute(data: &[u8]) {
    const ARITHMETIC: u64 = 0x8d5;
    let Some((&[mode, ref code @ .., seed], rest)) = data.split_first_chunk::<17>() else { return };
    let bitness = MODES[usize::from(mode) % 3];
    let mut registers = rest
        .chunks(8)
        .cycle()
        .map(|chunk| chunk.iter().fold(u64::from(seed), |word, &byte| word.rotate_left(8) ^ u64::from(byte)));
    let mut word = || registers.next().unwrap_or(u64::from(seed));
    let mut file = File { gpr: core::array::from_fn(|_| word()), rflags: word() };
    let mut bus = Values { values: rest, accesses: 0 };

    if let Ok(decoded) = mmio::decode(code, bitness) {
        loop {
            let (before, accesses) = (file.clone(), bus.accesses);
            let linear = decoded.linear(&file);
            assert!(bitness == Bitness::Bits64 || linear.raw() >> 32 == 0);
            let outcome = decoded.execute(&mut file, &mut bus);
            assert_eq!((file.rflags ^ before.rflags) & !ARITHMETIC, 0);
            assert!(bus.accesses - accesses <= 2);
            match outcome {
                Ok(Executed::Iterated | Executed::Again) => {}
                Ok(Executed::Retired) => break,
                Err(Refused) => {
                    assert_eq!(file, before);
                    break;
                }
            }
        }
    }
    if let Ok(decoded) = string_io::decode(code, bitness) {
        for _ in 0..16 {
            let Some(elements) = decoded.next(&file) else { break };
            let bytes = elements.count.saturating_mul(decoded.width().bytes());
            assert!(elements.count == 1 || elements.at.page_offset() + bytes <= addr::PAGE_SIZE);
            if !decoded.retire(&mut file, elements.count) {
                break;
            }
        }
    }
    if let Ok(system::Decoded { system: system::System::Invlpg(address), .. }) = system::decode(code, bitness) {
        address.linear(&file);
    }
}

#[cfg(test)]
proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(5_000))]

    #[test]
    fn any_bytes_decode_or_do_not(data in proptest::collection::vec(proptest::num::u8::ANY, 0..20)) {
        emul_decode(&data);
    }

    #[test]
    fn any_instruction_is_interpreted_or_refused(data in proptest::collection::vec(proptest::num::u8::ANY, 18..100)) {
        emul_interpret(&data);
    }

    #[test]
    fn any_instruction_executes_or_is_refused(data in proptest::collection::vec(proptest::num::u8::ANY, 17..100)) {
        emul_execute(&data);
    }
}
