//! The tree by which gradients and losses are summed over ranks.
//!
//! A node holds the ranks from a multiple of its size on, a power of two of them, cut off at the last rank; its sum is that of
//! its left half plus that of its right half. Who has computed a block of ranks sums the largest nodes that lie in it.
//! The order of additions depends on the number of ranks alone, not on who computes which.

use std::ops::Range;

/// What follows a rank's micro-steps in a block of ranks that are computed one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The rank.
    pub rank: usize,
    /// Sums that lie before its own: its gradient goes behind them.
    pub level: usize,
    /// How often afterwards the last sum is added to the one before.
    pub additions: usize,
}

/// The ranks of `block`, of `ranks` in all, each with what follows it, and the nodes whose sums are left in the end.
#[must_use]
pub fn turns(block: Range<usize>, ranks: usize) -> (Vec<Turn>, Vec<Range<usize>>) {
    let mut sums: Vec<Range<usize>> = Vec::new();
    let turns = block.map(|rank| {
        let level = sums.len();
        sums.push(rank..rank + 1);
        let mut additions = 0;
        while let Some(node) = last_two(&sums, ranks) {
            sums.truncate(sums.len() - 2);
            sums.push(node);
            additions += 1;
        }
        Turn { rank, level, additions }
    });
    (turns.collect(), sums)
}

/// The node that the last two sums make, if they are its halves.
fn last_two(sums: &[Range<usize>], ranks: usize) -> Option<Range<usize>> {
    let [.., left, right] = sums else { return None };
    // only a right half may be cut off
    let half = left.len();
    let is_left = half.is_power_of_two() && left.start.is_multiple_of(2 * half);
    let end = (left.end + half).min(ranks);
    (is_left && right.start == left.end && right.end == end).then_some(left.start..end)
}

/// Returns the additions that make the sums of `targets` out of the sums of `nodes`, which together hold each of their ranks once:
/// each adds the second to the first, by position. Also returns the positions of the results; of the target that holds the
/// node at `into` it is `into`. Additions commute bit by bit, so that it may be any of them.
#[must_use]
pub fn additions(nodes: &[Range<usize>], targets: &[Range<usize>], into: usize) -> (Vec<[usize; 2]>, Vec<usize>) {
    fn sum(node: Range<usize>, nodes: &[Range<usize>], into: usize, list: &mut Vec<[usize; 2]>) -> usize {
        if let Some(position) = nodes.iter().position(|other| *other == node) {
            return position;
        }
        let half = node.start + node.len().next_power_of_two() / 2;
        let left = sum(node.start..half, nodes, into, list);
        let right = sum(half..node.end, nodes, into, list);
        let [to, from] = if right == into { [right, left] } else { [left, right] };
        list.push([to, from]);
        to
    }
    let mut list = Vec::new();
    let results = targets.iter().map(|target| sum(target.clone(), nodes, into, &mut list)).collect();
    (list, results)
}

/// Sums that are there at once while a block of ranks is computed.
#[must_use]
pub fn levels(turns: &[Turn]) -> usize {
    turns.iter().map(|turn| turn.level + 1).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over ranks as text.
    fn text(node: &Range<usize>) -> String {
        if node.len() == 1 {
            return node.start.to_string();
        }
        let half = node.len().next_power_of_two() / 2;
        let [left, right] = [node.start..node.start + half, node.start + half..node.end];
        format!("({}+{})", text(&left), text(&right))
    }

    /// What the turns of a block leave, as text.
    fn summed(block: Range<usize>, ranks: usize) -> Vec<String> {
        let mut sums: Vec<String> = Vec::new();
        for turn in turns(block, ranks).0 {
            assert_eq!(turn.level, sums.len());
            sums.push(turn.rank.to_string());
            for _ in 0..turn.additions {
                let (right, left) = (sums.pop().unwrap(), sums.pop().unwrap());
                sums.push(format!("({left}+{right})"));
            }
        }
        sums
    }

    #[test]
    fn one_device_sums_the_whole_tree() {
        for (ranks, want) in [
            (1, "0"),
            (2, "(0+1)"),
            (3, "((0+1)+2)"),
            (6, "(((0+1)+(2+3))+(4+5))"),
            (7, "(((0+1)+(2+3))+((4+5)+6))"),
            (8, "(((0+1)+(2+3))+((4+5)+(6+7)))"),
        ] {
            assert_eq!(summed(0..ranks, ranks), [want]);
            assert_eq!(text(&(0..ranks)), want);
        }
    }

    #[test]
    fn a_block_sums_its_largest_nodes() {
        for ranks in 1..40 {
            for devices in 1..=ranks {
                let at = |device: usize| device * ranks / devices;
                let mut all = 0..0;
                for device in 0..devices {
                    let (turns, nodes) = turns(at(device)..at(device + 1), ranks);
                    assert_eq!(summed(at(device)..at(device + 1), ranks), nodes.iter().map(text).collect::<Vec<_>>());
                    assert!(nodes.iter().all(|node| node.start == all.end && {
                        all = 0..node.end;
                        true
                    }));
                    assert!(levels(&turns) <= ranks.ilog2() as usize + 2);
                }
                assert_eq!(all, 0..ranks);
            }
        }
        assert_eq!(turns(0..3, 6).1, [0..2, 2..3]);
        assert_eq!(turns(3..6, 6).1, [3..4, 4..6]);
        assert_eq!(turns(4..7, 7).1, vec![4..7]);
    }

    #[test]
    fn sums_of_blocks_add_up_to_the_whole_tree_wherever_it_lies() {
        fn tree(of: &[f32]) -> f32 {
            if of.len() == 1 {
                return of[0];
            }
            let (left, right) = of.split_at(of.len().next_power_of_two() / 2);
            tree(left) + tree(right)
        }
        for (ranks, devices) in [(1, 1), (2, 2), (4, 2), (6, 2), (6, 3), (8, 4), (8, 8), (12, 3), (15, 5)] {
            let values: Vec<f32> = (0..ranks).map(|rank| 0.1 + (rank as f32).sin().powi(3)).collect();
            let per_device = ranks / devices;
            let nodes: Vec<Range<usize>> =
                (0..devices).flat_map(|d| turns(d * per_device..(d + 1) * per_device, ranks).1).collect();
            for into in 0..nodes.len() {
                let mut sums: Vec<f32> = nodes.iter().map(|node| tree(&values[node.clone()])).collect();
                for [to, from] in additions(&nodes, std::slice::from_ref(&(0..ranks)), into).0 {
                    sums[to] += sums[from];
                }
                assert_eq!(sums[into].to_bits(), tree(&values).to_bits(), "{ranks} ranks on {devices} into {into}");
            }
        }
    }

    #[test]
    fn a_device_holds_few_sums() {
        for (ranks, most) in [(1, 1), (2, 2), (4, 3), (8, 4), (6, 3), (16, 5)] {
            assert_eq!(levels(&turns(0..ranks, ranks).0), most, "{ranks} ranks");
        }
    }
}
