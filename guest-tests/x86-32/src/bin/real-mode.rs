//! Code in real mode, on the second processor: what boot loaders and start-up code execute there. Processors without unrestricted guest
//! have no such mode for guests.
//!
//! The code is started by a SIPI. It leaves its results in its own page, which the first processor then looks at. `limits=checked`
//! demands what QEMU's TCG does not do.
#![no_std]
#![no_main]

use abi::options::guest::key;
use base::apic::{Apic, Delivery};
use core::arch::global_asm;
use core::{ptr, slice};

use guest32::boot::Boot;
use guest32::cpuid::cpuid;
use guest32::exit::GuestStatus;
use guest32::ktap::{self, Outcome};
use guest32::{cases, check, check_eq, clock, memory, skip_unless};

guest32::main!(main);

/// Where the code is, with its data and its stack. No loader uses the page.
const PAGE: u32 = 0x9000;
/// Where the results are in it; see the code.
const RESULTS: u32 = PAGE + 0x800;

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(
        boot,
        cases![
            it_runs_to_its_end,
            products_and_quotients,
            all_registers_are_pushed_and_popped,
            strings_go_to_ports_and_come_from_them,
            time_goes_on,
            x87_and_sse,
            frames,
            shifts_and_bits,
            decimal_digits,
            tables_and_strings,
            interrupts_and_exceptions,
            steps_are_behind_the_instruction_after_the_one_that_sets_tf,
            counts_of_bits_are_as_cpuid_says,
            an_nmi_waits_for_the_iret_of_another,
            limits,
            operands_of_smsw_and_lmsw_are_checked,
            code_ends_with_its_segment,
            debug_registers_are_guarded,
        ],
    )
}

/// Result `index`, of 32 bits.
fn result(index: u32) -> u32 {
    memory::peek(RESULTS + 4 * index)
}

fn it_runs_to_its_end(_: &Boot) -> Outcome {
    const SECONDS: u64 = 20;
    Apic::start();
    for (at, &byte) in (PAGE as usize..).zip(code()) {
        // SAFETY: no Rust object is below the image.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(at).write_volatile(byte) };
    }
    let second = guest32::smp::Cpu::new(1);
    let apic = Apic::here();
    apic.send(Delivery::Init, second.into());
    clock::wait(clock::microseconds(10_000));
    apic.send(Delivery::StartUp((PAGE >> 12) as u8), second.into());
    let reaches = |index, value| clock::wait_for(clock::seconds(SECONDS), || result(index) == value);
    check!(reaches(NMI_PHASE, 1), "the code does not wait for NMIs");
    apic.send(Delivery::Nmi, second.into());
    check!(reaches(NMI_PHASE, 2), "no NMI has come");
    apic.send(Delivery::Nmi, second.into());
    clock::wait(clock::microseconds(1000));
    set_result(NMI_PHASE, 3);
    let done = reaches(DONE, END);
    check!(done, "the code has not come to its end: {:x?}", [0, 1, 2, 3].map(|n| result(DONE - 3 + n)));
    Ok(())
}

fn set_result(index: u32, value: u32) {
    // SAFETY: no Rust object is below the image.
    unsafe { ptr::with_exposed_provenance_mut::<u32>((RESULTS + 4 * index) as usize).write_volatile(value) };
}

/// The code, to be copied to its page.
fn code() -> &'static [u8] {
    unsafe extern "C" {
        safe static real_mode_code: u8;
        safe static real_mode_end: u8;
    }
    let (start, end) = (&raw const real_mode_code, &raw const real_mode_end);
    // SAFETY: the code between the two labels, in the image's read-only data.
    unsafe { slice::from_raw_parts(start, end as usize - start as usize) }
}

/// The number of the word by which NMIs are awaited: 1 by the code, 2 by the handler, and 3 when it may return.
const NMI_PHASE: u32 = 48;

/// The number of the last result, and what it is.
const DONE: u32 = 63;
const END: u32 = 0x600d_600d;

fn products_and_quotients(_: &Boot) -> Outcome {
    check_eq!([0, 1].map(result), [0x242d_2080, 0x0b00_ea4e]);
    check_eq!([2, 3].map(result), [-3i32 as u32, -1i32 as u32]);
    check_eq!(result(4), 0x1234_5678u32.wrapping_mul(5));
    Ok(())
}

fn all_registers_are_pushed_and_popped(_: &Boot) -> Outcome {
    check_eq!([5, 6].map(result), [0x1111_1111, 0x2222_2222]);
    Ok(())
}

