//! Tasks as the processor switches them: a TSS for each, and code that reports what it finds (Intel SDM vol. 3, chapter 8).

use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use base::smp::{Cpu, FIRST_TSS};

use crate::descriptors::{self, CODE, DATA, TSS, Tss};
use crate::interrupts::restore_gate;
use crate::processor;

/// Fields of a 32-bit TSS, in doublewords.
pub mod field {
    /// The selector of the task that was left for this one.
    pub const LINK: usize = 0;
    /// CR3.
    pub const CR3: usize = 7;
    /// EIP.
    pub const EIP: usize = 8;
    /// EFLAGS.
    pub const EFLAGS: usize = 9;
    /// EBX.
    pub const EBX: usize = 13;
    /// ESP.
    pub const ESP: usize = 14;
    /// ES; the other segment registers follow.
    pub const ES: usize = 18;
    /// CS.
    pub const CS: usize = 19;
    /// SS.
    pub const SS: usize = 20;
    /// DS.
    pub const DS: usize = 21;
    /// GS.
    pub const GS: usize = 23;
    /// LDTR.
    pub const LDT: usize = 24;
    /// T, and the offset of the I/O permission bitmap.
    pub const TRAP: usize = 25;
}

/// Access byte of a 32-bit TSS that is not busy.
pub const AVAILABLE_TSS: u8 = 0x89;
/// Access byte of one that is.
pub const BUSY_TSS: u8 = 0x8b;
/// Access byte of a 16-bit TSS that is not busy.
pub const AVAILABLE_TSS_16: u8 = 0x81;
/// The last byte of a 32-bit TSS.
pub const LIMIT: u32 = 0x67;

/// The selector of the TSS of the processor that booted: of the task that tests run in.
pub const MAIN: u16 = FIRST_TSS;

/// EFLAGS.NT: IRET goes back to the task that was left.
pub const NESTED_TASK: u32 = 1 << 14;
/// DR6.BT: a task was entered whose TSS has T set.
pub const DR6_TASK: u32 = 1 << 15;

/// What a task's code finds.
#[repr(C)]
#[derive(Debug)]
pub struct Report {
    /// How often it ran.
    pub runs: AtomicU32,
    /// The error code that it was given.
    pub error: AtomicU32,
    /// ESP, without that.
    pub esp: AtomicU32,
    /// EFLAGS.
    pub eflags: AtomicU32,
    /// CR0.
    pub cr0: AtomicU32,
    /// CR3.
    pub cr3: AtomicU32,
    /// The task register.
    pub tr: AtomicU32,
    /// LDTR.
    pub ldtr: AtomicU32,
    /// DS.
    pub ds: AtomicU32,
    /// EBX.
    pub ebx: AtomicU32,
    /// DR6.
    pub dr6: AtomicU32,
    /// What is at [`peek_at`](Self::peek_at).
    pub peeked: AtomicU32,
    /// An address that the task reads.
    pub peek_at: AtomicU32,
    /// An address that it then writes, if not 0,
    pub poke_at: AtomicU32,
    /// and what it writes there.
    pub poke: AtomicU32,
}

/// What [`report_and_return`] and its like have found.
pub static REPORT: Report = Report {
    runs: AtomicU32::new(0),
    error: AtomicU32::new(0),
    esp: AtomicU32::new(0),
    eflags: AtomicU32::new(0),
    cr0: AtomicU32::new(0),
    cr3: AtomicU32::new(0),
    tr: AtomicU32::new(0),
    ldtr: AtomicU32::new(0),
    ds: AtomicU32::new(0),
    ebx: AtomicU32::new(0),
    dr6: AtomicU32::new(0),
    peeked: AtomicU32::new(0),
    peek_at: AtomicU32::new(0),
    poke_at: AtomicU32::new(0),
    poke: AtomicU32::new(0),
};

impl Report {
    /// Forgets all.
    pub fn clear(&self) {
        let Self { runs, error, esp, eflags, cr0, cr3, tr, ldtr, ds, ebx, dr6, peeked, peek_at, poke_at, poke } = self;
        for field in [runs, error, esp, eflags, cr0, cr3, tr, ldtr, ds, ebx, dr6, peeked, peek_at, poke_at, poke] {
            field.store(0, Relaxed);
        }
        // Whatever that is: it can be read.
        peek_at.store(ptr::from_ref(self).expose_provenance() as u32, Relaxed);
    }

