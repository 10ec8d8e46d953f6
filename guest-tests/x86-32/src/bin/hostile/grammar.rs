//! Instructions: bytes that are mostly valid, and mostly what a hypervisor has to see to.

use abi::mmio;
use guest32::random::Random;

use crate::input::ram_end;

/// Instructions in their order.
pub(crate) struct Code {
    bytes: [u8; Self::MOST],
    length: usize,
    /// The operand size that the code segment gives: 16, 32, or 64 for 64-bit mode.
    bits: u32,
}

/// General registers by their number.
pub(crate) const EAX: u8 = 0;
pub(crate) const ECX: u8 = 1;
pub(crate) const EDX: u8 = 2;
pub(crate) const EBX: u8 = 3;
pub(crate) const ESP: u8 = 4;
pub(crate) const EBP: u8 = 5;
pub(crate) const ESI: u8 = 6;
pub(crate) const EDI: u8 = 7;

impl Code {
    const MOST: usize = 120;

    pub(crate) const fn new(bits: u32) -> Self {
        Self { bytes: [0; Self::MOST], length: 0, bits }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(crate) const fn bits(&self) -> u32 {
        self.bits
    }

    /// Adds bytes, where there is room.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(free) = self.bytes.get_mut(self.length) {
                *free = byte;
                self.length += 1;
            }
        }
    }

    /// `mov register, value`, of 32 bits; in 64-bit mode sign-extended.
    pub(crate) fn set(&mut self, register: u8, value: u32) {
        match self.bits {
            16 => self.push(&[0x66, 0xb8 + register]),
            32 => self.push(&[0xb8 + register]),
            _ => self.push(&[0x48, 0xc7, 0xc0 + register]),
        }
        self.push(&value.to_le_bytes());
    }

    /// `mov register, value`, of all the register's bits.
    pub(crate) fn set_wide(&mut self, register: u8, value: u64) {
        if self.bits == 64 {
            self.push(&[0x48, 0xb8 + register]);
            self.push(&value.to_le_bytes());
        } else {
            self.set(register, value as u32);
        }
    }

    /// A ModRM byte with `[address]` as its memory operand, and the address: 16 bits of it in 16-bit code.
    pub(crate) fn at(&mut self, register: u8, address: u32) {
        match self.bits {
            16 => {
                self.push(&[register << 3 | 6]);
                self.push(&(address as u16).to_le_bytes());
            }
            32 => {
                self.push(&[register << 3 | 5]);
                self.push(&address.to_le_bytes());
            }
            _ => {
                self.push(&[register << 3 | 4, 0x25]);
                self.push(&address.to_le_bytes());
            }
        }
    }

    /// An instruction at random.
    pub(crate) fn push_any(&mut self, random: &mut Random) {
        match random.below(20) {
            0..11 => self.push_privileged(random),
            11..14 => self.push_string(random),
            14..16 => {
                let opcode = random_byte(random);
                self.push_opcode(random, &[opcode]);
            }
            16 => {
                let opcode = random_byte(random);
                self.push_opcode(random, &[0x0f, opcode]);
            }
            17 => {
                let map = *pick(random, &[0x38, 0x3a]);
                // 0F 38 0C without a prefix ends QEMU (7.2; decode-new.c.inc, line 394: VPERMILPS, for which it has no function then).
                let opcode = match random_byte(random) {
                    0x0c if map == 0x38 => 0x1c,
                    opcode => opcode,
                };
                self.push_opcode(random, &[0x0f, map, opcode]);
            }
            18 => self.push_vector(random),
            _ => (0..random.below(15) + 1).for_each(|_| self.push(&[random_byte(random)])),
        }
    }

    /// A system instruction, or another one that a guest can't do alone.
    pub(crate) fn push_privileged(&mut self, random: &mut Random) {
        let opcode = *pick(random, SYSTEM);
        // It only sleeps until it is woken, and so takes the time of many others.
        if opcode == [0xf4] && !random.one_in(8) {
            return self.push(&[0x0f, 0xa2]);
        }
        self.push_opcode(random, opcode);
    }

    /// A string instruction, of memory or of a port.
    pub(crate) fn push_string(&mut self, random: &mut Random) {
        self.push_prefixes(random);
        if random.below(4) != 0 {
            self.push(&[*pick(random, &[0xf2, 0xf3])]);
            self.push_rex(random);
        }
        self.push(&[*pick(
            random,
            &[0x6c, 0x6d, 0x6e, 0x6f, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf],
        )]);
    }

    /// A string instruction that a driver may use on a device's memory.
    pub(crate) fn push_copy(&mut self, random: &mut Random) {
        if random.one_in(64) {
            return self.push_string(random);
        }
        self.push(&[0xf3]);
        self.push(&[*pick(random, &[0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad])]);
    }

    /// An access to the memory at `[register]`, not by ESP or EBP.
    pub(crate) fn push_access(&mut self, random: &mut Random, register: u8) {
        self.push_prefixes(random);
        self.push_rex(random);
        let opcodes = if random.one_in(2) { ACCESSES } else { PLAIN_ACCESSES };
        let opcode = pick::<&[u8]>(random, opcodes);
        self.push(opcode);
        // 16-bit code has no such operand for most registers: it has [bx], for the prefix of 32-bit addresses is random.
        let memory = if self.bits == 16 { 7 } else { register };
        // MOV of an immediate is the only one of its group, and the stack pointer stays what it is.
        let operation = if matches!(*opcode, [0xc6 | 0xc7]) { 0 } else { *pick(random, &[0, 1, 2, 3, 5, 6, 7]) };
        self.push(&[operation << 3 | memory]);
        match *opcode {
            [0x80 | 0x83 | 0xc1 | 0xc6] | [0x0f, 0xba] => self.push(&[random_byte(random)]),
            [0x69 | 0x81 | 0xc7] => self.push(&(random.next_u64() as u32).to_le_bytes()),
            _ => {}
        }
    }

    fn push_vector(&mut self, random: &mut Random) {
        match random.below(3) {
            // Outside of 64-bit mode they are LDS and LES unless the upper two bits are set.
            0 => self.push(&[0xc5, random_byte(random) | 0xc0]),
            1 => self.push(&[0xc4, random_byte(random) & 0xe3 | 0xc1, random_byte(random)]),
            _ => {
                self.push(&[*pick(random, &[0x66, 0xf2, 0xf3])]);
                self.push_rex(random);
                self.push(&[0x0f]);
            }
        }
        self.push(&[random_byte(random)]);
        self.push_operands(random, 0);
    }

    fn push_opcode(&mut self, random: &mut Random, opcode: &[u8]) {
        self.push_prefixes(random);
        self.push_rex(random);
        self.push(opcode);
        // LGDT, LIDT and LTR of what is anywhere leave no way back: they become SGDT, SIDT and STR.
        let clear = match opcode {
            [0x0f, 0x00 | 0x01] if !random.one_in(256) => 2 << 3,
            _ => 0,
        };
        self.push_operands(random, clear);
    }

    fn push_prefixes(&mut self, random: &mut Random) {
        const PREFIXES: &[u8] = &[0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
        while random.one_in(4) {
            // LOCK is invalid for most, and not all processors say so.
            let prefix = if random.one_in(512) { 0xf0 } else { *pick(random, PREFIXES) };
            self.push(&[prefix]);
        }
    }

    fn push_rex(&mut self, random: &mut Random) {
        if self.bits == 64 && random.one_in(2) {
            self.push(&[0x40 | random_byte(random) & 0xf]);
        }
    }

    /// What may follow an opcode: a ModRM byte that has memory behind a register as often as a register, a SIB byte, a
    /// displacement and an immediate, whichever of them belong to the opcode. `clear` are bits that the ModRM byte does not have.
    fn push_operands(&mut self, random: &mut Random, clear: u8) {
        let modrm = random_byte(random) & *pick(random, &[0xff, 0x3f, 0x7f]) & !clear;
        // The stack pointer as an operand ends many an input in vain.
        let modrm = if modrm >> 6 == 3 && modrm & 7 == ESP { modrm ^ 1 } else { modrm };
        let modrm = if modrm >> 3 & 7 == ESP && clear == 0 && !random.one_in(16) { modrm ^ 1 << 3 } else { modrm };
        self.push(&[modrm]);
        match (modrm >> 6, modrm & 7) {
            (3, _) => {}
            (0, 5) if self.bits == 32 => self.push(&address(random).to_le_bytes()),
            (0, 5) if self.bits == 64 => {
                let displacement = address(random).wrapping_sub(crate::world::CODE_AREA + 0x800);
                self.push(&displacement.to_le_bytes());
            }
            // A SIB byte: seldom with two pointers that lead nowhere together.
            (_, 4) if self.bits != 16 => {
                let sib =
                    if random.one_in(64) { random_byte(random) } else { 4 << 3 | *pick(random, &[0, 1, 2, 3, 6, 7]) };
                self.push(&[sib]);
                self.push(&(random.below(64) as u32).to_le_bytes());
            }
            _ => self.push(&(random.below(64) as u32).to_le_bytes()),
        }
        self.push_immediate(random);
    }

    fn push_immediate(&mut self, random: &mut Random) {
        let value = match random.below(4) {
            0 => random.below(256) as u32,
            1 => 0,
            2 => address(random),
            _ => random.next_u64() as u32,
        };
        self.push(&value.to_le_bytes());
        if random.one_in(3) {
            self.push(&[random_byte(random), random_byte(random)]);
        }
    }
}

