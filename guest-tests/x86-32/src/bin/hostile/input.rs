//! What is tried: an input is code, the state that it starts in, and changes to the tables around it. All of it follows from
//! the seed and the input's number.

use abi::hypercall::Number;
use abi::mmio;
use abi::options::guest::mode;
use abi::ports::{BOCHS_SHUTDOWN, DEBUG_EXIT, KEYBOARD_COMMAND, PCI_ADDRESS, PCI_DATA, PM1_CONTROL, RESET_CONTROL};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guest32::control::*;
use guest32::descriptors::{CODE, CODE64, DATA, USER_CODE, USER_DATA};
use guest32::memory::store;
use guest32::random::{Random, mix};

use crate::enter::{self, PLAN, REAL_FRAME, REAL_IDT_LIMIT, REAL_STACK, Way};
use crate::grammar::{Code, EAX, EBP, EBX, ECX, EDI, EDX, ESI, ESP, address, pick};
use crate::world::{self, CODE_AREA, Edit, FREE_SELECTORS, LARGE, PRESENT, STACK_TOP, TABLE_FLAGS, Written};
use crate::world::{plan, write_task_descriptor, write_tasks};

/// What an input is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Instruction,
    ControlRegister,
    Msr,
    Port,
    Mmio,
    PageTable,
    Descriptor,
    TaskGate,
    Far,
    Debug,
    Hypercall,
    Ipi,
    Virtual8086,
    /// The rest is what the other processor does to this one.
    NmiStorm,
    InitStorm,
    SipiStorm,
    IpiStorm,
}

impl Kind {
    pub(crate) const COUNT: usize = 17;
    /// All of them, as they are told.
    pub(crate) const NAMES: [&str; Self::COUNT] = [
        "instruction",
        "control-register",
        "msr",
        "port",
        "mmio",
        "page-table",
        "descriptor",
        "task-gate",
        "far-transfer",
        "debug",
        "hypercall",
        "ipi",
        "virtual-8086",
        "nmi-storm",
        "init",
        "sipi-storm",
        "ipi-storm",
    ];
}

/// What the inputs run in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Real,
    TwoLevel,
    Pae,
    Long,
    /// User mode, in each of the kinds of paging.
    User,
}

impl core::str::FromStr for Mode {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            mode::REAL => Self::Real,
            mode::P32 => Self::TwoLevel,
            mode::PAE => Self::Pae,
            mode::LONG => Self::Long,
            mode::RING3 => Self::User,
            _ => return Err(()),
        })
    }
}

/// What all inputs of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Campaign {
    pub(crate) mode: Mode,
    pub(crate) seed: u32,
    /// The VM has no long mode.
    pub(crate) is_shadowed: bool,
    /// Switches of tasks by hardware are left out.
    pub(crate) without_task_gates: bool,
}

/// Where memory ends.
static RAM_END: AtomicU32 = AtomicU32::new(0);

pub(crate) fn set_ram_end(end: u32) {
    RAM_END.store(end, Relaxed);
}

pub(crate) fn ram_end() -> u32 {
    RAM_END.load(Relaxed)
}

/// TSD, DE, MCE, PGE, PCE, OSFXSR and OSXMMEXCPT, which all processors have.
const CR4_USUAL: u32 = 0x7cc & !CR4_PAE;
/// What the processors have that this runs on.
const CR4_DEFINED: u32 = 0x35_07ff;
/// CF, PF, AF, ZF, SF, OF, and once in a while the others.
const EFLAGS_STATUS: u32 = 0x8d5;
const EFLAGS_OTHERS: u32 = 0x24_7700;

/// An input.
pub(crate) struct Input {
    pub(crate) kind: Kind,
    way: Way,
    is_user: bool,
    is_pae: bool,
    code: Code,
    registers: [u64; 16],
    flags: u32,
    edits: [Option<Edit>; 8],
    random: Random,
}

/// The code, and what it starts with.
impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, way, is_user, is_pae, code, registers, flags, edits, .. } = self;
        write!(f, "{kind:?}, {way:?}, user {is_user}, pae {is_pae}, code {:02x?}, flags {flags:x}, ", code.bytes())?;
        write!(f, "registers {registers:x?}, tables {:x?}", edits)
    }
}

