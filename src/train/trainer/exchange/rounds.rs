//! The transfers of buckets, one after the other.

use std::ops::Range;
use std::sync::Arc;

use super::plan::{Route, Transfer};
use crate::error::Result;
use crate::gpu::{Arrival, Arrivals, Departures, Gpu, Parcel, ReadRing, Tensor, Timed};
use crate::train::collective::{Collective, Shared};

/// Largest number of copying threads per device; a few saturate a GPU's link.
pub const MAX_COPY_THREADS: usize = 4;

/// Runs transfers in order. While one is on the host, the device runs the commands before the next one and copies its
/// bytes out. `reads` and `timed` belong to the last transfer.
pub fn rounds(
    gpu: &Gpu,
    link: &mut dyn Collective,
    transfers: &[Transfer],
    (out, into): (&mut Departures, &mut Arrivals),
    reads: &mut [&mut ReadRing],
    mut timed: Option<Timed<'_>>,
) -> Result<()> {
    let send = |out: &mut Departures, number: usize| match transfers.get(number) {
        Some(Transfer { before, route, .. }) => {
            let before = (!before.commands.is_empty()).then_some(before);
            out.send(gpu, before, &route.out.iter().collect::<Vec<_>>())
        }
        None => Ok(()),
    };
    send(out, 0)?;
    for (number, Transfer { route, after, .. }) in transfers.iter().enumerate() {
        send(out, number + 1)?;
        let arrival = exchange(gpu, link, route, out, into)?;
        let tensors: Vec<&Tensor> = route.into.iter().collect();
        if number + 1 < transfers.len() {
            into.land(gpu, arrival, &tensors, Some(after), &mut [], None)?;
        } else {
            into.land(gpu, arrival, &tensors, Some(after), reads, timed.take())?;
        }
    }
    Ok(())
}

/// Exchanges the oldest pending parcel with the other devices; returns the received bytes.
fn exchange(
    gpu: &Gpu,
    link: &mut dyn Collective,
    route: &Route,
    out: &mut Departures,
    into: &mut Arrivals,
) -> Result<Arrival> {
    let parcel: Arc<Parcel> = Arc::new(out.take(gpu)?);
    let mut arrival = into.open(gpu)?;
    // the cores of the machine are divided among its devices
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (cores / link.part().each()).clamp(1, MAX_COPY_THREADS);
    gpu.span("wait for other devices", || {
        let coming: Vec<usize> = route.from.iter().map(Range::len).collect();
        link.exchange(route.scope, Arc::clone(&parcel) as Shared, &route.to, &coming, &mut |given| {
            let starts = route.from.iter().map(|range| range.start);
            let pieces: Vec<(usize, &[u8])> = starts.zip(given.iter().copied()).collect();
            gpu.span("copy from other devices", || arrival.put_all(&pieces, threads))
        })
    })?;
    if let Some(parcel) = Arc::into_inner(parcel) {
        out.give_back(parcel)?;
    }
    Ok(arrival)
}
