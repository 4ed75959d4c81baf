//! AdamW over many parameters. One dispatch updates parameters that are adjacent in memory, so a model takes few
//! dispatches.

use super::{Parameter, ParameterRun};
use crate::error::{Error, Fault, Result};
use crate::gpu::{Elem, Gpu, Pass, Tensor};
use crate::model::{Config, Params, tensors};
use crate::ops::adamw;
use crate::ops::stepcontrol::StepControl;

/// AdamW's moments, m and v.
#[derive(Debug)]
pub enum Moments {
    /// Moments of all parameters.
    Whole(Box<[Params; 2]>),
    /// Moments of each [`ParameterRun`] that a device owns.
    Owned([Vec<Tensor>; 2]),
}

impl Moments {
    /// Returns the moments of all parameters; `None` if the device owns only a part.
    #[must_use]
    pub fn whole(&self) -> Option<&[Params; 2]> {
        match self {
            Self::Whole(moments) => Some(moments),
            Self::Owned(_) => None,
        }
    }
}

/// AdamW's moments, and the recording of an update with them.
#[derive(Debug)]
pub struct AdamW {
    moments: Moments,
}

const LABELS: [&str; 2] = ["AdamW m", "AdamW v"];

impl AdamW {
    /// Allocates moments of zeros.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Self> {
        let [m, v] = LABELS.map(|label| Params::new(gpu, label, config));
        Ok(Self { moments: Moments::Whole(Box::new([m?, v?])) })
    }

    /// Allocates moments of zeros for [`ParameterRun`]s of these lengths.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn owned(gpu: &Gpu, lengths: &[usize]) -> Result<Self> {
        let shapes: Vec<Vec<[usize; 2]>> = lengths.iter().map(|&length| vec![[1, length]]).collect();
        let [m, v] = LABELS.map(|label| Ok(gpu.arena(label, &shapes, Elem::F32)?.0));
        Ok(Self { moments: Moments::Owned([m?, v?]) })
    }

    /// Returns the first and second moments.
    #[must_use]
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// Records the update of the [`ParameterRun`]s that the moments were allocated for.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] if a kernel cannot be built; [`crate::error::Error::Shape`] if the
    /// moments belong to other parameters.
    pub fn record_runs(&self, pass: &mut Pass, runs: &[ParameterRun], control: &StepControl) -> Result<()> {
        let Moments::Owned([m, v]) = &self.moments else { return Err(other("runs")) };
        for ((run, m), v) in runs.iter().zip(m).zip(v) {
            let ParameterRun { weight: param, gradient: grad, decays } = run;
            adamw::forward(pass, adamw::Forward { param, grad, m, v, copy: None, control, decays: *decays })?;
        }
        Ok(())
    }

    /// Records the update of `parameters`, which are in memory order. One dispatch updates adjacent parameters with the
    /// same decay, and the padding between them: padding is zero everywhere and remains zero.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] if a kernel cannot be built.
    pub fn record(&self, pass: &mut Pass, parameters: &[Parameter], control: &StepControl) -> Result<()> {
        let Some([m, v]) = self.moments.whole() else { return Err(other("parameters")) };
        for run in parameters.chunk_by(are_neighbours) {
            let [Some(first), Some(last)] = [run.first(), run.last()] else { continue };
            let windows = |from: &Tensor, to: &Tensor| tensors::flat_windows(pass.gpu, &from.through(to));
            let weights = windows(first.weight, last.weight);
            let gradients = windows(first.gradient, last.gradient);
            let moments = [m, v].map(|moment| windows(first.of(moment), last.of(moment)));
            let copies = first.copy.zip(last.copy).map(|(from, to)| windows(from, to));
            for (i, param) in weights.iter().enumerate() {
                let (grad, [m, v]) = (&gradients[i], moments.each_ref().map(|moment| &moment[i]));
                let copy = copies.as_ref().map(|copies| &copies[i]);
                adamw::forward(pass, adamw::Forward { param, grad, m, v, copy, control, decays: first.decays })?;
            }
        }
        Ok(())
    }
}

fn other(what: &str) -> Error {
    Error::shape(Fault::at("adamw.record", format!("the moments are not those of {what}")))
}

/// Returns whether one dispatch can update both. All sets of a model have the layout of the weights, copies included.
fn are_neighbours(a: &Parameter, b: &Parameter) -> bool {
    a.decays == b.decays && a.copy.is_some() == b.copy.is_some() && a.weight.is_followed_by(b.weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Caps, Command};

    fn config() -> Config {
        Config::new(24, 257, 3, 2, 34).expect("a model")
    }

    /// Returns how many elements each dispatch updates, for the parameters for which `of` is true.
    fn updates(gpu: &Gpu, of: impl Fn(&Parameter) -> bool) -> Vec<u64> {
        let [weights, gradients] =
            ["weights", "gradients"].map(|label| Params::new(gpu, label, config()).expect("memory"));
        let adamw = AdamW::new(gpu, config()).expect("memory");
        let control = StepControl::new(gpu).expect("memory");
        let mut parameters = Parameter::all(&weights, &gradients);
        parameters.retain(of);
        let mut pass = Pass::new(gpu);
        adamw.record(&mut pass, &parameters, &control).expect("recorded");
        pass.finish().commands.iter().map(elements).collect()
    }

    fn elements(command: &Command) -> u64 {
        command.bindings[0].bytes / 4
    }

    fn padded(elements: usize) -> u64 {
        (elements as u64).next_multiple_of(128)
    }

    #[test]
    fn a_model_is_updated_by_two_dispatches() {
        let c = 34;
        let matrices =
            padded(384 * c) + padded(24 * c) + 3 * (padded(3 * c * c) + padded(c * c) + 2 * padded(4 * c * c));
        let vectors = 2 * padded(c) + 3 * (6 * padded(c) + padded(3 * c) + padded(4 * c));
        assert_eq!(updates(&Gpu::dry(Caps::webgpu_defaults()), |_| true), [matrices, vectors]);
    }

    #[test]
    fn without_the_blocks_matrices_the_embeddings_and_vectors_are_left() {
        let c = 34;
        let vectors = 2 * padded(c) + 3 * (6 * padded(c) + padded(3 * c) + padded(4 * c));
        let rest = |p: &Parameter| p.block.is_none() || !p.decays;
        let gpu = Gpu::dry(Caps::webgpu_defaults());
        assert_eq!(updates(&gpu, rest), [padded(384 * c) + padded(24 * c), vectors]);
        // one matrix in each block; none are adjacent
        let alone = |p: &Parameter| p.name == "attprojw";
        assert_eq!(updates(&gpu, alone), [padded(c * c); 3]);
    }

    /// For any limits on bindings and buffers, the dispatches cover the model's memory once, as those of the norm do.
    #[test]
    fn the_dispatches_are_the_windows_of_all_parameters() {
        for (max_binding_bytes, max_buffer_bytes) in [(1 << 30, 1 << 30), (16 << 10, 1 << 30), (16 << 10, 60_000)] {
            let gpu = Gpu::dry(Caps { max_binding_bytes, max_buffer_bytes, ..Caps::webgpu_defaults() });
            let all = Params::new(&gpu, "weights", config()).expect("memory");
            let windows: Vec<u64> = all.windows(&gpu).iter().map(|(window, _)| window.len() as u64).collect();
            assert_eq!(updates(&gpu, |_| true), windows);
        }
    }
}