/// One of them.
pub(crate) fn pick<'a, T>(random: &mut Random, from: &'a [T]) -> &'a T {
    &from[random.below(from.len() as u64) as usize]
}

pub(crate) fn random_byte(random: &mut Random) -> u8 {
    random.next_u64() as u8
}

/// An address that means something: memory and tables; and, rarely, devices and what is beyond memory. An instruction that the
/// hypervisor does not emulate ends the VM there.
pub(crate) fn address(random: &mut Random) -> u32 {
    use crate::world::*;
    let base = if random.one_in(8192) {
        *pick(
            random,
            &[
                ram_end() - 4,
                ram_end(),
                0x8000_0000,
                mmio::IOAPIC,
                mmio::LOCAL_APIC,
                mmio::LOCAL_APIC + 0x80,
                mmio::LOCAL_APIC + 0x300,
                mmio::LOCAL_APIC + 0x380,
                mmio::HPET,
                0xffff_fffc,
                0xf000_0000,
                0xb8000,
            ],
        )
    } else {
        *pick(
            random,
            &[
                DATA_AREA,
                DATA_AREA + 0x1000,
                DATA_AREA + 0x2000,
                DATA_AREA + 0x3ff8,
                DATA_AREA + 0x4000,
                DATA_AREA + 0x5000,
                STACK_TOP - 64,
                CODE_AREA + 0xffc,
                LDT,
                TABLE,
                0x3_0000,
                0xb0_0000,
            ],
        )
    };
    base.wrapping_add((random.below(16) * random.below(16)) as u32 & !(random.below(8) as u32))
}

