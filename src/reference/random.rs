//! A small generator of repeatable test inputs.

/// xorshift64*. Source: Vigna 2014, arXiv:1402.6246.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Creates a generator from a seed, which may be any number, including 0.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // spreads small seeds over all bits and keeps the state from being 0
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Returns 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a uniform number in [0, 1), a multiple of 2^-24.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 40) as f64 / (1u64 << 24) as f64
    }

    /// Returns a bell-shaped number in (-1, 1) with mean 0 and standard deviation 1/3: the mean of three uniform
    /// values.
    pub fn value(&mut self) -> f64 {
        (self.unit() + self.unit() + self.unit()) / 1.5 - 1.0
    }

    /// Returns `n` values of [`Random::value`].
    pub fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.value()).collect()
    }

    /// Returns a uniform number in 0..n, for small n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// Returns `n` tokens in 0..vocab.
    pub fn tokens(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(vocab) as u32).collect()
    }
}