impl Input {
    /// The input of this number.
    pub(crate) fn new(campaign: Campaign, number: u32) -> Self {
        let mut random = Random::new(mix(u64::from(campaign.seed) << 32 | u64::from(number)));
        let mode = match campaign.mode {
            Mode::User if campaign.is_shadowed => *pick(&mut random, &[Mode::TwoLevel, Mode::Pae]),
            Mode::User => *pick(&mut random, &[Mode::TwoLevel, Mode::Pae, Mode::Long]),
            mode => mode,
        };
        let way = match mode {
            Mode::Real => Way::Real,
            Mode::Long => Way::Long,
            _ => Way::Protected,
        };
        let kind = if way == Way::Protected && random.one_in(12) { Kind::Virtual8086 } else { Kind::Instruction };
        let bits = match way {
            Way::Long => 64,
            Way::Protected if kind != Kind::Virtual8086 => 32,
            _ => 16,
        };
        let mut input = Self {
            kind,
            way,
            is_user: campaign.mode == Mode::User || kind == Kind::Virtual8086,
            is_pae: mode != Mode::TwoLevel,
            code: Code::new(bits),
            registers: [0; 16],
            flags: EFLAGS_FIXED | EFLAGS_IF,
            edits: [None; 8],
            random,
        };
        input.choose_state();
        input.choose_code(campaign);
        input
    }

    fn choose_state(&mut self) {
        for index in 0..16 {
            self.registers[index] = self.value();
        }
        // Repeated string instructions end soon, mostly.
        if !self.random.one_in(64) {
            self.registers[usize::from(ECX)] &= 0x1f;
        }
        self.flags ^= self.random.next_u64() as u32 & EFLAGS_STATUS;
        if self.random.one_in(8) {
            self.flags ^= self.random.next_u64() as u32 & EFLAGS_OTHERS;
        }
    }

    /// What a register may hold.
    fn value(&mut self) -> u64 {
        let random = &mut self.random;
        if self.way == Way::Real && random.one_in(2) {
            return random.below(0x1_0000);
        }
        match random.below(8) {
            0..6 => address(random).into(),
            6 => random.below(64),
            _ if !random.one_in(8) => address(random).into(),
            _ if random.one_in(3) => random.next_u64() >> random.below(64),
            _ if random.one_in(2) => 1 << random.below(64),
            _ => *pick(
                random,
                &[
                    u64::MAX,
                    0,
                    0x7fff_ffff_ffff,
                    0x8000_0000_0000,
                    0xffff_8000_0000_0000,
                    arch::paging::ADDRESS,
                    0xffff_ffff,
                    0x1_0000_0000,
                ],
            ),
        }
    }

    fn choose_code(&mut self, campaign: Campaign) {
        if self.kind == Kind::Virtual8086 {
            return self.virtual_8086();
        }
        let kind = *pick(
            &mut self.random,
            &[
                Kind::Instruction,
                Kind::Instruction,
                Kind::Instruction,
                Kind::Instruction,
                Kind::ControlRegister,
                Kind::Msr,
                Kind::Port,
                Kind::Port,
                Kind::Mmio,
                Kind::Mmio,
                Kind::PageTable,
                Kind::PageTable,
                Kind::Descriptor,
                Kind::TaskGate,
                Kind::Far,
                Kind::Debug,
                Kind::Hypercall,
                Kind::Ipi,
            ],
        );
        self.kind = match kind {
            Kind::PageTable | Kind::TaskGate | Kind::Descriptor if self.way == Way::Real => Kind::ControlRegister,
            Kind::TaskGate if campaign.without_task_gates => Kind::Far,
            kind => kind,
        };
        match self.kind {
            Kind::ControlRegister => self.control_register(),
            Kind::Msr => self.msr(),
            Kind::Port => self.port(),
            Kind::Mmio => self.mmio(),
            Kind::PageTable => self.page_table(),
            Kind::Descriptor => self.descriptor(),
            Kind::TaskGate => self.task_gate(),
            Kind::Far => self.far(),
            Kind::Debug => self.debug(),
            Kind::Hypercall => self.hypercall(),
            Kind::Ipi => self.ipi(),
            _ => (0..self.random.below(3) + 1).for_each(|_| self.code.push_any(&mut self.random)),
        }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.random.one_in(n)
    }

    /// Something else behind, sometimes, with no register in a place that only simple instructions may access.
    fn and_more_in_memory(&mut self) {
        if !self.one_in(256) {
            for register in [EAX, EBX, ESI, EDI] {
                self.code.set(register, world::DATA_AREA + 0x800);
            }
        }
        self.and_more();
    }

    /// Something else behind, sometimes.
    fn and_more(&mut self) {
        if self.one_in(2) {
            self.code.push_any(&mut self.random);
        }
    }

