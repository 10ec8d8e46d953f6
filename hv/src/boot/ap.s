# From SIPI to Rust, for the CPUs but the boot CPU: real mode -> long mode by the boot tables, then over to the hypervisor's.
#
# smp.rs copies ap_trampoline to a page below 1 MiB, sets the three words at the end for one CPU, and starts it.

.section .boot, "ax"
.code16
.global ap_trampoline
ap_trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    movl %cr0, %eax
    orb ${pe}, %al
    movl %eax, %cr0
    ljmpl $24, $ap_entry
ap_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
.global ap_trampoline_end
ap_trampoline_end:

.code32
ap_entry:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $boot_pml4_low, %eax
    movl %eax, %cr3
    movl ${cr4}, %eax
    movl %eax, %cr4
    movl ${efer}, %ecx
    rdmsr
    orl ${efer_bits}, %eax
    wrmsr
    movl ${cr0}, %eax
    movl %eax, %cr0
    ljmp $8, $ap_entry64

.code64
ap_entry64:
    movabsq $ap_entry_high, %rax
    jmp *%rax

.section .text.boot, "ax"
ap_entry_high:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq ap_cr3(%rip), %rax
    movq %rax, %cr3
    movq ap_stack_top(%rip), %rsp
    xorl %ebp, %ebp                 # ends every backtrace
    movq ap_index(%rip), %rdi
    call hv_ap_main
    ud2

.section .bss.boot, "aw", @nobits
.balign 8
.global ap_cr3
ap_cr3:         .skip 8
.global ap_stack_top
ap_stack_top:   .skip 8
.global ap_index
ap_index:       .skip 8
