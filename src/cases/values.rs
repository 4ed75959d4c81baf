//! Inputs of a fixed seed, wanted values, and budgets for rounding errors.
//!
//! A budget is a multiple of [`EPS`] times a magnitude, which is the sum of absolute values.

use crate::gpu::Elem;
use crate::reference::random::Random;

/// Distance from 1 to the next f32: twice the largest relative error of one rounding.
pub const EPS: f64 = f32::EPSILON as f64;
/// Absolute part of every budget: GPUs may flush values below 1e-38 to zero before they multiply them.
const FLOOR: f64 = 1e-30;
/// Number of values after which [`Inputs`] repeats itself: a prime, so that no two rows are equal.
const PERIOD: usize = 1_048_573;

/// Returns the relative error that `n` additions may make, in units of [`EPS`].
///
/// A guaranteed bound is n. The errors of a long sum have random signs and stay below 8 sqrt(n) with a probability of 1
/// - 1e-13 (Higham and Mary 2019, doi:10.1137/18M1226312).
pub fn rounding(n: usize) -> f64 {
    let n = n.max(1) as f64;
    n.min(8.0 * n.sqrt())
}

/// The values that a tensor must hold after a run.
#[derive(Debug, Clone)]
pub enum Want {
    /// Each element within its tolerance.
    Near {
        /// The values.
        want: Vec<f64>,
        /// The largest distance from each.
        tolerance: Vec<f64>,
    },
    /// The sum of all elements.
    Total {
        /// The sum.
        want: f64,
        /// The largest distance from it.
        tolerance: f64,
    },
    /// The words of a struct, integers and floats mixed.
    Words(Vec<Word>),
    /// Only the elements at these positions.
    At(Vec<usize>, Box<Want>),
    /// Anything, for scratch.
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

impl Want {
    /// Returns the number of elements, if all elements of the tensor have wanted values.
    pub(super) fn count(&self) -> Option<usize> {
        match self {
            Self::Near { want, tolerance } => Some(if want.len() == tolerance.len() { want.len() } else { usize::MAX }),
            Self::Words(words) => Some(words.len()),
            Self::Total { .. } | Self::At(..) | Self::Anything => None,
        }
    }

    /// Restricts wanted values to the elements at `positions` of a tensor of `n`.
    ///
    /// # Panics
    /// If the number of values is not the number of positions.
    pub fn at(self, positions: Vec<usize>, n: usize) -> Self {
        assert!(self.count().is_none_or(|count| count == positions.len()), "cases: positions");
        if positions.len() == n { self } else { Self::At(positions, Box::new(self)) }
    }

    /// Subtracts the values, one per element of the tensor, from the wanted values.
    ///
    /// # Panics
    /// If the wanted values are not floats for single elements.
    pub fn subtract(&mut self, values: &[f64]) {
        match self {
            Self::Near { want, .. } => want.iter_mut().zip(values).for_each(|(want, value)| *want -= value),
            Self::At(positions, inner) => {
                let values: Vec<f64> = positions.iter().map(|&i| values[i]).collect();
                inner.subtract(&values);
            }
            Self::Anything => {}
            Self::Total { .. } | Self::Words(_) => panic!("cases: no floats to subtract from"),
        }
    }

    /// Sets the tolerance to 0 where the budget is 0.
    pub fn exact_where_zero(mut self, budgets: &[f64]) -> Self {
        if let Self::Near { tolerance, .. } = &mut self {
            tolerance.iter_mut().zip(budgets).filter(|(_, b)| **b == 0.0).for_each(|(tolerance, _)| *tolerance = 0.0);
        }
        self
    }
}

/// Returns a [`Want`] of exactly these bits.
pub fn bits(want: &[u32]) -> Want {
    Want::Words(want.iter().map(|&w| Word::Bits(w)).collect())
}

/// Converts to f64, exactly.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Returns the absolute values.
pub fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| x.abs()).collect()
}

/// Returns the words of a struct.
pub fn words<T: bytemuck::Pod>(value: &T) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bytemuck::bytes_of(value))
}

/// The element type of activations, which determines inputs, bits and budgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored(pub Elem);

/// Activations in f32.
pub const STORED_F32: Stored = Stored(Elem::F32);
/// Activations in f16.
pub const STORED_F16: Stored = Stored(Elem::F16);

