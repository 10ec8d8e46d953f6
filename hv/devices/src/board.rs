//! The devices of a VM and their ports.

use crate::bus::{self, Device, Page};
use crate::fw_cfg::FwCfg;
use crate::hpet::{Gsis, Hpet, QwordWrite};
use crate::ioapic::{InterruptMessage, IoApic};
use crate::keyboard::{Keyboard, Resets};
use crate::pci::Pci;
use crate::pic::{Pic, Which};
use crate::pit::Pit;
use crate::pm::{self, PowerManagement, PowersOff};
use crate::rtc::Rtc;
use crate::testdev::{self, TestDevice};
use crate::uart::Uart;
use crate::{Clock, Nanoseconds, Sink};
use abi::irq::{self, SCI, TIMER_PIN};
use abi::ports::{COM1, DEBUG_CONSOLE_THERE, ELCRS, PIT, PIT_CHANNEL_2, PM_TIMER, RTC};
use addr::Gpa;
use core::alloc::Layout;

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
    /// A value with all bits of this width set: a read of a port that no device claims.
    pub const fn ones(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
        }
    }
}

/// What the caller has to do after a port write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Continue with the next instruction.
    Continue,
    /// The guest ended itself with this value: 0 is success.
    Exit(u32),
    /// The guest reset its machine.
    Reset,
    /// The guest switched its machine off (ACPI's S5).
    PowerOff,
    /// The console is full: the write had no effect, and must be repeated.
    Wait,
}

impl From<Resets> for Effect {
    fn from(Resets(resets): Resets) -> Self {
        if resets { Self::Reset } else { Self::Continue }
    }
}

impl From<PowersOff> for Effect {
    fn from(PowersOff(off): PowersOff) -> Self {
        if off { Self::PowerOff } else { Self::Continue }
    }
}

/// The properties of a VM that its devices show to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoardConfig {
    /// The size of RAM in bytes, including the hole below 1 MiB.
    pub ram_bytes: u64,
    /// Number of vCPUs.
    pub cpus: u16,
    /// The time of day at the VM's start, in seconds since 1970-01-01 UTC.
    pub boot_time: u64,
}

/// The devices of one VM; see the [crate's documentation](crate).
#[derive(Debug)]
pub struct Board<S, C> {
    pic: Pic,
    uart: Uart,
    unclaimed: u64,
    sink: S,
    /// When to look for input next; [`NEVER`] if there is none.
    input_due: Nanoseconds,
    clock: C,
    pit: Pit,
    rtc: Rtc,
    keyboard: Keyboard,
    fw_cfg: FwCfg,
    port_92: u8,
    reset_control: u8,
    ioapic: IoApic,
    hpet: Hpet,
    pm: PowerManagement,
    /// The GSIs that the HPET, power management and the clock hold high.
    levels: Gsis,
    pci: Pci,
    test: TestDevice,
    config: BoardConfig,
    /// An access may have brought the next deadline nearer.
    deadline_moved: bool,
}

/// A global system interrupt (GSI) is a line that devices set: 0 to 15 are the 8259s' inputs (the IRQs of an ISA bus), and all are
/// inputs of the I/O APIC of the same number, but for the timer's.
const TIMER_GSI: u8 = irq::TIMER;
const UART_GSI: u8 = irq::COM1;
const RTC_GSI: u8 = irq::RTC;
const ISA_GSIS: u8 = 16;

/// The time of nothing.
const NEVER: Nanoseconds = Nanoseconds(u64::MAX);

const COM1_LAST: u16 = COM1 + 7;
const RTC_DATA: u16 = RTC + 1;
const ELCR_MASTER: u16 = ELCRS[0];
const ELCR_SLAVE: u16 = ELCRS[1];

/// Port 0x92: bit 0 resets, bit 1 enables A20, which is never disabled here.
const PORT_92_RESET: u8 = 1 << 0;
const PORT_92_A20: u8 = 1 << 1;
/// Port 0xcf9: setting bit 2 resets, in a way that bits 1 and 3 choose.
const RESET_CONTROL_NOW: u8 = 1 << 2;

const fn pin(gsi: u8) -> u8 {
    if gsi == TIMER_GSI { TIMER_PIN } else { gsi }
}

impl<S: Sink, C: Clock> Board<S, C> {
    /// What [`new`](Self::new) allocates. It is all that a board ever does.
    pub const ALLOCATION: Layout = Layout::new::<[u8; testdev::MEMORY_BYTES]>();

    /// Devices as a PC's firmware leaves them, with all interrupts masked.
    pub fn new(config: BoardConfig, sink: S, clock: C) -> Self {
        let mut board = Self {
            pic: Pic::new(),
            uart: Uart::new(),
            unclaimed: 0,
            sink,
            input_due: NEVER,
            clock,
            pit: Pit::new(),
            rtc: Rtc::new(&config),
            keyboard: Keyboard::new(),
            fw_cfg: FwCfg::new(&config),
            port_92: PORT_92_A20,
            reset_control: 0,
            // Its ID is the first behind those of the local APICs, as the MADT says.
            ioapic: IoApic::new(config.cpus as u8),
            hpet: Hpet::new(),
            pm: PowerManagement::new(),
            levels: 0,
            pci: Pci::new(),
            test: TestDevice::new(),
            config,
            deadline_moved: false,
        };
        board.input_due = board.next_input(board.clock.now());
        board
    }

    /// The machine is reset: the devices are as [`new`](Self::new) makes them, but for CMOS memory, which a battery keeps. The clock
    /// goes on, and so does the count of [unclaimed](Self::unclaimed) bytes. Nothing is allocated.
    pub fn reset(&mut self) {
        let Self {
            pic,
            uart,
            unclaimed: _,
            sink: _,
            input_due: _,
            clock,
            pit,
            rtc,
            keyboard,
            fw_cfg,
            port_92,
            reset_control,
            ioapic,
            hpet,
            pm,
            levels,
            pci,
            test,
            config,
            deadline_moved,
        } = self;
        (*pic, *uart, *pit, *keyboard) = (Pic::new(), Uart::new(), Pit::new(), Keyboard::new());
        (*ioapic, *hpet, *pm, *pci) = (IoApic::new(config.cpus as u8), Hpet::new(), PowerManagement::new(), Pci::new());
        *fw_cfg = FwCfg::new(config);
        (*port_92, *reset_control, *levels, *deadline_moved) = (PORT_92_A20, 0, 0, false);
        rtc.reset(config, clock.now());
        test.reset();
    }

