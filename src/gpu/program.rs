//! Programs: flat lists of commands, recorded once and encoded again for every submission.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;

use super::context::Gpu;
use super::kernel::{Arithmetic, KernelId, OpPass, Pipeline, Purpose};
use super::tensor::{Buffer, Tensor};

/// A window of a buffer that a command uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Id of the buffer: see [`Tensor::buffer_id`].
    pub buffer: u64,
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// Number of elements, of 2 or 4 bytes, that a kernel may index.
    pub elements: u64,
    /// Whether the command may write to it.
    pub writes: bool,
}

impl Binding {
    pub(super) fn new(tensor: &Tensor, writes: bool) -> Self {
        let (buffer, offset) = (tensor.buffer.id, tensor.offset);
        Self { buffer, offset, bytes: tensor.bytes(), elements: tensor.len() as u64, writes }
    }
}

/// The section of a step that a command belongs to: `head`, or the layer `h.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Section {
    /// Its name.
    pub part: &'static str,
    /// Its number, if several sections have this name.
    pub layer: Option<u32>,
}

impl Section {
    /// Names a section that exists once.
    #[must_use]
    pub const fn new(part: &'static str) -> Self {
        Self { part, layer: None }
    }

    /// Names one of several numbered sections.
    #[must_use]
    pub const fn layer(part: &'static str, layer: usize) -> Self {
        Self { part, layer: Some(layer as u32) }
    }
}

impl serde::Serialize for Section {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            None => f.write_str(self.part),
            Some(layer) => write!(f, "{}.{layer}", self.part),
        }
    }
}

/// A recorded command.
#[derive(Debug, Clone)]
pub struct Command {
    /// The section that it belongs to.
    pub section: Section,
    /// Workgroups in x, y, z.
    pub grid: [u32; 3],
    /// See [`Dispatch::flops`].
    pub flops: u64,
    /// See [`Dispatch::bytes`].
    pub bytes: u64,
    /// The windows that it reads and writes; for a dispatch bindings 0, 1, 2, ...
    pub bindings: Vec<Binding>,
    pub(super) action: Action,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    /// A kernel. Its pipeline knows the operator, the purpose and the printed name.
    Dispatch {
        pipeline: Arc<Pipeline>,
        bind_group: Option<wgpu::BindGroup>,
        immediates: Vec<u8>,
    },
    Clear {
        buffer: Arc<Buffer>,
        offset: u64,
        size: u64,
    },
    Copy {
        source: Arc<Buffer>,
        from: u64,
        target: Arc<Buffer>,
        to: u64,
        size: u64,
    },
}

/// A recorded list of commands, which can run any number of times.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// The commands, in order.
    pub commands: Vec<Command>,
}

impl Program {
    /// Joins several programs into one that runs them one after another.
    #[must_use]
    pub fn join<'p>(programs: impl IntoIterator<Item = &'p Self>) -> Self {
        Self { commands: programs.into_iter().flat_map(|program| program.commands.iter().cloned()).collect() }
    }

    /// Returns the number of commands up to and including the last that may write to a tensor; 0 if none does.
    #[must_use]
    pub fn written_until(&self, tensor: &Tensor) -> usize {
        let (first, end) = (tensor.offset, tensor.offset + tensor.bytes());
        let hits = |binding: &Binding| {
            let is_there = binding.offset < end && first < binding.offset + binding.bytes;
            binding.writes && binding.buffer == tensor.buffer.id && is_there
        };
        self.commands.iter().rposition(|command| command.bindings.iter().any(hits)).map_or(0, |last| last + 1)
    }

    /// Returns a program of a range of the commands.
    #[must_use]
    pub fn part(&self, commands: Range<usize>) -> Self {
        Self { commands: self.commands[commands].to_vec() }
    }

    /// Encodes all commands.
    pub(super) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut rest = self.commands.as_slice();
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|c| matches!(c.action, Action::Dispatch { .. })).count();
            if run == 0 {
                first.encode_transfer(encoder);
                rest = &rest[1..];
                continue;
            }
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for command in &rest[..run] {
                command.encode_dispatch(&mut pass);
            }
            rest = &rest[run..];
        }
    }

    /// Returns the time that the host takes to encode all commands. Nothing is submitted.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn time_encoding(&self, gpu: &Gpu) -> Result<Duration> {
        let begin = Instant::now();
        let mut encoder = gpu.encoder("timed")?;
        self.encode(&mut encoder);
        let buffer = encoder.finish();
        let time = begin.elapsed();
        drop(buffer);
        gpu.check()?;
        Ok(time)
    }

    /// Submits the program once, without waiting for it.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let mut encoder = gpu.encoder("program")?;
        self.encode(&mut encoder);
        gpu.submit(encoder).map(|_| ())
    }
}

impl Command {
    /// Returns the kernel; `None` for a clear or copy.
    #[must_use]
    pub fn kernel(&self) -> Option<&KernelId> {
        let Action::Dispatch { pipeline, .. } = &self.action else { return None };
        Some(&pipeline.id)
    }

    /// Returns the operator's pass that it serves; `None` for a clear or copy.
    #[must_use]
    pub fn operator(&self) -> Option<OpPass> {
        self.kernel().map(|kernel| kernel.operator)
    }

    /// Returns the arithmetic that limits it.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        self.kernel().map_or(Arithmetic::F32, KernelId::arithmetic)
    }

    /// Returns the kind of work.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.kernel().map_or(Purpose::Transfer, |kernel| kernel.purpose)
    }

    /// Returns the printed name: the kernel's, `clear` or `copy`.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.action {
            Action::Dispatch { pipeline, .. } => &pipeline.name,
            Action::Clear { .. } => "clear",
            Action::Copy { .. } => "copy",
        }
    }

    /// Returns whether it is a kernel, not a clear or copy.
    #[must_use]
    pub fn is_dispatch(&self) -> bool {
        matches!(self.action, Action::Dispatch { .. })
    }

    /// Returns the invocations and the bytes of workgroup memory of a workgroup; `None` for a clear or copy.
    #[must_use]
    pub fn workgroup(&self) -> Option<(u32, u32)> {
        let Action::Dispatch { pipeline, .. } = &self.action else { return None };
        let reflection = &pipeline.reflection;
        Some((reflection.workgroup_size.iter().product(), reflection.workgroup_bytes))
    }

    pub(super) fn encode_dispatch(&self, pass: &mut wgpu::ComputePass) {
        let Action::Dispatch { pipeline, bind_group, immediates } = &self.action else { return };
        // a program recorded on a dry device does not run, even if a device has built its kernels
        let (Some((raw, _)), Some(bind_group)) = (pipeline.built(), bind_group) else { return };
        pass.set_pipeline(raw);
        pass.set_bind_group(0, bind_group, &[]);
        if !immediates.is_empty() {
            pass.set_immediates(0, immediates);
        }
        pass.dispatch_workgroups(self.grid[0], self.grid[1], self.grid[2]);
    }

    pub(super) fn encode_transfer(&self, encoder: &mut wgpu::CommandEncoder) {
        match &self.action {
            Action::Dispatch { .. } => {}
            Action::Clear { buffer, offset, size } => {
                if let Some(raw) = &buffer.raw {
                    encoder.clear_buffer(raw, *offset, Some(*size));
                }
            }
            Action::Copy { source, from, target, to, size } => {
                if let (Some(source), Some(target)) = (&source.raw, &target.raw) {
                    encoder.copy_buffer_to_buffer(source, *from, target, *to, *size);
                }
            }
        }
    }
}
