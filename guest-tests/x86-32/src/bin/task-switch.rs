//! Switches of tasks by hardware (Intel SDM vol. 3, chapter 8): far JMP and CALL, interrupts, exceptions and IRET, to a TSS and
//! through task gates; the faults before the switch, which the old task has, and those behind it, which the new one has.
//!
//! `tasks=exact` demands what QEMU's TCG does otherwise: it passes over T, and a new task that faults is left at the EIP of the CALL.
//! `tasks=emulated` demands besides what Bochs does otherwise: there DR6.BT is lost at an exit for #DB, and PDPTEs that can't be
//! loaded take the old ones with them.
#![no_std]
#![no_main]

use abi::options::guest::key;
use arch::CR0_TS;
use core::sync::atomic::Ordering::Relaxed;

use guest32::boot::Boot;
use guest32::descriptors::{self, CODE, DATA, USER_CODE, USER_DATA};
use guest32::exit::GuestStatus;
use guest32::interrupts::{BREAKPOINT, GENERAL_PROTECTION, expect_fault};
use guest32::ktap::{self, Outcome};
use guest32::memory::{self, Page, Pages};
use guest32::paging::{self, Mode, PRESENT, Space, WRITABLE};
use guest32::tasks::{self, BUSY_TSS, DR6_TASK, MAIN, NESTED_TASK, RAISED, REPORT, Task, field};
use guest32::{cases, check, check_eq, processor, skip_unless};
use x86::irq::{DEBUG_VECTOR, INVALID_TSS_VECTOR, PAGE_FAULT_VECTOR, SEGMENT_NOT_PRESENT_VECTOR};

guest32::main!(main);

const INVALID_TSS: u32 = INVALID_TSS_VECTOR as u32;
const NOT_PRESENT: u32 = SEGMENT_NOT_PRESENT_VECTOR as u32;

/// A task that is called, and one that handles what befalls it.
static TASK: Task = Task::new(0);
static HANDLER: Task = Task::new(1);
/// Numbers of other free descriptors.
const GATE: usize = 2;
const SEGMENT: usize = 3;
const STACK: usize = 4;
const LDT: usize = 5;

const AVAILABLE_TSS: u8 = tasks::AVAILABLE_TSS;
const AT: u32 = 1 << 30;

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(
        boot,
        cases![
            far_call_and_iret,
            far_call_through_a_gate,
            far_jumps,
            software_interrupt,
            breakpoint,
            exception_with_an_error_code,
            another_address_space,
            pdpte_with_a_reserved_bit,
            task_of_16_bits,
            local_descriptors,
            user_mode,
            busy_task,
            task_that_is_not_present,
            task_state_beyond_its_limit,
            task_state_that_is_not_mapped,
            bad_stack_in_the_new_task,
            data_segment_that_is_not_present,
            debug_trap,
        ],
    )
}

fn is_exact(boot: &Boot) -> bool {
    is_emulated(boot) || boot.text_word(key::TASKS) == Some("exact")
}

fn is_emulated(boot: &Boot) -> bool {
    boot.text_word(key::TASKS) == Some("emulated")
}

/// The task, about to run `code`, with an empty report. Gives its selector.
fn prepare(code: extern "C" fn()) -> u16 {
    REPORT.clear();
    tasks::set_main_address_space();
    TASK.prepare(code)
}

/// The task has run once, as a nested one, and the one that it was called by goes on.
fn check_nested(runs: u32) -> Outcome {
    check_eq!(REPORT.runs.load(Relaxed), runs);
    check_eq!(REPORT.eflags.load(Relaxed) & NESTED_TASK, NESTED_TASK);
    check_eq!(REPORT.cr0.load(Relaxed) & CR0_TS as u32, CR0_TS as u32);
    check_eq!(TASK.get(field::LINK) & 0xffff, MAIN.into());
    check_eq!(TASK.access(), AVAILABLE_TSS, "the task is not busy after IRET");
    check_back_in_main()
}

fn check_back_in_main() -> Outcome {
    check_eq!(tasks::main_access(), BUSY_TSS);
    check_eq!(tasks::eflags() & NESTED_TASK, 0);
    check_eq!(processor::cr0() & CR0_TS as u32, 0);
    Ok(())
}

fn far_call_and_iret(_: &Boot) -> Outcome {
    let selector = prepare(tasks::report_and_return);
    TASK.set(field::EBX, 0x1234_5678);
    tasks::call(selector);
    check_nested(1)?;
    check_eq!(REPORT.tr.load(Relaxed) & 0xffff, selector.into());
    check_eq!(REPORT.ebx.load(Relaxed), 0x1234_5678);
    check_eq!(REPORT.esp.load(Relaxed), TASK.stack_top());
    check_eq!(REPORT.ldtr.load(Relaxed) & 0xffff, 0);
    check_eq!(TASK.get(field::EFLAGS) & NESTED_TASK, 0, "IRET saves EFLAGS with NT clear");
    check_eq!(tasks::main_field(field::SS), DATA.into());
    // It goes on behind its IRET.
    tasks::call(selector);
    check_nested(2)
}

