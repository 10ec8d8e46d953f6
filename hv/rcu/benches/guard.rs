//! The cost of the read side: a guard compared with an empty function and with `crossbeam-epoch`'s pin, as ratios in
//! one run.

use addr::Pfn;
use criterion::{Criterion, criterion_group, criterion_main};
use rcu::{Cpu, CpuData, Domain, Flush, Head, Platform, Space, Tlb};
use std::hint::black_box;
use std::time::Instant;

struct TestPlatform(Head);

impl Platform for TestPlatform {
    fn head(&self, _: Pfn) -> &Head {
        &self.0
    }

    fn kick(&self, _: usize) {}

    fn now(&self) -> u64 {
        0
    }
}

#[inline(never)]
fn empty(cpu: &Cpu<'_, TestPlatform>) {
    black_box(cpu);
}

#[inline(never)]
fn guard(cpu: &Cpu<'_, TestPlatform>) {
    let _guard = cpu.read();
    black_box(cpu);
}

#[inline(never)]
fn pin(cpu: &Cpu<'_, TestPlatform>) {
    let _guard = crossbeam_epoch::pin();
    black_box(cpu);
}

#[inline(never)]
fn quiescent(cpu: &mut Cpu<'_, TestPlatform>) {
    cpu.quiescent();
    black_box(&*cpu);
}

#[inline(never)]
fn guest(cpu: &mut Cpu<'_, TestPlatform>, space: &Space, tlb: &mut Tlb) -> Flush {
    cpu.guest(space, tlb, black_box)
}

/// Nanoseconds per call: the median of many short runs, so that an interrupt counts once.
fn nanoseconds(mut call: impl FnMut()) -> f64 {
    const CALLS: u32 = 10_000;
    let mut runs: Vec<f64> = (0..301)
        .map(|_| {
            let start = Instant::now();
            (0..CALLS).for_each(|_| call());
            start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

fn benches(criterion: &mut Criterion) {
    let domain: Domain<TestPlatform, [CpuData; 1]> = Domain::new(TestPlatform(Head::new()), 1);
    let space = Space::new(&domain);
    let (mut cpu, mut tlb) = (domain.register(0).unwrap(), Tlb::new());

    let mut group = criterion.benchmark_group("guard");
    group.bench_function("empty function", |bencher| bencher.iter(|| empty(&cpu)));
    group.bench_function("rcu guard", |bencher| bencher.iter(|| guard(&cpu)));
    group.bench_function("crossbeam-epoch pin", |bencher| bencher.iter(|| pin(&cpu)));
    group.bench_function("quiescent state", |bencher| bencher.iter(|| quiescent(&mut cpu)));
    group.bench_function("guest entry and exit", |bencher| bencher.iter(|| guest(&mut cpu, &space, &mut tlb)));
    group.finish();

    let unit = nanoseconds(|| empty(&cpu));
    println!("{:<24}{:>10}{:>10}", "", "ns", "ratio");
    let report = |name, took: f64| println!("{name:<24}{took:>10.2}{:>10.2}", took / unit);
    report("empty function", unit);
    report("rcu guard", nanoseconds(|| guard(&cpu)));
    report("crossbeam-epoch pin", nanoseconds(|| pin(&cpu)));
    report("quiescent state", nanoseconds(|| quiescent(&mut cpu)));
    report("guest entry and exit", nanoseconds(|| _ = guest(&mut cpu, &space, &mut tlb)));
}

criterion_group!(guards, benches);
criterion_main!(guards);
