//! The order-2 Markov model over tokens. Its loss is what counting alone achieves, so a trained network must beat it.
//!
//! It predicts the next token from the two before it, interpolated with orders 1 and 0 and the uniform distribution by
//! Witten and Bell's rule: `p_k(w|h) = (n(h,w) + t(h) p_{k−1}(w|h')) / (n(h) + t(h))`, where `n` are counts, `t(h)` is
//! the number of distinct tokens seen after `h`, and `h'` is `h` without its oldest token. Source: Witten and Bell,
//! "The zero-frequency problem", 1991.

use std::collections::HashMap;

/// Counts of the tokens seen after one history.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Number of tokens seen after it, n(h).
    total: u32,
    /// Number of distinct tokens among them, t(h).
    distinct: u32,
}

/// The counts of one order.
#[derive(Debug, Default)]
struct Order {
    histories: HashMap<u64, Seen>,
    followers: HashMap<u64, u32>,
}

impl Order {
    /// Counts every token together with the `order` tokens before it.
    fn count(tokens: &[u16], order: usize) -> Self {
        let mut counts = Self::default();
        for window in tokens.windows(order + 1) {
            let follower = counts.followers.entry(key(window)).or_default();
            let seen = counts.histories.entry(key(&window[..order])).or_default();
            seen.distinct += u32::from(*follower == 0);
            seen.total += 1;
            *follower += 1;
        }
        counts
    }

    /// Returns the probability of a window's last token given those before it. `lower` is the probability of the next
    /// lower order.
    fn probability(&self, window: &[u16], lower: f64) -> f64 {
        let Some(seen) = self.histories.get(&key(&window[..window.len() - 1])) else {
            return lower;
        };
        let count = self.followers.get(&key(window)).copied().unwrap_or(0);
        let distinct = f64::from(seen.distinct);
        (f64::from(count) + distinct * lower) / (f64::from(seen.total) + distinct)
    }
}

/// Packs up to three tokens into one number. Windows of one order all have the same length, so keys never collide.
fn key(tokens: &[u16]) -> u64 {
    tokens.iter().fold(0, |key, &token| key << 16 | u64::from(token))
}

/// Counts orders 0, 1 and 2 on `train` and returns the mean of −ln p over the tokens of `validation` except the first,
/// each given the two before it (the second given one).
///
/// The mean is finite, because every id below `vocab` keeps a share of the uniform distribution. It is NaN if there is
/// nothing to score, that is, fewer than two validation tokens.
#[must_use]
pub fn nats_per_token(train: &[u16], validation: &[u16], vocab: usize) -> f64 {
    let orders = [Order::count(train, 0), Order::count(train, 1), Order::count(train, 2)];
    let uniform = 1.0 / vocab as f64;
    let nats = |target: usize| {
        let longest = target.min(2);
        let probability = (0..=longest)
            .fold(uniform, |lower, order| orders[order].probability(&validation[target - order..=target], lower));
        -probability.ln()
    };
    let total: f64 = (1..validation.len()).map(nats).sum();
    total / validation.len().saturating_sub(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::mt19937::Mt19937;

    fn random(seed: u32, n: usize, ids: u32) -> Vec<u16> {
        let mut rng = Mt19937::new(seed);
        (0..n).map(|_| (rng.next_u32() % ids) as u16).collect()
    }

    #[test]
    fn a_text_without_order_costs_its_entropy() {
        let nats = nats_per_token(&random(1, 200_000, 8), &random(2, 20_000, 8), 257);
        assert!((nats - 8_f64.ln()).abs() < 0.01, "{nats}");
    }

    #[test]
    fn two_tokens_of_context_are_used() {
        // the next bit is the exclusive or of the last two, flipped once in eight: orders 0 and 1 see fair coins
        let mut rng = Mt19937::new(3);
        let mut tokens = vec![0_u16, 1];
        for i in 2..100_000 {
            let flip = u16::from(rng.next_u32().is_multiple_of(8));
            tokens.push(tokens[i - 1] ^ tokens[i - 2] ^ flip);
        }
        let entropy = -(0.125 * 0.125_f64.ln() + 0.875 * 0.875_f64.ln());
        let nats = nats_per_token(&tokens[..90_000], &tokens[90_000..], 257);
        assert!((nats - entropy).abs() < 0.02, "{nats} {entropy}");
    }

    #[test]
    fn probabilities_sum_to_one() {
        let train = random(4, 300, 5);
        for history in [[0, 1], [4, 4], [6, 0], [6, 6]] {
            let sum: f64 = (0..7)
                .map(|next| {
                    // the score of three tokens is that of the second and the third; the first part falls out
                    let both = 2.0 * nats_per_token(&train, &[history[0], history[1], next], 7);
                    (nats_per_token(&train, &history, 7) - both).exp()
                })
                .sum();
            assert!((sum - 1.0).abs() < 1e-12, "{history:?} {sum}");
        }
    }

    #[test]
    fn unseen_tokens_are_finite_and_nothing_is_not_a_number() {
        assert!((nats_per_token(&[], &[7, 8], 257) - 257_f64.ln()).abs() < 1e-12);
        assert!(nats_per_token(&[1, 1, 1], &[2, 3, 4], 257).is_finite());
        assert!(nats_per_token(&[1, 2], &[1], 257).is_nan());
    }
}
