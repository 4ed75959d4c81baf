//! Validation data: rows of T tokens in file order, each row once.

use crate::data::batch::{Batch, widen};
use crate::data::contents::FileContents;
use crate::data::tokens::TokenSource;
use crate::error::{Error, Fault, Result};
use crate::units::count;

/// Rows of T tokens, from the start of the first source to the end of the last.
///
/// A source of n tokens has floor((n−1)/T) rows: the last target is one token further. A row never spans sources.
#[derive(Debug, Clone)]
pub struct Rows {
    sources: Vec<TokenSource>,
    /// For each source, the number of rows in it and in all sources before it.
    ends: Vec<usize>,
    context: usize,
    vocab: usize,
    /// Index of the last source read, so that only one file stays open.
    current: usize,
    /// The T+1 tokens of the current row.
    tokens: Vec<u16>,
}

impl Rows {
    /// Divides `sources` into rows of `context` tokens. Ids must be below `vocab`, which is checked when a row is read.
    ///
    /// # Errors
    /// [`Error::Usage`] if `context` is 0. [`Error::Data`] if there is no whole row.
    pub fn new(sources: Vec<TokenSource>, context: usize, vocab: usize) -> Result<Self> {
        if context == 0 {
            return Err(Error::usage("validation: context is wrong, expected at least 1, got 0"));
        }
        let mut total = 0;
        let ends: Vec<usize> = sources
            .iter()
            .map(|source| {
                total += source.len().saturating_sub(1) / context;
                total
            })
            .collect();
        if total == 0 {
            let longest = sources.iter().map(TokenSource::len).max().unwrap_or(0);
            let fault = Fault::at("validation", "too few tokens for a row").found(count(longest as u64));
            let fault = fault.expected(format!("at least {} in a source", count(context.saturating_add(1) as u64)));
            return Err(Error::data(fault.advice("try a smaller --context or more text")));
        }
        Ok(Self { sources, ends, context, vocab, current: 0, tokens: vec![0; context + 1] })
    }

    /// Returns the number of rows R, at least 1.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns false: [`Rows::new`] requires at least one row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the files that the rows come from, in order, as they were before they were read.
    pub fn files(&self) -> impl Iterator<Item = &FileContents> {
        self.sources.iter().flat_map(TokenSource::files)
    }

    /// Returns a hash of the sources' lengths and of samples of their tokens. It does not depend on paths.
    ///
    /// # Errors
    /// [`Error::Data`] if a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        super::batches::fingerprint(&self.sources)
    }

    /// Returns the number of tokens of a row, T.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// Overwrites `inputs` and `targets`, both (T), with row `index`, counted from 0.
    ///
    /// # Errors
    /// [`Error::Shape`] if a slice is not T long or there is no such row. [`Error::Data`] if a file can no longer be
    /// read or a token id is outside the vocabulary.
    pub fn row(&mut self, index: usize, inputs: &mut [u32], targets: &mut [u32]) -> Result<()> {
        check_slices("rows.row", self.context, inputs, targets)?;
        if index >= self.len() {
            return Err(Error::shape(format!("rows.row: no such row, expected below {}, got {index}", self.len())));
        }
        let source = self.ends.partition_point(|&end| end <= index);
        if source != self.current {
            self.sources[self.current].release();
            self.current = source;
        }
        let first = if source == 0 { 0 } else { self.ends[source - 1] };
        self.sources[source].read_checked((index - first) * self.context, &mut self.tokens, self.vocab)?;
        widen(&self.tokens, inputs, targets);
        Ok(())
    }

    /// Overwrites inputs and targets of `batch` with the rows from `first` on, without sorting it. Returns the number
    /// of rows written. Rows that are missing in the last batch become zeros, which are valid ids; the caller excludes
    /// them from the mean.
    ///
    /// # Errors
    /// [`Error::Shape`] if the size of the batch is not a multiple of T; else those of [`row`](Self::row).
    pub fn batch(&mut self, first: usize, batch: &mut Batch) -> Result<usize> {
        let (rows, n) = (batch.len() / self.context, batch.len());
        if rows * self.context != n {
            let expected = format!("whole rows of {}", self.context);
            return Err(Error::shape(
                Fault::at("rows.batch", "wrong size").expected(expected).found(format!("{n} tokens")),
            ));
        }
        let filled = rows.min(self.len().saturating_sub(first));
        let [inputs, targets] = batch.pairs_mut();
        for i in 0..filled {
            let at = i * self.context..(i + 1) * self.context;
            self.row(first + i, &mut inputs[at.clone()], &mut targets[at])?;
        }
        inputs[filled * self.context..].fill(0);
        targets[filled * self.context..].fill(0);
        Ok(filled)
    }
}

