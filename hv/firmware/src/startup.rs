//! The start of the other CPUs, by INIT and start-up interrupts (Intel SDM vol. 3, section 9.4).

use core::fmt;
use core::time::Duration;

/// How long a CPU takes from INIT to where it waits for a start-up interrupt (Intel SDM vol. 3, section 9.4.4.1).
const AFTER_INIT: Duration = Duration::from_millis(10);
/// How long a CPU may take after the first start-up interrupt, before it is sent the second one.
const AFTER_FIRST: Duration = Duration::from_micros(200);
/// How long a CPU may take altogether.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The machine, whose boot CPU starts the others.
pub trait StartUp {
    /// Whether interrupts can be sent to this APIC ID.
    fn can_reach(&self, id: u32) -> bool;

    /// Gives the CPU with this APIC ID the number `cpu`, and a stack.
    ///
    /// # Errors
    /// What there is no memory for.
    fn prepare(&mut self, cpu: usize, id: u32) -> Result<(), &'static str>;

    /// Sends INIT.
    fn init(&mut self, id: u32);

    /// Sends a start-up interrupt.
    fn start(&mut self, id: u32);

    /// Waits.
    fn wait(&mut self, delay: Duration);

    /// Waits until CPU `cpu` has come, for `timeout` at most. Whether it has.
    fn comes(&mut self, cpu: usize, timeout: Duration) -> bool;

    /// CPU `cpu` has come, and takes part.
    fn join(&mut self, cpu: usize);

    /// The CPU that was being started was stopped: its number is the next one's.
    fn forget(&mut self);

    /// A CPU is left out.
    fn leave_out(&mut self, why: LeftOut);
}

/// Why a CPU is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// This many CPUs are beyond those that can take part.
    TooMany {
        /// All CPUs.
        cpus: usize,
        /// Those that can take part.
        max: usize,
    },
    /// No interrupt reaches this APIC ID.
    OutOfReach(u32),
    /// There is no memory for something that the CPU with this APIC ID needs.
    NoMemory(u32, &'static str),
    /// The CPU with this APIC ID does not come.
    Silent(u32),
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany { cpus, max } => write!(f, "{cpus} CPUs, of which at most {max} are used"),
            Self::OutOfReach(id) => {
                write!(f, "the CPU with APIC ID {id} is out of reach without x2APIC, and is left out")
            }
            Self::NoMemory(id, what) => write!(f, "no memory for {what} of the CPU with APIC ID {id}"),
            Self::Silent(id) => write!(f, "the CPU with APIC ID {id} does not answer, and is left out"),
        }
    }
}

impl core::error::Error for LeftOut {}

/// Starts the CPUs with the APIC IDs `ids`, one after the other, but for that with the APIC ID `own`, which is the boot CPU. `cpus` is
/// the number of all CPUs, `max` that of those that can take part. One that does not come is left out.
pub fn start_others(machine: &mut impl StartUp, own: u32, ids: impl IntoIterator<Item = u32>, cpus: usize, max: usize) {
    if cpus > max {
        machine.leave_out(LeftOut::TooMany { cpus, max });
    }
    let mut next = 1;
    for id in ids.into_iter().filter(|&id| id != own).take(max - 1) {
        match start_one(machine, next, id) {
            Ok(()) => {
                machine.join(next);
                next += 1;
            }
            Err(why) => machine.leave_out(why),
        }
    }
}

