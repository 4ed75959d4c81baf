//! The moments of all devices on the host: in a checkpoint there is one copy, whoever owns which.

use std::sync::Arc;

use super::{Exchange, present};
use crate::error::Result;
use crate::gpu::{Gpu, Tensor};
use crate::model::Weights;
use crate::model::flat::Piece;
use crate::train::collective::Shared;
use crate::train::optimizer::Moments;

impl Exchange {
    /// The first and second moments of all parameters, on the first device; none on others.
    pub fn gather_moments(&mut self, gpu: &Gpu) -> Result<Option<[Weights; 2]>> {
        let Moments::Owned(own) = self.rule.moments() else { return Ok(None) };
        let link = present(&mut self.link)?;
        let is_first = self.device == 0;
        let mut gathered = is_first.then(|| [(); 2].map(|()| Weights::zeros(self.config)));
        for (which, tensors) in own.iter().enumerate() {
            let tensors: Vec<&Tensor> = tensors.iter().collect();
            let mut bytes = Vec::new();
            gpu.read_all(&tensors, |_, part| bytes.extend_from_slice(part))?;
            let mut all = vec![Vec::new(); self.devices];
            let mut to = vec![0..0; self.devices];
            to[0] = 0..bytes.len();
            let sent: Arc<Vec<u8>> = Arc::new(bytes);
            let shared: Shared = Arc::clone(&sent) as Shared;
            link.exchange(shared, &to, &mut |given| {
                all = given.iter().map(|bytes| bytes.to_vec()).collect();
                Ok(())
            })?;
            let Some(weights) = gathered.as_mut().map(|gathered| &mut gathered[which]) else { continue };
            all[0] = Arc::unwrap_or_clone(sent);
            for (device, bytes) in all.iter().enumerate() {
                let mut rest = &bytes[..];
                for bucket in &self.buckets {
                    let owned = bucket.owned(device, self.devices);
                    let (own, after) = rest.split_at(4 * owned.len());
                    rest = after;
                    for Piece { name, layer, elements, at } in self.groups[bucket.group].pieces(&self.config, owned) {
                        let bytes = &own[4 * at..4 * (at + elements.len())];
                        let values = &mut weights.get_mut(name, layer)[elements];
                        bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
                    }
                }
            }
        }
        Ok(gathered)
    }

    /// Overwrites the owned moments.
    pub fn restore_moments(&self, gpu: &Gpu, moments: &[Weights; 2]) -> Result<()> {
        let Moments::Owned(own) = self.rule.moments() else { return Ok(()) };
        for (tensors, weights) in own.iter().zip(moments) {
            let mut tensors = tensors.iter();
            for bucket in &self.buckets {
                let owned = bucket.owned(self.device, self.devices);
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