    /// IN from `port`: the value is in the low bits, the others are 0.
    #[inline]
    pub fn read(&mut self, port: u16, size: Size) -> u32 {
        match size {
            Size::Byte => self.read_byte(port).into(),
            Size::Dword if port == PM_TIMER => self.read_pm_timer(),
            Size::Word | Size::Dword => self.read_wide(port, size),
        }
    }

    /// OUT to `port` of the low bits of `value`.
    #[inline]
    pub fn write(&mut self, port: u16, size: Size, value: u32) -> Effect {
        match size {
            Size::Byte => self.write_byte(port, value as u8),
            Size::Word | Size::Dword => self.write_wide(port, size, value),
        }
    }

    /// Reads `bytes` at guest-physical address `at`. False if no device is there.
    pub fn read_mmio(&mut self, at: Gpa, bytes: &mut [u8]) -> bool {
        let Some((page, offset)) = bus::find_page(at) else { return false };
        match page {
            Page::IoApic => copy(&self.ioapic.read(offset).to_le_bytes(), bytes),
            Page::Hpet => {
                let now = self.clock.now();
                self.advance_to(now);
                let register = self.hpet.read(offset, now).to_le_bytes();
                copy(&register[usize::from(offset & 7)..], bytes);
            }
            Page::TestMemory => copy(self.test.memory(offset, bytes.len()), bytes),
        }
        true
    }

    /// Writes `bytes` at guest-physical address `at`. False if no device is there.
    ///
    /// What [`interrupt_pending`](Self::interrupt_pending), [`has_message`](Self::has_message) and
    /// [`next_deadline`](Self::next_deadline) give may change.
    pub fn write_mmio(&mut self, at: Gpa, bytes: &[u8]) -> bool {
        let Some((page, offset)) = bus::find_page(at) else { return false };
        match page {
            Page::IoApic => {
                // Edges that came while a pin was masked must not come to light when it is unmasked.
                self.advance();
                let mut value = [0; 4];
                copy(bytes, &mut value);
                self.ioapic.write(offset, u32::from_le_bytes(value));
            }
            Page::Hpet => {
                if let Some(write) = QwordWrite::new(offset, bytes) {
                    // What is due is not to be lost when a timer is armed anew.
                    let now = self.clock.now();
                    self.advance_to(now);
                    self.hpet.write(offset, write, now);
                    self.update_levels();
                }
            }
            Page::TestMemory => copy(bytes, self.test.memory(offset, bytes.len())),
        }
        true
    }

    /// Whether the 8259s have an interrupt for the processor: the level of their INTR output. Only accesses of the guest's,
    /// [`advance`](Self::advance), [`set_gsi`](Self::set_gsi), [`receive`](Self::receive) and
    /// [`acknowledge_interrupt`](Self::acknowledge_interrupt) change this.
    #[inline]
    pub fn interrupt_pending(&self) -> bool {
        self.pic.pending()
    }

