//! The same rates by other means in the same run: on a software adapter a threaded copy and a threaded loop of
//! multiply-adds, on a GPU PyTorch's copy and matrix product.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;
use wgpt::gpu::Caps;
use wgpt::train::measure::{Roofs, Table, table::number};

/// One roof beside its independent figure.
#[derive(Debug, Serialize)]
pub struct Pair {
    pub roof: &'static str,
    /// Bytes or operations a second, as the adapter's kernel reached them.
    pub ours: f64,
    /// By other means, and which.
    pub theirs: Option<f64>,
    pub means: String,
    /// That they agree within 20 %, or why not.
    pub verdict: String,
}

/// The rates of other means: (copy, f32, f16 matrices), and what they are.
struct Others {
    copy: Option<f64>,
    f32: Option<f64>,
    matrix: Option<f64>,
    means: [&'static str; 3],
    /// Why some are missing.
    missing: String,
}

/// Sets every roof beside its independent figure.
pub fn pairs(caps: &Caps, roofs: &Roofs, time: Duration) -> Vec<Pair> {
    let others = if caps.software { host(time) } else { pytorch() };
    let mut pairs = vec![pair("copy", roofs.copy, others.copy, others.means[0], &others.missing)];
    pairs.push(pair("fma f32", roofs.fused_f32, others.f32, others.means[1], &others.missing));
    if let Some(rate) = roofs.fused_f16 {
        pairs.push(pair("fma f16", rate, None, "none", "nobody else here makes plain multiply-adds in f16"));
    }
    if let Some(rate) = roofs.matrix {
        pairs.push(pair("matrix", rate, others.matrix, others.means[2], &others.missing));
    }
    pairs
}

fn pair(roof: &'static str, ours: f64, theirs: Option<f64>, means: &str, missing: &str) -> Pair {
    let verdict = match theirs.map(|theirs| ours / theirs) {
        None => missing.to_owned(),
        Some(ratio) if (0.8..=1.25).contains(&ratio) => "agree within 20 %".into(),
        Some(ratio) => format!("differ: {}", reason(roof, ratio)),
    };
    Pair { roof, ours, theirs, means: means.into(), verdict }
}

/// The likeliest cause of a difference of more than a fifth.
fn reason(roof: &str, ratio: f64) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let load =
        std::fs::read_to_string("/proc/loadavg").ok().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    if let Some(load) = load.filter(|load| *load > cores + 0.5) {
        return format!("other programs kept the processor busy meanwhile (load {load:.1} on {cores} cores)");
    }
    match roof {
        "copy" if ratio < 1.0 => {
            "nothing that the adapter offers, no kernel and no copy command, uses all threads on memory as the loop does".into()
        }
        "matrix" if ratio < 1.0 => {
            "a GPU may have matrix instructions for more than one subgroup, which the library uses and WGSL has not".into()
        }
        "fma f32" if ratio > 1.0 => "a whole matrix product also loads and stores".into(),
        _ => "for no reason known to this program: look into it before trusting percentages of this roof".into(),
    }
}

/// The table of the pairs.
pub fn report(pairs: &[Pair]) -> Table {
    let mut table = Table::new(&["<roof", "here", "<", "independent", "<by", "ratio", "<"]);
    for p in pairs {
        let (scale, unit) = if p.roof == "copy" { (1e9, "GB/s") } else { (1e12, "TFLOP/s") };
        table.row([
            p.roof.into(),
            number(p.ours / scale),
            unit.into(),
            p.theirs.map_or("-".into(), |x| number(x / scale)),
            p.means.clone(),
            p.theirs.map_or("-".into(), |x| format!("{:.2}", p.ours / x)),
            p.verdict.clone(),
        ]);
    }
    table
}

