//! Measures the roofs' rates independently in the same run: on a software adapter by a threaded copy and a threaded
//! loop of multiply-adds, on a GPU by PyTorch's copy and matrix products.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use wgpt::gpu::Caps;
use wgpt::measure::table::number;
use wgpt::measure::{Roofs, Table};

/// A roof and its independent figure.
#[derive(Debug, Serialize)]
pub struct Pair {
    pub roof: &'static str,
    /// Bytes or operations per second that our kernel reached.
    pub ours: f64,
    /// The independent rate.
    pub theirs: Option<f64>,
    /// Name of the independent program.
    pub means: String,
    /// `agree within 20 %`, or the most likely reason for a larger difference.
    pub verdict: String,
}

/// Independent rates: copy, f32 and f16 matrices.
struct Others {
    copy: Option<f64>,
    f32: Option<f64>,
    matrix: Option<f64>,
    /// Names of the programs that measured them.
    means: [&'static str; 3],
    /// The reason for each missing rate; empty for the others.
    missing: [String; 3],
}

/// Measures an independent figure for every roof.
pub fn pairs(caps: &Caps, roofs: &Roofs, time: Duration) -> Vec<Pair> {
    let others = if caps.software { host(time, roofs.fuses) } else { pytorch(&caps.name) };
    let mut pairs = vec![pair(caps.software, "copy", roofs.copy, others.copy, others.means[0], &others.missing[0])];
    pairs.push(pair(caps.software, "fma f32", roofs.fused_f32, others.f32, others.means[1], &others.missing[1]));
    if let Some(rate) = roofs.fused_f16 {
        pairs.push(pair(
            caps.software,
            "fma f16",
            rate,
            None,
            "none",
            "no independent program here does plain multiply-adds in f16",
        ));
    }
    if let Some(rate) = roofs.matrix {
        pairs.push(pair(caps.software, "matrix", rate, others.matrix, others.means[2], &others.missing[2]));
    }
    pairs
}

fn pair(software: bool, roof: &'static str, ours: f64, theirs: Option<f64>, means: &str, missing: &str) -> Pair {
    let verdict = match theirs.map(|theirs| ours / theirs) {
        None => missing.to_owned(),
        Some(ratio) if (0.8..=1.25).contains(&ratio) => "agree within 20 %".into(),
        Some(ratio) => format!("differ: {}", reason(roof, ratio, software)),
    };
    Pair { roof, ours, theirs, means: means.into(), verdict }
}

/// Returns the likeliest cause of a difference of more than 20 %.
fn reason(roof: &str, ratio: f64, software: bool) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let load =
        std::fs::read_to_string("/proc/loadavg").ok().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    if let Some(load) = load.filter(|load| *load > cores + 0.5) {
        return format!("other programs kept the CPU busy (load {load:.1} on {cores} cores)");
    }
    match roof {
        "copy" if ratio < 1.0 => {
            "neither a kernel nor a copy command of the adapter uses all threads on memory, as the loop does".into()
        }
        "matrix" if ratio < 1.0 => {
            "a GPU may have matrix instructions for several subgroups, which the library uses and WGSL lacks".into()
        }
        "fma f32" if software => {
            "the driver's code for a loop of multiply-adds is slower than the same loop written for this CPU".into()
        }
        "fma f32" if ratio > 1.0 => "a whole matrix product also loads and stores".into(),
        _ => "for an unknown reason; find it before trusting percentages of this roof".into(),
    }
}

/// Returns the table of the pairs.
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

/// Returns the best rate of `work`, which returns the amount it did.
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