/// Checks that both halves of a batch are `n` long.
fn check_slices(place: &str, n: usize, inputs: &[u32], targets: &[u32]) -> Result<()> {
    for (name, slice) in [("inputs", inputs), ("targets", targets)] {
        if slice.len() != n {
            return Err(Error::shape(format!("{place}: `{name}` has shape ({}), expected ({n})", slice.len())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(lens: &[u16]) -> Vec<TokenSource> {
        lens.iter()
            .map(|&len| TokenSource::from_tokens(format!("{len}"), (len * 100..len * 100 + len).collect()))
            .collect()
    }

    #[test]
    fn every_row_comes_once_in_order() {
        // 2, 0, 3 and 1 rows
        let mut rows = Rows::new(sources(&[9, 4, 13, 8]), 4, 65_536).unwrap();
        assert_eq!(rows.len(), 6);
        let starts = [900, 904, 1300, 1304, 1308, 800];
        for (i, start) in starts.into_iter().enumerate() {
            let (mut inputs, mut targets) = ([0; 4], [0; 4]);
            rows.row(i, &mut inputs, &mut targets).unwrap();
            assert_eq!(inputs, [start, start + 1, start + 2, start + 3]);
            assert_eq!(targets, [start + 1, start + 2, start + 3, start + 4]);
        }
        assert!(matches!(rows.row(6, &mut [0; 4], &mut [0; 4]), Err(Error::Shape(_))));
    }

    #[test]
    fn the_last_batch_is_partly_filled() {
        let mut rows = Rows::new(sources(&[21]), 4, 65_536).unwrap();
        let mut batch = Batch::of(&[9; 12], &[9; 12]);
        assert_eq!(rows.batch(0, &mut batch).unwrap(), 3);
        assert_eq!((batch.inputs()[11], batch.targets()[11]), (2111, 2112));
        assert_eq!(rows.batch(3, &mut batch).unwrap(), 2);
        assert_eq!((batch.inputs()[7], batch.targets()[7]), (2119, 2120));
        assert_eq!((&batch.inputs()[8..], &batch.targets()[8..]), (&[0; 4][..], &[0; 4][..]));
        assert_eq!(rows.batch(5, &mut batch).unwrap(), 0);
        assert!(matches!(rows.batch(0, &mut Batch::new(6)), Err(Error::Shape(_))));
    }

    #[test]
    fn too_little_text_is_a_data_error() {
        let error = Rows::new(sources(&[4, 3]), 4, 65_536).unwrap_err();
        assert!(error.to_string().contains("expected at least 5 in a source, got 4"), "{error}");
        assert!(matches!(Rows::new(Vec::new(), 4, 9), Err(Error::Data(_))));
        assert!(matches!(Rows::new(sources(&[9]), 0, 9), Err(Error::Usage(_))));
    }

    #[test]
    fn ids_are_checked() {
        let mut rows = Rows::new(sources(&[9]), 4, 905).unwrap();
        assert!(matches!(rows.row(0, &mut [0; 4], &mut [0; 4]), Ok(())));
        let error = rows.row(1, &mut [0; 4], &mut [0; 4]).unwrap_err();
        assert!(
            matches!(&error, Error::Data(fault) if fault.to_string().starts_with("9: token 5 is outside")),
            "{error}"
        );
    }
}
