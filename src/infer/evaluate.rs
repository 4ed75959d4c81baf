//! Evaluates a model: its loss on tokens and its answers to HellaSwag.

use std::collections::{HashMap, VecDeque};

use crate::data::hellaswag::{ENDINGS, Example};
use crate::data::{Batch, Rows};
use crate::error::{Error, Fault, Result};
use crate::gpu::{Gpu, Pass, Program, ReadRing, Upload, UploadRing};
use crate::model::{Activations, Config, Params, forward};

/// Maximum number of submissions in flight.
const IN_FLIGHT: usize = 3;
/// Rows of HellaSwag are padded to a multiple of this length, so that few programs are recorded.
const STEP: usize = 8;

/// A recorded forward pass with losses, for one shape of batches.
struct Recorded {
    acts: Activations,
    program: Program,
}

/// Runs forward passes of a model over batches and reads their losses back.
pub struct Evaluator<'a> {
    gpu: &'a Gpu,
    config: Config,
    params: &'a Params,
    acts: Activations,
    recorded: HashMap<[usize; 2], Recorded>,
    uploads: UploadRing,
    losses: ReadRing,
    batch: Batch,
}

/// A model's answer to an example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Mean loss of each ending's tokens, in nats per token.
    pub losses: [f64; ENDINGS],
    /// The ending with the smallest loss; of equals, the first.
    pub choice: usize,
    /// The correct ending.
    pub label: usize,
}

/// One ending of one example as a row of a batch.
struct Row {
    example: usize,
    ending: usize,
    tokens: Vec<u16>,
    /// Number of the ending's tokens, which are the last ones of the row.
    scored: usize,
}

impl<'a> Evaluator<'a> {
    /// Allocates memory for batches of at most `batch` rows of `context` tokens.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &'a Gpu, config: Config, params: &'a Params, batch: usize, context: usize) -> Result<Self> {
        Self::with(gpu, config, params, Activations::inference(gpu, &config, [batch, context], false, usize::MAX)?)
    }

    /// Makes an evaluator in the memory of `acts`, the activations of a model in training, which it overwrites.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn within(gpu: &'a Gpu, config: Config, params: &'a Params, acts: &Activations) -> Result<Self> {
        Self::with(gpu, config, params, acts.shrink(&config, acts.batch, acts.positions))
    }

    fn with(gpu: &'a Gpu, config: Config, params: &'a Params, acts: Activations) -> Result<Self> {
        let n = acts.rows();
        Ok(Self {
            gpu,
            config,
            params,
            recorded: HashMap::new(),
            uploads: UploadRing::new(gpu, IN_FLIGHT, 2 * acts.tokens.bytes())?,
            losses: ReadRing::new(gpu, IN_FLIGHT, &acts.losses)?,
            acts,
            batch: Batch::new(n),
        })
    }

    /// Submits the batch, of B·T tokens.
    fn submit(&mut self, shape: [usize; 2]) -> Result<()> {
        let [batch, positions] = shape;
        if !self.recorded.contains_key(&shape) {
            let acts = self.acts.shrink(&self.config, batch, positions);
            let mut pass = Pass::new(self.gpu);
            forward::body(&mut pass, &self.config, self.params, &acts)?;
            forward::losses(&mut pass, &self.config, self.params, &acts)?;
            self.recorded.insert(shape, Recorded { acts, program: pass.finish() });
        }
        let Recorded { acts, program } = &self.recorded[&shape];
        let uploads: [Upload; 1] = [(&[&acts.tokens, &acts.targets], self.batch.forward_bytes())];
        self.uploads.submit(self.gpu, &uploads, &[program], &mut [&mut self.losses])
    }

    fn take(&mut self) -> Result<Vec<f32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.losses.take(self.gpu, true)?.unwrap_or_default()))
    }

    /// Returns the mean loss in nats per token over the first `count` rows, which must have the evaluator's context
    /// length. Calls `progress` with the number of rows done.
    ///
    /// # Errors
    /// [`Error::Data`] from the rows; [`Error::Diverged`] if the loss is not finite; otherwise as [`Gpu::check`].
    pub fn loss(&mut self, rows: &mut Rows, count: usize, mut progress: impl FnMut(usize)) -> Result<f64> {
        let [batch, context] = [self.acts.batch, self.acts.positions];
        self.batch.resize(batch * context);
        let count = count.min(rows.len());
        let (mut sum, mut at, mut done) = (0.0, 0, 0);
        while at < count || self.losses.pending() > 0 {
            if at >= count || self.losses.is_full() {
                // rows past the end have ignored targets, so their losses are zero
                sum += self.take()?.iter().map(|&loss| f64::from(loss)).sum::<f64>();
                done = (done + batch).min(count);
                progress(done);
                continue;
            }
            let filled = rows.batch(at, &mut self.batch)?.min(count - at);
            self.batch.ignore_from(filled * context);
            self.submit([batch, context])?;
            at += batch;
        }
        let mean = sum / (count * context) as f64;
        if !mean.is_finite() {
            return Err(Error::diverged(
                Fault::at("eval", format!("the loss is {mean}"))
                    .expected("a finite number")
                    .advice("the weights are unusable"),
            ));
        }
        Ok(mean)
    }

    /// Returns the model's answers by llm.c's rule: of four endings, the one whose tokens have the smallest mean loss
    /// after the context. Rows are padded to the longest row of their batch, not to the model's context. Examples that
    /// are longer than the context lose their beginning; also returns the number of these. Calls `progress` with the
    /// number of rows done.
    ///
    /// # Errors
    /// [`Error::Data`] if an id is outside the vocabulary or an ending alone is longer than the context; otherwise as
    /// [`Gpu::check`].
    pub fn answers(&mut self, examples: &[Example], mut progress: impl FnMut(usize)) -> Result<(Vec<Answer>, usize)> {
        let (mut rows, cut) = rows(examples, self.config.vocab, self.acts.positions)?;
        // sorted by length, so that rows of a batch need little padding; the longest first, so that memory errors come
        // early
        rows.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
        let mut losses = vec![[f64::NAN; ENDINGS]; examples.len()];
        let mut flying: VecDeque<(std::ops::Range<usize>, usize)> = VecDeque::new();
        let mut at = 0;
        while at < rows.len() || !flying.is_empty() {
            if at == rows.len() || self.losses.is_full() {
                let Some((range, positions)) = flying.pop_front() else { break };
                let values = self.take()?;
                for (row, values) in rows[range.clone()].iter().zip(values.chunks(positions)) {
                    let end = row.tokens.len() - 1;
                    let sum: f64 = values[end - row.scored..end].iter().map(|&loss| f64::from(loss)).sum();
                    losses[row.example][row.ending] = sum / row.scored as f64;
                }
                progress(range.end);
                continue;
            }
            let longest = rows[at].tokens.len() - 1;
            let positions = longest.next_multiple_of(STEP).min(self.acts.positions);
            let batch = self.acts.rows() / positions;
            let range = at..rows.len().min(at + batch);
            self.batch.resize(batch * positions);
            self.batch.ignore_from(0);
            let [inputs, targets] = self.batch.pairs_mut();
            for (i, row) in rows[range.clone()].iter().enumerate() {
                let last = row.tokens.len() - 1;
                for (t, pair) in row.tokens.windows(2).enumerate() {
                    inputs[i * positions + t] = u32::from(pair[0]);
                    if t >= last - row.scored {
                        targets[i * positions + t] = u32::from(pair[1]);
                    }
                }
            }
            self.submit([batch, positions])?;
            at = range.end;
            flying.push_back((range, positions));
        }
        let answer = |(mut losses, example): ([f64; ENDINGS], &Example)| {
            for i in 1..ENDINGS {
                // equal endings in different batches may round differently, but must have equal losses
                if let Some(equal) = (0..i).find(|&other| example.endings[other] == example.endings[i]) {
                    losses[i] = losses[equal];
                }
            }
            let smaller = |best: usize, i: usize| if losses[i] < losses[best] { i } else { best };
            Answer { losses, choice: (1..ENDINGS).fold(0, smaller), label: example.label }
        };
        Ok((losses.into_iter().zip(examples).map(answer).collect(), cut))
    }
}

