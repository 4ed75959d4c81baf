//! Trying matrix kernels on an adapter at a model's shapes, and the record of what was found.
//!
//! A record holds, for every product of a model at a batch size, the fastest kernel of those that compute what the plain
//! f32 kernel of the same adapter computes. It lies in the user's cache, one file an adapter and driver, and is looked
//! at when a run starts; see [`crate::ops::matmul::choose`]. Nothing is tried unasked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::data::mt19937::Mt19937;
use crate::error::{Error, Result};
use crate::formats::atomic::{self, output_error};
use crate::gpu::{Caps, Elem, Gpu, Pass, Program, Tensor};
use crate::model::Config;
use crate::ops::matmul::{self, Algorithm, BackwardInp, BackwardWeight, Forward, Product, choose};

/// Rows of a result that are held against the plain kernel's, from its start and from its end.
const CHECKED_ROWS: usize = 64;
/// Runs that are timed, of which the fastest counts.
const RUNS: usize = 5;

/// What was found on one adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// This program's version: kernels change with it.
    pub version: String,
    /// The adapter's name.
    pub adapter: String,
    /// Its driver and version.
    pub driver: String,
    /// For every product, worded as [`choose::key`], the kernel as JSON.
    pub kernels: BTreeMap<String, String>,
}

impl Record {
    fn empty(caps: &Caps) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: caps.name.clone(),
            driver: caps.driver.clone(),
            kernels: BTreeMap::new(),
        }
    }

    fn is_for(&self, caps: &Caps) -> bool {
        let Self { version, adapter, driver, .. } = self;
        *version == env!("CARGO_PKG_VERSION") && *adapter == caps.name && *driver == caps.driver
    }
}

/// Where an adapter's record lies: `wgpt/tune` in the user's cache, or in `WGPT_CACHE`. `None` if there is no such place.
#[must_use]
pub fn path(caps: &Caps) -> Option<PathBuf> {
    let cache = match std::env::var_os("WGPT_CACHE") {
        Some(cache) if !cache.is_empty() => PathBuf::from(cache),
        _ => dirs::cache_dir()?.join("wgpt"),
    };
    let plain = |text: &str| text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>();
    // two drivers of one adapter may differ in signs that names of files do not carry
    let name = format!("{} {} {}", caps.name, caps.backend, caps.driver);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Some(cache.join("tune").join(format!("{}-{hash:016x}.json", plain(&caps.name))))
}

/// What a run should say about the adapter's record, beside the kernels it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Nothing,
    /// So many kernels.
    Kernels(usize),
    /// One that is of no use, and why.
    Ignored(String),
}

/// Reads the adapter's record into `caps.tuned`. A record that is broken, or of another driver or version, is left
/// alone and named.
pub fn load(caps: &mut Caps) -> Found {
    let Some(path) = path(caps) else { return Found::Nothing };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Found::Nothing,
        Err(e) => return Found::Ignored(format!("{}: {e}", path.display())),
    };
    match serde_json::from_str::<Record>(&text) {
        Err(e) => Found::Ignored(format!("{}: {e}; wgpt tune makes it anew", path.display())),
        Ok(record) if !record.is_for(caps) => Found::Ignored(format!(
            "{}: it is of {}, {}, wgpt {}; wgpt tune makes it anew",
            path.display(),
            record.adapter,
            record.driver,
            record.version
        )),
        Ok(record) => {
            let count = record.kernels.len();
            caps.tuned = Arc::new(record.kernels);
            Found::Kernels(count)
        }
    }
}

/// One product of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Which linear layer: `qkv`, `attproj`, `fc`, `fcproj`, `head`.
    pub layer: &'static str,
    /// Which of its products.
    pub product: Product,
    /// Rows and columns of the result, and the depth.
    pub shape: [usize; 3],
}

impl Job {
    /// Operations of one run.
    #[must_use]
    pub fn flops(&self) -> f64 {
        2.0 * self.shape.iter().map(|&x| x as f64).product::<f64>()
    }
}

