//! Recording: operators add commands to a pass, which becomes a program.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Fault, Result};
use crate::units;

use super::context::{Gpu, lock};
use super::kernel::{KernelId, Pipeline};
use super::layout::Immediates;
use super::program::{Action, Binding, Command, Program, Section};
use super::tensor::{Tensor, row_windows};
use super::zeros::{Region, Zeros};

/// A dispatch that an operator records.
#[derive(Debug)]
pub struct Dispatch<'a> {
    /// The kernel.
    pub kernel: &'a KernelId,
    /// The tensors of bindings 0, 1, 2, ...
    pub tensors: &'a [&'a Tensor],
    /// The kernel's parameters, at most 64 bytes.
    pub immediates: Immediates<'a>,
    /// Number of workgroups. If one dimension cannot hold them, they are folded into two: see `shared/grid.wgsl`.
    pub groups: u64,
    /// Floating-point operations that the operator needs.
    pub flops: u64,
    /// Smallest number of bytes that the operator must move: each operand once.
    pub bytes: u64,
}

/// A recording in progress.
#[derive(Debug)]
pub struct Pass<'g> {
    /// The device that the program is for.
    pub gpu: &'g Gpu,
    commands: Vec<Command>,
    section: Section,
    zeros: Zeros,
}

impl<'g> Pass<'g> {
    /// Starts a recording.
    #[must_use]
    pub fn new(gpu: &'g Gpu) -> Self {
        Self { gpu, commands: Vec::new(), section: Section::default(), zeros: Zeros::default() }
    }

    /// Sets the section that the following commands belong to.
    pub fn at(&mut self, section: Section) {
        self.section = section;
    }

    /// Records a dispatch.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the kernel cannot be built; [`Error::Memory`] if a tensor is larger than the adapter binds.
    pub fn dispatch(&mut self, dispatch: &Dispatch) -> Result<()> {
        let pipeline = self.gpu.pipeline(dispatch.kernel)?;
        let name = &*pipeline.name;
        if dispatch.groups == 0 {
            return Ok(());
        }
        let reflection = &pipeline.reflection;
        dispatch.immediates.check(name, &reflection.immediates, reflection.immediate_bytes)?;
        let bind_group = self.bind(&pipeline, name, dispatch.tensors)?;
        dispatch.tensors.iter().for_each(|tensor| self.clear_zeros(tensor));
        let writes = pipeline.reflection.bindings.iter().map(|(_, writes)| *writes);
        let bindings =
            dispatch.tensors.iter().zip(writes).map(|(tensor, writes)| Binding::new(tensor, writes)).collect();
        let limit = u64::from(self.gpu.caps.max_groups);
        let grid = fold(dispatch.groups, limit).ok_or_else(|| {
            Error::gpu(
                Fault::at(name, format!("{} workgroups", dispatch.groups))
                    .expected(format!("at most {}", limit * limit)),
            )
        })?;
        self.commands.push(Command {
            section: self.section,
            grid,
            flops: dispatch.flops,
            bytes: dispatch.bytes,
            bindings,
            action: Action::Dispatch { pipeline, bind_group, immediates: dispatch.immediates.bytes.to_vec() },
        });
        Ok(())
    }

    /// Declares a tensor to be all zeros from here on, without writing it. The first dispatch that would add to it may
    /// overwrite it instead (see [`Pass::take_zero`]); regions that nothing overwrites are cleared before their first
    /// use, or at the end.
    pub fn declare_zero(&mut self, tensor: &Tensor) {
        self.zeros.add(tensor);
    }

    /// Returns whether a tensor was declared zero by [`Pass::declare_zero`] and is still unwritten. If so, the next
    /// dispatch must overwrite all of it.
    pub fn take_zero(&mut self, tensor: &Tensor) -> bool {
        let is_zero = self.zeros.contains(tensor);
        if is_zero {
            self.zeros.take(tensor);
        }
        is_zero
    }

    /// Clears the regions of a tensor that are declared zero and still unwritten.
    fn clear_zeros(&mut self, tensor: &Tensor) {
        let zeros = self.zeros.take(tensor);
        zeros.into_iter().for_each(|region| self.clear_region(region));
    }

    fn clear_region(&mut self, Region { buffer, bytes }: Region) {
        let (offset, size) = (bytes.start, bytes.end - bytes.start);
        let binding = Binding { buffer: buffer.id, offset, bytes: size, elements: size / 4, writes: true };
        self.push(size, vec![binding], Action::Clear { buffer, offset, size });
    }

    /// Records that a tensor becomes all zeros.
    pub fn clear(&mut self, tensor: &Tensor) {
        self.zeros.take(tensor);
        // clears are whole words of 4 bytes: after an odd number of f16 there is only padding
        let (buffer, offset, size) = (Arc::clone(&tensor.buffer), tensor.offset, tensor.bytes().next_multiple_of(4));
        self.push(size, vec![Binding::new(tensor, true)], Action::Clear { buffer, offset, size });
    }

    /// Records a copy of `source` over `target`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes differ.
    pub fn copy(&mut self, source: &Tensor, target: &Tensor) -> Result<()> {
        if source.bytes() != target.bytes() {
            return Err(Error::shape(Fault::at(
                "copy",
                format!(
                    "`{}` has {} bytes, `{}` has {}",
                    source.label(),
                    source.bytes(),
                    target.label(),
                    target.bytes()
                ),
            )));
        }
        self.clear_zeros(source);
        self.zeros.take(target);
        let action = Action::Copy {
            source: Arc::clone(&source.buffer),
            from: source.offset,
            target: Arc::clone(&target.buffer),
            to: target.offset,
            size: source.bytes(),
        };
        let bindings = vec![Binding::new(source, false), Binding::new(target, true)];
        self.push(2 * source.bytes(), bindings, action);
        Ok(())
    }