impl Stored {
    /// Returns whether the type is f16.
    pub fn is_half(self) -> bool {
        self == STORED_F16
    }

    /// Returns the suffix of a case's sizes in benches and reports: ` f16` or nothing.
    pub fn suffix(self) -> &'static str {
        if self.is_half() { " f16" } else { "" }
    }

    /// Returns the largest relative error of storing a number.
    pub fn rounding(self) -> f64 {
        if self.is_half() { 2f64.powi(-11) } else { 2f64.powi(-24) }
    }

    /// Returns `n` bell-shaped numbers in (-1, 1).
    pub fn values(self, inputs: &mut Inputs, n: usize) -> Vec<f32> {
        self.scaled(inputs, n, 1.0)
    }

    /// Returns `n` bell-shaped numbers in (-scale, scale).
    pub fn scaled(self, inputs: &mut Inputs, n: usize, scale: f64) -> Vec<f32> {
        inputs.drawn(n, |x| self.nearest(x * scale))
    }

    fn nearest(self, x: f64) -> f32 {
        if self.is_half() { half::f16::from_f64(x).to_f32() } else { x as f32 }
    }

    /// Rounds numbers as storing them does.
    pub fn round(self, values: &[f64]) -> Vec<f32> {
        values.iter().map(|&x| self.nearest(x)).collect()
    }

    /// Returns the bits of numbers that this type can hold.
    ///
    /// # Panics
    /// If the type is f16 and a number is not an f16.
    pub fn bits(self, values: &[f32]) -> Vec<u32> {
        if !self.is_half() {
            return values.iter().map(|x| x.to_bits()).collect();
        }
        let exact = |x: f32| {
            let half = half::f16::from_f32(x);
            assert!(half.to_f32() == x || x.is_nan(), "cases: {x:e} is not an f16");
            u32::from(half.to_bits())
        };
        values.iter().map(|&x| exact(x)).collect()
    }

    /// Returns a [`Want`] of `want` within `budget` times [`EPS`] times the magnitude of each element, plus the
    /// rounding of storing it.
    ///
    /// # Panics
    /// If the number of magnitudes is not the number of values.
    pub fn near(self, want: Vec<f64>, budget: f64, magnitude: &[f64]) -> Want {
        self.within(want, magnitude.iter().map(|m| budget * EPS * m).collect())
    }

    /// Returns a [`Want`] of `want` within an absolute tolerance for each element, plus the rounding of storing it.
    /// Storing as f16 adds half a unit in the last place, or half the smallest f16. The error of the unrounded value
    /// may move it past the middle between two f16, which the tolerance includes.
    ///
    /// # Panics
    /// If the number of tolerances is not the number of values.
    pub fn within(self, want: Vec<f64>, mut tolerance: Vec<f64>) -> Want {
        assert_eq!(want.len(), tolerance.len(), "cases: tolerances");
        tolerance.iter_mut().for_each(|t| *t += FLOOR);
        if self.is_half() {
            let half = |w: &f64| (w.abs() * 2f64.powi(-11)).max(2f64.powi(-25));
            tolerance.iter_mut().zip(&want).for_each(|(t, w)| *t = *t * (1.0 + 2f64.powi(-10)) + half(w));
        }
        Want::Near { want, tolerance }
    }
}

/// Repeatable inputs, which are rounded to the element type before use.
#[derive(Debug)]
pub struct Inputs(Random);

impl Default for Inputs {
    fn default() -> Self {
        Self::new()
    }
}

impl Inputs {
    /// Returns the inputs of the fixed seed.
    pub fn new() -> Self {
        Self(Random::new(20_240_520))
    }

    fn drawn(&mut self, n: usize, of: impl Fn(f64) -> f32) -> Vec<f32> {
        let block: Vec<f32> = (0..n.min(PERIOD)).map(|_| of(self.0.value())).collect();
        if n <= PERIOD { block } else { block.into_iter().cycle().take(n).collect() }
    }

    /// Returns `n` bell-shaped f32 in (-1, 1).
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        self.scaled(n, 1.0)
    }

    /// Returns `n` bell-shaped f32 in (-scale, scale).
    pub fn scaled(&mut self, n: usize, scale: f64) -> Vec<f32> {
        STORED_F32.scaled(self, n, scale)
    }

    /// Returns `n` tokens below `vocab`.
    pub fn tokens(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        self.0.tokens(n, vocab)
    }
}