/// OUTS leaves CX at 0 and SI behind the last byte; a line that is idle says so twice.
fn strings_go_to_ports_and_come_from_them(_: &Boot) -> Outcome {
    const IDLE: u32 = 0x60;
    check_eq!(result(7), 0x0804_0000);
    check_eq!(result(8) & (IDLE << 8 | IDLE), IDLE << 8 | IDLE);
    Ok(())
}

fn time_goes_on(_: &Boot) -> Outcome {
    check!(result(9) < 1 << 31, "two RDTSC are {:#x} ticks apart", result(9));
    Ok(())
}

fn x87_and_sse(_: &Boot) -> Outcome {
    check_eq!(result(10) & 0xffff, 0x37f);
    check_eq!(result(11), result(0));
    check_eq!(result(12) & 0x3800, 0);
    check_eq!([16, 17, 18, 19].map(result), [0, 1, 2, 3].map(result));
    Ok(())
}

fn frames(_: &Boot) -> Outcome {
    check_eq!([13, 14].map(result), [0x07fe_1234, 0x07f6_0800]);
    Ok(())
}

fn shifts_and_bits(_: &Boot) -> Outcome {
    check_eq!([20, 21, 22, 23].map(result), [0x0000_001f, 0x0000_003f, 0, 0x3f00_0000]);
    Ok(())
}

fn decimal_digits(_: &Boot) -> Outcome {
    check_eq!(result(24) & 0xff, 0x42);
    Ok(())
}

/// XLAT's byte; CX and ZF behind REPE CMPSB; what LES has loaded.
fn tables_and_strings(_: &Boot) -> Outcome {
    check_eq!(result(24) >> 8 & 0xff, result(1) & 0xff);
    check_eq!(result(25), 0x0001_0000);
    check_eq!(result(26), 0x0900_0800);
    Ok(())
}

/// INT n, INTO, and the division by zero.
fn interrupts_and_exceptions(_: &Boot) -> Outcome {
    check_eq!([27, 28, 29].map(result), [1, 1, 1]);
    Ok(())
}

/// How many steps there are, and where the first and the last of them return to: POPF that sets TF, NOP, and four instructions up to
/// POPF that clears it; IRET that sets TF, and two instructions up to that POPF.
fn steps_are_behind_the_instruction_after_the_one_that_sets_tf(_: &Boot) -> Outcome {
    check_eq!([40, 41, 42].map(result), [6, 0, 0]);
    check_eq!([43, 44].map(result), [3, 0]);
    Ok(())
}

/// LZCNT of 10h, or BSR.
fn counts_of_bits_are_as_cpuid_says(_: &Boot) -> Outcome {
    const LZCNT: u32 = 1 << 5;
    let has_it = cpuid(0x8000_0000, 0).eax > 0x8000_0000 && cpuid(0x8000_0001, 0).ecx & LZCNT != 0;
    check_eq!(result(39), if has_it { 27 } else { 4 });
    Ok(())
}

/// How many came, and how many while one was handled.
fn an_nmi_waits_for_the_iret_of_another(_: &Boot) -> Outcome {
    check_eq!([49, 50].map(result), [2, 0]);
    Ok(())
}

fn limits(boot: &Boot) -> Outcome {
    skip_unless!(is_exact(boot), "QEMU's TCG checks no limits");
    check_eq!(result(30), 1);
    Ok(())
}

fn is_exact(boot: &Boot) -> bool {
    boot.text_word(key::LIMITS) == Some("checked")
}

/// SMSW and LMSW with operands that reach beyond DS, and beyond SS: #GP and #SS.
fn operands_of_smsw_and_lmsw_are_checked(boot: &Boot) -> Outcome {
    skip_unless!(is_exact(boot), "QEMU's TCG checks no limits");
    check_eq!([31, 32].map(result), [2, 2]);
    Ok(())
}

/// The #GP of an instruction that reaches beyond the segment, and of one that would begin there: where they return to.
fn code_ends_with_its_segment(boot: &Boot) -> Outcome {
    skip_unless!(is_exact(boot), "QEMU's TCG checks no limits");
    check_eq!([33, 34].map(result), [0xfffe, 0]);
    Ok(())
}

/// How many #DBs reading and writing raise, and what DR6.BD and DR7.GD are in the handler.
fn debug_registers_are_guarded(boot: &Boot) -> Outcome {
    skip_unless!(is_exact(boot), "QEMU's TCG does not look at GD");
    check_eq!([35, 36, 37].map(result), [2, 0x2000, 0]);
    Ok(())
}

