//! The check that a common VM exit allocates nothing and formats nothing.
//!
//! The calls of the linked image are followed from the functions that enter the guest: those that hold VMRUN, VMLAUNCH or
//! VMRESUME, into which the compiler inlines the loop around the entry and the handlers of common exits. A call of the allocator or
//! of `core::fmt` that is reached is a finding, with the way there. [`RARE`] lists where the walk stops, and why.
//!
//! Calls through pointers are not followed. The exit path makes none that matter: handlers are statically dispatched, so what is
//! left are jump tables within a function. A lock that the compiler inlines has no symbol and can't be seen here.

use crate::functions::{self, Function};
use anyhow::{Context, Result, ensure};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs;
use std::path::Path;

/// The loop between exits. It is a function of its own wherever the compiler puts the entry of the guest.
const LOOP: &str = "sched::scheduler::Scheduler<T>::run";

/// Where the walk stops: the beginning of a function's name, and why what is behind it is no part of a common exit.
const RARE: [(&str, &str); 18] = [
    ("core::panicking::", "the hypervisor ends"),
    ("core::option::", "the hypervisor ends"),
    ("core::result::", "the hypervisor ends"),
    ("core::slice::index::", "the hypervisor ends"),
    ("hv::watchdog::check_all", "once a second, and it is cold"),
    ("hv::vms::vcpu_task::dump", "a VM ends"),
    ("hv::vms::guest::Guest<F>::add_so_far", "a report is asked for"),
    ("hv::vms::vcpu_task::tell_of_reset", "a VM begins anew"),
    ("hv::vms::vcpu_task::VcpuTask<B>::reach_limit", "a VM ends"),
    ("<hv::vms::work::ScheduledCpu<B> as sched::scheduler::Cpu>::finish", "a VM ends"),
    ("hv::vms::teardown::Teardown<F>::run", "a VM has ended"),
    ("sched::scheduler::Scheduler<T>::remove_if_ended", "a VM has ended"),
    ("spin::once::Once<T,R>::try_call_once_slow", "the decoder's tables, which are made before the first guest starts"),
    ("serial::mux::Mux::next", "formats only where a VM's flood made it drop bytes"),
    ("core::ptr::drop_in_place<mmu::spare::Spare<", "gives frames back to a list as long as it has room"),
    ("memory::pool::Pool::take_batch", "its list has its capacity from the start"),
    (
        "shadow::cached::Shadow<E>::install",
        "its lists have their capacity from the start: hv/shadow/tests/heap.rs finds each allocation",
    ),
    ("shadow::metadata::LastLevel::set_unsync", "as above"),
];

/// Parts of the names of functions that allocate or format.
const FORBIDDEN: [&str; 8] = [
    "core::fmt::",
    "alloc::fmt::",
    "alloc::raw_vec::",
    "alloc::alloc::",
    "__rust_alloc",
    "__rust_realloc",
    "__rust_dealloc",
    "heap::LockedHeap",
];

/// A function that a common exit must not reach, with those on the way there: from it back to one that enters the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding(Vec<String>);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n    called by "))
    }
}

/// What was looked at, and what was found.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Functions that a common exit may reach.
    pub(crate) reached: usize,
    /// Those of them that it must not reach.
    pub(crate) findings: Vec<Finding>,
    /// The entries of [`RARE`] that no function on the way matched.
    pub(crate) unused: Vec<&'static str>,
}

/// Walks the calls of an image.
///
/// # Errors
/// It can't be read, or no function of it enters a guest.
pub(crate) fn walk(image: &Path) -> Result<Walk> {
    let bytes = fs::read(image).with_context(|| format!("can't read {}", image.display()))?;
    let graph = Graph::new(&functions::of(&object::File::parse(&*bytes)?)?);
    let (has, image) = (|of: fn(&Node) -> bool| graph.functions.values().any(of), image.display());
    ensure!(has(|node| node.enters_guest), "no function of {image} enters a guest");
    ensure!(has(|node| node.name == LOOP), "{image} has no function {LOOP}");
    Ok(graph.walk())
}

/// Which function calls which, by their addresses.
struct Graph {
    functions: BTreeMap<u64, Node>,
}

struct Node {
    name: String,
    calls: Vec<u64>,
    enters_guest: bool,
}