    fn control_register(&mut self) {
        // CR8 has a number beyond three bits, which only 64-bit mode can name.
        let register = *pick(&mut self.random, &[0, 0, 2, 3, 4, 4, if self.way == Way::Long { 8 } else { 2 }]);
        let bits = if self.one_in(4) { 64 } else { 32 };
        let flip = 1u64 << self.random.below(bits);
        let mut value = u64::from(match register {
            0 => self.cr0(),
            3 => self.root(),
            4 => self.cr4(),
            _ => 0,
        }) ^ flip;
        // Without its tables, or with tables of another kind, the code ends there.
        let last_flag = if self.way == Way::Protected && self.is_pae { 1 << 4 } else { 1 << 11 };
        let kind_of_tables = u64::from(CR4_PSE | CR4_PAE);
        if (register == 3 && flip > last_flag || register == 4 && flip & kind_of_tables != 0) && !self.one_in(256) {
            value ^= flip;
        }
        if register == 4 && !self.one_in(256) {
            // QEMU's TCG takes reserved bits, and its VMRUN then ends the VM.
            value &= u64::from(CR4_DEFINED);
        } else if self.one_in(256) && register != 3 {
            value = self.random.next_u64();
        }
        if register == 0 && self.way == Way::Long {
            // TCG leaves long mode so, with EFER.LME set, and then has the hole that `enter` describes.
            value |= u64::from(CR0_PG);
        }
        // It also takes PG without PE, and goes on with the tables that CR3 names.
        if register == 0 && self.way == Way::Real && value & u64::from(CR0_PE) == 0 && !self.one_in(256) {
            value &= !u64::from(CR0_PG);
        }
        // QEMU's TCG takes NW without CD as well.
        if register == 0 && !self.one_in(256) && value & u64::from(CR0_CD) == 0 {
            value &= !u64::from(CR0_NW);
        }
        match self.random.below(8) {
            // `mov eax, cr`, LMSW, SMSW, CLTS.
            0 => self.move_control_register(0x20, register),
            1 => {
                self.code.set(EAX, value as u32);
                self.code.push(&[0x0f, 0x01, 0xf0]);
            }
            2 => self.code.push(&[0x0f, 0x01, 0xe0, 0x0f, 0x06]),
            _ => {
                self.code.set_wide(EAX, value);
                self.move_control_register(0x22, register);
            }
        }
        self.and_more_in_memory();
    }

    /// MOV between EAX and a control register.
    fn move_control_register(&mut self, opcode: u8, register: u8) {
        if register == 8 {
            self.code.push(&[0x44]);
        }
        self.code.push(&[0x0f, opcode, 0xc0 | (register & 7) << 3]);
    }

    fn msr(&mut self) {
        const KNOWN: &[u32] = &[
            0x10,
            0x17,
            0x3a,
            0x48,
            0x49,
            0x79,
            0x8b,
            0xc1,
            0xe7,
            0xe8,
            0xfe,
            0x10a,
            0x10b,
            0x122,
            0x174,
            0x175,
            0x176,
            0x179,
            0x17a,
            0x186,
            0x198,
            0x1a0,
            0x1d9,
            0x1db,
            0x200,
            0x20f,
            0x250,
            0x268,
            0x277,
            0x2ff,
            0x309,
            0x345,
            0x38f,
            0x480,
            0x481,
            0x482,
            0x48b,
            0x490,
            0x6e0,
            0x6a2,
            0x6a4,
            0x802,
            0x803,
            0x808,
            0x80b,
            0x80d,
            0x80f,
            0x810,
            0x828,
            0x82f,
            0x830,
            0x832,
            0x835,
            0x838,
            0x839,
            0x83e,
            0x83f,
            0xda0,
            0xd90,
            0x4000_0000,
            0x4b56_4d00,
            0xc000_0080,
            0xc000_0080,
            0xc000_0081,
            0xc000_0082,
            0xc000_0083,
            0xc000_0084,
            0xc000_0100,
            0xc000_0101,
            0xc000_0102,
            0xc000_0103,
            0xc001_0010,
            0xc001_0015,
            0xc001_0020,
            0xc001_0114,
            0xc001_0115,
            0xc001_0117,
            0xc001_011a,
            0xc001_0130,
        ];
        let register = match self.random.below(8) {
            0 => self.random.next_u64() as u32,
            1 => *pick(&mut self.random, &[0u32, 0x800, 0xc000_0000, 0xc001_0000]) + self.random.below(0x2000) as u32,
            // Without its APIC the processor can't be woken.
            2 if self.one_in(32) => 0x1b,
            _ => *pick(&mut self.random, KNOWN),
        };
        let value =
            self.value() & if register == EFER && self.way != Way::Long { !u64::from(EFER_LME) } else { u64::MAX };
        self.code.set(ECX, register);
        if self.one_in(3) {
            self.code.push(&[0x0f, 0x32]);
        } else {
            self.code.set(EAX, value as u32);
            self.code.set(EDX, (value >> 32) as u32);
            self.code.push(&[0x0f, 0x30]);
            if self.one_in(4) {
                self.code.push(&[0x0f, 0x32]);
            }
        }
        self.and_more();
    }

