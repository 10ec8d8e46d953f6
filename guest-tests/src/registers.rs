//! What an exit does to the general registers, RFLAGS, RSP and RIP.

use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

use crate::raw_gva::RawGva;

/// The general registers and RFLAGS before or after an instruction.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RBP.
    pub rbp: u64,
    /// R8 to R15.
    pub r8_to_r15: [u64; 8],
    /// RFLAGS.
    pub rflags: u64,
    /// How many of the one-byte instructions behind it ran, times 8: [`ALL_PUSHES`] if RIP and RSP came back right.
    pub pushed: u64,
}

/// What [`Registers::pushed`] has to be.
pub const ALL_PUSHES: u64 = 8 * 8;

impl Registers {
    /// Each register with a pattern of its own, made from `seed`.
    pub fn pattern(seed: u64, rflags: u64) -> Self {
        let word = |register: u64| seed.rotate_left(register as u32 * 4) ^ register.wrapping_mul(0x0101_0101_0101_0101);
        Self {
            rax: word(0),
            rbx: word(1),
            rcx: word(2),
            rdx: word(3),
            rsi: word(4),
            rdi: word(5),
            rbp: word(6),
            r8_to_r15: core::array::from_fn(|index| word(8 + index as u64)),
            rflags,
            pushed: ALL_PUSHES,
        }
    }
}

static RSP_BEFORE: AtomicU64 = AtomicU64::new(0);
static RSP_AFTER: AtomicU64 = AtomicU64::new(0);

/// An instruction to run between loading all registers and storing them.
#[derive(Clone, Copy)]
pub struct RegisterTest(extern "C" fn(&mut Registers));

impl RegisterTest {
    /// Runs the instruction with `before` in the registers and returns what they then hold.
    pub fn run(self, before: &Registers) -> Registers {
        let mut registers = *before;
        self.0(&mut registers);
        registers
    }
}

/// Loads the registers, runs `$instruction`, then eight pushes of one byte each (a RIP too far misses some, one not far
/// enough lands within the instruction), and stores the registers.
macro_rules! step {
    ($name:ident, $($instruction:literal),+) => {
        #[unsafe(naked)]
        extern "C" fn $name(registers: &mut Registers) {
            naked_asm!(
                "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15", "pushfq",
                "push rdi",
                "mov [rip + {rsp_before}], rsp",
                "push qword ptr [rdi + {rflags}]",
                "popfq",
                "mov rax, [rdi + {rax}]",
                "mov rbx, [rdi + {rbx}]",
                "mov rcx, [rdi + {rcx}]",
                "mov rdx, [rdi + {rdx}]",
                "mov rsi, [rdi + {rsi}]",
                "mov rbp, [rdi + {rbp}]",
                ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
                "mov r\\n, [rdi + {r8} + 8 * (\\n - 8)]",
                ".endr",
                "mov rdi, [rdi + {rdi}]",
                $($instruction,)+
                ".rept 8",
                "push rax",
                ".endr",
                "mov [rip + {rsp_after}], rsp",
                "mov rsp, [rip + {rsp_before}]",
                "xchg rdi, [rsp]",
                "mov [rdi + {rax}], rax",
                "mov [rdi + {rbx}], rbx",
                "mov [rdi + {rcx}], rcx",
                "mov [rdi + {rdx}], rdx",
                "mov [rdi + {rsi}], rsi",
                "mov [rdi + {rbp}], rbp",
                ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
                "mov [rdi + {r8} + 8 * (\\n - 8)], r\\n",
                ".endr",
                "pushfq",
                "pop qword ptr [rdi + {rflags}]",
                "pop qword ptr [rdi + {rdi}]",
                "lea rax, [rsp - 8]",
                "sub rax, [rip + {rsp_after}]",
                "mov [rdi + {pushed}], rax",
                "popfq", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
                "ret",
                rsp_before = sym RSP_BEFORE,
                rsp_after = sym RSP_AFTER,
                rax = const offset_of!(Registers, rax),
                rbx = const offset_of!(Registers, rbx),
                rcx = const offset_of!(Registers, rcx),
                rdx = const offset_of!(Registers, rdx),
                rsi = const offset_of!(Registers, rsi),
                rdi = const offset_of!(Registers, rdi),
                rbp = const offset_of!(Registers, rbp),
                r8 = const offset_of!(Registers, r8_to_r15),
                rflags = const offset_of!(Registers, rflags),
                pushed = const offset_of!(Registers, pushed),
            )
        }
    };
}
/// Stores a byte to `at`, with `before` in all registers but RBX.
pub fn touch(at: RawGva, before: &Registers) -> (Registers, Registers) {
    step!(code, "mov [rbx], al");
    let before = Registers { rbx: at.raw(), ..*before };
    (before, RegisterTest(code).run(&before))
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident: $($instruction:literal),+;)+) => {
        $($(#[$doc])*
        pub const $name: RegisterTest = {
            step!(code, $($instruction),+);
            RegisterTest(code)
        };)+
    };
}

steps! {
    /// NOP, which never exits.
    NOP: "nop";
    /// CPUID.
    CPUID: "cpuid";
    /// CPUID with an operand size prefix.
    CPUID_66: ".byte 0x66, 0x0f, 0xa2";
    /// CPUID with a REPE prefix.
    CPUID_F3: ".byte 0xf3, 0x0f, 0xa2";
    /// CPUID with a REPNE prefix.
    CPUID_F2: ".byte 0xf2, 0x0f, 0xa2";
    /// CPUID with REX.W.
    CPUID_REX: ".byte 0x48, 0x0f, 0xa2";
    /// CPUID of 15 bytes, the most that an instruction may have.
    CPUID_15: ".byte 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x66, 0x67, 0x66, 0x67, 0x66, 0x67, 0x48, 0x0f, 0xa2";
    /// RDMSR.
    RDMSR: "rdmsr";
    /// RDMSR with REX.W.
    RDMSR_REX: ".byte 0x48, 0x0f, 0x32";
    /// WRMSR.
    WRMSR: "wrmsr";
    /// IN AL, DX.
    IN8: "in al, dx";
    /// IN AX, DX.
    IN16: "in ax, dx";
    /// IN EAX, DX.
    IN32: "in eax, dx";
    /// IN EAX, DX with REX.W, which changes nothing.
    IN32_REX: ".byte 0x48, 0xed";
    /// IN AL, 0x80.
    IN8_IMMEDIATE: "in al, 0x80";
    /// OUT DX, AL.
    OUT8: "out dx, al";
    /// OUT DX, AX.
    OUT16: "out dx, ax";
    /// OUT DX, EAX.
    OUT32: "out dx, eax";
    /// OUT 0x80, AL.
    OUT8_IMMEDIATE: "out 0x80, al";
    /// VMMCALL.
    VMMCALL: "vmmcall";
    /// VMCALL.
    VMCALL: "vmcall";
    /// WBINVD.
    WBINVD: "wbinvd";
    /// INVLPG of a page above the one-to-one map.
    INVLPG: "invlpg [0xffffffff80000000]";
}
