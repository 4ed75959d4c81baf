//! The same few batches repeated, to overfit them.

use super::batch::Batch;
use super::batches::BatchSource;
use crate::error::Result;

/// A fixed list of batches, handed out in turn.
#[derive(Debug, Clone)]
pub struct Repeat {
    batches: Vec<Batch>,
    next: usize,
}

impl Repeat {
    /// Keeps the next `count` batches of `source`, at least one.
    ///
    /// # Errors
    /// Those of [`BatchSource::next_batch`].
    pub fn new(source: &mut dyn BatchSource, count: usize) -> Result<Self> {
        let batches = (0..count.max(1)).map(|_| source.next_batch().cloned()).collect::<Result<_>>()?;
        Ok(Self { batches, next: 0 })
    }

    /// Returns the source of a step's batches: `repeat`, rewound to its first batch, if it is given, else `source`.
    pub fn choose<'s>(repeat: &'s mut Option<Self>, source: &'s mut dyn BatchSource) -> &'s mut dyn BatchSource {
        match repeat {
            Some(repeat) => {
                repeat.rewind();
                repeat
            }
            None => source,
        }
    }

    /// Returns to the first batch.
    pub fn rewind(&mut self) {
        self.next = 0;
    }
}

impl BatchSource for Repeat {
    fn next_batch(&mut self) -> Result<&Batch> {
        let at = self.next;
        self.next = (at + 1) % self.batches.len();
        Ok(&self.batches[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Loader, LoaderConfig, TokenSource};

    #[test]
    fn the_first_batches_are_repeated() {
        let source = || vec![TokenSource::from_tokens("memory", (0..100).collect())];
        let loader = || Loader::new(source(), LoaderConfig::new(2, 4, 100, None)).unwrap();
        let mut repeat = Repeat::new(&mut loader(), 3).unwrap();
        let next = |source: &mut dyn BatchSource| {
            let batch = source.next_batch().unwrap();
            (batch.inputs().to_vec(), batch.targets().to_vec())
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
    }
}