    /// A processor acknowledges an interrupt of the 8259s (INTA): returns its vector, or that of a spurious interrupt if none is
    /// pending.
    pub fn acknowledge_interrupt(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// Whether the I/O APIC has a message. It may after the same calls as with [`interrupt_pending`](Self::interrupt_pending), and
    /// after [`eoi`](Self::eoi).
    #[inline]
    pub fn has_message(&self) -> bool {
        self.ioapic.has_message()
    }

    /// The I/O APIC's next message, which the caller delivers to the local APICs.
    pub fn take_message(&mut self) -> Option<InterruptMessage> {
        self.ioapic.take_message()
    }

    /// A local APIC ended the level-triggered interrupt `vector`.
    pub fn eoi(&mut self, vector: u8) {
        self.ioapic.eoi(vector);
    }

    /// When [`advance`](Self::advance) will cause the next interrupt, or look for input, if the guest accesses no device before.
    /// None if there is neither: a processor that halts then is woken by another device, or never.
    pub fn next_deadline(&self) -> Option<Nanoseconds> {
        let legacy = !self.hpet.replaces_legacy() && self.accepts_edge(TIMER_GSI);
        let pit = if legacy { self.pit.next_deadline() } else { None };
        if !self.has_more_than_pit() {
            return pit;
        }
        let pm = self.pm.next_deadline().filter(|_| self.levels >> SCI & 1 == 0);
        let hpet = if self.hpet.is_idle() { None } else { self.hpet.next_deadline(|gsi| self.accepts_edge(gsi)) };
        let rtc = if self.rtc_interrupts() && self.accepts_edge(RTC_GSI) { self.rtc.next_deadline() } else { None };
        let input = Some(self.input_due).filter(|&due| due != NEVER);
        pit.into_iter().chain(pm).chain(hpet).chain(rtc).chain(input).min()
    }

    /// Whether an access to a port since the last call may have brought nearer what [`next_deadline`](Self::next_deadline) gives. Reads
    /// of a timer do not, so that they cost no look at all timers.
    #[inline]
    pub fn take_deadline_moved(&mut self) -> bool {
        core::mem::take(&mut self.deadline_moved)
    }

    /// Raises the timers' interrupts that are due, and looks for input. Several interrupts of one timer that were missed count as
    /// one.
    pub fn advance(&mut self) {
        self.advance_to(self.clock.now());
    }

    fn advance_to(&mut self, now: Nanoseconds) {
        // The timer goes on when the HPET takes its interrupt.
        if self.pit.take_rise(now) && !self.hpet.replaces_legacy() {
            self.pulse(TIMER_GSI);
        }
        if self.has_more_than_pit() {
            self.advance_more(now);
        }
    }

    /// Whether time has a meaning for more than the PIT, which is rare: for a device that may hold its interrupt line high, or does,
    /// and for input.
    fn has_more_than_pit(&self) -> bool {
        self.levels != 0
            || self.pm.timer_event_enabled()
            || !self.hpet.is_idle()
            || self.rtc.is_armed()
            || self.input_due != NEVER
    }

    /// Whether the clock may interrupt: the HPET takes its line in place of the legacy timers.
    fn rtc_interrupts(&self) -> bool {
        self.rtc.is_armed() && !self.hpet.replaces_legacy()
    }

    fn advance_more(&mut self, now: Nanoseconds) {
        if !self.hpet.is_idle() {
            for gsi in bits(self.hpet.advance(now)) {
                self.pulse(gsi);
            }
        }
        if self.rtc.is_armed() {
            self.rtc.advance(now);
        }
        self.update_levels();
        if now >= self.input_due {
            self.poll_input(now);
        }
    }

    /// Sets the level of interrupt line `gsi`, for devices outside of this crate: 0 to 15 are the IRQs of an ISA bus, 16 to 23 the
    /// further inputs of the I/O APIC. There are no others.
    pub fn set_gsi(&mut self, gsi: u8, high: bool) {
        if gsi < ISA_GSIS {
            self.pic.set_line(gsi, high);
        }
        self.ioapic.set_pin(pin(gsi), high);
    }

    fn pulse(&mut self, gsi: u8) {
        self.set_gsi(gsi, true);
        self.set_gsi(gsi, false);
    }

    /// Whether an edge of `gsi` could interrupt a processor.
    fn accepts_edge(&self, gsi: u8) -> bool {
        gsi < ISA_GSIS && self.pic.accepts_edge(gsi) || self.ioapic.accepts_edge(pin(gsi))
    }

    fn update_levels(&mut self) {
        let sci = self.pm.interrupt(|| self.clock.now());
        let rtc = self.rtc_interrupts() && self.rtc.interrupt();
        let levels = self.hpet.levels() | u32::from(sci) << SCI | u32::from(rtc) << RTC_GSI;
        let changed = levels ^ core::mem::replace(&mut self.levels, levels);
        for gsi in bits(changed) {
            self.set_gsi(gsi, levels >> gsi & 1 != 0);
        }
    }

    /// Has the UART take input: at each look as much as it has room for, so that a period has at most what its FIFO holds, as on a
    /// line with a speed. The rest stays with the sink.
    fn poll_input(&mut self, now: Nanoseconds) {
        self.input_due = self.next_input(now);
        while self.uart.is_ready()
            && let Some(byte) = self.sink.take()
        {
            self.uart.receive(byte);
        }
        self.update_uart_irq();
    }

    fn next_input(&self, now: Nanoseconds) -> Nanoseconds {
        self.sink.input_period().map_or(NEVER, |period| Nanoseconds(now.0.saturating_add(period.0)))
    }

    /// Receives a byte on COM1's line. False if there is no room for it yet.
    pub fn receive(&mut self, byte: u8) -> bool {
        let taken = self.uart.receive(byte);
        self.update_uart_irq();
        taken
    }

    /// The sink of the guest's output.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// How many bytes the guest has read from or written to ports that no device claims.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    /// The ports that are read most often. The other ports are in a function of their own, so that the compiler saves no
    /// registers for them here.
    #[inline]
    fn read_byte(&mut self, port: u16) -> u8 {
        // Which half it is in is asked first, so that no port is compared with all of them.
        if port < COM1 {
            return match port {
                PIT..=PIT_CHANNEL_2 => self.read_pit(usize::from(port - PIT)),
                RTC_DATA => self.read_rtc(),
                _ => self.read_other(port),
            };
        }
        match port {
            COM1..=COM1_LAST => self.read_uart(port - COM1),
            ELCR_MASTER => self.pic.read_elcr(Which::Master),
            ELCR_SLAVE => self.pic.read_elcr(Which::Slave),
            _ => self.read_other(port),
        }
    }

    #[inline(never)]
    fn read_pit(&mut self, register: usize) -> u8 {
        self.pit.read(register, self.clock.now())
    }

    #[inline(never)]
    fn read_rtc(&mut self) -> u8 {
        let byte = self.rtc.read(self.clock.now());
        if self.rtc.has_flags_selected() {
            // Its line is low now, and the next interrupt has a time.
            self.update_levels();
            self.deadline_moved = true;
        }
        byte
    }

    #[inline(never)]
    fn read_pm_timer(&self) -> u32 {
        pm::timer(self.clock.now())
    }

    #[inline(never)]
    fn read_other(&mut self, port: u16) -> u8 {
        match bus::find(port) {
            Some(range) => self.read_device(range.device, port, Size::Byte) as u8,
            None => self.read_unclaimed(),
        }
    }

    /// Reads `port` of `device`, in a size that it takes.
    fn read_device(&mut self, device: Device, port: u16, size: Size) -> u32 {
        let byte = match device {
            Device::MasterPic => {
                // A masked timer has no deadline, but its request must be visible in the IRR.
                self.advance();
                // A poll acknowledges.
                self.deadline_moved = true;
                self.pic.read(Which::Master, port & 1 == 1)
            }
            Device::SlavePic => {
                self.advance();
                self.deadline_moved = true;
                self.pic.read(Which::Slave, port & 1 == 1)
            }
            Device::Pit => self.read_pit(usize::from(port & 3)),
            Device::KeyboardData => self.keyboard.read_data(),
            Device::KeyboardCommand => self.keyboard.status(),
            Device::Speaker => self.pit.read_port_61(self.clock.now()),
            Device::Rtc if port & 1 == 1 => self.read_rtc(),
            Device::Port92 => self.port_92,
            Device::DebugConsole => DEBUG_CONSOLE_THERE,
            Device::DebugExit => 0,
            Device::FwCfg => {
                return (0..size as u32).fold(0, |value, n| value | u32::from(self.fw_cfg.read()) << (8 * n));
            }
            Device::PowerManagement => return self.pm.read(port, size, self.clock.now()),
            Device::PciAddress => return self.read_pci_address(port, size),
            Device::PciData => return self.pci.read(port, size),
            Device::TestScratch => return self.test.read(port, size),
            // These are write-only.
            Device::Rtc | Device::Delay | Device::TestFlush | Device::TestIrqs => return size.ones(),
        };
        byte.into()
    }

    fn read_pci_address(&mut self, port: u16, size: Size) -> u32 {
        match (port & 3, size) {
            (0, Size::Dword) => self.pci.address(),
            (1, Size::Byte) => self.reset_control.into(),
            _ => self.read_unclaimed().into(),
        }
    }

    fn read_unclaimed(&mut self) -> u8 {
        self.unclaimed += 1;
        0xff
    }

    /// As [`read_byte`](Self::read_byte).
    #[inline]
    fn write_byte(&mut self, port: u16, value: u8) -> Effect {
        match port {
            COM1..=COM1_LAST => return self.write_uart(port - COM1, value),
            ELCR_MASTER => self.pic.write_elcr(Which::Master, value),
            ELCR_SLAVE => self.pic.write_elcr(Which::Slave, value),
            _ => return self.write_other(port, value),
        }
        Effect::Continue
    }

    #[inline(never)]
    fn write_other(&mut self, port: u16, value: u8) -> Effect {
        match bus::find(port) {
            Some(range) => self.write_device(range.device, port, Size::Byte, value.into()),
            None => self.write_unclaimed(),
        }
    }

    /// Writes `port` of `device`, in a size that it takes.
    fn write_device(&mut self, device: Device, port: u16, size: Size, value: u32) -> Effect {
        self.deadline_moved |= device.moves_deadline();
        let byte = value as u8;
        match device {
            Device::MasterPic => {
                self.advance();
                self.pic.write(Which::Master, port & 1 == 1, byte);
            }
            Device::SlavePic => {
                self.advance();
                self.pic.write(Which::Slave, port & 1 == 1, byte);
            }
            Device::Pit => self.pit.write(port & 3, byte, self.clock.now()),
            Device::KeyboardData => return self.keyboard.write_data(byte).into(),
            Device::KeyboardCommand => return self.keyboard.write_command(byte).into(),
            Device::Speaker => self.pit.write_port_61(byte, self.clock.now()),
            Device::Rtc if port & 1 == 1 => {
                self.rtc.write(byte, self.clock.now());
                self.update_levels();
            }
            Device::Rtc => self.rtc.select(byte),
            Device::Port92 => return self.write_port_92(byte),
            Device::DebugConsole if !self.sink.has_room() => return Effect::Wait,
            Device::DebugConsole => self.sink.put(byte),
            Device::DebugExit => return Effect::Exit(value & size.ones()),
            Device::FwCfg if size == Size::Word => self.fw_cfg.select(value as u16),
            Device::PowerManagement => {
                let effect = self.pm.write(port, size, value, self.clock.now());
                self.update_levels();
                return effect.into();
            }
            Device::PciAddress => return self.write_pci_address(port, size, value),
            Device::PciData => self.pci.write(port, size, value),
            Device::TestScratch => self.test.write(port, size, value),
            Device::TestIrqs => self.set_gsi((port & 0x1f) as u8, byte != 0),
            // fw_cfg's selector takes words only.
            Device::FwCfg | Device::Delay | Device::TestFlush => {}
        }
        Effect::Continue
    }

    fn write_pci_address(&mut self, port: u16, size: Size, value: u32) -> Effect {
        match (port & 3, size) {
            (0, Size::Dword) => self.pci.set_address(value),
            (1, Size::Byte) => return self.write_reset_control(value as u8),
            _ => return self.write_unclaimed(),
        }
        Effect::Continue
    }

    fn write_unclaimed(&mut self) -> Effect {
        self.unclaimed += 1;
        Effect::Continue
    }

    #[inline(never)]
    fn read_uart(&mut self, register: u16) -> u8 {
        let value = self.uart.read(register);
        self.update_uart_irq();
        value
    }

    #[inline(never)]
    fn write_uart(&mut self, register: u16, value: u8) -> Effect {
        if self.uart.sends(register) && !self.sink.has_room() {
            return Effect::Wait;
        }
        self.uart.write(register, value, &mut self.sink);
        self.update_uart_irq();
        Effect::Continue
    }

    /// Reads a wide register, or bytes of consecutive ports, the lowest first. Beyond port 0xffff there are only ones.
    #[inline(never)]
    fn read_wide(&mut self, port: u16, size: Size) -> u32 {
        if let Some(range) = bus::find(port).filter(|range| range.takes_whole(port, size)) {
            return self.read_device(range.device, port, size);
        }
        (0..size as u16).fold(0, |value, n| {
            let byte = port.checked_add(n).map_or(0xff, |port| self.read_byte(port));
            value | u32::from(byte) << (8 * n)
        })
    }

    #[inline(never)]
    fn write_wide(&mut self, port: u16, size: Size, value: u32) -> Effect {
        match bus::find(port).filter(|range| range.takes_whole(port, size)) {
            Some(range) => self.write_device(range.device, port, size, value),
            None => self.write_bytes(port, size, value),
        }
    }

    /// Writes bytes to consecutive ports, the lowest first, until one of them has an effect. If that is [`Effect::Wait`], the whole
    /// access is repeated; the ports before a console port have no effect, so that writing them twice does no harm.
    fn write_bytes(&mut self, port: u16, size: Size, value: u32) -> Effect {
        for (n, byte) in (0..size as u16).zip(value.to_le_bytes()) {
            let Some(port) = port.checked_add(n) else { break };
            match self.write_byte(port, byte) {
                Effect::Continue => {}
                end => return end,
            }
        }
        Effect::Continue
    }

    fn write_port_92(&mut self, value: u8) -> Effect {
        let resets = value & !self.port_92 & PORT_92_RESET != 0;
        self.port_92 = value & !PORT_92_RESET | PORT_92_A20;
        Resets(resets).into()
    }

    fn write_reset_control(&mut self, value: u8) -> Effect {
        self.reset_control = value & !RESET_CONTROL_NOW;
        Resets(value & RESET_CONTROL_NOW != 0).into()
    }

    fn update_uart_irq(&mut self) {
        let level = self.uart.interrupt();
        if level != self.pic.line(UART_GSI) {
            self.set_gsi(UART_GSI, level);
        }
    }
}

/// The numbers of the bits that are set.
fn bits(mut set: Gsis) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let lowest = (set != 0).then(|| set.trailing_zeros() as u8);
        set &= set.wrapping_sub(1);
        lowest
    })
}