/// The products of a step of `rows` tokens, the head in chunks of `chunk` rows.
#[must_use]
pub fn jobs(config: &Config, rows: usize, chunk: usize) -> Vec<Job> {
    let c = config.channels;
    let layers = [("qkv", rows, 3 * c, c), ("attproj", rows, c, c), ("fc", rows, 4 * c, c), ("fcproj", rows, c, 4 * c)];
    layers
        .into_iter()
        .chain([("head", chunk, config.padded_vocab(), c)])
        .flat_map(|(layer, m, n, k)| {
            [(Product::Forward, [m, n, k]), (Product::BackwardInp, [m, k, n]), (Product::BackwardWeight, [n, k, m])]
                .map(|(product, shape)| Job { layer, product, shape })
        })
        .collect()
}

/// What became of one kernel.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The kernel.
    pub algorithm: Algorithm,
    /// Milliseconds of its fastest run, or what was wrong with it.
    pub outcome: std::result::Result<f64, String>,
}

/// Operands and results of one job.
struct Bench {
    job: Job,
    elem: Elem,
    a: Tensor,
    b: Tensor,
    out: Tensor,
    partials: Option<Tensor>,
    /// What the plain kernel makes of the same numbers: the checked rows.
    want: Vec<f32>,
}

impl Bench {
    fn new(gpu: &Gpu, job: &Job, elem: Elem) -> Result<Self> {
        let [m, n, k] = job.shape;
        let ([ar, ac], [br, bc]) = match job.product {
            Product::Forward => ([m, k], [n, k]),
            Product::BackwardInp => ([m, k], [k, n]),
            Product::BackwardWeight => ([k, m], [k, n]),
        };
        let mut random = Mt19937::new(20_240_520);
        // bell-shaped in (-1, 1): the mean of three even ones
        let mut value = || (0..3).map(|_| f64::from(random.next_u32()) / 6_442_450_944.0).sum::<f64>() - 1.0;
        // numbers that f16 holds exactly: both kernels get the same
        let mut make = |label: &str, rows: usize, columns: usize, elem: Elem| -> Result<(Tensor, Vec<half::f16>)> {
            // the device says no before the host makes the numbers
            let tensor = gpu.tensor(label, rows, columns, elem)?;
            let block: Vec<half::f16> = (0..65_521).map(|_| half::f16::from_f64(value())).collect();
            let values: Vec<half::f16> = block.into_iter().cycle().take(rows * columns).collect();
            write(gpu, &tensor, &values)?;
            Ok((tensor, values))
        };
        let (a, a_values) = make("a", ar, ac, elem)?;
        let (b, b_values) = make("b", br, bc, elem)?;
        let out_elem = if job.product == Product::BackwardWeight { Elem::F32 } else { elem };
        let out = gpu.tensor("out", m, n, out_elem)?;
        let most = choose::candidates(&gpu.caps, elem)
            .iter()
            .map(|algorithm| choose::parts_of(algorithm, m, n, k) as usize * m * n)
            .max()
            .unwrap_or(0);
        let partials = match job.product {
            Product::BackwardWeight if most > m * n => Some(gpu.tensor("partials", 1, most, Elem::F32)?),
            _ => None,
        };
        let mut bench = Self { job: job.clone(), elem, a, b, out, partials, want: Vec::new() };
        bench.want = bench.plain(gpu, &a_values, &b_values)?;
        Ok(bench)
    }

    /// The plain f32 kernel's results, of the checked rows.
    fn plain(&self, gpu: &Gpu, a: &[half::f16], b: &[half::f16]) -> Result<Vec<f32>> {
        let wide = |like: &Tensor, values: &[half::f16]| -> Result<Tensor> {
            let tensor = gpu.tensor("plain", like.rows(), like.columns(), Elem::F32)?;
            write(gpu, &tensor, values)?;
            Ok(tensor)
        };
        let (a, b) = (wide(&self.a, a)?, wide(&self.b, b)?);
        let out = gpu.tensor("plain", self.out.rows(), self.out.columns(), Elem::F32)?;
        self.record(gpu, [&a, &b, &out], None)?.run(gpu)?;
        self.checked(gpu, &out)
    }