/// The best rate of `work`, which returns how much it did.
fn best(time: Duration, mut work: impl FnMut() -> f64) -> f64 {
    let begin = Instant::now();
    let mut best = 0.0f64;
    let mut runs = 0;
    while runs < 3 || begin.elapsed() < time {
        let start = Instant::now();
        let amount = work();
        best = best.max(amount / start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn host(time: Duration) -> Others {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let f32 = fused_loop().map(|(name, flops_a_round, run)| {
        let rounds = 2_000_000;
        let rate = best(time, || {
            std::thread::scope(|scope| {
                (0..threads).for_each(|_| drop(scope.spawn(move || std::hint::black_box(run(rounds)))))
            });
            flops_a_round * rounds as f64 * threads as f64
        });
        (name, rate)
    });
    Others {
        copy: Some(copy(time, threads)),
        f32: f32.map(|(_, rate)| rate),
        matrix: None,
        means: ["threaded copy", f32.map_or("none", |(name, _)| name), "none"],
        missing: "no loop of this kind was written for this processor".into(),
    }
}

/// Bytes a second of a copy that the compiler may not make a call of memcpy, whose stores go round the caches.
fn copy(time: Duration, threads: usize) -> f64 {
    const WORDS: usize = 8 << 20;
    let inp = vec![1u64; WORDS];
    let mut out = vec![0u64; WORDS];
    let mask = std::hint::black_box(0x55u64);
    best(time, || {
        let share = WORDS.div_ceil(threads);
        std::thread::scope(|scope| {
            for (out, inp) in out.chunks_mut(share).zip(inp.chunks(share)) {
                scope.spawn(move || out.iter_mut().zip(inp).for_each(|(out, inp)| *out = inp ^ mask));
            }
        });
        std::hint::black_box(&out);
        (16 * WORDS) as f64
    })
}

type FusedLoop = (&'static str, f64, fn(usize) -> f32);

/// A loop of multiply-adds for this processor: its name, its operations a round, and itself.
#[cfg(target_arch = "x86_64")]
fn fused_loop() -> Option<FusedLoop> {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_cvtss_f32, _mm512_fmadd_ps,
        _mm512_set1_ps,
    };

    #[target_feature(enable = "avx512f")]
    fn wide(rounds: usize) -> f32 {
        let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.75)), _mm512_set1_ps(std::hint::black_box(0.125)));
        let mut x: [__m512; 12] = [_mm512_set1_ps(0.5); 12];
        for _ in 0..rounds {
            for x in &mut x {
                *x = _mm512_fmadd_ps(*x, a, b);
            }
        }
        x.iter().map(|&x| _mm512_cvtss_f32(x)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    fn narrow(rounds: usize) -> f32 {
        let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.75)), _mm256_set1_ps(std::hint::black_box(0.125)));
        let mut x: [__m256; 12] = [_mm256_set1_ps(0.5); 12];
        for _ in 0..rounds {
            for x in &mut x {
                *x = _mm256_fmadd_ps(*x, a, b);
            }
        }
        x.iter().map(|&x| _mm256_cvtss_f32(x)).sum()
    }

    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has what the function was compiled for.
        return Some(("threaded AVX-512 loop", 12.0 * 16.0 * 2.0, |rounds| unsafe { wide(rounds) }));
    }
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function was compiled for.
        return Some(("threaded AVX2 loop", 12.0 * 8.0 * 2.0, |rounds| unsafe { narrow(rounds) }));
    }
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn fused_loop() -> Option<FusedLoop> {
    None
}

/// PyTorch's copy and matrix products, where there is a Python with PyTorch that sees a GPU.
fn pytorch() -> Others {
    let script = Path::new("tools/peers/roofs.py");
    let python = std::env::var("WGPT_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut others = Others {
        copy: None,
        f32: None,
        matrix: None,
        means: ["PyTorch copy", "PyTorch f32 product", "PyTorch f16 product"],
        missing: String::new(),
    };
    let output = match Command::new(&python).arg(script).output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            others.missing = format!("PyTorch not run: {}", text.trim().lines().last().unwrap_or("no reason given"));
            return others;
        }
        Err(error) => {
            others.missing = format!("PyTorch not run: {python}: {error}");
            return others;
        }
    };
    let Ok(figures) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        others.missing = "PyTorch not run: tools/peers/roofs.py printed no JSON".into();
        return others;
    };
    (others.copy, others.f32, others.matrix) =
        (figures["copy"].as_f64(), figures["f32"].as_f64(), figures["f16"].as_f64());
    others
}
