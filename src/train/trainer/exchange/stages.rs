//! The stages in which devices exchange sums of gradients. In the first stage the devices of a machine exchange, after
//! which each holds a shard of the sums of all the machine's ranks. In the second stage each device exchanges with
//! those that hold the same shard on other machines. So a network carries each machine's sum once, instead of once per
//! device.

use std::ops::Range;

use crate::model::flat::{self, Bucket, Part};
use crate::train::collective::Scope;
use crate::train::ranks;
use crate::train::trainer::TrainerOptions;

/// One stage of the exchange of gradients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The devices that exchange.
    pub scope: Scope,
    /// The device's position in the run.
    pub part: Part,
    /// The nodes of the tree that the members hold, those of the first member first.
    pub nodes: Vec<Range<usize>>,
    /// Number of nodes that each member holds.
    held: Vec<usize>,
    /// Positions of the device's own nodes.
    pub own: Range<usize>,
    /// Additions after the exchange, by position: the second to the first.
    pub additions: Vec<[usize; 2]>,
    /// Positions of the sums after the additions.
    pub results: Vec<usize>,
}

impl Stage {
    /// Returns the elements of a bucket whose sums the device holds before the stage.
    #[must_use]
    pub fn held(&self, bucket: &Bucket) -> Range<usize> {
        match self.scope {
            Scope::Machine => bucket.elements.clone(),
            Scope::Machines => bucket.shard(self.part),
        }
    }

    /// Returns the elements of a bucket that a member sums in the stage.
    #[must_use]
    pub fn summed(&self, bucket: &Bucket, member: Part) -> Range<usize> {
        match self.scope {
            Scope::Machine => bucket.shard(member),
            Scope::Machines => bucket.owned(member),
        }
    }

    /// Returns the positions of a member's nodes.
    pub(super) fn nodes_of(&self, seat: usize) -> Range<usize> {
        let first = self.held[..seat].iter().sum();
        first..first + self.held[seat]
    }

    /// Returns the number of buffer sets for received sums. Two are needed if sums are sent again in the next stage,
    /// because they must stay while the next bucket arrives; one of the sums is in the device's own gradients.
    pub(super) fn buffer_sets(&self) -> usize {
        if self.results.len() > 1 { 2 } else { 1 }
    }

    /// Returns the largest numbers of elements of a bucket that are held before the stage, and that are summed in it.
    fn largest(&self, buckets: &[Bucket]) -> [usize; 2] {
        let most = |of: &dyn Fn(&Bucket) -> usize| buckets.iter().map(of).max().unwrap_or(0);
        [most(&|bucket| self.held(bucket).len()), most(&|bucket| self.summed(bucket, self.part).len())]
    }

    /// Returns the most elements of a received sum.
    pub(super) fn received(&self, buckets: &[Bucket]) -> usize {
        self.largest(buckets)[1]
    }

    /// Returns the most elements of a sum that is sent.
    pub(super) fn leaving(&self, buckets: &[Bucket]) -> usize {
        self.largest(buckets)[0]
    }

    /// Returns the number of 32-bit elements that are allocated for received sums and, if `packs`, for sums in 16 bits.
    fn elements(&self, buckets: &[Bucket], packs: bool) -> usize {
        let (own, others) = (self.own.len(), self.nodes.len() - self.own.len());
        let [leaving, received] = self.largest(buckets);
        let packed = if packs { (own * leaving + others * received) / 2 } else { 0 };
        self.buffer_sets() * others * received + packed
    }
}