    fn port(&mut self) {
        const KNOWN: &[u16] = &[
            0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x70, 0x71, 0x80, 0x3f8, 0x3f9,
            0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x2f8, 0x3d4, 0x510, 0x511, 0x514, 0x608, 0xcf8, 0xcfc, 0x402,
            0xb2, 0x1ce, 0xffff,
        ];
        const PORT_92: u16 = 0x92;
        const ENDING: &[u16] = &[DEBUG_EXIT, KEYBOARD_COMMAND, PORT_92, RESET_CONTROL, BOCHS_SHUTDOWN, PM1_CONTROL];
        let port = match self.random.below(8) {
            0 => self.random.next_u64() as u16,
            // An access there ends the VM, or may.
            1 if self.one_in(256) => *pick(&mut self.random, ENDING),
            _ => *pick(&mut self.random, KNOWN),
        };
        if port == DEBUG_EXIT && !self.one_in(64) {
            return self.code.push_string(&mut self.random);
        }
        // A write of two bytes there is one to the port that resets the machine.
        let port = if port == PCI_ADDRESS && !self.one_in(64) { PCI_DATA } else { port };
        let value = self.random.next_u64() as u32;
        self.code.set(EDX, port.into());
        self.code.set(EAX, value);
        if self.one_in(2) {
            let count = if self.one_in(64) { 4096 } else { self.random.below(24) as u32 };
            let at = if self.one_in(4) { address(&mut self.random) } else { world::DATA_AREA + 0x1000 };
            self.code.set(ECX, count);
            self.code.set(ESI, at);
            self.code.set(EDI, at);
            self.code.push(&[*pick(&mut self.random, &[0xf3, 0xf2, 0x90, 0x66])]);
            self.code.push(&[*pick(&mut self.random, &[0x6c, 0x6d, 0x6e, 0x6f])]);
        } else {
            if self.one_in(4) {
                self.code.push(&[0x66]);
            }
            self.code.push(&[*pick(&mut self.random, &[0xec, 0xed, 0xee, 0xef])]);
        }
        self.and_more();
    }

    fn mmio(&mut self) {
        let base = *pick(
            &mut self.random,
            &[
                mmio::LOCAL_APIC,
                mmio::LOCAL_APIC,
                mmio::IOAPIC,
                mmio::HPET,
                ram_end(),
                0xb_8000,
                0xe000_0000,
                0xffff_f000,
            ],
        );
        let offset = *pick(
            &mut self.random,
            &[
                0x20, 0x30, 0x80, 0xb0, 0xd0, 0xe0, 0xf0, 0x100, 0x200, 0x280, 0x2f0, 0x310, 0x320, 0x350, 0x370,
                0x380, 0x390, 0x3e0, 0xffe, 0xffc,
            ],
        );
        let offset = if self.one_in(4) { self.random.below(4096) as u32 } else { offset };
        let register = *pick(&mut self.random, &[EBX, ESI, EDI, EAX]);
        self.code.set(register, base + offset);
        if self.code.bits() == 16 {
            // Real mode reaches devices above 1 MiB not at all; those below, by a segment.
            self.code.push(&[0xb8]);
            let segment = *pick(&mut self.random, &[0xb800u16, 0xa000, 0xffff, 0xf000]);
            self.code.push(&segment.to_le_bytes());
            self.code.push(&[0x8e, 0xd8]);
            self.code.set(EBX, offset & 0xffff);
        }
        if self.one_in(6) {
            self.code.set(ECX, 3);
            self.code.set(ESI, base + offset);
            let to = if self.one_in(2) { base + offset } else { world::DATA_AREA };
            self.code.set(EDI, to);
            self.code.push_copy(&mut self.random);
        } else {
            self.code.push_access(&mut self.random, register);
        }
        self.and_more_in_memory();
    }