fn far_call_through_a_gate(_: &Boot) -> Outcome {
    let selector = prepare(tasks::report_and_return);
    let gate = descriptors::set_free(GATE, descriptors::task_gate(selector));
    tasks::call(gate);
    check_nested(1)?;
    check_eq!(REPORT.tr.load(Relaxed) & 0xffff, selector.into());
    Ok(())
}

fn far_jumps(_: &Boot) -> Outcome {
    let selector = prepare(tasks::report_and_jump);
    for (runs, to) in [(1, selector), (2, descriptors::set_free(GATE, descriptors::task_gate(selector)))] {
        tasks::jump(to);
        check_eq!(REPORT.runs.load(Relaxed), runs);
        check_eq!(REPORT.eflags.load(Relaxed) & NESTED_TASK, 0);
        check_eq!(TASK.get(field::LINK), 0);
        check_eq!(TASK.access(), AVAILABLE_TSS);
        check_back_in_main()?;
    }
    Ok(())
}

fn software_interrupt(_: &Boot) -> Outcome {
    let selector = prepare(tasks::report_and_return);
    tasks::with_task_gate(RAISED, selector, tasks::raise);
    check_nested(1)?;
    check_eq!(REPORT.esp.load(Relaxed), TASK.stack_top(), "nothing is pushed");
    Ok(())
}

fn breakpoint(_: &Boot) -> Outcome {
    let selector = prepare(tasks::report_and_return);
    tasks::with_task_gate(BREAKPOINT, selector, tasks::raise_breakpoint);
    check_nested(1)
}

/// #NP, whose handler has the segment be present: the instruction runs again.
fn exception_with_an_error_code(_: &Boot) -> Outcome {
    let selector = prepare(tasks::report_error_and_return);
    let data = descriptors::descriptor(0, 0xf_ffff, 0x13, 0xc);
    let gs = descriptors::set_free(SEGMENT, data);
    REPORT.poke(descriptors::free_address(SEGMENT) + 4, (data >> 32) as u32 | 0x8000);
    tasks::with_task_gate(NOT_PRESENT, selector, || tasks::load_gs(gs));
    check_nested(1)?;
    check_eq!(REPORT.error.load(Relaxed), gs.into());
    check_eq!(REPORT.esp.load(Relaxed), TASK.stack_top());
    Ok(())
}

fn in_both_modes(test: impl Fn(Mode, &mut Pages) -> Outcome) -> Outcome {
    for mode in [Mode::TwoLevel, Mode::Pae] {
        let outcome = test(mode, &mut Pages::from(memory::START));
        paging::leave();
        outcome?;
    }
    Ok(())
}

/// A page at [`AT`] of `space` that holds `value`.
fn map(space: Space, pages: &mut Pages, value: u32) -> Page {
    let page = pages.take();
    page.dword(0).store(value, Relaxed);
    space.pte(AT, pages).set(u64::from(page.address()) | PRESENT | WRITABLE);
    page
}

fn another_address_space(_: &Boot) -> Outcome {
    in_both_modes(|mode, pages| {
        let [own, other] = [1, 2].map(|value| {
            let space = Space::new(mode, pages);
            map(space, pages, value);
            space
        });
        own.enter();
        let selector = prepare(tasks::report_and_return);
        TASK.set(field::CR3, other.cr3());
        REPORT.peek_at.store(AT, Relaxed);
        for runs in 1..4 {
            check_eq!(memory::peek(AT), 1, "in {mode:?}");
            tasks::call(selector);
            check_nested(runs)?;
            check_eq!(REPORT.cr3.load(Relaxed), other.cr3());
            check_eq!(REPORT.peeked.load(Relaxed), 2, "in {mode:?}");
            check_eq!(processor::cr3(), own.cr3());
        }
        Ok(())
    })
}

