//! A batch in the layout that the GPU reads: all numbers in one block of memory, in upload order.

use crate::ops::crossentropy::IGNORED;
use crate::ops::embedding;

/// B·T inputs and targets, and the inputs sorted for the embedding's backward pass, as one block of words:
///
/// ```text
/// inputs (N) | targets (N) | bucket table (3 + 3 N) | bucket order (N)
/// ```
///
/// A batch is allocated once and refilled; refilling does not allocate.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    tokens: usize,
    words: Vec<u32>,
}

impl Batch {
    /// Bytes of a block per token, without the 3 words at the start of the bucket table.
    pub const BYTES_PER_TOKEN: usize = 6 * size_of::<u32>();

    /// Returns an unsorted batch of `tokens` inputs and targets, all 0.
    #[must_use]
    pub fn new(tokens: usize) -> Self {
        let mut batch = Self::default();
        batch.resize(tokens);
        batch
    }

    /// Returns a sorted batch of these inputs and targets. Targets that are missing are 0.
    #[must_use]
    pub fn of(inputs: &[u32], targets: &[u32]) -> Self {
        let mut batch = Self::new(inputs.len());
        let [to_inputs, to_targets] = batch.pairs_mut();
        to_inputs.copy_from_slice(inputs);
        to_targets.iter_mut().zip(targets).for_each(|(to, target)| *to = *target);
        batch.sort();
        batch
    }

    /// Sets the number of tokens, N. A new N clears the contents; only a larger N than ever before allocates.
    pub fn resize(&mut self, tokens: usize) {
        if self.tokens != tokens {
            self.tokens = tokens;
            self.words.clear();
            self.words.resize(if tokens == 0 { 0 } else { 3 * tokens + embedding::table_words(tokens) }, 0);
        }
    }

    /// Returns N.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Returns whether the batch has no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Returns the inputs, (B, T) row-major.
    #[must_use]
    pub fn inputs(&self) -> &[u32] {
        &self.words[..self.tokens]
    }

    /// Returns the targets: for each input the token after it, or [`IGNORED`].
    #[must_use]
    pub fn targets(&self) -> &[u32] {
        &self.words[self.tokens..2 * self.tokens]
    }

    /// Returns inputs and targets for writing. A batch for training must be sorted afterwards.
    pub fn pairs_mut(&mut self) -> [&mut [u32]; 2] {
        let (inputs, rest) = self.words.split_at_mut(self.tokens);
        [inputs, &mut rest[..self.tokens]]
    }

    /// Overwrites everything from N + 1 consecutive tokens: the first N are the inputs, the last N the targets. Sorts.
    pub(super) fn fill(&mut self, tokens: &[u16]) {
        self.resize(tokens.len().saturating_sub(1));
        let [inputs, targets] = self.pairs_mut();
        widen(tokens, inputs, targets);
        self.sort();
    }

    /// Sorts the inputs into the bucket table and bucket order that [`embedding::Buckets`] describes.
    pub fn sort(&mut self) {
        if self.is_empty() {
            return;
        }
        let (pairs, buckets) = self.words.split_at_mut(2 * self.tokens);
        let (table, order) = buckets.split_at_mut(buckets.len() - self.tokens);
        embedding::sort(&pairs[..self.tokens], table, order);
    }

    /// Excludes the tokens from position `at` on from the loss.
    pub fn ignore_from(&mut self, at: usize) {
        let [inputs, targets] = self.pairs_mut();
        inputs[at..].fill(0);
        targets[at..].fill(IGNORED);
    }

    /// Returns the bytes of inputs and targets, the upload of a forward pass.
    #[must_use]
    pub fn forward_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words[..2 * self.tokens])
    }

    /// Returns the bytes of the whole block, the upload of a micro-step.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}

/// Writes n+1 consecutive tokens as n inputs and n targets, each target one position after its input.
pub(super) fn widen(tokens: &[u16], inputs: &mut [u32], targets: &mut [u32]) {
    for (i, pair) in tokens.windows(2).enumerate() {
        inputs[i] = u32::from(pair[0]);
        targets[i] = u32::from(pair[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_pairs_and_sorted_buckets() {
        let mut batch = Batch::default();
        batch.fill(&[7, 3, 7, 9]);
        assert_eq!(
            batch.words,
            // inputs, targets, two runs (3 at row 1; 7 at rows 0 and 2) and room for a third, the rows by token
            [vec![7, 3, 7], vec![3, 7, 9], vec![2, 0, 0, 3, 0, 1, 7, 1, 3, 0, 0, 0], vec![1, 0, 2]].concat()
        );
        assert_eq!(batch.words, Batch::of(&[7, 3, 7], &[3, 7, 9]).words);
        assert_eq!(batch.forward_bytes(), &batch.bytes()[..24]);
        batch.ignore_from(1);
        assert_eq!((batch.inputs(), batch.targets()), (&[7, 0, 0][..], &[3, IGNORED, IGNORED][..]));
    }

    #[test]
    fn what_was_there_before_does_not_show() {
        let mut batch = Batch::default();
        batch.fill(&[1, 2, 3, 4, 5]);
        batch.fill(&[8, 8, 8, 8, 8]);
        let mut fresh = Batch::default();
        fresh.fill(&[8, 8, 8, 8, 8]);
        assert_eq!(batch.words, fresh.words);
        batch.resize(0);
        batch.sort();
        assert!(batch.is_empty() && batch.bytes().is_empty());
    }
}