    /// An entry that makes no sense, or an unusual one, and accesses to what it maps.
    fn page_table(&mut self) {
        // Beyond memory there are neither tables nor operands for every instruction: the VM may end there.
        let beyond = if self.one_in(256) {
            *pick(&mut self.random, &[ram_end(), mmio::IOAPIC, mmio::LOCAL_APIC, 0xffe0_0000])
        } else {
            world::LDT
        };
        // As a table of wide entries, that of two-level paging leads beyond memory, too.
        let directory = if self.is_pae && !self.one_in(256) { world::DIRECTORIES } else { world::DIRECTORY };
        let target = *pick(
            &mut self.random,
            &[
                beyond,
                directory,
                world::DIRECTORIES,
                world::DIRECTORIES + 0x1000,
                world::TABLE,
                world::TABLE,
                world::CODE_AREA,
                world::GDT,
                world::DATA_AREA,
                0,
                0x40_0000,
            ],
        );
        let flags = self.random.next_u64() as u32 & 0xfff | if self.one_in(8) { 0 } else { PRESENT | TABLE_FLAGS };
        let flags = if self.one_in(2) { flags & !LARGE } else { flags };
        let high = if self.is_pae && self.one_in(256) { 1 << self.random.below(32) } else { 0 };
        // From 32 MiB on; what is below is in use.
        let linear = (self.random.below(0x7f0) as u32 + 16) << 21;
        let (at, linear) = if self.one_in(6) {
            let index = self.random.below(8) as u32;
            (if self.is_pae { world::TABLE + 8 * index } else { world::TABLE + 4 * index }, linear)
        } else if self.is_pae && self.one_in(12) {
            let index = self.random.below(3) as u32 + 1;
            let table = if self.way == Way::Long { world::PDPT } else { world::PAE_PDPT };
            (table + 8 * index, index << 30 | linear & 0x3fff_ffff)
        } else if self.is_pae {
            (world::DIRECTORIES + (linear >> 21) * 8, linear)
        } else {
            (world::DIRECTORY + (linear >> 22) * 4, linear)
        };
        // A large page of two-level paging has more address bits at the address's lower end (PSE-36).
        let target = if flags & LARGE != 0 && !self.one_in(256) { target & !0x3f_ffff } else { target };
        self.edit(at, target | flags);
        if self.is_pae {
            self.edit(at + 4, high);
        }
        if self.one_in(3) {
            // A table below it, of which an entry is changed, too.
            let entry = world::TABLE + 8 * self.random.below(4) as u32;
            let value = address(&mut self.random) & !0xfff | flags;
            self.edit(entry, value);
        }
        let linear = linear | self.random.below(0x4000) as u32 & !(self.random.below(4) as u32);
        self.code.set(EBX, linear);
        if self.one_in(4) && !self.is_user {
            self.code.push(&[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]);
        }
        for _ in 0..=self.random.below(2) {
            match self.random.below(8) {
                0 => self.code.push(&[0x0f, 0x01, 0x3b]),
                // `jmp ebx`, and PUSH with the stack there.
                1 => self.code.push(&[0xff, 0xe3]),
                2 if self.one_in(128) => self.code.push(&[0x89, 0xdc, 0x50]),
                3 => {
                    self.code.set(EDI, linear);
                    self.code.set(ESI, linear ^ 0x1000);
                    self.code.set(ECX, 5);
                    self.code.push_copy(&mut self.random);
                }
                _ => self.code.push_access(&mut self.random, EBX),
            }
        }
        self.and_more_in_memory();
    }

    fn descriptor(&mut self) {
        let selector = FREE_SELECTORS + 8 * self.random.below(8) as u16;
        let selector = selector | if self.one_in(4) { self.random.below(8) as u16 } else { 0 };
        if self.one_in(2) {
            let at = world::GDT + u32::from(selector & !7);
            let value = self.value();
            let kind = self.random.below(32) as u32
                | if self.one_in(8) { 0 } else { 0x80 }
                | (self.random.below(4) as u32) << 5;
            self.edit(at, value as u32);
            self.edit(at + 4, (value >> 32) as u32 & 0xffff_00ff | kind << 8);
        }
        self.code.set(EAX, selector.into());
        let pointer = world::DATA_AREA + 0x100;
        match self.random.below(12) {
            0..5 => {
                // DS, ES, FS, GS; once in a while SS.
                let segment = if self.one_in(16) { 2 } else { *pick(&mut self.random, &[0, 3, 4, 5]) };
                self.code.push(&[0x8e, 0xc0 | segment << 3]);
            }
            5 => self.code.push(&[0x0f, 0x00, 0xd0]),
            6 if self.way == Way::Protected || self.one_in(64) => self.code.push(&[0x0f, 0x00, 0xd8]),
            7 => self.code.push(&[0x0f, *pick(&mut self.random, &[0x02, 0x03]), 0xd8]),
            8 => self.code.push(&[0x0f, 0x00, *pick(&mut self.random, &[0xe0, 0xe8])]),
            9 | 10 if self.one_in(8) => {
                // The table elsewhere, and back again if nothing faults in between.
                let table = 2 + self.random.below(2) as u8;
                let (limit, base) = (self.random.next_u64() as u32 & 0xffff, self.value());
                self.edit(pointer, (base << 16) as u32 | limit);
                self.edit(pointer + 4, (base >> 16) as u32);
                self.code.push(&[0x0f, 0x01]);
                self.code.at(table - 2, pointer + 0x20);
                self.code.push(&[0x0f, 0x01]);
                self.code.at(table, pointer);
                if self.one_in(64) {
                    self.code.push_access(&mut self.random, EBX);
                } else {
                    self.code.push(pick::<&[u8]>(&mut self.random, &[&[0x0f, 0x31], &[0x0f, 0x01, 0xe0], &[0x90]]));
                }
                self.code.push(&[0x0f, 0x01]);
                self.code.at(table, pointer + 0x20);
            }
            _ => self.code.push_privileged(&mut self.random),
        }
        self.code.push_access(&mut self.random, EBX);
    }

