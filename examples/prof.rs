use std::collections::BTreeMap;
use wgpt::gpu::{Gpu, Options};
use wgpt::model::{Config, init};
use wgpt::train::{Optimizer, Sizes, Trainer};
fn main() {
    let a: Vec<usize> = std::env::args().skip(1).map(|s| s.parse().unwrap()).collect();
    // layers heads channels vocab batch context
    let config = Config::new(a[5], a[3], a[0], a[1], a[2]).unwrap();
    let gpu = Gpu::open(&Options::default()).unwrap();
    println!("{}", gpu.caps.summary());
    let sizes = Sizes { batch: a[4], context: a[5], accumulation: 1 };
    let mut t = Trainer::new(&gpu, config, sizes, Optimizer::default()).unwrap();
    t.load(&init::init(config, 42)).unwrap();
    let n = a[4] * a[5];
    let toks: Vec<u32> = (0..n as u32).map(|i| (i * 7919) % a[3] as u32).collect();
    t.probe(&toks, &toks, true).unwrap();
    let mut best = f64::MAX;
    let mut table: BTreeMap<String, (usize, f64, u64)> = BTreeMap::new();
    for rep in 0..a.get(6).copied().unwrap_or(3) {
        let begin = std::time::Instant::now();
        for p in t.programs() { p.run(&gpu).unwrap(); }
        gpu.wait().unwrap();
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        best = best.min(ms);
        let mut now: BTreeMap<String, (usize, f64, u64)> = BTreeMap::new();
        for p in t.programs() {
            for tm in p.time(&gpu).unwrap() {
                let c = &p.commands[tm.command];
                let e = now.entry(format!("{} {}", c.name, if c.place == "head" { "head" } else { "" })).or_default();
                e.0 += 1; e.1 += tm.end_ms - tm.begin_ms; e.2 += c.flops;
            }
        }
        if rep == 0 { table = now } else { for (k, v) in now { let e = table.get_mut(&k).unwrap(); e.1 = e.1.min(v.1); } }
    }
    let mut rows: Vec<_> = table.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let sum: f64 = rows.iter().map(|r| r.1.1).sum();
    println!("wall best {best:.1} ms, kernels {sum:.1} ms");
    for (k, (c, ms, fl)) in rows { println!("{ms:9.2} ms {:5.1}%  x{c:<4} {:7.2} GFLOP/s  {k}", 100.0 * ms / sum, fl as f64 / ms / 1e6); }
}