/// INIT, a start-up interrupt, and another one if the CPU has not come by then (Intel SDM vol. 3, section 9.4.4.1).
fn start_one(machine: &mut impl StartUp, cpu: usize, id: u32) -> Result<(), LeftOut> {
    if !machine.can_reach(id) {
        return Err(LeftOut::OutOfReach(id));
    }
    machine.prepare(cpu, id).map_err(|what| LeftOut::NoMemory(id, what))?;
    machine.init(id);
    machine.wait(AFTER_INIT);
    for timeout in [AFTER_FIRST, TIMEOUT] {
        machine.start(id);
        if machine.comes(cpu, timeout) {
            return Ok(());
        }
    }
    // The CPU may still be starting. INIT stops it, so that it does not take the next CPU's number.
    machine.init(id);
    machine.wait(AFTER_INIT);
    machine.forget();
    Err(LeftOut::Silent(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// What was done, in its order.
    #[derive(Debug, PartialEq, Eq)]
    enum Did {
        Prepare(usize, u32),
        Init(u32),
        Start(u32),
        Wait(Duration),
        Join(usize),
        Forget,
        LeaveOut(LeftOut),
    }
    use Did::*;

    /// CPUs that come at the n-th start-up interrupt, by their APIC IDs. IDs from 255 on are out of reach.
    struct Script<'a> {
        comes_at: &'a [(u32, usize)],
        stacks: usize,
        did: Vec<Did>,
    }

    impl StartUp for Script<'_> {
        fn can_reach(&self, id: u32) -> bool {
            id < 255
        }

        fn prepare(&mut self, cpu: usize, id: u32) -> Result<(), &'static str> {
            self.stacks = self.stacks.checked_sub(1).ok_or("a stack")?;
            self.did.push(Prepare(cpu, id));
            Ok(())
        }

        fn init(&mut self, id: u32) {
            self.did.push(Init(id));
        }

        fn start(&mut self, id: u32) {
            self.did.push(Start(id));
        }

        fn wait(&mut self, delay: Duration) {
            self.did.push(Wait(delay));
        }

        fn comes(&mut self, _: usize, timeout: Duration) -> bool {
            self.did.push(Wait(timeout));
            let sent: Vec<_> =
                self.did.iter().filter_map(|did| if let Start(id) = did { Some(*id) } else { None }).collect();
            let last = sent.last().copied();
            let times = sent.iter().filter(|&&id| Some(id) == last).count();
            self.comes_at.iter().any(|&(id, at)| Some(id) == last && times == at)
        }

        fn join(&mut self, cpu: usize) {
            self.did.push(Join(cpu));
        }

        fn forget(&mut self) {
            self.did.push(Forget);
        }

        fn leave_out(&mut self, why: LeftOut) {
            self.did.push(LeaveOut(why));
        }
    }

    fn start(comes_at: &[(u32, usize)], stacks: usize, ids: &[u32], max: usize) -> Vec<Did> {
        let mut machine = Script { comes_at, stacks, did: Vec::new() };
        start_others(&mut machine, 0, ids.iter().copied(), ids.len(), max);
        machine.did
    }

    #[test]
    fn a_cpu_that_comes_at_once_gets_one_startup_interrupt() {
        let did = start(&[(1, 1)], 9, &[0, 1], 4);
        assert_eq!(did, [Prepare(1, 1), Init(1), Wait(AFTER_INIT), Start(1), Wait(AFTER_FIRST), Join(1)]);
    }

    #[test]
    fn a_cpu_that_is_slow_gets_a_second_one() {
        let did = start(&[(1, 2)], 9, &[0, 1], 4);
        assert_eq!(did[3..], [Start(1), Wait(AFTER_FIRST), Start(1), Wait(TIMEOUT), Join(1)]);
    }

    #[test]
    fn a_silent_cpu_is_stopped_and_the_next_one_gets_its_number() {
        let did = start(&[(7, 1)], 9, &[0, 5, 7], 4);
        let silent = [Start(5), Wait(TIMEOUT), Init(5), Wait(AFTER_INIT), Forget, LeaveOut(LeftOut::Silent(5))];
        assert_eq!(did[5..11], silent);
        assert_eq!((&did[11], did.last()), (&Prepare(1, 7), Some(&Join(1))));
    }

    #[test]
    fn a_cpu_without_memory_or_out_of_reach_is_sent_nothing() {
        assert_eq!(start(&[], 0, &[0, 1], 4), [LeaveOut(LeftOut::NoMemory(1, "a stack"))]);
        assert_eq!(start(&[], 9, &[0, 255], 4), [LeaveOut(LeftOut::OutOfReach(255))]);
    }

    #[test]
    fn as_many_take_part_as_can() {
        let did = start(&[(1, 1), (2, 1), (3, 1)], 9, &[1, 2, 3, 0], 3);
        assert_eq!(did[0], LeaveOut(LeftOut::TooMany { cpus: 4, max: 3 }));
        let joined: Vec<_> = did.iter().filter(|did| matches!(did, Join(_))).collect();
        assert_eq!(joined, [&Join(1), &Join(2)]);
        assert!(!did.contains(&Init(0)) && !did.contains(&Init(3)), "neither the boot CPU nor one too many");
        assert_eq!(start(&[], 9, &[0], 4), vec![], "a machine with one CPU");
    }
}
