//! The tests but [`shootdown`](mod@crate::shootdown).

use linux_raw_sys::general::MADV_HUGEPAGE;

use crate::exit::{self, GuestStatus};
use crate::ktap::Outcome;
use crate::model::{Backing, PAGES, Protection};
use crate::sys::{self, Errno};
use crate::window::Window;
use crate::words::Injection;
use crate::worker::Worker;
use crate::{Context, check, check_eq, check_ok, println, skip_unless, thread};

/// Each kind of access to each kind of page.
pub(crate) fn faults(context: &Context) -> Outcome {
    let mut window = context.window(0)?;
    for backing in [Backing::Anonymous, Backing::Shared(0), Backing::Private(0)] {
        for protection in [
            Protection::None,
            Protection::Read,
            Protection::ReadWrite,
            Protection::ReadExecute,
            Protection::ReadWriteExecute,
        ] {
            window.map(0..2, Protection::ReadWrite, backing)?;
            // The one page has its content before it is protected, the other is not touched.
            window.write(0..1)?;
            window.protect(0..2, protection)?;
            window.verify(0..3)?;
            window.execute(0)?;
            window.write(0..3)?;
            window.verify(0..3)?;
            window.unmap(0..2)?;
            window.verify(0..2)?;
        }
    }
    Ok(())
}

/// A chain of processes, each forked by the one before, all of which write to what they share.
pub(crate) fn copy_on_write(context: &Context) -> Outcome {
    const LENGTH: usize = 4;
    let mut window = context.window(0)?;
    window.map(0..64, Protection::ReadWrite, Backing::Anonymous)?;
    window.map(64..128, Protection::ReadWrite, Backing::Private(0))?;
    window.write(0..96)?;
    fork_chain(&mut window, LENGTH)
}

fn fork_chain(window: &mut Window, length: usize) -> Outcome {
    let child = check_ok!(sys::fork());
    if child == 0 {
        window.random().below(u64::MAX);
        let passed = window
            .verify_all()
            .and_then(|()| window.write(length * 8..128))
            .and_then(|()| if length > 1 { fork_chain(window, length - 1) } else { Ok(()) })
            .and_then(|()| window.verify_all());
        exit::end(if passed.is_ok() { GuestStatus::Passed } else { GuestStatus::Failed });
    }
    // At the same time as the child.
    window.write(0..length * 16)?;
    window.verify_all()?;
    check_eq!(check_ok!(sys::wait_for(child)), 0, "the status of a forked process");
    window.verify_all()
}

/// Large pages are made, split in every way that there is, moved in whole, copied, and made again of small ones.
pub(crate) fn large_pages(context: &Context) -> Outcome {
    const HALF: usize = PAGES / 2;
    let mut window = context.window(0)?;
    let before = large_pages_so_far();
    window.map(0..PAGES, Protection::ReadWrite, Backing::Anonymous)?;
    skip_unless!(window.advise(0..PAGES, MADV_HUGEPAGE) != Err(Errno::INVALID), "the kernel has no large pages");
    window.write(0..PAGES)?;
    window.verify_all()?;
    window.protect(100..200, Protection::Read)?;
    window.write(90..110)?;
    window.verify_all()?;
    window.protect(100..200, Protection::ReadWrite)?;
    window.unmap(700..701)?;
    window.discard(900..1000)?;
    window.verify_all()?;
    window.relocate(HALF..PAGES, 0, false)?;
    window.verify_all()?;
    window.map(HALF..PAGES, Protection::ReadWrite, Backing::Anonymous)?;
    window.write(HALF + 3..HALF + 4)?;
    fork_chain(&mut window, 1)?;
    let collapsed = window.collapse(0..HALF);
    window.write(HALF - 10..HALF)?;
    window.verify_all()?;
    let made = large_pages_so_far().wrapping_sub(before);
    println!(
        "# {made} large pages at a fault; small ones {} be collapsed",
        if collapsed { "could" } else { "could not" }
    );
    Ok(())
}

/// How many large pages the kernel has mapped at a fault, by its own count.
fn large_pages_so_far() -> u64 {
    let mut buffer = [0; 8192];
    let text = core::str::from_utf8(sys::read_file(c"/proc/vmstat", &mut buffer)).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("thp_fault_alloc ")?.parse().ok());
    count.unwrap_or_default()
}

/// All operations, in any order.
pub(crate) fn one_thread(context: &Context) -> Outcome {
    let mut worker = Worker::new(context.window(0)?);
    worker.run(context.words.operations)?;
    inject(context, &mut worker.window)
}

/// What has to make the test fail, if that is wanted.
fn inject(context: &Context, window: &mut Window) -> Outcome {
    match context.words.injection {
        None => return Ok(()),
        Some(Injection::Content) => {
            window.map(0..1, Protection::ReadWrite, Backing::Anonymous)?;
            window.write(0..1)?;
            window.inject_content(0);
        }
        Some(Injection::Fault) => {
            window.unmap(0..1)?;
            window.inject_mapping(0)?;
        }
    }
    window.verify_all()
}

/// The same in several threads of one address space, each with a window of its own: while one changes its mappings, or is copied
/// by a fork of another, the others go on.
pub(crate) fn many_threads(context: &Context) -> Outcome {
    check!(context.words.threads > 0);
    thread::on_all(context.words.threads, &|thread| {
        let operations = context.words.operations;
        Worker::new(context.window(thread)?).run(operations).inspect_err(|_| println!("# failed in thread {thread}"))
    })
}