    fn record(&self, gpu: &Gpu, [a, b, out]: [&Tensor; 3], partials: Option<&Tensor>) -> Result<Program> {
        let mut pass = Pass::new(gpu);
        match (self.job.product, partials) {
            (Product::Forward, _) => matmul::forward(&mut pass, Forward { inp: a, weight: b, bias: None, out })?,
            (Product::BackwardInp, _) => {
                matmul::backward_inp(&mut pass, BackwardInp { dout: a, weight: b, dinp: out })?;
            }
            (Product::BackwardWeight, None) => {
                matmul::backward_weight(&mut pass, BackwardWeight { dout: a, inp: b, dweight: out })?;
            }
            (Product::BackwardWeight, Some(partials)) => {
                let io = BackwardWeight { dout: a, inp: b, dweight: out };
                matmul::backward_weight_in_parts(&mut pass, io, partials)?;
            }
        }
        Ok(pass.finish())
    }

    /// The first and the last rows of a result.
    fn checked(&self, gpu: &Gpu, out: &Tensor) -> Result<Vec<f32>> {
        let rows = out.rows().min(CHECKED_ROWS);
        // where rows of the end begin aligned
        let last = (out.rows() - rows) / 128 * 128;
        let mut values = gpu.read_f32(&out.slice(0..rows))?;
        values.extend(gpu.read_f32(&out.slice(last..out.rows()))?);
        Ok(values)
    }

    /// Checks and times one kernel.
    fn try_one(&self, gpu: &mut Gpu, algorithm: &Algorithm) -> Result<f64> {
        let key = choose::key(self.job.product, self.elem, self.job.shape);
        let text = serde_json::to_string(algorithm).map_err(|e| Error::Gpu(e.to_string()))?;
        // the very way that a run takes
        let before = std::mem::replace(&mut gpu.caps.tuned, Arc::new(BTreeMap::from([(key, text)])));
        let program = self.record(gpu, [&self.a, &self.b, &self.out], self.partials.as_ref());
        gpu.caps.tuned = before;
        let program = program?;
        let gpu = &*gpu;
        let mut pass = Pass::new(gpu);
        pass.clear(&self.out);
        pass.finish().run(gpu)?;
        program.run(gpu)?;
        let got = self.checked(gpu, &self.out)?;
        self.compare(&got)?;
        let mut fastest = f64::INFINITY;
        for _ in 0..RUNS {
            let begin = Instant::now();
            let ms = if gpu.caps.timestamps {
                program.time(gpu)?.iter().map(crate::gpu::Timing::ms).sum()
            } else {
                program.run(gpu)?;
                gpu.wait()?;
                begin.elapsed().as_secs_f64() * 1e3
            };
            fastest = fastest.min(ms);
        }
        Ok(fastest)
    }

    /// That results are the plain kernel's but for rounding: of sums, and of what is stored.
    fn compare(&self, got: &[f32]) -> Result<()> {
        let depth = self.job.shape[2] as f32;
        // operands below 1 and bell-shaped: a sum of k products is some sqrt(k) / 9 large, and so is what it rounds
        let sums = 16.0 * f32::EPSILON * depth.sqrt().max(1.0) * depth.sqrt().max(4.0).log2();
        let stored = if self.out.elem() == Elem::F16 { 2f32.powi(-10) } else { 0.0 };
        for (i, (got, want)) in got.iter().zip(&self.want).enumerate() {
            let tolerance = sums + stored * want.abs().max(1e-4);
            if (got - want).abs() <= tolerance {
                continue;
            }
            return Err(Error::Gpu(format!(
                "element {i} of the checked rows is {got:e}, by the plain kernel {want:e}, expected within {tolerance:e}"
            )));
        }
        Ok(())
    }
}

fn write(gpu: &Gpu, tensor: &Tensor, values: &[half::f16]) -> Result<()> {
    let bytes: Vec<u8> = match tensor.elem() {
        Elem::F16 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Elem::F32 | Elem::U32 => values.iter().flat_map(|x| x.to_f32().to_le_bytes()).collect(),
    };
    gpu.write(tensor, &bytes)
}