    /// A gate of the IDT, or a selector, that leads to a task state somewhere.
    fn task_gate(&mut self) {
        let task = FREE_SELECTORS + 32;
        if self.one_in(1024) {
            let base = address(&mut self.random);
            self.edit(world::GDT + u32::from(task), base << 16 | 0x67);
            self.edit(world::GDT + u32::from(task) + 4, 0x8900 | base >> 16 & 0xff | base & 0xff00_0000);
        }
        if self.one_in(1024) {
            let at = world::OTHER_TSS + 4 * self.random.below(26) as u32;
            let value = self.value() as u32;
            self.edit(at, value);
        }
        let vector = 0x20 + 5 * self.random.below(40) as u8 + 1;
        match self.random.below(3) {
            0 => {
                self.edit(world::IDT + 8 * u32::from(vector), u32::from(task) << 16);
                self.edit(world::IDT + 8 * u32::from(vector) + 4, 0xe500);
                self.code.push(&[0xcd, vector]);
            }
            1 => self.code.push(&[*pick(&mut self.random, &[0x9a, 0xea]), 0, 0, 0, 0, task as u8, 0]),
            _ => {
                // By IRET with NT set, to the task that the current one names.
                self.edit(world::TSS, task.into());
                self.code.push(&[0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0xcf]);
            }
        }
    }

    fn far(&mut self) {
        let selector = if self.one_in(3) {
            self.random.next_u64() as u16 & 0xff
        } else {
            *pick(&mut self.random, &[CODE, USER_CODE, CODE64, FREE_SELECTORS + 48, FREE_SELECTORS, DATA, 0, 0x10_00])
        };
        let to = if self.one_in(3) { address(&mut self.random) } else { CODE_AREA + 0x1800 };
        let pointer = world::DATA_AREA + 0x180;
        self.edit(pointer, to);
        self.edit(pointer + 4, selector.into());
        match self.random.below(10) {
            0..2 => {
                self.code.push(&[0xff]);
                let extension = if self.one_in(2) { 3 } else { 5 };
                self.code.at(extension, pointer);
            }
            2 => {
                self.code.push(&[*pick(&mut self.random, &[0x9a, 0xea])]);
                if self.code.bits() == 16 {
                    self.code.push(&(to as u16).to_le_bytes())
                } else {
                    self.code.push(&to.to_le_bytes())
                }
                self.code.push(&selector.to_le_bytes());
            }
            3..5 => {
                // RETF or IRET, with what it takes on the stack.
                let stack = if self.one_in(2) { DATA } else { USER_DATA };
                self.code.set(EAX, stack.into());
                self.code.set(ECX, STACK_TOP - 0x40);
                self.code.set(EDX, self.flags ^ 1 << self.random.below(22));
                self.code.set(EBX, selector.into());
                self.code.set(ESI, to);
                self.code.push(&[0x50, 0x51, 0x52, 0x53, 0x56]);
                self.code.push(&[*pick(&mut self.random, &[0xcf, 0xcb, 0xca])]);
            }
            5 => self.code.push(&[0xcd, self.random.next_u64() as u8]),
            6 => self.code.push(pick::<&[u8]>(&mut self.random, &[&[0x0f, 0x05], &[0x0f, 0x34]])),
            7 => self.code.push(pick::<&[u8]>(
                &mut self.random,
                &[&[0x0f, 0x07], &[0x0f, 0x35], &[0x48, 0x0f, 0x07], &[0x48, 0x0f, 0x35]],
            )),
            8 => self
                .code
                .push(pick::<&[u8]>(&mut self.random, &[&[0xcc], &[0xf1], &[0xce], &[0x0f, 0x0b], &[0x0f, 0xff]])),
            _ => {
                // To a selector of its own for the code segment, by PUSH and RETF.
                self.code.push(&[0x6a, selector as u8, 0x6a, 0x10, 0xcb]);
            }
        }
    }

