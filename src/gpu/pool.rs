//! Buffers that tensors share one after the other: a program says from its recording which tensors never live at once.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::error::Result;

use super::context::Gpu;
use super::program::Program;
use super::tensor::{Elem, Tensor};

/// Hands out tensors, in an order that is the same each time. First each gets a buffer of its own, on a device without
/// memory; once the program that uses them is recorded there, [`Pool::share`] gives the same tensors on a real device,
/// those that are not in use at the same time in one buffer.
///
/// Every command uses only tensors that live, so none ever finds two of its bindings in one buffer by chance.
#[derive(Debug)]
pub struct Pool<'g> {
    gpu: &'g Gpu,
    /// Handed out so far.
    tensors: Vec<Tensor>,
    /// Those of them that have a buffer of their own, which others only borrow.
    owners: Vec<usize>,
    /// The buffers, and for each tensor to come which of them; absent while each has its own.
    plan: Option<(Vec<Tensor>, Vec<usize>)>,
}

/// A buffer of a plan.
struct Slot {
    /// The tensor that it is as large as.
    like: usize,
    /// First and last commands of the tensors that lie in it, one after the other.
    lives: Vec<(usize, usize)>,
}

impl Slot {
    /// Commands between the use of what lay here before and `life`; none if something lies here then.
    fn idle_before(&self, (first, last): (usize, usize)) -> Option<usize> {
        let before = self.lives.iter().filter(|life| life.1 < first).map(|life| life.1 + 1).max().unwrap_or(0);
        self.lives.iter().all(|life| life.1 < first || last < life.0).then_some(first - before)
    }
}

impl<'g> Pool<'g> {
    /// A pool in which every tensor has a buffer of its own.
    #[must_use]
    pub fn separate(gpu: &'g Gpu) -> Self {
        Self { gpu, tensors: Vec::new(), owners: Vec::new(), plan: None }
    }

    /// A pool on `gpu` that hands out what this one did, in buffers shared by tensors of which `program` uses one only
    /// after it has done with the other. Buffers are made here.
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

    /// The device that tensors are made on.
    #[must_use]
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// The next tensor: zeros where it has a buffer of its own, else whatever lies there.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    ///
    /// # Panics
    /// If a shared pool is asked for other tensors than the one it was planned from: a bug of the caller.
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

    /// The same for a tensor that is to be found in tables of memory: its buffer is as large as itself, and others lie in
    /// it only while it is not in use.
    ///
    /// # Errors
    /// As [`Pool::tensor`].
    ///
    /// # Panics
    /// As [`Pool::tensor`].
    pub fn owner(&mut self, label: &str, rows: usize, columns: usize, elem: Elem) -> Result<Tensor> {
        self.owners.push(self.tensors.len());
        self.tensor(label, rows, columns, elem)
    }

    /// Buffers, and for each tensor which one: owners have theirs, then the largest tensors first, each goes where nothing lies while it lives,
    /// into the smallest such buffer, of equals the one that is idle for longest before, so that commands that are near
    /// to each other write to different ones and may run at once.
    fn plan(&self, program: &Program) -> (Vec<Slot>, Vec<usize>) {
        let mut lives: Vec<Option<(usize, usize)>> = vec![None; self.tensors.len()];
        let index: HashMap<u64, usize> = self.tensors.iter().enumerate().map(|(i, t)| (t.buffer.id, i)).collect();
        for (at, command) in program.commands.iter().enumerate() {
            for i in command.bindings.iter().filter_map(|binding| index.get(&binding.buffer)) {
                lives[*i] = Some((lives[*i].map_or(at, |(first, _)| first), at));
            }
        }
        // what the program does not use may be used by another: it keeps a buffer to itself
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

    /// Copies down a chain of tensors, each of which is done with after the next is written.
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
        assert_eq!(tensors[0].buffer_id(), tensors[3].buffer_id(), "a small one lies where a large one comes later");
        assert_eq!(
            tensors[1].buffer_id(),
            tensors[4].buffer_id(),
            "the fifth is written after the second is done with"
        );
        assert!(tensors.iter().zip(sizes).all(|(tensor, n)| tensor.rows() == n));
        // two small buffers take turns; of large ones there is one
        assert_eq!(real.allocated_bytes(), 4 * (64 + 64 + 256));
    }

    #[test]
    fn what_a_program_does_not_use_keeps_its_buffer() {
        let gpu = Gpu::dry(Caps::webgpu_defaults());
        let mut separate = Pool::separate(&gpu);
        let (_, program) = chain(&gpu, &mut separate, &[16, 16]);
        separate.tensor("other", 16, 1, Elem::F32).expect("made");
        let shared = separate.share(&program, &gpu).expect("planned");
        assert_eq!(shared.plan.expect("shared").0.len(), 3);
    }
}