    fn push(&mut self, bytes: u64, bindings: Vec<Binding>, action: Action) {
        self.commands.push(Command { section: self.section, grid: [0; 3], flops: 0, bytes, bindings, action });
    }

    /// Cuts `rows` rows into windows, so that a tensor whose rows have `row_bytes` bytes stays within
    /// [`Caps::window_bytes`](super::Caps::window_bytes). Pass the longest row of all tensors of the dispatch.
    #[must_use]
    pub fn row_windows(&self, rows: usize, row_bytes: u64) -> Vec<Range<usize>> {
        row_windows(rows, row_bytes, self.gpu.caps.window_bytes())
    }

    /// Does what [`Pass::row_windows`] does, and also limits the rows so that a dispatch has no more operations than
    /// [`Caps::most_flops`](super::Caps::most_flops). 128 rows are always allowed.
    #[must_use]
    pub fn row_windows_of(&self, rows: usize, row_bytes: u64, row_flops: u64) -> Vec<Range<usize>> {
        let caps = &self.gpu.caps;
        let most = (caps.most_flops / row_flops.max(1)).max(128).saturating_mul(row_bytes);
        row_windows(rows, row_bytes, caps.window_bytes().min(most))
    }

    /// Ends the recording and returns the program.
    #[must_use]
    pub fn finish(mut self) -> Program {
        let zeros = self.zeros.take_all();
        zeros.into_iter().for_each(|region| self.clear_region(region));
        Program { commands: self.commands }
    }

    fn bind(&self, pipeline: &Pipeline, name: &str, tensors: &[&Tensor]) -> Result<Option<wgpu::BindGroup>> {
        let caps = &self.gpu.caps;
        if tensors.len() != pipeline.reflection.bindings.len() {
            return Err(Error::gpu(Fault::at(
                name,
                format!("{} tensors given, but the kernel binds {}", tensors.len(), pipeline.reflection.bindings.len()),
            )));
        }
        for tensor in tensors {
            if tensor.bytes() > caps.max_binding_bytes {
                let fault = Fault::at(name, format!("`{}` is too large for {}", tensor.label(), caps.name));
                let [most, found] = units::sizes([caps.max_binding_bytes, tensor.bytes()]);
                return Err(Error::memory(fault.expected(format!("at most {most} per binding")).found(found)));
            }
            if !tensor.offset.is_multiple_of(caps.offset_alignment) {
                return Err(Error::gpu(
                    Fault::at(name, format!("`{}` starts at byte {}", tensor.label(), tensor.offset))
                        .expected(format!("a multiple of {}", caps.offset_alignment)),
                ));
            }
        }
        let Some(raw) = &self.gpu.raw else { return Ok(None) };
        // checked before the look-up, because a dry device's buffers may have the same ids as this device's
        if let Some(tensor) = tensors.iter().find(|tensor| tensor.buffer.raw.is_none()) {
            return Err(Error::gpu(Fault::at(name, format!("`{}` is a tensor of a dry device", tensor.label()))));
        }
        let Some((_, layout)) = pipeline.built() else { return Ok(None) };
        let window =
            |t: &Tensor| (t.buffer.id, t.offset, t.bytes().next_multiple_of(4).max(16).min(t.buffer.size - t.offset));
        let key = (pipeline.number, tensors.iter().map(|t| window(t)).collect::<Vec<_>>());
        let mut cache = lock(&self.gpu.bind_groups);
        if let Some(group) = cache.get(&key) {
            return Ok(Some(group.clone()));
        }
        let mut entries = Vec::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter().enumerate() {
            let Some(buffer) = &tensor.buffer.raw else { continue };
            entries.push(wgpu::BindGroupEntry {
                binding: i as u32,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset: tensor.offset,
                    size: std::num::NonZeroU64::new(key.1[i].2),
                }),
            });
        }
        let scope = raw.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let group =
            raw.device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(name), layout, entries: &entries });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(Error::gpu(Fault::at(name, format!("cannot be bound: {error}"))));
        }
        self.gpu.bind_groups_created.fetch_add(1, Ordering::Relaxed);
        cache.insert(key, group.clone());
        Ok(Some(group))
    }
}

/// Folds a number of workgroups into two dimensions of at most `limit`: as few rows as possible, of a length that
/// wastes few groups. `None` if they do not fit. Kernels ignore the groups past the end.
fn fold(groups: u64, limit: u64) -> Option<[u32; 3]> {
    if groups <= limit {
        return Some([groups as u32, 1, 1]);
    }
    let rows = groups.div_ceil(limit);
    (rows <= limit).then(|| [groups.div_ceil(rows) as u32, rows as u32, 1])
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn folding_covers_all_groups_within_the_limit() {
        for groups in [1, 65_535, 65_536, 100_003, 5_000_000] {
            let [x, y, z] = fold(groups, 65_535).expect("fits");
            assert!(x <= 65_535 && y <= 65_535 && z == 1);
            assert!(u64::from(x) * u64::from(y) >= groups);
        }
        assert!(fold(65_535 * 65_535 + 1, 65_535).is_none());
    }
}
