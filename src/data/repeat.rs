//! The same few batches again and again: for overfitting them.

use super::batches::BatchSource;
use super::loader::check_slices;
use crate::error::Result;

/// Batches of one step, handed out in turn.
#[derive(Debug, Clone)]
pub struct Repeat {
    batches: Vec<(Vec<u32>, Vec<u32>)>,
    next: usize,
}

impl Repeat {
    /// The next `count` batches of `source`, of `tokens` tokens each.
    ///
    /// # Errors
    /// As [`BatchSource::next_batch`].
    pub fn new(source: &mut dyn BatchSource, count: usize, tokens: usize) -> Result<Self> {
        let read = |_| {
            let (mut inputs, mut targets) = (vec![0; tokens], vec![0; tokens]);
            source.next_batch(&mut inputs, &mut targets).map(|()| (inputs, targets))
        };
        Ok(Self { batches: (0..count.max(1)).map(read).collect::<Result<_>>()?, next: 0 })
    }

    /// Goes back to the first.
    pub fn rewind(&mut self) {
        self.next = 0;
    }
}

impl BatchSource for Repeat {
    fn next_batch(&mut self, inputs: &mut [u32], targets: &mut [u32]) -> Result<()> {
        let batch = &self.batches[self.next];
        check_slices("repeat.next_batch", batch.0.len(), inputs, targets)?;
        inputs.copy_from_slice(&batch.0);
        targets.copy_from_slice(&batch.1);
        self.next = (self.next + 1) % self.batches.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Loader, LoaderConfig, TokenSource};

    #[test]
    fn the_first_batches_come_again() {
        let source = || vec![TokenSource::from_tokens("memory", (0..100).collect())];
        let loader = || Loader::new(source(), LoaderConfig::new(2, 4, 100, None)).unwrap();
        let mut repeat = Repeat::new(&mut loader(), 3, 8).unwrap();
        let next = |source: &mut dyn BatchSource| {
            let (mut inputs, mut targets) = ([0; 8], [0; 8]);
            source.next_batch(&mut inputs, &mut targets).unwrap();
            (inputs, targets)
        };
        for _ in 0..3 {
            let mut plain = loader();
            for _ in 0..3 {
                assert_eq!(next(&mut repeat), next(&mut plain));
            }
        }
        next(&mut repeat);
        repeat.rewind();
        assert_eq!(next(&mut repeat).0[0], 0);
        assert!(repeat.next_batch(&mut [0; 3], &mut [0; 8]).is_err());
    }
}
