//! Gathers the moments of all devices on the host, because a checkpoint contains one copy, and restores them.

use std::sync::Arc;

use super::{Exchange, present};
use crate::error::Result;
use crate::gpu::{Gpu, Tensor};
use crate::model::Weights;
use crate::model::flat::{Bucket, Part, Piece};
use crate::train::collective::{Collective, Scope};
use crate::train::optimizer::Moments;

impl Exchange {
    /// Returns the first and second moments of all parameters on the first device, and `None` on the others.
    pub fn gather_moments(&mut self, gpu: &Gpu) -> Result<Option<[Weights; 2]>> {
        let Moments::Owned(own) = self.rule.moments() else { return Ok(None) };
        let link = present(&mut self.link)?;
        let (config, part, buckets, groups) = (self.config, self.part, &self.buckets, &self.groups);
        let length = |member: &Part| -> usize {
            let bytes = |bucket: &Bucket| 4 * bucket.owned(*member).len();
            buckets.iter().map(bytes).sum()
        };
        let mut gathered = (part.device == 0).then(|| [(); 2].map(|()| Weights::zeros(config)));
        for (which, tensors) in own.iter().enumerate() {
            let tensors: Vec<&Tensor> = tensors.iter().collect();
            let mut bytes = Vec::new();
            gpu.read_all(&tensors, |_, part| bytes.extend_from_slice(part))?;
            // first to the first machine, then to its first device
            let column = gather(link, Scope::Machines, bytes, true, length)?;
            let column_length = |member: &Part| Scope::Machines.members(*member).iter().map(length).sum();
            let bytes = gather(link, Scope::Machine, column, part.machine() == 0, column_length)?;
            let Some(weights) = gathered.as_mut().map(|gathered| &mut gathered[which]) else { continue };
            let columns = Scope::Machine.members(part);
            let mut rest = &bytes[..];
            for member in columns.into_iter().flat_map(|member| Scope::Machines.members(member)) {
                for bucket in buckets {
                    let owned = bucket.owned(member);
                    let (own, after) = rest.split_at(4 * owned.len());
                    rest = after;
                    for Piece { name, layer, elements, at } in groups[bucket.group].pieces(&config, owned) {
                        let bytes = &own[4 * at..4 * (at + elements.len())];
                        let values = &mut weights.get_mut(name, layer)[elements];
                        bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
                    }
                }
            }
        }
        Ok(gathered)
    }

    /// Overwrites the moments that this device owns.
    pub fn restore_moments(&self, gpu: &Gpu, moments: &[Weights; 2]) -> Result<()> {
        let Moments::Owned(own) = self.rule.moments() else { return Ok(()) };
        for (tensors, weights) in own.iter().zip(moments) {
            let mut tensors = tensors.iter();
            for bucket in &self.buckets {
                let owned = bucket.owned(self.part);
                if owned.is_empty() {
                    continue;
                }
                let mut values = vec![0_f32; owned.len()];
                for Piece { name, layer, elements, at } in self.groups[bucket.group].pieces(&self.config, owned) {
                    values[at..at + elements.len()].copy_from_slice(&weights.get(name, layer)[elements]);
                }
                if let Some(tensor) = tensors.next() {
                    gpu.write(tensor, bytemuck::cast_slice(&values))?;
                }
            }
        }
        Ok(())
    }
}

/// Sends the bytes of all members of a scope to the first member if `is_wanted` there, and returns them there, in
/// order. Returns no bytes elsewhere. `length` returns the number of bytes of a member.
fn gather(
    link: &mut dyn Collective,
    scope: Scope,
    own: Vec<u8>,
    is_wanted: bool,
    length: impl Fn(&Part) -> usize,
) -> Result<Vec<u8>> {
    let part = link.part();
    let (members, seat) = (scope.members(part), scope.seat(part));
    let takes = is_wanted && seat == 0;
    let mut to = vec![0..0; members.len()];
    to[0] = 0..if is_wanted { own.len() } else { 0 };
    let others = members.iter().enumerate();
    let coming: Vec<usize> =
        others.map(|(other, member)| if takes && other != seat { length(member) } else { 0 }).collect();
    let mut all = if takes { own.clone() } else { Vec::new() };
    link.exchange(scope, Arc::new(own), &to, &coming, &mut |given| {
        given.iter().for_each(|bytes| all.extend_from_slice(bytes));
        Ok(())
    })?;
    Ok(all)
}