fn host(time: Duration, fuses: Option<bool>) -> Others {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let f32 = arithmetic(fuses != Some(false)).map(|(name, flops_a_round, run)| {
        let rounds = 2_000_000;
        let rate = best(time, || {
            std::thread::scope(|scope| {
                (0..threads).for_each(|_| drop(scope.spawn(move || std::hint::black_box(run(rounds)))));
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
        missing: [
            String::new(),
            "there is no such loop for this CPU".into(),
            "no independent program here multiplies matrices of f16".into(),
        ],
    }
}

/// Returns the bytes/s of a copy that the compiler cannot turn into a call of memcpy, whose stores bypass the caches.
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

type Loop = (&'static str, f64, fn(usize) -> f32);

/// Returns a loop of multiply-adds for this CPU: its name, its operations per round, and the function. Each
/// multiply-add is one instruction if `fused`, else a product and a sum, as on the adapter.
#[cfg(target_arch = "x86_64")]
fn arithmetic(fused: bool) -> Option<Loop> {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_add_ps, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_mul_ps, _mm256_set1_ps, _mm512_add_ps,
        _mm512_cvtss_f32, _mm512_fmadd_ps, _mm512_mul_ps, _mm512_set1_ps,
    };

    #[target_feature(enable = "avx512f")]
    fn wide<const FUSED: bool>(rounds: usize) -> f32 {
        let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.75)), _mm512_set1_ps(std::hint::black_box(0.125)));
        let mut x: [__m512; 12] = [_mm512_set1_ps(0.5); 12];
        for _ in 0..rounds {
            for x in &mut x {
                *x = if FUSED { _mm512_fmadd_ps(*x, a, b) } else { _mm512_add_ps(_mm512_mul_ps(*x, a), b) };
            }
        }
        x.iter().map(|&x| _mm512_cvtss_f32(x)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    fn narrow<const FUSED: bool>(rounds: usize) -> f32 {
        let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.75)), _mm256_set1_ps(std::hint::black_box(0.125)));
        let mut x: [__m256; 12] = [_mm256_set1_ps(0.5); 12];
        for _ in 0..rounds {
            for x in &mut x {
                *x = if FUSED { _mm256_fmadd_ps(*x, a, b) } else { _mm256_add_ps(_mm256_mul_ps(*x, a), b) };
            }
        }
        x.iter().map(|&x| _mm256_cvtss_f32(x)).sum()
    }

    const WIDE: f64 = 12.0 * 16.0 * 2.0;
    const NARROW: f64 = 12.0 * 8.0 * 2.0;
    if std::arch::is_x86_feature_detected!("avx512f") {
        return Some(match fused {
            // SAFETY: the CPU has the features that the function was compiled for
            true => ("threaded AVX-512 loop", WIDE, |rounds| unsafe { wide::<true>(rounds) }),
            // SAFETY: as above
            false => ("threaded AVX-512 loop of products and sums", WIDE, |rounds| unsafe { wide::<false>(rounds) }),
        });
    }
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return Some(match fused {
            // SAFETY: the CPU has the features that the function was compiled for
            true => ("threaded AVX2 loop", NARROW, |rounds| unsafe { narrow::<true>(rounds) }),
            // SAFETY: as above
            false => ("threaded AVX2 loop of products and sums", NARROW, |rounds| unsafe { narrow::<false>(rounds) }),
        });
    }
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn arithmetic(_fused: bool) -> Option<Loop> {
    None
}

/// Time limit for PyTorch, including its start.
const PYTORCH: Duration = Duration::from_secs(60);

/// Measures PyTorch's copy and matrix products, if there is a Python with PyTorch that sees the same GPU.
fn pytorch(adapter: &str) -> Others {
    let means = ["PyTorch copy", "PyTorch f32 product", "PyTorch f16 product"];
    match figures(adapter) {
        Ok(figures) => {
            let [copy, f32, matrix] = ["copy", "f32", "f16"].map(|name| figures[name].as_f64());
            let missing = std::array::from_fn(|_| "PyTorch reported no such figure".into());
            Others { copy, f32, matrix, means, missing }
        }
        Err(why) => {
            let missing = std::array::from_fn(|_| format!("PyTorch not run: {why}"));
            Others { copy: None, f32: None, matrix: None, means, missing }
        }
    }
}

/// Runs tools/peers/roofs.py and returns its figures, or the reason why there are none.
fn figures(adapter: &str) -> Result<Value, String> {
    let python = std::env::var("WGPT_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = Command::new(&python);
    command.arg("tools/peers/roofs.py").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{python}: {error}"))?;
    let end = Instant::now() + PYTORCH;
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > end {
            child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
            return Err(format!("it took longer than {} s", PYTORCH.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(text.trim().lines().last().unwrap_or("no reason given").to_owned());
    }
    let figures: Value = serde_json::from_slice(&output.stdout).map_err(|_| "roofs.py printed no JSON".to_owned())?;
    same_device(adapter, figures["device"].as_str().unwrap_or_default())?;
    Ok(figures)
}

/// Checks that PyTorch measured the same GPU: a machine may have a second one that we do not use. Drivers append
/// different words to a name, so it is enough that one name contains the other.
fn same_device(adapter: &str, theirs: &str) -> Result<(), String> {
    let (a, b) = (adapter.to_lowercase(), theirs.to_lowercase());
    let same = !b.is_empty() && (a.contains(&b) || b.contains(&a));
    if same { Ok(()) } else { Err(format!("it sees `{theirs}`, not `{adapter}`")) }
}
