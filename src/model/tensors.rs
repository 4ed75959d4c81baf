//! The model's parameters on the GPU and, in the same layout, their gradients and moments.

use std::ops::Range;

use crate::error::{Error, Fault, Result};
use crate::gpu::tensor::row_windows;
use crate::gpu::{Elem, Gpu, Pass, Tensor};
use crate::ops::cast;

use super::config::Config;
use super::flat::{self, Group};
use super::params::{PARAMS, Param, Weights, index};

/// One value for every parameter: the parameters themselves, their gradients, or a moment. In memory all tensors that
/// decay come first, then all that do not, block by block, so that a pass over all parameters takes few dispatches.
#[derive(Debug)]
pub struct Params {
    config: Config,
    /// The copies of each entry of [`PARAMS`].
    tensors: Vec<Vec<Tensor>>,
    /// The whole buffers, each with whether weight decay applies to it.
    buffers: Vec<(Tensor, bool)>,
    /// An f16 copy, with the same layout, of all parameters that decay, for the matrix products of mixed precision.
    copy: Option<HalfCopy>,
}

/// The f16 copy of [`Params::with_copy`].
#[derive(Debug)]
struct HalfCopy {
    /// The copies of each entry of [`PARAMS`]; empty for parameters that do not decay.
    tensors: Vec<Vec<Tensor>>,
    buffers: Vec<Tensor>,
}

