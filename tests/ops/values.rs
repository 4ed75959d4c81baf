//! What goes into an operator and what must come out: inputs of a fixed seed, and budgets for rounding errors.

/// Distance from 1 to the next f32: twice the largest relative error of one rounding.
pub const EPS: f64 = f32::EPSILON as f64;
/// Absolute part of every budget: GPUs may flush what is below 1e-38 to zero, before it is multiplied by something.
const FLOOR: f64 = 1e-30;
/// The relative error that `n` additions may make, in units of [`EPS`].
///
/// The certain bound is n. A long sum's errors have random signs and stay below 8 sqrt(n) with odds of 1 - 1e-13
/// (Higham and Mary 2019, doi:10.1137/18M1226312).
pub fn rounding(n: usize) -> f64 {
    let n = n.max(1) as f64;
    n.min(8.0 * n.sqrt())
}

/// What an output must hold.
#[derive(Clone)]
pub enum Want {
    /// Each element within its tolerance.
    Near { want: Vec<f64>, tolerance: Vec<f64> },
    /// The sum of all elements.
    Total { want: f64, tolerance: f64 },
    /// Integers and floats mixed: a struct.
    Words(Vec<Word>),
    /// Anything: scratch.
    Anything,
}

/// One word of [`Want::Words`].
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// These bits.
    Bits(u32),
    /// This float within a tolerance.
    Near(f64, f64),
    /// NaN or infinite.
    NonFinite,
}

/// `want` within `budget` times [`EPS`] times the magnitude of each element.
pub fn near(want: Vec<f64>, budget: f64, magnitude: &[f64]) -> Want {
    assert_eq!(want.len(), magnitude.len(), "harness: magnitudes");
    let tolerance = magnitude.iter().map(|m| budget * EPS * m + FLOOR).collect();
    Want::Near { want, tolerance }
}

/// [`near`], and rounded to f16 at the end: half a unit in the last place, or of the smallest f16. What is rounded is
/// itself off by the tolerance, which may carry it over the middle.
pub fn near_half(want: Vec<f64>, budget: f64, magnitude: &[f64]) -> Want {
    let Want::Near { want, tolerance } = near(want, budget, magnitude) else { unreachable!("near makes Near") };
    within_half(want, tolerance)
}

/// [`within`], and rounded to f16 at the end.
pub fn within_half(want: Vec<f64>, tolerance: Vec<f64>) -> Want {
    let half = |w: &f64| (w.abs() * 2f64.powi(-11)).max(2f64.powi(-25));
    let tolerance = want.iter().zip(&tolerance).map(|(w, t)| t * (1.0 + 2f64.powi(-10)) + half(w)).collect();
    within(want, tolerance)
}

/// `want` within an absolute tolerance of each element's own.
pub fn within(want: Vec<f64>, tolerance: Vec<f64>) -> Want {
    assert_eq!(want.len(), tolerance.len(), "harness: tolerances");
    Want::Near { want, tolerance: tolerance.into_iter().map(|t| t + FLOOR).collect() }
}

/// Exactly these bits.
pub fn bits(want: &[u32]) -> Want {
    Want::Words(want.iter().map(|&w| Word::Bits(w)).collect())
}

/// As f64, exactly.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Absolute values.
pub fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| x.abs()).collect()
}

/// Repeatable inputs, rounded to f32 before anyone sees them.
pub struct Inputs(wgpt::reference::random::Random);

impl Inputs {
    /// The fixed seed.
    pub fn new() -> Self {
        Self(wgpt::reference::random::Random::new(20_240_520))
    }

    /// `n` bell-shaped values in (-1, 1).
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        self.scaled(n, 1.0)
    }

    /// `n` bell-shaped values in (-scale, scale).
    pub fn scaled(&mut self, n: usize, scale: f64) -> Vec<f32> {
        (0..n).map(|_| (self.0.value() * scale) as f32).collect()
    }

    /// `n` bell-shaped f16 numbers in (-scale, scale).
    pub fn scaled_halves(&mut self, n: usize, scale: f64) -> Vec<f32> {
        (0..n).map(|_| half::f16::from_f64(self.0.value() * scale).to_f32()).collect()
    }

    /// `n` tokens below `vocab`.
    pub fn tokens(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        self.0.tokens(n, vocab)
    }
}