    /// Breakpoints, single steps, and what they meet.
    fn debug(&mut self) {
        for _ in 0..=self.random.below(2) {
            let register = self.random.below(8) as u8;
            let value = match register {
                0..4 if self.one_in(2) => u64::from(CODE_AREA + 0x800 + self.random.below(40) as u32),
                0..4 => address(&mut self.random).into(),
                6 => self.random.next_u64() & 0xe00f,
                _ if self.one_in(2) => self.random.next_u64() & 0xffff_ffff,
                _ => self.random.next_u64() & 0x27ff,
            };
            self.code.set_wide(EAX, value);
            self.code.push(&[0x0f, 0x23, 0xc0 | register << 3]);
        }
        if self.one_in(2) {
            // TF by POPF.
            if self.code.bits() == 16 {
                self.code.push(&[0x9c, 0x58, 0x0d, 0, 1, 0x50, 0x9d]);
            } else {
                self.code.push(&[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d]);
            }
        }
        self.code.push_any(&mut self.random);
        self.and_more();
    }

    fn hypercall(&mut self) {
        let number = match self.random.below(4) {
            0 => self.random.next_u64() as u32,
            1 => self.random.below(32) as u32,
            _ => Number::Nop as u32 + self.random.below(16) as u32,
        };
        self.code.set(EAX, number);
        self.code.push(&[0x0f, 0x01, *pick(&mut self.random, &[0xc1, 0xd9])]);
        self.and_more();
    }

    /// Real mode's instructions, those that need IOPL or CR4.VME above all.
    fn virtual_8086(&mut self) {
        self.flags |= EFLAGS_VM;
        if self.one_in(2) {
            self.flags ^= EFLAGS_IOPL;
        }
        for _ in 0..=self.random.below(2) {
            match self.random.below(5) {
                0 => self.code.push(&[0xcd, self.random.next_u64() as u8]),
                // PUSHF, POPF, IRET, CLI, STI, INT3, HLT.
                1 => self.code.push(&[*pick(&mut self.random, &[0x9c, 0x9d, 0xcf, 0xfa, 0xfb, 0xcc, 0xf4])]),
                2 => self.code.push_string(&mut self.random),
                _ => self.code.push_any(&mut self.random),
            }
        }
        if self.one_in(3) {
            self.port();
        }
    }

    /// An interrupt command of this processor.
    fn ipi(&mut self) {
        if self.code.bits() == 16 {
            return self.msr();
        }
        let destination = *pick(&mut self.random, &[1u32, 1, 1, 2, 3, 0xff, 0x80]);
        let mut command = self.random.next_u64() as u32 & 0x000c_cfff;
        // The processor that looks after this one is better not reset: neither by "all" nor as one of "all but this".
        if command >> 19 & 1 == 1 || destination == 0xff {
            command &= !0x700;
        }
        // To itself, mostly: an interrupt, or an NMI.
        if self.one_in(2) {
            command = 0x4_4000 | command & 0x4ff;
        }
        self.code.set(EAX, destination << 24);
        self.code.set(EBX, mmio::LOCAL_APIC);
        self.code.push(&[0x89, 0x83, 0x10, 3, 0, 0]);
        self.code.set(EAX, command);
        for _ in 0..=self.random.below(3) {
            self.code.push(&[0x89, 0x83, 0, 3, 0, 0]);
        }
        self.and_more_in_memory();
    }

    fn edit(&mut self, at: u32, value: u32) {
        if let Some(free) = self.edits.iter_mut().find(|edit| edit.is_none()) {
            *free = Some(Edit { at, value });
        }
    }

    fn cr0(&self) -> u32 {
        if self.way == Way::Real { 0x10 } else { 0x10 | CR0_PE | CR0_WP | CR0_PG }
    }

    fn cr4(&self) -> u32 {
        if self.is_pae { CR4_PAE } else { CR4_PSE }
    }

    /// Whether its code is where real mode has it.
    fn is_low(&self) -> bool {
        self.code.bits() == 16
    }