global_asm!(
    r#"
.section .rodata.real_mode, "a"
.code16
real_mode_code:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x800, %sp
    // Vectors 0 (#DE), 4 (INTO), 13 (#GP) and 97h (INT n).
    xorw %ax, %ax
    movw %ax, %fs
    movw $divide - real_mode_code, %fs:0
    movw %cs, %fs:2
    movw $overflow - real_mode_code, %fs:4*4
    movw %cs, %fs:4*4+2
    movw $protection - real_mode_code, %fs:4*13
    movw %cs, %fs:4*13+2
    movw $software - real_mode_code, %fs:4*0x97
    movw %cs, %fs:4*0x97+2
    // 0 to 4: MUL, IDIV, IMUL.
    movl $0x12345678, %eax
    movl $0x9abcdef0, %ecx
    mull %ecx
    movl %eax, 0x800
    movl %edx, 0x804
    movl $-7, %eax
    cltd
    movl $2, %ecx
    idivl %ecx
    movl %eax, 0x808
    movl %edx, 0x80c
    movl $0x12345678, %eax
    imull $5, %eax, %eax
    movl %eax, 0x810
    // 5, 6: PUSHA, POPA.
    movl $0x11111111, %ebx
    movl $0x22222222, %esi
    pushal
    xorl %ebx, %ebx
    xorl %esi, %esi
    popal
    movl %ebx, 0x814
    movl %esi, 0x818
    // 7, 8: REP OUTSB to the delay port, REP INSB of the line's status.
    movw $0x80, %dx
    movw $4, %cx
    movw $0x800, %si
    rep outsb
    movw %cx, 0x81c
    movw %si, 0x81e
    movw $0x3fd, %dx
    movw $2, %cx
    movw $0x820, %di
    rep insb
    // 9: RDTSC.
    rdtsc
    movl %eax, %ebx
    rdtsc
    subl %ebx, %eax
    movl %eax, 0x824
    // 10 to 12: the x87; 16 to 19: SSE.
    movl %cr0, %eax
    andl $~0xc, %eax
    movl %eax, %cr0
    fninit
    fnstcw 0x828
    fildl 0x800
    fistpl 0x82c
    fnstsw %ax
    movw %ax, 0x830
    movl %cr4, %eax
    orl $0x200, %eax
    movl %eax, %cr4
    movups 0x800, %xmm0
    movups %xmm0, 0x840
    // 13, 14: ENTER, LEAVE.
    movw $0x1234, %bp
    enter $8, $0
    movw 0x7fe, %ax
    movw %ax, 0x834
    movw %bp, 0x836
    movw %sp, %ax
    movw %ax, 0x83a
    leave
    movw %sp, 0x838
    // 20 to 23: SHLD, RCL, BSF, BSWAP.
    movl $0x80000001, %eax
    movl $0xf0000000, %edx
    shldl $4, %edx, %eax
    movl %eax, 0x850
    stc
    rcll $1, %eax
    movl %eax, 0x854
    bsfl 0x850, %ecx
    movl %ecx, 0x858
    bswapl %eax
    movl %eax, 0x85c
    // 24: DAA, XLAT.
    movb $0x15, %al
    addb $0x27, %al
    daa
    movb %al, 0x860
    movw $0x800, %bx
    movb $4, %al
    xlatb
    movb %al, 0x861
    // 25: REPE CMPSB, and ZF.
    movw $0x800, %si
    movw $0x840, %di
    movw $16, %cx
    repe cmpsb
    sete %al
    movzbw %al, %ax
    movw %cx, 0x864
    movw %ax, 0x866
    // 26: LES.
    movw $0x800, 0x880
    movw %cs, 0x882
    lesw 0x880, %di
    movw %di, 0x868
    movw %es, 0x86a
    // 27 to 29: INT n, INTO, #DE.
    int $0x97
    movb $0x7f, %al
    addb $1, %al
    into
    xorw %cx, %cx
    divb %cl
    // 30: the last byte of the segment and one more.
    movw $3, 0x8e0
    movw 0xffff, %ax
    movl 0x878, %eax
    movl %eax, 0x8d8
    // 31, 32: SMSW and LMSW beyond the limit, of 5 bytes, and 6 with SS.
    movw $stack_fault - real_mode_code, %fs:4*12
    movw %cs, %fs:4*12+2
    movl $0, 0x878
    movl $0, 0x880
    movw $5, 0x8e0
    smsw 0xffff
    lmsw 0xffff
    movw $6, 0x8e0
    smsw %ss:0xffff
    lmsw %ss:0xffff
    movl 0x878, %eax
    movl %eax, 0x87c
    movl 0x8d8, %eax
    movl %eax, 0x878
    // 33, 34: MOV AX at the last two bytes of a segment, and NOPs there. QEMU goes on at 0, where a NOP and a far jump come back.
    movw $beyond - real_mode_code, %fs:4*13
    movw $0x4000, %ax
    movw %ax, %es
    movb $0x90, %es:0
    movl $0x08e42eff, %es:1
    movw %cs, 0x8e6
    movw $0xb8, %es:0xfffe
    movw $1f - real_mode_code, 0x8e4
    ljmp $0x4000, $0xfffe
1:  movl 0x8d4, %eax
    movl %eax, 0x884
    movw $0x9090, %es:0xfffe
    movw $1f - real_mode_code, 0x8e4
    ljmp $0x4000, $0xfffe
1:  movl 0x8d4, %eax
    movl %eax, 0x888
    // 35 to 37: MOV from and to DR0 with GD, of 3 bytes.
    movw $guard - real_mode_code, %fs:4*1
    movw %cs, %fs:4*1+2
    movl $0x2400, %eax
    movl %eax, %db7
    movl %db0, %ecx
    movl %eax, %db7
    movl %eax, %db0
    xorl %eax, %eax
    movl %eax, %db6
    movl %eax, %db7
    // 39: LZCNT ECX, EAX.
    movl $0x10, %eax
    .byte 0x66, 0xf3, 0x0f, 0xbd, 0xc8
    movl %ecx, 0x89c
    // 40 to 42: POPF sets TF, and POPF clears it.
    movw $step - real_mode_code, %fs:4*1
    pushfw
    popw %ax
    movw %ax, %cx
    orw $0x100, %ax
    pushw %ax
    popfw
    nop
1:  pushw %cx
    nop
    nop
    nop
    popfw
2:  movl 0x8e8, %eax
    movl %eax, 0x8a0
    movzwl 0x8ec, %eax
    subw $1b - real_mode_code, %ax
    movl %eax, 0x8a4
    movzwl 0x8f0, %eax
    subw $2b - real_mode_code, %ax
    movl %eax, 0x8a8
    // 43, 44: IRET sets TF.
    movl $0, 0x8e8
    movw %cx, %ax
    orw $0x100, %ax
    pushw %ax
    pushw %cs
    pushw $1f - real_mode_code
    iretw
1:  nop
2:  pushw %cx
    popfw
    movl 0x8e8, %eax
    movl %eax, 0x8ac
    movzwl 0x8ec, %eax
    subw $2b - real_mode_code, %ax
    movl %eax, 0x8b0
    // 49, 50: NMIs.
    movw $nmi - real_mode_code, %fs:4*2
    movw %cs, %fs:4*2+2
    movl $1, 0x8c0
1:  pause
    cmpl $2, 0x8c4
    jne 1b
    movl $0x600d600d, 0x8fc
1:  hlt
    jmp 1b
nmi:
    incl %cs:0x8dc
    cmpl $1, %cs:0x8dc
    je 1f
    incl %cs:0x8c8
1:  cmpl $1, %cs:0x8c0
    jne 1f
    movl $2, %cs:0x8c0
1:  pause
    cmpl $3, %cs:0x8c0
    jne 1b
    decl %cs:0x8dc
    incl %cs:0x8c4
    iretw
// The first return address, and the last one.
step:
    pushw %bp
    movw %sp, %bp
    pushw %ax
    movw 2(%bp), %ax
    movw %ax, 0x8f0
    incl 0x8e8
    cmpl $1, 0x8e8
    jne 1f
    movw %ax, 0x8ec
1:  popw %ax
    popw %bp
    iretw
guard:
    incl 0x88c
    pushl %eax
    movl %db6, %eax
    andl $0x2000, %eax
    movl %eax, 0x890
    movl %db7, %eax
    andl $0x2000, %eax
    movl %eax, 0x894
    popl %eax
    pushw %bp
    movw %sp, %bp
    addw $3, 2(%bp)
    popw %bp
    iretw
beyond:
    pushw %bp
    movw %sp, %bp
    movw 2(%bp), %ax
    movzwl %ax, %eax
    movl %eax, 0x8d4
    popw %bp
    addw $6, %sp
    jmpw *0x8e4
stack_fault:
    incl 0x880
    jmp skip
software:
    incl 0x86c
    iretw
overflow:
    incl 0x870
    iretw
// DIV is two bytes long, and MOV from an address three.
divide:
    incl 0x874
    pushw %bp
    movw %sp, %bp
    addw $2, 2(%bp)
    popw %bp
    iretw
protection:
    incl 0x878
skip:
    pushw %bp
    movw %sp, %bp
    pushw %ax
    movw 0x8e0, %ax
    addw %ax, 2(%bp)
    popw %ax
    popw %bp
    iretw
real_mode_end:
.code32
.text
"#,
    options(att_syntax)
);
