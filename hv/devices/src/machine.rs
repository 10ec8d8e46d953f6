//! The VM's devices together, and which port is whose.

use crate::pic::{Pic, Which};
use crate::uart::Uart;
use crate::{Clock, Nanoseconds, Sink};

/// Width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Word = 2,
    /// 32 bits.
    Dword = 4,
}

impl Size {
    /// All bits of this width: what a port that nobody claims reads as.
    pub const fn ones(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
        }
    }
}

/// What the vCPU has to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Go on.
    Continue,
    /// The guest ended itself, with this value: 0 is success.
    Exit(u32),
    /// The guest reset its machine.
    Reset,
}

/// What a VM's devices are told of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// RAM in bytes, the hole below 1 MiB counted in.
    pub ram_bytes: u64,
    /// Number of vCPUs.
    pub cpus: u16,
    /// The time of day at the VM's start, in seconds since 1970-01-01 UTC.
    pub boot_time: u64,
}

/// The devices of one VM; see the [crate's documentation](crate).
#[derive(Debug)]
pub struct Machine<S, C> {
    pic: Pic,
    uart: Uart,
    unclaimed: u64,
    sink: S,
    clock: C,
}

/// Interrupt lines.
const UART_IRQ: u8 = 4;

const COM1: u16 = 0x3f8;

impl<S: Sink, C: Clock> Machine<S, C> {
    /// Devices as a PC's firmware leaves them, all interrupts masked.
    pub fn new(config: MachineConfig, sink: S, clock: C) -> Self {
        let _ = config;
        Self { pic: Pic::new(), uart: Uart::new(), unclaimed: 0, sink, clock }
    }

    /// IN from `port`: the value in the low bits, the others clear.
    pub fn read(&mut self, port: u16, size: Size) -> u32 {
        match size {
            Size::Byte => self.read_byte(port).into(),
            Size::Word | Size::Dword => self.read_wide(port, size),
        }
    }

    /// OUT to `port`: of `value`, the low bits count.
    pub fn write(&mut self, port: u16, size: Size, value: u32) -> Outcome {
        match size {
            Size::Byte => self.write_byte(port, value as u8),
            Size::Word | Size::Dword => self.write_wide(port, size, value),
        }
    }

    /// Whether there is an interrupt for the processor.
    pub fn interrupt_pending(&self) -> bool {
        self.pic.pending()
    }

    /// The processor takes an interrupt: its vector. With nothing pending it is a spurious one.
    pub fn acknowledge_interrupt(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// When [`advance`](Self::advance) has something to do next, if nothing is written before.
    pub fn next_deadline(&self) -> Option<Nanoseconds> {
        None
    }

    /// Does what time has brought: interrupts of timers.
    pub fn advance(&mut self) {
        let _ = self.clock.now();
    }

    /// Sets the level of interrupt line `irq`, 0 to 15, for devices outside of this crate.
    pub fn set_irq(&mut self, irq: u8, high: bool) {
        self.pic.set_line(irq & 15, high);
    }

    /// A byte for COM1 from outside. False if there is no room for it yet.
    pub fn receive(&mut self, byte: u8) -> bool {
        let taken = self.uart.receive(byte);
        self.update_uart_irq();
        taken
    }

    /// Where the guest's output goes.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// How many bytes were read from or written to ports that no device claims.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        match port {
            0x20 | 0x21 => self.pic.read(Which::Master, port & 1 == 1),
            0xa0 | 0xa1 => self.pic.read(Which::Slave, port & 1 == 1),
            0x3f8..=0x3ff => {
                let value = self.uart.read(port - COM1);
                self.update_uart_irq();
                value
            }
            0x4d0 => self.pic.read_elcr(Which::Master),
            0x4d1 => self.pic.read_elcr(Which::Slave),
            0xe9 => 0xe9,
            0xf4 => 0,
            0x80 | 0xed => 0xff,
            _ => {
                self.unclaimed += 1;
                0xff
            }
        }
    }

    fn write_byte(&mut self, port: u16, value: u8) -> Outcome {
        match port {
            0x20 | 0x21 => self.pic.write(Which::Master, port & 1 == 1, value),
            0xa0 | 0xa1 => self.pic.write(Which::Slave, port & 1 == 1, value),
            0x3f8..=0x3ff => {
                self.uart.write(port - COM1, value, &mut self.sink);
                self.update_uart_irq();
            }
            0x4d0 => self.pic.write_elcr(Which::Master, value),
            0x4d1 => self.pic.write_elcr(Which::Slave, value),
            0xe9 => self.sink.put(value),
            0xf4 => return Outcome::Exit(value.into()),
            0x80 | 0xed => {}
            _ => self.unclaimed += 1,
        }
        Outcome::Continue
    }

    /// Bytes from consecutive ports, lowest first; past the last port there is none.
    fn read_wide(&mut self, port: u16, size: Size) -> u32 {
        (0..size as u16).fold(0, |value, n| {
            let byte = port.checked_add(n).map_or(0xff, |port| self.read_byte(port));
            value | u32::from(byte) << (8 * n)
        })
    }

    fn write_wide(&mut self, port: u16, size: Size, value: u32) -> Outcome {
        if port == 0xf4 {
            return Outcome::Exit(value & size.ones());
        }
        for (n, byte) in (0..size as u16).zip(value.to_le_bytes()) {
            let Some(port) = port.checked_add(n) else { break };
            match self.write_byte(port, byte) {
                Outcome::Continue => {}
                end => return end,
            }
        }
        Outcome::Continue
    }

    fn update_uart_irq(&mut self) {
        let level = self.uart.interrupt();
        if level != self.pic.line(UART_IRQ) {
            self.pic.set_line(UART_IRQ, level);
        }
    }
}