/// Copies what there is room for. Where there is nothing to be copied, there are zeros.
fn copy(from: &[u8], to: &mut [u8]) {
    for (n, byte) in to.iter_mut().enumerate() {
        *byte = from.get(n).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use core::cell::Cell;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    struct At<'a>(&'a Cell<u64>);
    impl Clock for At<'_> {
        fn now(&self) -> Nanoseconds {
            Nanoseconds(self.0.get())
        }
    }

    const CONFIG: BoardConfig = BoardConfig { ram_bytes: 64 << 20, cpus: 1, boot_time: 0 };

    /// Runs `test` with a board, and returns the output.
    fn printed(test: impl FnOnce(&mut Board<&mut dyn FnMut(u8), At<'_>>, &Cell<u64>)) -> Vec<u8> {
        let (mut out, time) = (Vec::new(), Cell::new(0));
        let mut put = |byte| out.push(byte);
        let mut board = Board::new(CONFIG, &mut put as &mut dyn FnMut(u8), At(&time));
        test(&mut board, &time);
        out
    }

    fn write_all<S: Sink, C: Clock>(board: &mut Board<S, C>, writes: &[(u16, u8)]) {
        for &(port, value) in writes {
            assert_eq!(board.write(port, Size::Byte, value.into()), Effect::Continue);
        }
    }

    /// What a guest can read of the devices without a change to them, but for CMOS memory.
    fn shown(board: &mut Board<&mut dyn FnMut(u8), At<'_>>) -> Vec<u32> {
        const PORTS: [u16; 14] =
            [0x21, 0xa1, 0x61, 0x92, 0x3f9, 0x3fb, 0x3fc, 0x3ff, 0x4d0, 0x4d1, 0xcf9, 0xe0, 0x600, 0x602];
        let mut shown: Vec<_> = PORTS.iter().map(|&port| board.read(port, Size::Byte)).collect();
        shown.push(board.read(0xcf8, Size::Dword));
        for at in [0xfec0_0010, 0xfed0_0010, 0xfed0_0100, 0xff00_0000] {
            let mut bytes = [0; 4];
            assert!(board.read_mmio(Gpa::new(at), &mut bytes));
            shown.push(u32::from_le_bytes(bytes));
        }
        shown
    }

    #[test]
    fn a_reset_leaves_nothing_of_a_guest_but_cmos_memory() {
        printed(|board, time| {
            let new = shown(board);
            write_all(board, &PIC_SETUP);
            let writes = [
                (0x21, 0),
                (0xa1, 0),
                (0x61, 1),
                (0x3fb, 3),
                (0x3f9, 1),
                (0x3fc, 0xb),
                (0x3ff, 7),
                (0x4d0, 8),
                (0x4d1, 8),
            ];
            write_all(board, &writes);
            write_all(board, &[(0x43, 0x34), (0x40, 1), (0x40, 1), (0x92, 2), (0xcf9, 2), (0xe0, 9), (0x602, 1)]);
            let _ = board.write(0xcf8, Size::Dword, 0x8000_0000);
            for at in [0xfec0_0000, 0xfec0_0010, 0xfed0_0010, 0xfed0_0100, 0xff00_0000] {
                assert!(board.write_mmio(Gpa::new(at), &[0x10, 1, 0, 0]));
            }
            write_all(board, &[(0x70, 0x40), (0x71, 0x5a), (0x70, 0x15), (0x71, 0xff)]);
            time.set(1 << 30);
            board.advance();
            assert!(board.interrupt_pending() && board.next_deadline().is_some());
            assert_ne!(shown(board), new);

            board.reset();
            assert_eq!(shown(board), new);
            assert!(!board.interrupt_pending() && !board.has_message());
            assert_eq!(board.next_deadline(), None);
            let mut cmos = |at: u8| {
                write_all(board, &[(0x70, at)]);
                board.read(0x71, Size::Byte)
            };
            assert_eq!((cmos(0x40), cmos(0x15)), (0x5a, 0x80), "the firmware's part is written anew");
        });
    }

    const PIC_SETUP: [(u16, u8); 8] = [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 0x02),
        (0xa1, 0x01),
    ];

    #[test]
    fn com1_and_the_debug_console_print() {
        let out = printed(|board, _| {
            write_all(board, &[(0x3f8, b'h'), (0xe9, b'v')]);
            assert_eq!(board.read(0xe9, Size::Byte), 0xe9);
            assert_eq!(board.read(0x3fd, Size::Byte), 0x60);
            assert_eq!(board.unclaimed(), 0);
        });
        assert_eq!(out, b"hv");
    }

    #[test]
    fn the_exit_port_gives_the_value_in_every_width() {
        printed(|board, _| {
            for (size, value) in [(Size::Byte, 0x21), (Size::Word, 0x4321), (Size::Dword, 0x8765_4321)] {
                assert_eq!(board.write(0xf4, size, 0x8765_4321), Effect::Exit(value));
            }
        });
    }

    #[test]
    fn each_way_to_reset_resets() {
        for (port, value) in [(0x64, 0xfe), (0x92, 0x03), (0xcf9, 0x06)] {
            printed(|board, _| assert_eq!(board.write(port, Size::Byte, value), Effect::Reset));
        }
        printed(|board, _| {
            write_all(board, &[(0x92, 0x02), (0xcf9, 0x02), (0x64, 0xff)]);
            assert_eq!(board.read(0x92, Size::Byte), 0x02);
            assert_eq!(board.read(0xcf9, Size::Byte), 0x02);
        });
    }

    #[test]
    fn unclaimed_ports_read_as_ones_and_are_counted_by_the_byte() {
        printed(|board, _| {
            assert_eq!(board.read(0x300, Size::Byte), 0xff);
            assert_eq!(board.read(0x300, Size::Word), 0xffff);
            assert_eq!(board.read(0xffff, Size::Dword), 0xffff_ffff);
            assert_eq!(board.write(0xfffe, Size::Dword, 0), Effect::Continue);
            assert_eq!(board.unclaimed(), 1 + 2 + 1 + 2);
        });
    }

    #[test]
    fn wide_accesses_to_bytes_go_to_consecutive_ports() {
        printed(|board, _| {
            assert_eq!(board.write(0x4d0, Size::Word, 0x1a28), Effect::Continue);
            assert_eq!(board.read(0x4d0, Size::Byte), 0x28);
            assert_eq!(board.read(0x4d1, Size::Byte), 0x1a);
            assert_eq!(board.read(0x4d0, Size::Dword), 0xffff_1a28);
        });
    }

    #[test]
    fn the_uart_interrupts_by_line_4() {
        printed(|board, _| {
            write_all(board, &PIC_SETUP);
            write_all(board, &[(0x3f9, 0x02)]);
            assert!(board.interrupt_pending());
            assert_eq!(board.acknowledge_interrupt(), 0x24);
            assert_eq!(board.read(0x3fa, Size::Byte), 0x02);
            write_all(board, &[(0x20, 0x20), (0x3f8, b'x')]);
            assert_eq!(board.acknowledge_interrupt(), 0x24, "the line fell and rose");
            write_all(board, &[(0x20, 0x20), (0x3f9, 0x01)]);
            assert!(!board.interrupt_pending());
            assert!(board.receive(b'a'));
            assert!(board.interrupt_pending());
            assert_eq!(board.read(0x3f8, Size::Byte), b'a'.into());
        });
    }

    #[test]
    fn the_timer_interrupts_by_line_0_at_its_deadline() {
        printed(|board, time| {
            write_all(board, &PIC_SETUP);
            // 1193 ticks: a millisecond.
            write_all(board, &[(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)]);
            for _ in 0..3 {
                let deadline = board.next_deadline().unwrap().0;
                time.set(deadline - 1);
                board.advance();
                assert!(!board.interrupt_pending());
                time.set(deadline);
                board.advance();
                assert_eq!(board.acknowledge_interrupt(), 0x20);
                assert!(!board.interrupt_pending());
                write_all(board, &[(0x20, 0x20)]);
            }
            assert_eq!(time.get(), 3 * 1193 * 1_000_000_000u64 / 1_193_182 + 1);
        });
    }

    #[test]
    fn a_masked_timer_has_no_deadline_but_is_seen_when_unmasked() {
        printed(|board, time| {
            assert_eq!(board.next_deadline(), None, "firmware left everything masked");
            write_all(board, &PIC_SETUP);
            assert!(board.next_deadline().is_some());
            write_all(board, &[(0x21, 0x01)]);
            assert_eq!(board.next_deadline(), None);
            time.set(1_000_000_000);
            assert_eq!(board.read(0x20, Size::Byte), 0x01, "requested");
            write_all(board, &[(0x21, 0x00)]);
            assert!(board.interrupt_pending());
            assert_eq!(board.next_deadline(), None, "a second edge would be none");
            assert_eq!(board.acknowledge_interrupt(), 0x20);
            assert!(board.next_deadline().is_some_and(|deadline| deadline.0 > time.get()));
        });
    }

    #[test]
    fn the_pm_timer_counts_24_bits_at_its_frequency() {
        printed(|board, time| {
            time.set(1_000_000_000);
            assert_eq!(board.read(0x608, Size::Dword), 3_579_545);
            assert_eq!(board.read(0x608, Size::Word), 3_579_545 & 0xffff);
            assert_eq!(board.read(0x609, Size::Byte), 3_579_545 >> 8 & 0xff);
            time.set(5_000_000_000);
            assert_eq!(board.read(0x608, Size::Dword), (5 * 3_579_545) & 0xff_ffff);
            assert_eq!(board.unclaimed(), 0);
        });
    }

    #[test]
    fn pci_configuration_is_behind_an_address_and_four_data_ports() {
        printed(|board, _| {
            assert_eq!(board.write(0xcf8, Size::Dword, 0x8000_0800), Effect::Continue);
            assert_eq!(board.read(0xcf8, Size::Dword), 0x8000_0800);
            assert_eq!(board.write(0xcf9, Size::Byte, 0), Effect::Continue);
            assert_eq!(board.read(0xcf8, Size::Dword), 0x8000_0800, "a byte goes to the reset control register");
            assert_eq!(board.read(0xcfc, Size::Dword), 0x7000_8086);
            assert_eq!(board.read(0xcfe, Size::Word), 0x7000);
            assert_eq!(board.read(0xcfd, Size::Byte), 0x80);
            assert_eq!(board.write(0xcf8, Size::Dword, 0x8000_1000), Effect::Continue);
            for (port, size) in [(0xcfc, Size::Dword), (0xcfe, Size::Word), (0xcff, Size::Byte)] {
                assert_eq!(board.read(port, size), size.ones(), "no such device");
            }
            assert_eq!(board.unclaimed(), 0);
        });
    }

    #[test]
    fn s5_powers_off_in_each_width_that_reaches_the_sleep_bit() {
        printed(|board, _| {
            assert_eq!(board.write(0x604, Size::Word, 0x2000), Effect::PowerOff);
            assert_eq!(board.write(0x605, Size::Byte, 0x20), Effect::PowerOff);
            assert_eq!(board.write(0x604, Size::Word, 0x3400), Effect::Continue, "another sleep type");
        });
    }

    #[test]
    fn the_pm_timer_interrupts_by_line_9_until_its_status_is_cleared() {
        printed(|board, time| {
            program_pin(board, 9, LEVEL | 0x49);
            assert_eq!(board.write(0x602, Size::Word, 1), Effect::Continue);
            time.set(board.next_deadline().unwrap().0);
            board.advance();
            assert_eq!((messages(board), board.next_deadline()), (vec![0x49], None));
            assert_eq!(board.write(0x600, Size::Word, 1), Effect::Continue);
            board.eoi(0x49);
            assert_eq!(messages(board), []);
            assert!(board.next_deadline().is_some_and(|deadline| deadline.0 > time.get()));
        });
    }

    const IOAPIC: Gpa = Gpa::new(0xfec0_0000);
    const HPET: Gpa = Gpa::new(0xfed0_0000);
    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;

    fn write_dword(board: &mut Board<impl Sink, impl Clock>, at: Gpa, offset: u64, value: u32) {
        assert!(board.write_mmio(at.wrapping_add(offset), &value.to_le_bytes()));
    }

    fn read_dword(board: &mut Board<impl Sink, impl Clock>, at: Gpa, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        assert!(board.read_mmio(at.wrapping_add(offset), &mut bytes));
        u32::from_le_bytes(bytes)
    }

    /// Writes the lower half of an entry of the I/O APIC.
    fn program_pin(board: &mut Board<impl Sink, impl Clock>, pin: u32, low: u32) {
        write_dword(board, IOAPIC, 0, 0x10 + 2 * pin);
        write_dword(board, IOAPIC, 0x10, low);
    }

    /// The vectors of the I/O APIC's messages.
    fn messages(board: &mut Board<impl Sink, impl Clock>) -> Vec<u8> {
        core::iter::from_fn(|| board.take_message()).map(|message| message.vector).take(25).collect()
    }

    #[test]
    fn the_test_devices_lines_reach_both_controllers() {
        printed(|board, _| {
            write_all(board, &PIC_SETUP);
            for line in (0..24).filter(|&line| line != 2) {
                let pin = if line == 0 { 2 } else { line.into() };
                program_pin(board, pin, 0x50 + pin);
                write_all(board, &[(0x2000 + line, 1)]);
                assert_eq!(messages(board), [0x50 + pin as u8], "line {line}");
                assert_eq!(board.interrupt_pending(), line < 16);
                if line < 16 {
                    assert_eq!(u16::from(board.acknowledge_interrupt()), 0x20 + line);
                    write_all(board, &[(0x2000 + line, 0), (0xa0, 0x20), (0x20, 0x20)]);
                }
            }
            assert_eq!(board.unclaimed(), 0);
        });
    }

    #[test]
    fn the_test_device_has_scratch_ports_of_each_width_a_flush_port_and_memory() {
        printed(|board, _| {
            assert_eq!(board.write(0xe0, Size::Dword, 0x1234_5678), Effect::Continue);
            assert_eq!(board.write(0xe1, Size::Byte, 0xab), Effect::Continue);
            assert_eq!(board.write(0xe2, Size::Word, 0xcdef), Effect::Continue);
            assert_eq!(board.read(0xe0, Size::Dword), 0xcdef_ab78);
            assert_eq!([board.read(0xe0, Size::Word), board.read(0xe3, Size::Byte)], [0xab78, 0xcd]);
            assert_eq!(board.read(0xe1, Size::Word), 0xefab, "bytes of one register");
            assert_eq!(board.write(0xe4, Size::Dword, 0x1000), Effect::Continue);
            assert_eq!(board.unclaimed(), 0);

            let end = Gpa::new(0xff00_0ffe);
            assert!(board.write_mmio(end, &[1, 2, 3, 4]));
            let mut bytes = [0xff; 4];
            assert!(board.read_mmio(end, &mut bytes));
            assert_eq!(bytes, [1, 2, 0, 0], "no access goes beyond the page");
            assert!(!board.read_mmio(Gpa::new(0xff00_1000), &mut bytes));
        });
    }

    #[test]
    fn the_timer_interrupts_by_pin_2_when_the_8259s_are_masked() {
        printed(|board, time| {
            write_all(board, &[(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)]);
            assert_eq!(board.next_deadline(), None);
            program_pin(board, 2, 0x30);
            for _ in 0..3 {
                time.set(board.next_deadline().unwrap().0);
                board.advance();
                assert_eq!(messages(board), [0x30]);
            }
        });
    }

    #[test]
    fn a_timer_that_was_due_while_its_pin_was_masked_is_not_when_it_is_unmasked() {
        printed(|board, time| {
            program_pin(board, 2, MASKED | 0x30);
            time.set(1_000_000_000);
            program_pin(board, 2, 0x30);
            assert_eq!(messages(board), []);
            assert!(board.next_deadline().is_some_and(|deadline| deadline.0 > time.get()));
        });
    }

    #[test]
    fn the_hpet_takes_the_timers_place() {
        printed(|board, time| {
            write_all(board, &PIC_SETUP);
            write_dword(board, HPET, 0x10, 3);
            // Periodic, with an interrupt, 32 bits: a millisecond.
            write_dword(board, HPET, 0x100, 0x14c);
            write_dword(board, HPET, 0x108, 100_000);
            for n in 1..=3 {
                assert_eq!(board.next_deadline(), Some(Nanoseconds(n * 1_000_000)));
                time.set(n * 1_000_000);
                board.advance();
                assert_eq!(board.acknowledge_interrupt(), 0x20);
                write_all(board, &[(0x20, 0x20)]);
            }
            time.set(60_000_000);
            assert_eq!(read_dword(board, HPET, 0xf0), 6_000_000);
            assert_eq!(read_dword(board, HPET, 4), 10_000_000, "femtoseconds to a tick");
            assert_eq!(board.acknowledge_interrupt(), 0x20);
            write_dword(board, HPET, 0x10, 0);
            assert!(board.next_deadline().is_some(), "the timer is back");
        });
    }

    #[test]
    fn the_timer_is_cut_off_while_the_hpet_replaces_it() {
        printed(|board, time| {
            write_all(board, &PIC_SETUP);
            write_dword(board, HPET, 0x10, 3);
            assert_eq!(board.next_deadline(), None);
            time.set(1_000_000_000);
            board.advance();
            assert!(!board.interrupt_pending());
        });
    }

    #[test]
    fn the_hpets_second_timer_is_line_8_of_the_second_controller() {
        printed(|board, time| {
            write_all(board, &PIC_SETUP);
            write_all(board, &[(0xa1, 0x01)]);
            write_dword(board, HPET, 0x10, 3);
            write_dword(board, HPET, 0x120, 0x104);
            write_dword(board, HPET, 0x128, 100);
            assert_eq!(board.next_deadline(), None, "masked");
            write_all(board, &[(0xa1, 0x00)]);
            assert_eq!(board.next_deadline(), Some(Nanoseconds(1000)));
            assert!(board.take_deadline_moved());
            time.set(1000);
            board.advance();
            assert_eq!(board.acknowledge_interrupt(), 0x28);
        });
    }

    #[test]
    fn the_clock_holds_line_8_until_its_flags_are_read() {
        printed(|board, time| {
            write_all(board, &PIC_SETUP);
            write_all(board, &[(0x21, 0xfb), (0xa1, 0x01), (0x70, 0x0b), (0x71, 0x12)]);
            assert_eq!(board.next_deadline(), None, "masked");
            write_all(board, &[(0xa1, 0x00)]);
            assert_eq!(board.next_deadline(), Some(Nanoseconds(1_000_000_000)));
            assert!(board.take_deadline_moved());
            for second in 1..4 {
                time.set(second * 1_000_000_000 + 5);
                board.advance();
                assert_eq!(board.acknowledge_interrupt(), 0x28);
                write_all(board, &[(0xa0, 0x20), (0x20, 0x20)]);
                assert!(!board.interrupt_pending(), "an edge is one interrupt");
                write_all(board, &[(0x70, 0x0c)]);
                assert_eq!(board.read(0x71, Size::Byte) & !0x40, 0x90);
                assert_eq!(board.next_deadline(), Some(Nanoseconds((second + 1) * 1_000_000_000)));
            }
            write_dword(board, HPET, 0x10, 3);
            assert_eq!(board.next_deadline(), None, "the HPET has the line");
        });
    }

    #[test]
    fn a_level_of_the_hpet_is_held_until_its_status_is_cleared() {
        printed(|board, time| {
            program_pin(board, 20, LEVEL | 0x60);
            write_dword(board, HPET, 0x140, 20 << 9 | 0x06);
            assert!(board.write_mmio(HPET.wrapping_add(0x148), &500u64.to_le_bytes()));
            write_dword(board, HPET, 0x10, 1);
            time.set(5000);
            assert_eq!(read_dword(board, HPET, 0x20), 4);
            assert_eq!(messages(board), [0x60]);
            board.eoi(0x60);
            assert_eq!(messages(board), [0x60], "the line is still high");
            write_dword(board, HPET, 0x20, 4);
            board.eoi(0x60);
            assert_eq!(messages(board), []);
        });
    }

    #[test]
    fn the_uart_interrupts_by_pin_4() {
        printed(|board, _| {
            program_pin(board, 4, 0x34);
            write_all(board, &[(0x3f9, 0x01)]);
            assert!(board.receive(b'a'));
            assert_eq!(messages(board), [0x34]);
            assert_eq!(board.read(0x3f8, Size::Byte), b'a'.into());
            assert!(board.receive(b'b'));
            assert_eq!(messages(board), [0x34]);
        });
    }

    /// What is typed on COM1's line.
    struct Typed(Vec<u8>);

    impl Sink for Typed {
        fn put(&mut self, _: u8) {}

        fn take(&mut self) -> Option<u8> {
            (!self.0.is_empty()).then(|| self.0.remove(0))
        }

        fn input_period(&self) -> Option<Nanoseconds> {
            Some(Nanoseconds(1000))
        }
    }

    #[test]
    fn input_waits_for_the_driver_and_comes_as_the_fifo_has_room() {
        let time = Cell::new(0);
        let mut board = Board::new(CONFIG, Typed((0..40).collect()), At(&time));
        let period = |board: &mut Board<Typed, At<'_>>| {
            let due = board.next_deadline().unwrap().0;
            assert_eq!(due, time.get() + 1000);
            time.set(due);
            board.advance();
        };
        write_all(&mut board, &PIC_SETUP);
        period(&mut board);
        assert_eq!((board.read(0x3fd, Size::Byte), board.sink().0.len()), (0x60, 40), "no driver is there yet");
        write_all(&mut board, &[(0x3fa, 0x07), (0x3f9, 0x01), (0x3fc, 0x0b)]);
        assert!(!board.interrupt_pending());
        for expected in [0..16, 16..32, 32..40] {
            period(&mut board);
            period(&mut board);
            assert_eq!(board.sink().0.len(), 40 - expected.end, "what there is no room for stays");
            assert!(board.interrupt_pending());
            assert_eq!(board.acknowledge_interrupt(), 0x24);
            write_all(&mut board, &[(0x20, 0x20)]);
            expected.for_each(|byte| assert_eq!(board.read(0x3f8, Size::Byte), byte as u32));
            assert_eq!(board.read(0x3fd, Size::Byte), 0x60, "all of it was read");
        }
    }

    #[test]
    fn fw_cfg_as_kvm_unit_tests_read_it() {
        printed(|board, _| {
            assert_eq!(board.write(0x510, Size::Word, 5), Effect::Continue);
            assert_eq!([0x511; 4].map(|port| board.read(port, Size::Byte)), [1, 0, 0, 0]);
        });
    }

    #[test]
    fn the_clock_is_behind_its_two_ports() {
        printed(|board, time| {
            time.set(61_000_000_000);
            write_all(board, &[(0x70, 0x02)]);
            assert_eq!(board.read(0x71, Size::Byte), 0x01);
            write_all(board, &[(0x70, 0x44), (0x71, 0x5a)]);
            assert_eq!(board.read(0x71, Size::Byte), 0x5a);
        });
    }

    proptest! {
        #[test]
        fn any_accesses_end_and_deadlines_are_ahead(accesses in prop::collection::vec(fuzz::access(), 0..300)) {
            fuzz::devices_ports(&accesses.concat());
        }
    }
}