impl Graph {
    fn new(functions: &[Function<'_>]) -> Self {
        let starts: Vec<u64> = functions.iter().map(|function| function.address).collect();
        let nodes = functions.iter().map(|function| (function.address, Node::new(function, &starts)));
        Self { functions: nodes.collect() }
    }

    fn walk(&self) -> Walk {
        let is_root = |node: &Node| node.enters_guest || node.name == LOOP;
        let roots = self.functions.iter().filter(|(_, node)| is_root(node)).map(|(&address, _)| address);
        let mut callers: BTreeMap<u64, Option<u64>> = roots.map(|root| (root, None)).collect();
        let mut queue: VecDeque<u64> = callers.keys().copied().collect();
        let mut findings = Vec::new();
        let mut unused: Vec<_> = RARE.iter().map(|(prefix, _)| *prefix).collect();
        while let Some(caller) = queue.pop_front() {
            for &callee in &self.functions[&caller].calls {
                let name = &self.functions[&callee].name;
                if is_rare(name) {
                    unused.retain(|prefix| !name.starts_with(prefix));
                    continue;
                }
                if callers.contains_key(&callee) {
                    continue;
                }
                callers.insert(callee, Some(caller));
                if FORBIDDEN.iter().any(|part| name.contains(part)) {
                    findings.push(self.way_to(callee, &callers));
                } else {
                    queue.push_back(callee);
                }
            }
        }
        Walk { reached: callers.len(), findings, unused }
    }

    fn way_to(&self, callee: u64, callers: &BTreeMap<u64, Option<u64>>) -> Finding {
        let way = std::iter::successors(Some(callee), |function| callers[function]);
        Finding(way.map(|function| self.functions[&function].name.clone()).collect())
    }
}

fn is_rare(name: &str) -> bool {
    RARE.iter().any(|(prefix, _)| name.starts_with(prefix))
}

impl Node {
    /// `starts`: the addresses of all functions, in order.
    fn new(function: &Function<'_>, starts: &[u64]) -> Self {
        let mut node = Self { name: function.name.clone(), calls: Vec::new(), enters_guest: false };
        let own = function.address..function.address + function.code.len() as u64;
        for instruction in &mut Decoder::with_ip(function.bitness, function.code, own.start, DecoderOptions::NONE) {
            node.enters_guest |=
                matches!(instruction.mnemonic(), Mnemonic::Vmrun | Mnemonic::Vmlaunch | Mnemonic::Vmresume);
            if let Some(target) = branch_target(&instruction).filter(|target| !own.contains(target)) {
                node.calls
                    .extend(starts.partition_point(|&start| start <= target).checked_sub(1).map(|index| starts[index]));
            }
        }
        node.calls.sort_unstable();
        node.calls.dedup();
        node
    }
}

/// Where a direct call or jump leads.
fn branch_target(instruction: &Instruction) -> Option<u64> {
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
            Some(instruction.near_branch_target()).filter(|&target| target != 0)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMRUN: &[u8] = &[0x0f, 0x01, 0xd8];
    const RET: u8 = 0xc3;

    /// An image in which each function, of 16 bytes, calls those whose numbers it has; the first enters the guest.
    fn walk_of(functions: &[(&str, &[usize])]) -> Walk {
        let address = |index: usize| 0x1000 + 16 * index as u64;
        let codes: Vec<Vec<u8>> = functions
            .iter()
            .enumerate()
            .map(|(index, (_, calls))| {
                let mut code = if index == 0 { VMRUN.to_vec() } else { Vec::new() };
                for &callee in *calls {
                    let next = address(index) + code.len() as u64 + 5;
                    code.push(0xe8);
                    code.extend((address(callee).wrapping_sub(next) as u32).to_le_bytes());
                }
                code.push(RET);
                code
            })
            .collect();
        let functions: Vec<_> = functions
            .iter()
            .zip(&codes)
            .enumerate()
            .map(|(index, ((name, _), code))| Function {
                name: name.to_string(),
                address: address(index),
                bitness: 64,
                code,
            })
            .collect();
        Graph::new(&functions).walk()
    }

    #[test]
    fn an_allocation_is_found_with_the_way_to_it() {
        let walk =
            walk_of(&[("run", &[1]), ("handler", &[2]), ("alloc::raw_vec::RawVec<T>::grow_one", &[]), ("other", &[])]);
        let way = ["alloc::raw_vec::RawVec<T>::grow_one", "handler", "run"].map(str::to_string).to_vec();
        assert_eq!((walk.reached, walk.findings), (3, vec![Finding(way)]));
    }

    #[test]
    fn formatting_is_found() {
        let walk = walk_of(&[("run", &[1]), ("<addr::Gpa as core::fmt::Display>::fmt", &[])]);
        assert_eq!(walk.findings.len(), 1);
    }

    #[test]
    fn what_is_rare_may_do_both() {
        let walk = walk_of(&[("run", &[1]), ("core::panicking::panic_fmt", &[2]), ("core::fmt::write", &[])]);
        assert_eq!((walk.reached, walk.findings), (1, vec![]));
        assert!(!walk.unused.contains(&"core::panicking::") && walk.unused.contains(&"core::option::"));
    }

    #[test]
    fn the_loop_between_exits_may_do_neither() {
        let walk = walk_of(&[("enter", &[]), (LOOP, &[0, 2]), ("core::fmt::write", &[]), ("boot", &[1, 2])]);
        assert_eq!((walk.reached, walk.findings.len()), (3, 1));
    }

    #[test]
    fn functions_that_no_exit_reaches_may_do_both() {
        let walk = walk_of(&[("run", &[]), ("boot", &[2]), ("core::fmt::write", &[])]);
        assert_eq!(walk.findings, []);
    }

    #[test]
    fn a_jump_at_a_functions_end_is_a_call() {
        let jump = [0xe9, 0x0b, 0, 0, 0];
        let run = [VMRUN, &jump[..]].concat();
        let functions = [("run", 0x1000, &run[..]), ("core::fmt::write", 0x1013, &[RET][..])];
        let functions =
            functions.map(|(name, address, code)| Function { name: name.into(), address, bitness: 64, code });
        assert_eq!(Graph::new(&functions).walk().findings.len(), 1);
    }

    #[test]
    fn a_program_that_enters_no_guest_is_refused() {
        assert!(walk(&std::env::current_exe().unwrap()).is_err());
    }
}
