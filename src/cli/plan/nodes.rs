//! `wgpt plan --nodes`: predicted efficiency by the number of machines, their network and the wire.

use wgpt::measure::exchange::{LinkSpeed, NETWORKS, Network, SharedStep};
use wgpt::measure::plan::Subject;
use wgpt::measure::table::Table;
use wgpt::ops::wire::Format;
use wgpt::units::counted;

use crate::cli::terminal::{say, say_lines};

/// Returns the batch of a run's micro-steps and the milliseconds of one, if batches divide its steps.
pub type Micro<'m> = dyn Fn(&Subject) -> Option<(usize, f64)> + 'm;

/// A run whose efficiency is predicted for several numbers of machines.
pub struct Scaling<'s> {
    /// The run on all machines.
    pub subject: &'s Subject,
    /// Logical ranks, if they are not one per device.
    pub ranks: Option<usize>,
    /// The batch of a micro-step.
    pub micro: &'s Micro<'s>,
    /// Tokens per step; without them a step has one micro-step of each rank, so that more machines take larger steps.
    pub tokens: Option<f64>,
    /// How devices reach the host's memory.
    pub link: LinkSpeed,
}

/// The efficiency that a cluster should reach.
const AIM: f64 = 0.9;
/// The wires of the table.
const WIRES: [(&str, Option<Format>); 2] = [("f32", None), ("bf16", Some(Format::Bf16))];
/// The networks of the table. 200G is between two of them.
const SHOWN: [&str; 4] = ["10G", "25G", "100G", "400G"];

impl Scaling<'_> {
    /// Prints the table, and remedies where the efficiency is below the aim.
    pub fn print(&self) {
        let most = self.subject.machines;
        let mut numbers: Vec<usize> =
            std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < most).collect();
        numbers.push(most);
        let networks: Vec<&Network> = NETWORKS.iter().filter(|network| SHOWN.contains(&network.name)).collect();
        let columns = networks.iter().flat_map(|network| WIRES.map(|(wire, _)| format!("{} {wire}", network.name)));
        let heading: Vec<String> =
            ["nodes", "devices", "batch"].map(str::to_owned).into_iter().chain(columns).collect();
        let mut table = Table::new(&heading.iter().map(String::as_str).collect::<Vec<_>>());
        for &nodes in &numbers {
            let of = |network: &Network, wire| self.step(nodes, network, wire);
            let batch = of(networks[0], None).map_or_else(|| "-".into(), |(batch, _)| batch.to_string());
            let mut row = vec![nodes.to_string(), (nodes * self.each()).to_string(), batch];
            for network in &networks {
                row.extend(WIRES.map(|(_, wire)| {
                    of(network, wire)
                        .map_or_else(|| "-".into(), |(_, step)| format!("{:.0}", 100.0 * step.efficiency()))
                }));
            }
            table.row_of(row);
        }
        let steps = match self.tokens {
            Some(tokens) => {
                format!("steps of {}, in smaller batches on more devices", counted(tokens.round() as u64, "token"))
            }
            None => "one micro-step of each rank per step".to_owned(),
        };
        say_lines!("\nefficiency in %, {steps}, {}; predicted, not measured\n{table}", self.link.bus.name);
        self.say_of_one();
        networks.iter().for_each(|network| self.mend(&numbers, network));
    }

    fn each(&self) -> usize {
        self.subject.devices / self.subject.machines
    }

    /// Returns the step on so many machines, and its batch; `None` if no batch divides the tokens of a step.
    fn step(&self, nodes: usize, network: &Network, wire: Option<Format>) -> Option<(usize, SharedStep)> {
        let devices = nodes * self.each();
        let subject = Subject { devices, ranks: self.ranks.unwrap_or(devices), machines: nodes, wire, ..*self.subject };
        if !subject.ranks.is_multiple_of(devices) {
            return None;
        }
        let link = LinkSpeed { network: *network, ..self.link };
        let (batch, ms) = (self.micro)(&subject)?;
        SharedStep::predict(&subject, &link, batch, ms, self.tokens).ok().map(|step| (batch, step))
    }

    /// Prints from how many machines the efficiency is below the aim over a network, and remedies for all machines.
    fn mend(&self, numbers: &[usize], network: &Network) {
        let efficiency =
            |nodes: usize, network: &Network, wire| self.step(nodes, network, wire).map(|(_, step)| step.efficiency());
        let is_below = |nodes: &&usize| efficiency(**nodes, network, None).is_some_and(|found| found < AIM);
        // one machine has no network
        let several = numbers.iter().filter(|nodes| **nodes > 1);
        let reached = several.clone().rfind(|nodes| self.step(**nodes, network, None).is_some());
        let (Some(first), Some(&last)) = (several.clone().find(is_below), reached) else { return };
        let (aim, mut larger, mut mends) = (100.0 * AIM, Vec::new(), Vec::new());
        for (name, wire) in WIRES {
            let Some((batch, step)) = self.step(last, network, wire) else { continue };
            if wire.is_some() {
                mends.push(format!("--wire {name} gives {:.0} %", 100.0 * step.efficiency()));
            }
            if step.efficiency() < AIM {
                let tokens = (batch * self.subject.context * last * self.each()) as f64;
                let micro_ms = step.kernels_ms * tokens / step.tokens;
                larger.push(format!("{:.1} M tokens in {name}", step.tokens_for(AIM, tokens, micro_ms) / 1e6));
            }
        }
        if !larger.is_empty() {
            mends.push(format!("steps of {} reach {aim:.0} %", larger.join(" or ")));
        }
        let is_enough = |other: &&Network| efficiency(last, other, None).is_some_and(|found| found >= AIM);
        let faster = NETWORKS.iter().filter(|other| other.gb > network.gb).find(is_enough);
        mends.extend(faster.map(|other| format!("{} reaches it too", other.name)));
        say!("{}: below {aim:.0} % from {first} machines; on {last}, {}", network.name, mends.join(", "));
    }

    /// Prints that even one machine, which needs no network, is below the aim.
    fn say_of_one(&self) {
        let one = self.step(1, &NETWORKS[0], None).map(|(_, step)| step.efficiency());
        if let Some(one) = one.filter(|one| *one < AIM) {
            say!("1 machine: {:.0} % in f32, by {} to the host, not by the network", 100.0 * one, self.link.bus.name);
        }
    }
}
