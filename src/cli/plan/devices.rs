//! A plan of several devices: their links, the bytes that they exchange, and a step of all together.

use wgpt::error::Result;
use wgpt::measure::exchange::{BUSES, Bus, LinkSpeed, NETWORKS, Network, SharedStep, Traffic};
use wgpt::measure::plan::{Subject, mib};
use wgpt::measure::predict::three;
use wgpt::train::trainer::MAX_COPY_THREADS;
use wgpt::units;

use super::Args;
use super::nodes::Scaling;
use crate::cli::predicted::Predicted;
use crate::cli::terminal::say;

/// Most devices of a plan.
pub(super) const MOST_DEVICES: usize = 1024;

pub(super) fn parse_devices(text: &str) -> std::result::Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST_DEVICES).contains(count));
    count.ok_or_else(|| format!("expected a number from 1 to {MOST_DEVICES}"))
}

/// The links that are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Links {
    bus: Option<Bus>,
    pub(super) network: Option<Network>,
}

impl Links {
    pub(super) fn link(self) -> LinkSpeed {
        LinkSpeed { bus: self.bus.unwrap_or(BUSES[0]), network: self.network.unwrap_or(NETWORKS[2]) }
    }
}

pub(super) fn parse_link(text: &str) -> std::result::Result<Links, String> {
    let mut links = Links::default();
    for word in text.split(',') {
        let bus = BUSES.iter().find(|bus| bus.name.eq_ignore_ascii_case(word.trim()));
        let network = NETWORKS.iter().find(|network| network.name.eq_ignore_ascii_case(word.trim()));
        match (bus, network) {
            (Some(bus), _) if links.bus.is_none() => links.bus = Some(*bus),
            (_, Some(network)) if links.network.is_none() => links.network = Some(*network),
            _ => {
                let buses = BUSES.map(|bus| bus.name).join(", ");
                let networks = NETWORKS.map(|network| network.name).join(", ");
                return Err(format!("expected one of {buses}, one of {networks}, or both with a comma"));
            }
        }
    }
    Ok(links)
}

/// Prints the bytes that several devices exchange.
pub(super) fn say_exchange(args: &Args, link: &LinkSpeed, subject: &Subject) {
    let Subject { devices, ranks, .. } = *subject;
    let all = Traffic::of(&subject.options(1)).all();
    say!(
        "devices  {devices}{}, {} each; a step moves {} MiB out of a device and {} MiB in, gradients in {}, weights in f32",
        if subject.machines > 1 {
            format!(", {} on each of {} machines", devices / subject.machines, subject.machines)
        } else {
            String::new()
        },
        if ranks == devices { "one rank".into() } else { format!("{} ranks", ranks / devices) },
        mib(all.out),
        mib(all.into),
        args.wire.unwrap_or_default()
    );
    say!(
        "link     {}: {} GB/s out, {} in{}; {MAX_COPY_THREADS} cores of the host copy for each device",
        link.bus.name,
        link.bus.out_gb,
        link.bus.in_gb,
        match subject.machines {
            1 => String::new(),
            _ => format!(
                "; {}: {} GB/s between machines, {} MiB to each device",
                link.network.name,
                link.network.gb,
                mib(all.far)
            ),
        }
    );
}

/// Prints the predicted step of several devices. Returns the tokens/s of all together, where those of one device are
/// predicted, or `given` with a batch.
pub(super) fn together(
    args: &Args,
    link: &LinkSpeed,
    subject: &Subject,
    predicted: Option<&Predicted>,
    given: Option<(f64, usize)>,
) -> Result<Option<f64>> {
    if subject.devices == 1 {
        return Ok(None);
    }
    let of_speed = |(speed, batch): (f64, usize)| (batch, (batch * subject.context) as f64 / speed * 1e3);
    let best = predicted.and_then(|predicted| predicted.best(|batch| args.divides(subject, batch)));
    let Some((batch, micro)) = best.or(given.map(of_speed)) else {
        let ms = Traffic::of(&subject.options(1)).ms(link, MAX_COPY_THREADS, 0.0);
        say!("exchange at most about {} ms per step; predicted, not measured", three(ms));
        return Ok(None);
    };
    let tokens = args.tokens_per_step;
    if args.nodes.is_some() {
        let micro = |subject: &Subject| {
            let best = predicted.and_then(|predicted| predicted.best(|batch| args.divides(subject, batch)));
            best.or(given.map(of_speed)).filter(|(batch, _)| args.divides(subject, *batch))
        };
        Scaling { subject, ranks: args.emulate_ranks, micro: &micro, tokens, link: *link }.print();
    }
    let step = SharedStep::predict(subject, link, batch, micro, tokens)?;
    say!(
        "step     {} of batch {batch}: {} ms of kernels, {} ms more by the exchange: {} tokens/s, efficiency {:.0} %; \
         predicted, not measured",
        units::counted(step.tokens as u64, "token"),
        three(step.kernels_ms),
        three(step.exchange_ms),
        three(step.tokens_per_s()),
        100.0 * step.efficiency()
    );
    Ok(Some(step.tokens_per_s()))
}