/// A task whose page directory pointers can't be loaded comes to nothing but an exception, which here is the handler's.
fn pdpte_with_a_reserved_bit(boot: &Boot) -> Outcome {
    skip_unless!(is_emulated(boot), "Bochs forgets the old ones, QEMU checks none");
    let pages = &mut Pages::from(memory::START);
    let (own, other) = (Space::new(Mode::Pae, pages), Space::new(Mode::Pae, pages));
    other.root().qword(3).fetch_or(1 << 1, Relaxed);
    own.enter();
    let selector = prepare(tasks::report_and_return);
    TASK.set(field::CR3, other.cr3());
    let handler = HANDLER.prepare(tasks::report_error_and_return);
    REPORT.poke(HANDLER.address(field::LINK), MAIN.into());
    tasks::with_task_gate(GENERAL_PROTECTION, handler, || {
        tasks::with_task_gate(INVALID_TSS, handler, || tasks::call(selector));
    });
    let cr3 = processor::cr3();
    paging::leave();
    check_eq!(REPORT.runs.load(Relaxed), 1);
    check_eq!(REPORT.error.load(Relaxed), 0);
    check_eq!(HANDLER.access(), AVAILABLE_TSS);
    check_eq!(TASK.access(), BUSY_TSS);
    check_eq!(cr3, own.cr3());
    check_back_in_main()
}

/// Its EIP and ESP have 16 bits, so its segments begin where its code and its stack are.
fn task_of_16_bits(_: &Boot) -> Outcome {
    prepare(tasks::report_and_return);
    let (eip, start) = (TASK.get(field::EIP), TASK.stack_start());
    let code = descriptors::set_free(SEGMENT, descriptors::descriptor(eip & !0xff, 0xf_ffff, 0x9b, 0xc));
    let stack = descriptors::set_free(STACK, descriptors::descriptor(start, 0xf_ffff, 0x93, 0xc));
    let (ip, sp) = ((eip & 0xff) as u16, (TASK.stack_top() - start) as u16);
    // The link, and the stacks of other privileges; IP, FLAGS, the general registers; ES, CS, SS, DS, LDTR.
    let image = [0, 0, 0, 0, 0, 0, 0, ip, 2, 0, 0, 0, 0xb0b0, sp, 0, 0, 0, DATA, code, stack, DATA, 0];
    for (index, [low, high]) in image.as_chunks().0.iter().enumerate() {
        TASK.set(index, u32::from(*low) | u32::from(*high) << 16);
    }
    let selector = TASK.describe(0x2b, tasks::AVAILABLE_TSS_16);
    for runs in 1..3 {
        tasks::call(selector);
        check_eq!(REPORT.runs.load(Relaxed), runs);
        check_eq!(REPORT.ebx.load(Relaxed) & 0xffff, 0xb0b0);
        check_eq!(REPORT.esp.load(Relaxed) & 0xffff, TASK.stack_top() - start);
        check_eq!(REPORT.eflags.load(Relaxed) & NESTED_TASK, NESTED_TASK);
        check_eq!(TASK.get(0) & 0xffff, MAIN.into());
        check_eq!(TASK.access(), tasks::AVAILABLE_TSS_16);
        check_back_in_main()?;
    }
    check!(TASK.get(3) >> 16 > ip.into(), "the task was left behind its IRET");
    Ok(())
}

fn local_descriptors(_: &Boot) -> Outcome {
    let selector = prepare(tasks::report_and_return);
    // A table of one: of data.
    let data = Page::new(memory::START);
    data.qword(0).store(descriptors::descriptor(0, 0xf_ffff, 0x93, 0xc), Relaxed);
    let ldt = descriptors::set_free(LDT, descriptors::descriptor(data.address(), 7, 0x82, 0));
    TASK.set(field::LDT, ldt.into());
    TASK.set(field::DS, 4);
    tasks::call(selector);
    check_nested(1)?;
    check_eq!(REPORT.ldtr.load(Relaxed) & 0xffff, ldt.into());
    check_eq!(REPORT.ds.load(Relaxed) & 0xffff, 4);
    Ok(())
}

fn user_mode(_: &Boot) -> Outcome {
    let selector = prepare(tasks::report_in_user_mode);
    (field::ES..=field::GS).for_each(|field| TASK.set(field, USER_DATA.into()));
    TASK.set(field::CS, USER_CODE.into());
    tasks::call(selector);
    check_eq!(REPORT.runs.load(Relaxed), 1);
    check_eq!(REPORT.ebx.load(Relaxed) & 0xffff, USER_CODE.into());
    check_eq!(TASK.access(), AVAILABLE_TSS);
    check_back_in_main()
}

/// A call of the task ends in this fault, in the task that calls.
fn check_refused(selector: u16, vector: u32, error: u32) -> Outcome {
    let access = TASK.access();
    let fault = expect_fault(|| tasks::call(selector));
    check_eq!(fault.map(|fault| (fault.frame.vector, fault.frame.error)), Some((vector, error)));
    check_eq!(REPORT.runs.load(Relaxed), 0);
    check_eq!(TASK.get(field::LINK), 0);
    check_eq!(TASK.access(), access);
    check_back_in_main()
}

