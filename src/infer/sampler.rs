//! Draws tokens from logits.

/// Parameters of drawing tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Number of likeliest tokens to draw from; 0 for all.
    pub top_k: usize,
    /// Probability mass of the likeliest of those tokens to draw from; 1 for all.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// Draws from the whole distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 42 }
    }
}

/// xorshift64*, the generator of llm.c's sampler: Vigna, "An experimental exploration of Marsaglia's xorshift
/// generators".
#[derive(Debug, Clone)]
pub struct SampleRng(u64);

impl SampleRng {
    /// Starts from a seed. Zero, which xorshift does not allow, is replaced.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(if seed == 0 { 0x9e37_79b9_7f4a_7c15 } else { seed })
    }

    /// Returns the next number in [0, 1).
    pub fn next_f32(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        (high >> 8) as f32 / 16_777_216.0
    }
}

/// A token and its logit.
type Candidate = (u32, f32);

/// Orders the likelier candidate first; of equals, the smaller id.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Draws a token from the softmax of the logits divided by the temperature, cut to the k likeliest tokens, then to the
/// likeliest that together have probability p. Uses one random number per token, and none at temperature 0.
#[must_use]
pub fn draw(logits: &[f32], sampling: &Sampling, rng: &mut SampleRng) -> u32 {
    let mut list: Vec<Candidate> = (0..).zip(logits.iter().copied()).collect();
    let Some(&(best, most)) = list.iter().min_by(|a, b| order(a, b)) else { return 0 };
    if sampling.temperature <= 0.0 {
        return best;
    }
    if (1..list.len()).contains(&sampling.top_k) {
        list.select_nth_unstable_by(sampling.top_k - 1, order);
        list.truncate(sampling.top_k);
    }
    let weight = |candidate: &Candidate| f64::from((candidate.1 - most) / sampling.temperature).exp();
    if sampling.top_p < 1.0 {
        let total: f64 = list.iter().map(weight).sum();
        let count = nucleus(&mut list, f64::from(sampling.top_p) * total, weight);
        list.truncate(count);
    }
    // sorted by id, so that the result does not depend on the order of selection
    list.sort_unstable_by_key(|candidate| candidate.0);
    let total: f64 = list.iter().map(weight).sum();
    let mut left = f64::from(rng.next_f32()) * total;
    for candidate in &list {
        left -= weight(candidate);
        if left < 0.0 {
            return candidate.0;
        }
    }
    // rounding left a remainder: take the last token with a weight above zero
    list.iter().rev().find(|candidate| weight(candidate) > 0.0).map_or(best, |candidate| candidate.0)
}

/// Sorts the likeliest candidates to the front until their weights reach `goal` together; returns their number, at
/// least one. Only a prefix of the list is sorted, because few candidates usually suffice.
fn nucleus(list: &mut [Candidate], goal: f64, weight: impl Fn(&Candidate) -> f64) -> usize {
    let mut sorted = 64;
    loop {
        if sorted < list.len() {
            list.select_nth_unstable_by(sorted, order);
        } else {
            sorted = list.len();
        }
        list[..sorted].sort_unstable_by(order);
        let mut sum = 0.0;
        for (i, candidate) in list[..sorted].iter().enumerate() {
            sum += weight(candidate);
            if sum >= goal {
                return i + 1;
            }
        }
        if sorted == list.len() {
            return sorted;
        }
        sorted *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: usize, top_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, seed: 1 }
    }

    #[test]
    fn random_numbers_are_those_of_llmc() {
        let mut rng = SampleRng::new(1337);
        for want in [0.230_317_24, 0.190_518_26, 0.310_865_16, 0.902_659_5] {
            assert!((rng.next_f32() - want).abs() < 1e-7);
        }
    }

    #[test]
    fn zero_temperature_takes_the_likeliest_and_top_k_limits() {
        let logits = [0.0, 3.0, 1.0, 3.0];
        let mut rng = SampleRng::new(1);
        assert_eq!(draw(&logits, &sampling(0.0, 0, 1.0), &mut rng), 1);
        let two = sampling(5.0, 2, 1.0);
        assert!((0..200).all(|_| [1, 3].contains(&draw(&logits, &two, &mut rng))));
        assert!((0..50).all(|_| draw(&logits, &sampling(5.0, 1, 1.0), &mut rng) == 1));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let (logits, mut rng) = ([1.0f32.ln(), 3.0f32.ln()], SampleRng::new(7));
        let ones = (0..4000).filter(|_| draw(&logits, &sampling(1.0, 0, 1.0), &mut rng) == 1).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000, expected about 3000");
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        // probabilities 0.5, 0.3, 0.15, 0.05 under ids 2, 0, 3, 1
        let logits = [0.3f32.ln(), 0.05f32.ln(), 0.5f32.ln(), 0.15f32.ln()];
        let mut rng = SampleRng::new(3);
        for (p, kept) in [(0.0, &[2][..]), (0.49, &[2]), (0.6, &[0, 2]), (0.81, &[0, 2, 3]), (0.96, &[0, 1, 2, 3])] {
            let mut seen: Vec<u32> = (0..400).map(|_| draw(&logits, &sampling(1.0, 0, p), &mut rng)).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, kept, "p {p}");
        }
        // top-k first: of the two likeliest, the first alone has 0.625
        assert!((0..100).all(|_| draw(&logits, &sampling(1.0, 2, 0.6), &mut rng) == 2));
    }

    #[test]
    fn a_long_tail_is_searched_to_its_end() {
        let logits = vec![0.0; 5000];
        let mut list: Vec<Candidate> = (0..).zip(logits).collect();
        assert_eq!(nucleus(&mut list, 4000.0, |_| 1.0), 4000);
        assert_eq!(nucleus(&mut list, 1e9, |_| 1.0), 5000);
        assert!(list.iter().map(|c| c.0).eq(0..5000));
    }

    #[test]
    fn impossible_tokens_are_never_drawn() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        let mut rng = SampleRng::new(5);
        assert!((0..100).all(|_| draw(&logits, &sampling(1.0, 0, 1.0), &mut rng) == 1));
    }
}