/// What system software uses, and what exits: each with a ModRM byte behind it, which some have inside.
const SYSTEM: &[&[u8]] = &[
    &[0x0f, 0x00],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x01],
    &[0x0f, 0x01],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x01, 0xc2],
    &[0x0f, 0x01, 0xc3],
    &[0x0f, 0x01, 0xc4],
    &[0x0f, 0x01, 0xc8],
    &[0x0f, 0x01, 0xc9],
    &[0x0f, 0x01, 0xca],
    &[0x0f, 0x01, 0xcb],
    &[0x0f, 0x01, 0xd0],
    &[0x0f, 0x01, 0xd1],
    &[0x0f, 0x01, 0xd4],
    &[0x0f, 0x01, 0xd8],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x01, 0xda],
    &[0x0f, 0x01, 0xdb],
    &[0x0f, 0x01, 0xdc],
    &[0x0f, 0x01, 0xdd],
    &[0x0f, 0x01, 0xde],
    &[0x0f, 0x01, 0xdf],
    &[0x0f, 0x01, 0xf8],
    &[0x0f, 0x01, 0xf9],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x06],
    &[0x0f, 0x07],
    &[0x0f, 0x08],
    &[0x0f, 0x09],
    &[0x0f, 0x0b],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x30],
    &[0x0f, 0x31],
    &[0x0f, 0x32],
    &[0x0f, 0x33],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0x37],
    &[0x0f, 0x78],
    &[0x0f, 0x79],
    &[0x66, 0x0f, 0x38, 0x80],
    &[0x66, 0x0f, 0x38, 0x81],
    &[0x66, 0x0f, 0x38, 0x82],
    &[0x0f, 0xa2],
    &[0x0f, 0xa1],
    &[0x0f, 0xa9],
    &[0x0f, 0xaa],
    &[0x0f, 0xae],
    &[0x0f, 0xb4],
    &[0x0f, 0xc7],
    &[0xf3, 0x0f, 0xc7],
    &[0x66, 0x0f, 0xc7],
    &[0x07],
    &[0x1f],
    &[0x62],
    &[0x63],
    &[0x8c],
    &[0x8e],
    &[0x90],
    &[0xf3, 0x90],
    &[0x9b],
    &[0x9c],
    &[0x9d],
    &[0xc4],
    &[0xc5],
    &[0xc8],
    &[0xcd],
    &[0xce],
    &[0xcf],
    &[0xe4],
    &[0xe5],
    &[0xe6],
    &[0xe7],
    &[0xec],
    &[0xed],
    &[0xee],
    &[0xef],
    &[0xf1],
    &[0xf4],
    &[0xfa],
    &[0xfb],
];