fn busy_task(_: &Boot) -> Outcome {
    prepare(tasks::report_and_return);
    let selector = TASK.describe(tasks::LIMIT, BUSY_TSS);
    check_refused(selector, GENERAL_PROTECTION, selector.into())
}

fn task_that_is_not_present(_: &Boot) -> Outcome {
    prepare(tasks::report_and_return);
    let selector = TASK.describe(tasks::LIMIT, AVAILABLE_TSS & 0x7f);
    check_refused(selector, NOT_PRESENT, selector.into())
}

fn task_state_beyond_its_limit(_: &Boot) -> Outcome {
    prepare(tasks::report_and_return);
    let selector = TASK.describe(tasks::LIMIT - 1, AVAILABLE_TSS);
    check_refused(selector, INVALID_TSS, selector.into())
}

fn task_state_that_is_not_mapped(_: &Boot) -> Outcome {
    in_both_modes(|mode, pages| {
        Space::new(mode, pages).enter();
        prepare(tasks::report_and_return);
        let tss = descriptors::descriptor(AT + 0xfc0, tasks::LIMIT, AVAILABLE_TSS, 0);
        let selector = descriptors::set_free(GATE, tss);
        let fault = expect_fault(|| tasks::call(selector));
        check_eq!(fault.map(|fault| fault.frame.vector), Some(PAGE_FAULT_VECTOR.into()));
        check_eq!(fault.map(|fault| fault.cr2 & !0xfff), Some(AT));
        check_eq!((descriptors::free(GATE) >> 40) as u8, AVAILABLE_TSS);
        check_back_in_main()
    })
}

/// The new task has this fault, which a task handles that goes back to the first one.
fn check_fails_in_the_new_task(boot: &Boot, selector: u16, vector: u32, error: u32) -> Outcome {
    let handler = HANDLER.prepare(tasks::report_error_and_return);
    REPORT.poke(HANDLER.address(field::LINK), MAIN.into());
    let eip = TASK.get(field::EIP);
    tasks::with_task_gate(vector, handler, || tasks::call(selector));
    check_eq!(REPORT.runs.load(Relaxed), 1);
    check_eq!(REPORT.tr.load(Relaxed) & 0xffff, handler.into());
    check_eq!(REPORT.error.load(Relaxed), error);
    if is_exact(boot) {
        check_eq!(TASK.get(field::EIP), eip);
    }
    check_eq!(TASK.get(field::EFLAGS) & NESTED_TASK, NESTED_TASK);
    check_eq!(TASK.get(field::LINK) & 0xffff, MAIN.into());
    check_eq!(TASK.access(), BUSY_TSS);
    check_back_in_main()
}

fn bad_stack_in_the_new_task(boot: &Boot) -> Outcome {
    // Of another privilege; code; none at all.
    for ss in [USER_DATA & !3, CODE, 0] {
        let selector = prepare(tasks::report_and_return);
        TASK.set(field::SS, ss.into());
        check_fails_in_the_new_task(boot, selector, INVALID_TSS, ss.into())?;
    }
    Ok(())
}

fn data_segment_that_is_not_present(boot: &Boot) -> Outcome {
    let selector = prepare(tasks::report_and_return);
    let gs = descriptors::set_free(SEGMENT, descriptors::descriptor(0, 0xf_ffff, 0x13, 0xc));
    TASK.set(field::GS, gs.into());
    check_fails_in_the_new_task(boot, selector, NOT_PRESENT, gs.into())
}

/// The handler clears T: it goes back to the task by a switch as well.
fn debug_trap(boot: &Boot) -> Outcome {
    skip_unless!(is_exact(boot), "QEMU passes over T");
    let selector = prepare(tasks::report_and_return);
    let trap = TASK.get(field::TRAP);
    TASK.set(field::TRAP, trap | 1);
    let handler = HANDLER.prepare(tasks::report_and_return);
    REPORT.poke(TASK.address(field::TRAP), trap);
    tasks::with_task_gate(DEBUG_VECTOR.into(), handler, || tasks::call(selector));
    check_eq!(REPORT.runs.load(Relaxed), 2);
    check_eq!(REPORT.tr.load(Relaxed) & 0xffff, selector.into(), "the task runs at last");
    if is_emulated(boot) {
        check_eq!(REPORT.dr6.load(Relaxed) & DR6_TASK, DR6_TASK);
    }
    check_eq!(HANDLER.get(field::LINK) & 0xffff, selector.into());
    check_eq!(HANDLER.access(), AVAILABLE_TSS);
    check_eq!(TASK.access(), AVAILABLE_TSS);
    check_back_in_main()
}
