//! A small generator of repeatable test inputs.

/// xorshift64*. Source: Vigna 2014, arXiv:1402.6246.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator for this seed; every seed will do, 0 too.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // spreads small seeds over all bits; the state must not be 0
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 40) as f64 / (1u64 << 24) as f64
    }

    /// Bell-shaped in (-1, 1): mean 0, standard deviation 1/3. The mean of three uniform values.
    pub fn value(&mut self) -> f64 {
        (self.unit() + self.unit() + self.unit()) / 1.5 - 1.0
    }

    /// `n` times [`Random::value`].
    pub fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.value()).collect()
    }

    /// Uniform in 0..n, for small n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// `n` tokens in 0..vocab.
    pub fn tokens(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(vocab) as u32).collect()
    }
}