/// Checks that a model with `vocab` tokens can answer the examples in rows of `positions` tokens.
///
/// # Errors
/// [`Error::Data`] naming an example with an id outside the vocabulary, or with an ending that alone is longer.
pub fn check(examples: &[Example], vocab: usize, positions: usize) -> Result<()> {
    rows(examples, vocab, positions).map(|_| ())
}

/// Returns all endings as rows, and the number of examples that were cut.
fn rows(examples: &[Example], vocab: usize, positions: usize) -> Result<(Vec<Row>, usize)> {
    let most = positions + 1;
    let mut rows = Vec::with_capacity(examples.len() * ENDINGS);
    let mut cut = 0;
    for (i, example) in examples.iter().enumerate() {
        let mut is_cut = false;
        for (ending, tokens) in example.endings.iter().enumerate() {
            let mut tokens = [example.context.as_slice(), tokens].concat();
            let scored = tokens.len() - example.context.len();
            if let Some(id) = tokens.iter().find(|id| usize::from(**id) >= vocab) {
                return Err(Error::data(
                    Fault::at("hellaswag", format!("example {}: token {id}", i + 1))
                        .expected(format!("below the model's {vocab}")),
                ));
            }
            if scored >= most {
                return Err(Error::data(
                    Fault::at("hellaswag", format!("example {}: an ending of {scored} tokens", i + 1))
                        .expected(format!("fewer than the model's {} positions", most - 1)),
                ));
            }
            is_cut |= tokens.len() > most;
            tokens.drain(..tokens.len().saturating_sub(most));
            rows.push(Row { example: i, ending, tokens, scored });
        }
        cut += usize::from(is_cut);
    }
    Ok((rows, cut))
}