/// Accesses to memory that drivers make to a device.
const PLAIN_ACCESSES: &[&[u8]] = &[
    &[0x01],
    &[0x03],
    &[0x09],
    &[0x21],
    &[0x31],
    &[0x39],
    &[0x84],
    &[0x87],
    &[0x88],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0xc6],
    &[0xf0, 0x01],
    &[0x0f, 0xb6],
    &[0x0f, 0xb7],
];

/// Accesses to memory of all kinds: what an emulator of devices may meet.
const ACCESSES: &[&[u8]] = &[
    &[0x00],
    &[0x01],
    &[0x03],
    &[0x09],
    &[0x11],
    &[0x19],
    &[0x21],
    &[0x29],
    &[0x31],
    &[0x39],
    &[0x3b],
    &[0x69],
    &[0x80],
    &[0x81],
    &[0x83],
    &[0x84],
    &[0x85],
    &[0x86],
    &[0x87],
    &[0x88],
    &[0x89],
    &[0x89],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0x8b],
    &[0x8b],
    &[0x8c],
    &[0x8e],
    &[0x8f],
    &[0xc6],
    &[0xc7],
    &[0xc1],
    &[0xc4],
    &[0xd1],
    &[0xd3],
    &[0xd8],
    &[0xd9],
    &[0xdd],
    &[0xdf],
    &[0xf6],
    &[0xf7],
    &[0xfe],
    &[0xff],
    &[0xf0, 0x01],
    &[0xf0, 0x87],
    &[0x0f, 0x10],
    &[0x0f, 0x11],
    &[0x0f, 0x12],
    &[0x0f, 0x28],
    &[0x0f, 0x29],
    &[0x0f, 0x6f],
    &[0x0f, 0x7f],
    &[0x66, 0x0f, 0x6f],
    &[0xf3, 0x0f, 0x7f],
    &[0x0f, 0x01],
    &[0x0f, 0x18],
    &[0x0f, 0x44],
    &[0x0f, 0xa3],
    &[0x0f, 0xa5],
    &[0x0f, 0xab],
    &[0x0f, 0xad],
    &[0x0f, 0xae],
    &[0x0f, 0xaf],
    &[0x0f, 0xb4],
    &[0x0f, 0xbc],
    &[0x0f, 0xbd],
    &[0x0f, 0xb0],
    &[0x0f, 0xb1],
    &[0x0f, 0xb2],
    &[0x0f, 0xb6],
    &[0x0f, 0xb7],
    &[0x0f, 0xba],
    &[0x0f, 0xbe],
    &[0x0f, 0xc0],
    &[0x0f, 0xc1],
    &[0x0f, 0xc3],
    &[0x0f, 0xc7],
    &[0xf0, 0x0f, 0xc7],
];