/// Returns the stages of a device's exchange: none, one or two.
#[must_use]
pub fn stages(options: &TrainerOptions) -> Vec<Stage> {
    let (part, ranks) = (options.part, options.ranks.max(1));
    let each = ranks / part.machines;
    // the nodes that a machine's ranks make up
    let of_machine = |machine: usize| ranks::turns(machine * each..(machine + 1) * each, ranks).1;
    let mut stages = Vec::new();
    // position of the device's first sum among the sums that the next stage begins with
    let mut first = 0;
    for scope in Scope::ALL {
        let members = scope.members(part);
        if members.len() == 1 {
            continue;
        }
        let of = |member: &Part| match scope {
            Scope::Machine => options.nodes(member.device),
            Scope::Machines => of_machine(member.machine()),
        };
        let each: Vec<Vec<Range<usize>>> = members.iter().map(of).collect();
        let held: Vec<usize> = each.iter().map(Vec::len).collect();
        let nodes = each.concat();
        let seat = scope.seat(part);
        let start: usize = held[..seat].iter().sum();
        let own = start..start + held[seat];
        let targets = match scope {
            Scope::Machine => of_machine(part.machine()),
            Scope::Machines => std::iter::once(0..ranks).collect(),
        };
        let (additions, results) = ranks::additions(&nodes, &targets, own.start + first);
        first = results.iter().position(|result| *result == own.start + first).unwrap_or(0);
        stages.push(Stage { scope, part, nodes, held, own, additions, results });
    }
    stages
}

/// Returns the number of 32-bit elements that a device allocates for the exchange's sums.
pub(crate) fn allocated_elements(options: &TrainerOptions) -> usize {
    let buckets = flat::buckets(&options.config);
    stages(options).iter().map(|stage| stage.elements(&buckets, options.wire.is_some())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Config;
    use crate::train::Sizes;

    fn options(ranks: usize, part: Part) -> TrainerOptions {
        let sizes = Sizes { batch: 1, context: 16, accumulation: ranks };
        TrainerOptions { ranks, part, ..TrainerOptions::new(Config::new(16, 61, 2, 2, 64).expect("a model"), sizes) }
    }

    /// The stages of every device, run on text, leave the sum of the tree in the device's first sum.
    #[test]
    fn stages_make_the_sum_of_the_whole_tree() {
        fn text(node: &Range<usize>) -> String {
            if node.len() == 1 {
                return node.start.to_string();
            }
            let half = node.len().next_power_of_two() / 2;
            format!("({}+{})", text(&(node.start..node.start + half)), text(&(node.start + half..node.end)))
        }
        for (ranks, machines, each) in [
            (4, 1, 4),
            (4, 2, 2),
            (4, 4, 1),
            (6, 2, 3),
            (6, 3, 2),
            (6, 2, 1),
            (12, 2, 3),
            (24, 4, 3),
            (8, 1, 1),
            (10, 5, 2),
        ] {
            for device in 0..machines * each {
                let options = options(ranks, Part { device, devices: machines * each, machines });
                let mut own: Vec<Range<usize>> = options.nodes(device);
                let mut of_first: Vec<bool> = (0..own.len()).map(|at| at == 0).collect();
                for stage in stages(&options) {
                    assert_eq!(stage.nodes[stage.own.clone()], own, "{ranks} ranks on {machines} x {each}");
                    let mut sums = stage.nodes.clone();
                    let mut is_first = vec![false; sums.len()];
                    is_first[stage.own.clone()].copy_from_slice(&of_first);
                    for [to, from] in &stage.additions {
                        let [a, b] = [sums[*to].clone(), sums[*from].clone()];
                        let (left, right) = if a.start < b.start { (a, b) } else { (b, a) };
                        assert_eq!(left.end, right.start);
                        let node = left.start..right.end;
                        let half = node.start + node.len().next_power_of_two() / 2;
                        assert_eq!(half, right.start, "{} is no node", text(&node));
                        sums[*to] = node;
                    }
                    own = stage.results.iter().map(|result| sums[*result].clone()).collect();
                    of_first = stage.results.iter().map(|result| is_first[*result]).collect();
                }
                let [whole] = &own[..] else { panic!("{own:?}") };
                assert_eq!(*whole, 0..ranks);
                assert!(of_first.first().is_none_or(|first| *first), "the sum is elsewhere");
            }
        }
    }

    #[test]
    fn a_machine_sends_its_sum_once() {
        let stages = stages(&options(8, Part { device: 5, devices: 8, machines: 2 }));
        let [within, between] = &stages[..] else { panic!("{stages:?}") };
        assert_eq!((within.scope, within.nodes.len(), within.own.clone()), (Scope::Machine, 4, 1..2));
        assert_eq!(
            (between.scope, &between.nodes[..], between.own.clone()),
            (Scope::Machines, &[0..4, 4..8][..], 1..2)
        );
        assert_eq!(within.buffer_sets(), 1);
    }
}