impl Params {
    /// Allocates zeros for every parameter.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu, label: &str, config: Config) -> Result<Self> {
        let mut tensors: Vec<Vec<Tensor>> = PARAMS.iter().map(|_| Vec::new()).collect();
        let mut buffers = Vec::new();
        for decays in [true, false] {
            let allocated = arena(gpu, label, &config, decays, Elem::F32, &mut tensors)?;
            buffers.extend(allocated.into_iter().map(|buffer| (buffer, decays)));
        }
        Ok(Self { config, tensors, buffers, copy: None })
    }

    /// Allocates zeros for every parameter, and an f16 copy of every matrix, which [`Params::matrix`] then returns.
    /// Code that writes parameters must update the copy: AdamW writes both; after [`Params::upload`] call
    /// [`Params::refresh`].
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn with_copy(gpu: &Gpu, label: &str, config: Config) -> Result<Self> {
        let mut tensors: Vec<Vec<Tensor>> = PARAMS.iter().map(|_| Vec::new()).collect();
        let buffers = arena(gpu, &format!("{label} as f16"), &config, true, Elem::F16, &mut tensors)?;
        Ok(Self { copy: Some(HalfCopy { tensors, buffers }), ..Self::new(gpu, label, config)? })
    }

    /// Returns a matrix for the products: its f16 copy if there is one.
    #[must_use]
    pub fn matrix(&self, name: &str, layer: usize) -> &Tensor {
        self.copy.as_ref().map_or_else(|| self.get(name, layer), |copy| &copy.tensors[index(name)][layer])
    }

    /// Records the conversion of all matrices to the f16 copy, if there is one.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] if the kernel cannot be built.
    pub fn refresh(&self, pass: &mut Pass) -> Result<()> {
        for (window, copy) in self.windows(pass.gpu).iter().zip(self.copy_windows(pass.gpu)) {
            if let Some(copy) = copy {
                cast::forward(pass, &window.0, &copy)?;
            }
        }
        Ok(())
    }

    /// Returns a parameter's f16 copy, if it has one.
    #[must_use]
    pub fn copy(&self, name: &str, layer: usize) -> Option<&Tensor> {
        self.copy.as_ref().and_then(|copy| copy.tensors[index(name)].get(layer))
    }

    /// Returns every parameter with its layer (0 for parameters that the model has once) in memory order, which is the
    /// same for all sets: parameters that decay, then the others.
    pub fn in_memory_order(&self) -> impl Iterator<Item = (&'static Param, usize)> {
        flat::groups(&self.config)
            .into_iter()
            .flat_map(|group| group.members)
            .map(|member| (member.param, member.layer))
    }

    /// Returns elements of a group, in the flat order, as one row.
    ///
    /// # Errors
    /// [`Error::Memory`] if the group is not in one buffer.
    pub fn flat(&self, group: &Group, elements: Range<usize>) -> Result<Tensor> {
        let [Some(first), Some(last)] = [group.members.first(), group.members.last()]
            .map(|member| member.map(|member| self.get(member.param.name, member.layer)))
        else {
            return Err(Error::shape("params.flat: a group without parameters"));
        };
        if first.buffer_id() != last.buffer_id() {
            let what = format!("`{}` is not in one buffer", first.label());
            return Err(Error::memory(
                Fault::at("memory", what).expected(format!("buffers of {} bytes", 4 * group.len)),
            ));
        }
        Ok(first.through(last).flat(elements))
    }

    /// Returns for each of [`Params::windows`] its f16 copy, if it has one.
    fn copy_windows(&self, gpu: &Gpu) -> Vec<Option<Tensor>> {
        let mut copies = self.copy.iter().flat_map(|copy| &copy.buffers).flat_map(|whole| flat_windows(gpu, whole));
        self.windows(gpu).iter().map(|(_, decays)| if *decays { copies.next() } else { None }).collect()
    }

    /// Returns flat windows of all parameters except `others`. Neighbours share a window; each window is small enough
    /// to bind.
    #[must_use]
    pub fn windows_without(&self, gpu: &Gpu, others: &[Tensor]) -> Vec<Tensor> {
        let tensors = self.in_memory_order().map(|(param, layer)| self.get(param.name, layer));
        let left: Vec<&Tensor> = tensors.filter(|tensor| !others.iter().any(|other| other.is_same(tensor))).collect();
        let runs = left.chunk_by(|a, b| a.is_followed_by(b));
        let whole = |run: &[&Tensor]| Some(run.first()?.through(run.last()?));
        runs.filter_map(whole).flat_map(|run| flat_windows(gpu, &run)).collect()
    }

    /// Returns a parameter by name. `layer` is 0 for parameters that the model has once.
    #[must_use]
    pub fn get(&self, name: &str, layer: usize) -> &Tensor {
        &self.tensors[index(name)][layer]
    }

    /// Returns all parameters as flat windows that are small enough to bind, each with whether weight decay applies.
    /// Two sets of the same model have the same windows.
    #[must_use]
    pub fn windows(&self, gpu: &Gpu) -> Vec<(Tensor, bool)> {
        self.buffers
            .iter()
            .flat_map(|(whole, decays)| flat_windows(gpu, whole).into_iter().map(|w| (w, *decays)))
            .collect()
    }

    /// Returns the whole buffers.
    pub fn buffers(&self) -> impl Iterator<Item = &Tensor> {
        self.buffers.iter().map(|(whole, _)| whole)
    }

    /// Overwrites all parameters from the host.
    ///
    /// # Errors
    /// Those of [`Gpu::write`].
    pub fn upload(&self, gpu: &Gpu, weights: &Weights) -> Result<()> {
        let list: Vec<(&Tensor, &[u8])> = PARAMS
            .iter()
            .zip(&self.tensors)
            .flat_map(|(param, copies)| {
                let of = |(layer, tensor)| (tensor, bytemuck::cast_slice(weights.get(param.name, layer)));
                copies.iter().enumerate().map(of)
            })
            .collect();
        gpu.write_all(&list)
    }

    /// Reads all parameters back.
    ///
    /// # Errors
    /// Those of [`Gpu::read`].
    pub fn download(&self, gpu: &Gpu) -> Result<Weights> {
        let mut weights = Weights::zeros(self.config);
        // in `Weights` the copies of a parameter are contiguous, layer by layer
        let all: Vec<(usize, &Tensor)> = self
            .tensors
            .iter()
            .enumerate()
            .flat_map(|(param, copies)| copies.iter().map(move |t| (param, t)))
            .collect();
        let tensors: Vec<&Tensor> = all.iter().map(|(_, tensor)| *tensor).collect();
        let mut filled = vec![0; self.tensors.len()];
        gpu.read_all(&tensors, |number, bytes| {
            let (param, at) = (all[number].0, &mut filled[all[number].0]);
            let values: &mut [f32] = &mut weights.tensors[param][*at..*at + bytes.len() / 4];
            bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
            *at += bytes.len() / 4;
        })?;
        Ok(weights)
    }
}

/// Allocates all parameters that decay, or all that do not, in the flat order. Returns the whole buffers.
fn arena(
    gpu: &Gpu,
    label: &str,
    config: &Config,
    decays: bool,
    elem: Elem,
    tensors: &mut [Vec<Tensor>],
) -> Result<Vec<Tensor>> {
    let groups: Vec<Group> = flat::groups(config).into_iter().filter(|group| group.decays == decays).collect();
    let shapes = |group: &Group| group.members.iter().map(|member| (member.param.shape)(config)).collect();
    let (allocated, buffers) = gpu.arena(label, &groups.iter().map(shapes).collect::<Vec<_>>(), elem)?;
    for (member, tensor) in groups.iter().flat_map(|group| &group.members).zip(allocated) {
        tensors[index(member.param.name)].push(tensor);
    }
    Ok(buffers)
}

/// Cuts an arena into flat windows that are small enough to bind. The windows hold the same elements whatever the
/// element type, because they are cut at rows of 128 elements, which are 256 bytes of f16.
#[must_use]
pub fn flat_windows(gpu: &Gpu, whole: &Tensor) -> Vec<Tensor> {
    let ranges = row_windows(whole.len() / 128, 512, gpu.caps.window_bytes());
    ranges.into_iter().map(|r| whole.flat(r.start * 128..r.end * 128)).collect()
}