/// Tries the kernels that this adapter runs on a job, the chosen one first, until `time` is over or `stop` says so. A kernel that cannot be
/// built or computes something else is reported and never taken.
///
/// # Errors
/// [`Error::Memory`] if the operands do not fit; [`Error::Lost`] if the device is lost.
pub fn try_all(gpu: &mut Gpu, job: &Job, elem: Elem, time: Duration, stop: &dyn Fn() -> bool) -> Result<Vec<Trial>> {
    let bench = Bench::new(gpu, job, elem)?;
    let chosen = choose::choose(&gpu.caps, job.product, elem, job.shape);
    let mut list = choose::candidates(&gpu.caps, elem);
    list.retain(|algorithm| *algorithm != chosen);
    list.insert(0, chosen);
    let (begin, mut trials) = (Instant::now(), Vec::new());
    for algorithm in list {
        if !trials.is_empty() && (begin.elapsed() > time || stop()) {
            break;
        }
        let outcome = match bench.try_one(gpu, &algorithm) {
            Err(e @ (Error::Device(_) | Error::Lost(_))) => return Err(e),
            Err(e) => Err(e.to_string()),
            Ok(ms) => Ok(ms),
        };
        trials.push(Trial { algorithm, outcome });
    }
    Ok(trials)
}

/// The fastest of those that compute the right thing.
#[must_use]
pub fn best(trials: &[Trial]) -> Option<(Algorithm, f64)> {
    let right = trials.iter().filter_map(|t| t.outcome.as_ref().ok().map(|ms| (t.algorithm, *ms)));
    right.min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Adds kernels to the adapter's record, one that is broken or of another driver or version begun anew.
///
/// # Errors
/// [`Error::Output`] naming the file.
pub fn save(caps: &Caps, found: &[(Job, Elem, Algorithm)]) -> Result<PathBuf> {
    let path = path(caps).ok_or_else(|| {
        Error::Output("tune: this user has no cache folder, expected one for the record; set WGPT_CACHE".into())
    })?;
    let old = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Record>(&text).ok());
    let mut record = old.filter(|record| record.is_for(caps)).unwrap_or_else(|| Record::empty(caps));
    for (job, elem, algorithm) in found {
        let text = serde_json::to_string(algorithm).map_err(|e| Error::Output(format!("tune: {e}")))?;
        record.kernels.insert(choose::key(job.product, *elem, job.shape), text);
    }
    let text = serde_json::to_string_pretty(&record).map_err(|e| Error::Output(format!("tune: {e}")))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| output_error(folder, &e))?;
    }
    atomic::write(&path, |file| file.write_all(text.as_bytes()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_off_by_more_than_rounding_are_refused() {
        let gpu = Gpu::dry(Caps { f16: true, ..Caps::webgpu_defaults() });
        for (elem, off, fine) in
            [(Elem::F32, 1e-6, true), (Elem::F32, 1e-3, false), (Elem::F16, 3e-4, true), (Elem::F16, 5e-2, false)]
        {
            let tensor = || gpu.tensor("made", 4, 4, elem).expect("dry");
            let job = Job { layer: "qkv", product: Product::Forward, shape: [4, 4, 256] };
            let bench =
                Bench { job, elem, a: tensor(), b: tensor(), out: tensor(), partials: None, want: vec![1.0; 16] };
            let mut got = vec![1.0; 16];
            assert!(bench.compare(&got).is_ok());
            got[9] += off;
            assert_eq!(bench.compare(&got).is_ok(), fine, "{elem:?} off by {off}");
            got[9] = f32::NAN;
            assert!(bench.compare(&got).is_err(), "NaN");
        }
    }

    #[test]
    fn the_fastest_of_the_right_ones_is_best() {
        let [a, b, c] =
            [16, 32, 64].map(|rows| Algorithm::Rows { width: 8, rows, columns: 8, unroll: 4, pairs: false });
        let trial = |algorithm, outcome| Trial { algorithm, outcome };
        let trials = [trial(a, Ok(3.0)), trial(b, Err("wrong".into())), trial(c, Ok(2.0))];
        assert_eq!(best(&trials), Some((c, 2.0)));
        assert_eq!(best(&trials[1..2]), None);
    }

    #[test]
    fn a_model_has_fifteen_products() {
        let config = Config::from_descriptor("d12").expect("known");
        let jobs = jobs(&config, 65_536, 2_560);
        assert_eq!(jobs.len(), 15);
        assert!(jobs.iter().any(|j| j.product == Product::BackwardWeight && j.shape == [768, 768, 65_536]));
        assert!(jobs.iter().any(|j| j.product == Product::BackwardInp && j.shape == [2_560, 768, 50_304]));
    }
}