    /// Has the next task write `value` to `at`.
    pub fn poke(&self, at: u32, value: u32) {
        self.poke.store(value, Relaxed);
        self.poke_at.store(at, Relaxed);
    }
}

/// A task's code: it reports, and goes back to the task that was left for it, by IRET. When it is entered again, it does so again.
#[unsafe(naked)]
pub extern "C" fn report_and_return() {
    naked_asm!(
        "2: call {report}",
        "iretd",
        "jmp 2b",
        report = sym report,
    )
}

/// The same for the handler of an exception with an error code.
#[unsafe(naked)]
pub extern "C" fn report_error_and_return() {
    naked_asm!(
        "2: pop dword ptr [{REPORT} + {error}]",
        "call {report}",
        "iretd",
        "jmp 2b",
        REPORT = sym REPORT,
        error = const offset_of!(Report, error),
        report = sym report,
    )
}

/// The same, but it goes to [`MAIN`] by a far JMP.
#[unsafe(naked)]
pub extern "C" fn report_and_jump() {
    naked_asm!(
        "2: call {report}",
        ".byte 0xea", // JMP ptr16:32
        ".long 0",
        ".word {main}",
        "jmp 2b",
        report = sym report,
        main = const MAIN,
    )
}

/// A task's code in user mode: it has its CS and EFLAGS written to the report, and goes back.
#[unsafe(naked)]
pub extern "C" fn report_in_user_mode() {
    naked_asm!(
        "2: mov ebx, cs",
        "mov [{REPORT} + {ebx}], ebx",
        "inc dword ptr [{REPORT} + {runs}]",
        "iretd",
        "jmp 2b",
        REPORT = sym REPORT,
        ebx = const offset_of!(Report, ebx),
        runs = const offset_of!(Report, runs),
    )
}

/// Writes [`REPORT`]; changes no register but EAX, ECX and EFLAGS.
#[unsafe(naked)]
extern "C" fn report() {
    naked_asm!(
        "pushfd",
        "pop dword ptr [{REPORT} + {eflags}]",
        "inc dword ptr [{REPORT} + {runs}]",
        "lea eax, [esp + 4]",
        "mov [{REPORT} + {esp}], eax",
        "mov [{REPORT} + {ebx}], ebx",
        "mov eax, cr0",
        "mov [{REPORT} + {cr0}], eax",
        "clts",
        "mov eax, cr3",
        "mov [{REPORT} + {cr3}], eax",
        "mov eax, dr6",
        "mov [{REPORT} + {dr6}], eax",
        "str eax",
        "mov [{REPORT} + {tr}], eax",
        "sldt eax",
        "mov [{REPORT} + {ldtr}], eax",
        "mov eax, ds",
        "mov [{REPORT} + {ds}], eax",
        "mov eax, [{REPORT} + {peek_at}]",
        "mov eax, [eax]",
        "mov [{REPORT} + {peeked}], eax",
        "mov ecx, [{REPORT} + {poke_at}]",
        "jecxz 2f",
        "mov eax, [{REPORT} + {poke}]",
        "mov [ecx], eax",
        "2: ret",
        REPORT = sym REPORT,
        runs = const offset_of!(Report, runs),
        esp = const offset_of!(Report, esp),
        eflags = const offset_of!(Report, eflags),
        cr0 = const offset_of!(Report, cr0),
        cr3 = const offset_of!(Report, cr3),
        tr = const offset_of!(Report, tr),
        ldtr = const offset_of!(Report, ldtr),
        ds = const offset_of!(Report, ds),
        ebx = const offset_of!(Report, ebx),
        dr6 = const offset_of!(Report, dr6),
        peeked = const offset_of!(Report, peeked),
        peek_at = const offset_of!(Report, peek_at),
        poke_at = const offset_of!(Report, poke_at),
        poke = const offset_of!(Report, poke),
    )
}

#[repr(C, align(16))]
struct Stack([AtomicU32; 1024]);

/// A task, with the TSS and the stack that it has.
#[repr(C, align(128))]
pub struct Task {
    tss: Tss,
    /// The descriptor's number among the free ones.
    index: usize,
    stack: Stack,
}

impl Task {
    /// A task whose TSS has the free descriptor of number `index`.
    pub const fn new(index: usize) -> Self {
        Self { tss: [const { AtomicU32::new(0) }; 26], index, stack: Stack([const { AtomicU32::new(0) }; 1024]) }
    }

