# From the multiboot loader to Rust: 32-bit protected mode without paging -> long mode in the top 2 GiB.
#
# The loader's contract is that of the Multiboot Specification 0.6.96, section 3.2: EAX holds the magic, EBX the address of
# the information structure, A20 is open, paging is off. The boot tables below map the first 4 GiB three times: where they
# are, at the direct map, and (the first GiB) in the top 2 GiB. hv/src/paging.rs replaces them before anything else runs.

.section .boot.header, "a"
.balign 4
multiboot_header:
    .long {multiboot_magic}
    .long {multiboot_flags}
    .long -({multiboot_magic} + {multiboot_flags})
    .long multiboot_header
    .long image_start
    .long data_end_low
    .long image_end_low
    .long boot_entry

.section .boot, "ax"
.code32
.global boot_entry
boot_entry:
    cli
    cld
    movl %eax, %esi
    rdtsc
    movl %eax, boot_tsc_low
    movl %edx, boot_tsc_low + 4

    # Page directories: 2048 leaves of 2 MiB, present and writable.
    movl $boot_pd_low, %edi
    movl ${leaf}, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b

    movl $boot_pdpt_low, %edi
    movl $(boot_pd_low + {table}), %eax
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 2b

    movl $(boot_pd_low + {table}), boot_pdpt_high_low + {high_half_gib} * 8
    movl $(boot_pdpt_low + {table}), boot_pml4_low
    movl $(boot_pdpt_low + {table}), boot_pml4_low + {direct_map_entry} * 8
    movl $(boot_pdpt_high_low + {table}), boot_pml4_low + {high_half_entry} * 8

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
    lgdt boot_gdt_pointer
    ljmp $8, $boot_entry64

.code64
boot_entry64:
    movabsq $boot_entry_high, %rax
    jmp *%rax

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        # 64-bit code
    .quad 0x00cf92000000ffff        # data
    .quad 0x00cf9a000000ffff        # 32-bit code
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt

.section .text.boot, "ax"
boot_entry_high:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    leaq boot_stack_top(%rip), %rsp
    xorl %ebp, %ebp                 # ends every backtrace
    movl %esi, %edi                 # the loader's magic
    movl %ebx, %esi                 # the information structure
    call hv_main
    ud2

# The tables are linked high like everything else; these are their physical addresses.
.set boot_pml4_low, boot_pml4 - {high_half}
.set boot_pdpt_low, boot_pdpt - {high_half}
.set boot_pdpt_high_low, boot_pdpt_high - {high_half}
.set boot_pd_low, boot_pd - {high_half}
.set boot_tsc_low, boot_tsc - {high_half}

.section .bss.boot, "aw", @nobits
.balign 4096
boot_pml4:      .skip 4096
boot_pdpt:      .skip 4096
boot_pdpt_high: .skip 4096
boot_pd:        .skip 4 * 4096
.global boot_tsc
boot_tsc:       .skip 8
.balign 4096
# An unmapped page below the stack turns an overflow into a double fault, which has a stack of its own.
.global boot_stack_guard
boot_stack_guard: .skip 4096
.global boot_stack
boot_stack:     .skip 64 * 1024
boot_stack_top:
