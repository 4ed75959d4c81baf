//! Lets tensors share buffers, one after another. The recording of a program shows which tensors never live at the same
//! time.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::error::Result;

use super::context::Gpu;
use super::program::Program;
use super::tensor::{Elem, Tensor};

/// Makes tensors, which must be requested in the same order each time. On a dry device each tensor first gets its own
/// buffer. Once the program that uses them is recorded there, [`Pool::share`] returns a pool that makes the same
/// tensors on a real device, where tensors that are not in use at the same time share buffers.
///
/// All tensors that a command uses live at that command, so no two of its bindings ever share a buffer.
#[derive(Debug)]
pub struct Pool<'g> {
    gpu: &'g Gpu,
    /// The tensors made so far.
    tensors: Vec<Tensor>,
    /// Indices of the tensors whose buffer is as large as themselves; see [`Pool::owner`].
    owners: Vec<usize>,
    /// The buffers and, for each tensor, the index of its buffer; absent while each tensor has its own.
    plan: Option<(Vec<Tensor>, Vec<usize>)>,
}

/// A buffer of a plan.
struct Slot {
    /// Index of the tensor whose size it has.
    like: usize,
    /// First and last commands of the tensors that share it.
    lives: Vec<(usize, usize)>,
}

impl Slot {
    /// Returns the number of commands between the previous tensor's last use and `life`; `None` if a tensor of this
    /// buffer lives during `life`.
    fn idle_before(&self, (first, last): (usize, usize)) -> Option<usize> {
        let before = self.lives.iter().filter(|life| life.1 < first).map(|life| life.1 + 1).max().unwrap_or(0);
        self.lives.iter().all(|life| life.1 < first || last < life.0).then_some(first - before)
    }
}

impl<'g> Pool<'g> {
    /// Makes a pool in which every tensor has its own buffer.
    #[must_use]
    pub fn separate(gpu: &'g Gpu) -> Self {
        Self { gpu, tensors: Vec::new(), owners: Vec::new(), plan: None }
    }

    /// Makes a pool on `gpu` for the same tensors as this one. Tensors share a buffer if `program` uses one only after
    /// its last use of the other. The buffers are allocated here.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn share<'to>(&self, program: &Program, gpu: &'to Gpu) -> Result<Pool<'to>> {
        let (slots, places) = self.plan(program);
        let buffers = slots
            .iter()
            .map(|slot| {
                let like = &self.tensors[slot.like];
                gpu.tensor(like.label(), like.rows(), like.columns(), like.elem())
            })
            .collect::<Result<_>>()?;
        Ok(Pool { plan: Some((buffers, places)), ..Pool::separate(gpu) })
    }

    /// Returns the device of the tensors.
    #[must_use]
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// Makes the next tensor. It is zero if it has its own buffer; in a shared buffer its contents are undefined.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    ///
    /// # Panics
    /// If a shared pool is asked for other tensors than the pool it was planned from: a bug of the caller.
    pub fn tensor(&mut self, label: &str, rows: usize, columns: usize, elem: Elem) -> Result<Tensor> {
        let tensor = match &self.plan {
            None => self.gpu.tensor(label, rows, columns, elem)?,
            Some((buffers, places)) => {
                let buffer = &buffers[places[self.tensors.len()]];
                let tensor = Tensor::new(buffer.buffer.clone(), 0, rows, columns, elem);
                assert!(tensor.bytes() <= buffer.bytes(), "{label}: {rows} x {columns} is not what was planned");
                tensor
            }
        };
        self.tensors.push(tensor.clone());
        Ok(tensor)
    }

    /// Does what [`Pool::tensor`] does, for a tensor that tables of memory list under its own label: its buffer is
    /// exactly as large as the tensor, and other tensors use the buffer only while this one is not in use.
    ///
    /// # Errors
    /// Those of [`Pool::tensor`].
    ///
    /// # Panics
    /// As [`Pool::tensor`] does.
    pub fn owner(&mut self, label: &str, rows: usize, columns: usize, elem: Elem) -> Result<Tensor> {
        self.owners.push(self.tensors.len());
        self.tensor(label, rows, columns, elem)
    }

    /// Returns the buffers and, for each tensor, the index of its buffer. Owners get their own buffers first. The
    /// others follow, largest first: each goes into the smallest buffer in which no tensor lives at the same time.
    /// Among buffers of equal size it takes the one that has been idle longest, so that neighbouring commands write to
    /// different buffers and may run at the same time.
    fn plan(&self, program: &Program) -> (Vec<Slot>, Vec<usize>) {
        let mut lives: Vec<Option<(usize, usize)>> = vec![None; self.tensors.len()];
        let index: HashMap<u64, usize> = self.tensors.iter().enumerate().map(|(i, t)| (t.buffer.id, i)).collect();
        for (at, command) in program.commands.iter().enumerate() {
            for i in command.bindings.iter().filter_map(|binding| index.get(&binding.buffer)) {
                lives[*i] = Some((lives[*i].map_or(at, |(first, _)| first), at));
            }
        }
        // another program may use a tensor that this one does not: it keeps its own buffer
        let lives: Vec<(usize, usize)> = lives.into_iter().map(|life| life.unwrap_or((0, usize::MAX))).collect();
        let bytes = |i: usize| self.tensors[i].bytes();
        let mut order: Vec<usize> = (0..lives.len()).collect();
        order.sort_by_key(|&i| (!self.owners.contains(&i), Reverse(bytes(i)), lives[i].0));
        let (mut slots, mut places): (Vec<Slot>, Vec<usize>) = (Vec::new(), vec![0; lives.len()]);
        for i in order {
            let large = slots.iter().enumerate().filter(|(_, slot)| bytes(slot.like) >= bytes(i));
            let idle = large.filter_map(|(at, slot)| Some((at, slot, slot.idle_before(lives[i])?)));
            let best = idle
                .filter(|_| !self.owners.contains(&i))
                .min_by_key(|(_, slot, idle)| (bytes(slot.like), Reverse(*idle)))
                .map(|(at, ..)| at);
            places[i] = best.unwrap_or_else(|| {
                slots.push(Slot { like: i, lives: Vec::new() });
                slots.len() - 1
            });
            slots[places[i]].lives.push(lives[i]);
        }
        (slots, places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Caps, Pass};

    /// Records copies down a chain of tensors, each of which is no longer used once the next is written.
    fn chain(gpu: &Gpu, pool: &mut Pool, sizes: &[usize]) -> (Vec<Tensor>, Program) {
        let tensors: Vec<Tensor> = sizes.iter().map(|&n| pool.tensor("link", n, 1, Elem::F32).expect("made")).collect();
        let mut pass = Pass::new(gpu);
        for pair in tensors.windows(2) {
            let n = pair[0].rows().min(pair[1].rows());
            pass.copy(&pair[0].slice(0..n), &pair[1].slice(0..n)).expect("copied");
        }
        (tensors, pass.finish())
    }

    #[test]
    fn tensors_that_live_at_once_never_share() {
        let gpu = Gpu::dry(Caps::webgpu_defaults());
        let sizes = [64, 64, 64, 256, 64, 32, 256, 64];
        let mut separate = Pool::separate(&gpu);
        let (_, program) = chain(&gpu, &mut separate, &sizes);
        let real = Gpu::dry(Caps::webgpu_defaults());
        let mut shared = separate.share(&program, &real).expect("planned");
        let (tensors, program) = chain(&real, &mut shared, &sizes);
        for command in &program.commands {
            assert_ne!(command.bindings[0].buffer, command.bindings[1].buffer);
        }
        assert_eq!(tensors[0].buffer_id(), tensors[3].buffer_id(), "a small tensor shares with a later large one");
        assert_eq!(
            tensors[1].buffer_id(),
            tensors[4].buffer_id(),
            "the fifth is written after the last use of the second"
        );
        assert!(tensors.iter().zip(sizes).all(|(tensor, n)| tensor.rows() == n));
        // two small buffers alternate, and there is one large buffer
        assert_eq!(real.allocated_bytes(), 4 * (64 + 64 + 256));
    }

    #[test]
    fn a_tensor_that_the_program_does_not_use_keeps_its_own_buffer() {
        let gpu = Gpu::dry(Caps::webgpu_defaults());
        let mut separate = Pool::separate(&gpu);
        let (_, program) = chain(&gpu, &mut separate, &[16, 16]);
        separate.tensor("other", 16, 1, Elem::F32).expect("made");
        let shared = separate.share(&program, &gpu).expect("planned");
        assert_eq!(shared.plan.expect("shared").0.len(), 3);
    }
}