    /// Has it begin at `code`, in the address space that is loaded, with flat segments; its descriptor is that of a TSS which
    /// is not busy. Gives the selector.
    pub fn prepare(&self, code: extern "C" fn()) -> u16 {
        self.tss.iter().for_each(|field| field.store(0, Relaxed));
        for (field, value) in [
            (field::CR3, processor::cr3()),
            (field::EIP, code as *const () as u32),
            (field::EFLAGS, 2),
            (field::ESP, self.stack_top()),
            (field::TRAP, (LIMIT + 1) << 16),
        ] {
            self.tss[field].store(value, Relaxed);
        }
        (field::ES..=field::GS).for_each(|field| self.set(field, DATA.into()));
        self.set(field::CS, CODE.into());
        self.describe(LIMIT, AVAILABLE_TSS)
    }

    /// Writes its descriptor; gives the selector.
    pub fn describe(&self, limit: u32, access: u8) -> u16 {
        descriptors::set_free(self.index, descriptors::descriptor(self.address(field::LINK), limit, access, 0))
    }

    /// The access byte of its descriptor.
    pub fn access(&self) -> u8 {
        (descriptors::free(self.index) >> 40) as u8
    }

    /// The end of its stack.
    pub fn stack_top(&self) -> u32 {
        self.stack.0.as_ptr_range().end as u32
    }

    /// The start of its stack.
    pub fn stack_start(&self) -> u32 {
        self.stack.0.as_ptr() as u32
    }

    /// Where a field of its TSS is.
    pub fn address(&self, field: usize) -> u32 {
        (&raw const self.tss[field]).expose_provenance() as u32
    }

    /// A field of its TSS.
    pub fn get(&self, field: usize) -> u32 {
        self.tss[field].load(Relaxed)
    }

    /// Writes a field of its TSS.
    pub fn set(&self, field: usize, value: u32) {
        self.tss[field].store(value, Relaxed);
    }
}

/// A field of the TSS of [`MAIN`].
pub fn main_field(field: usize) -> u32 {
    TSS.of(Cpu::BOOT)[field].load(Relaxed)
}

/// The access byte of its descriptor.
pub fn main_access() -> u8 {
    (descriptors::tss_descriptor(Cpu::BOOT) >> 40) as u8
}

/// The task that runs is [`MAIN`], and comes back to the address space that is loaded now: the processor does not save CR3.
pub fn set_main_address_space() {
    TSS.of(Cpu::BOOT)[field::CR3].store(processor::cr3(), Relaxed);
}

/// Has `vector` go to the task of `tss` while `body` runs.
pub fn with_task_gate<R>(vector: u32, tss: u16, body: impl FnOnce() -> R) -> R {
    descriptors::set_task_gate(vector as usize, tss);
    let result = body();
    restore_gate(vector);
    result
}

macro_rules! there_and_back {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        pub fn $name(selector: u16) {
            let pointer = [0, u32::from(selector)];
            // SAFETY: the task that is entered comes back with all registers as they were, or there is a fault that changes none.
            // CR0.TS is set at each switch.
            unsafe { asm!($instruction, "clts", in(reg) &raw const pointer) };
        }
    };
}

there_and_back!(
    /// Far CALL.
    call, "call fword ptr [{}]"
);
there_and_back!(
    /// Far JMP.
    jump, "jmp fword ptr [{}]"
);

/// The vector of [`raise`].
pub const RAISED: u32 = 0x81;

/// INT [`RAISED`].
pub fn raise() {
    // SAFETY: as in `there_and_back`.
    unsafe { asm!("int {}", "clts", const RAISED) };
}

/// INT3.
pub fn raise_breakpoint() {
    // SAFETY: as in `there_and_back`.
    unsafe { asm!("int3", "clts") };
}

/// Loads GS, and then has it null.
pub fn load_gs(selector: u16) {
    // SAFETY: nothing uses GS.
    unsafe { asm!("mov gs, {0:x}", "mov gs, {1:x}", "clts", in(reg) selector, in(reg) 0u16) };
}

/// EFLAGS.
pub fn eflags() -> u32 {
    let value;
    // SAFETY: it reads the register.
    unsafe { asm!("pushfd", "pop eax", out("eax") value) };
    value
}