    fn root(&self) -> u32 {
        match self.way {
            Way::Long => world::PML4,
            _ if self.is_pae => world::PAE_PDPT,
            _ => world::DIRECTORY,
        }
    }

    /// Runs it, and puts the world right again.
    pub(crate) fn run(mut self) {
        let is_long = self.way == Way::Long;
        write_task_descriptor(is_long);
        if self.way == Way::Protected {
            write_tasks(self.root());
        }
        if self.way == Way::Real {
            // Pointers of no value lead there.
            enter::write_low();
        }
        let random = self.random.next_u64() as u32;
        plan(&PLAN.way, self.way as u32);
        plan(&PLAN.cr0, self.cr0() ^ if random & 0xf0 == 0 { random & 0x0005_000e } else { 0 });
        plan(&PLAN.cr3, self.root());
        let extensions = if self.kind == Kind::Virtual8086 { random >> 16 & CR4_VME } else { 0 };
        plan(&PLAN.cr4, self.cr4() | extensions | random >> 8 & CR4_USUAL & if random & 0xf == 0 { !0 } else { 0x600 });
        let nx = if self.is_pae { EFER_NXE } else { 0 };
        plan(
            &PLAN.efer,
            if is_long { EFER_LME } else { 0 } | nx | if self.way == Way::Real { 0 } else { random >> 30 & EFER_SCE },
        );
        plan(&PLAN.task, world::TASK.into());
        plan(&PLAN.data, if self.is_user { USER_DATA } else { DATA }.into());
        let idt = match self.way {
            Way::Real => (REAL_IDT_LIMIT, 0),
            Way::Protected => (256 * 8 - 1, world::IDT),
            Way::Long => (256 * 16 - 1, world::LONG_IDT),
        };
        PLAN.idtr.set(idt.0, idt.1);

        // At the end of a page, once in a while, so that instructions are cut in two.
        let offset = if random >> 24 & 15 == 0 { 0xff4 + (random >> 20 & 7) } else { 0x800 };
        let area = if self.is_low() { world::REAL_CODE_AREA } else { CODE_AREA };
        let _written = Written::new(area + offset, self.code.bytes());
        let undo = self.edits.map(|edit| edit.map(Edit::apply));
        self.write_frame(offset);
        enter::enter();
        undo.into_iter().rev().flatten().for_each(|edit| {
            edit.apply();
        });
    }

    fn write_frame(&self, offset: u32) {
        let mut at = match self.way {
            _ if self.is_low() => (u32::from(REAL_STACK) << 4) + u32::from(REAL_FRAME),
            _ => STACK_TOP - 0x400,
        };
        plan(&PLAN.frame, at);
        let mut put = |value: u32| {
            store(at, value);
            at += 4;
        };
        let registers = &self.registers;
        let stack = if self.is_user && self.registers[15] & 7 == 0 { registers[4] as u32 } else { STACK_TOP - 0x80 };
        match self.way {
            Way::Long => {
                for index in [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 3, 2, 1, 0] {
                    put(registers[index] as u32);
                    put((registers[index] >> 32) as u32);
                }
                let (code, data) = if self.is_user { (world::USER_CODE64, USER_DATA) } else { (CODE64, DATA) };
                for value in [CODE_AREA + offset, code.into(), self.flags, stack, data.into()] {
                    put(value);
                    put(0);
                }
            }
            Way::Protected => {
                for register in [EDI, ESI, EBP, ESP, EBX, EDX, ECX, EAX] {
                    put(registers[usize::from(register)] as u32);
                }
                let low = u32::from(world::REAL_DATA);
                let (code, data) = if self.is_user { (USER_CODE, USER_DATA) } else { (CODE, DATA) };
                let frame = if self.kind == Kind::Virtual8086 {
                    let (code, stack) = (world::REAL_CODE_AREA >> 4, u32::from(REAL_STACK));
                    [offset, code, self.flags, REAL_FRAME.into(), stack, low, low, low, low]
                } else {
                    let flags = self.flags & !EFLAGS_VM;
                    [CODE_AREA + offset, code.into(), flags, stack, data.into(), 0, 0, 0, 0]
                };
                frame.into_iter().for_each(put);
            }
            Way::Real => {
                for register in [EDI, ESI, EBP, ESP, EBX, EDX, ECX, EAX] {
                    put(registers[usize::from(register)] as u32);
                }
                let data = u32::from(world::REAL_DATA);
                put(data << 16 | data);
                put(data << 16 | data);
                put((world::REAL_CODE_AREA >> 4) << 16 | offset);
                put(self.flags & 0xffff);
            }
        }
    }
}
