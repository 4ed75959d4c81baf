//! The binary tree that sums gradients and losses over ranks.
//!
//! A node is a range of ranks. Its size is a power of two, and it starts at a multiple of its size; the last rank may
//! cut it off. Its sum is the sum of its left half plus the sum of its right half. A device that has computed a block
//! of ranks holds the sums of the largest nodes inside the block. The order of additions depends only on the number of
//! ranks, not on which device computes which rank.

use std::ops::Range;

/// One rank in a block of ranks that are computed one after the other, and the additions that follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The rank.
    pub rank: usize,
    /// Number of sums that are held before it, which is the position of its own sum.
    pub level: usize,
    /// Number of additions after its micro-steps, each of the last sum to the one before it.
    pub additions: usize,
}

/// Returns a [`Turn`] for each rank of `block`, out of `ranks` ranks, and the nodes whose sums are held at the end.
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

/// Returns the node whose halves are the last two sums, if there is one.
fn last_two(sums: &[Range<usize>], ranks: usize) -> Option<Range<usize>> {
    let [.., left, right] = sums else { return None };
    // only a right half may be cut off
    let half = left.len();
    let is_left = half.is_power_of_two() && left.start.is_multiple_of(2 * half);
    let end = (left.end + half).min(ranks);
    (is_left && right.start == left.end && right.end == end).then_some(left.start..end)
}

/// Returns the additions that make the sums of `targets` from the sums of `nodes`, which together contain each rank of
/// the targets once. An addition `[to, from]` adds the sum at position `from` to the sum at `to`. Also returns the
/// positions of the results. The target that contains the node at `into` has its result at `into`, which may be any
/// node of it because additions commute bit by bit.
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

/// Returns the largest number of sums that are held at once while a block of ranks is computed.
#[must_use]
pub fn levels(turns: &[Turn]) -> usize {
    turns.iter().map(|turn| turn.level + 1).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the sum over a node's ranks as text.
    fn text(node: &Range<usize>) -> String {
        if node.len() == 1 {
            return node.start.to_string();
        }
        let half = node.len().next_power_of_two() / 2;
        let [left, right] = [node.start..node.start + half, node.start + half..node.end];
        format!("({}+{})", text(&left), text(&right))
    }

    /// Returns the sums that the turns of a block leave, as text.
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
