//! Cheapest walks from the first node to the last along arcs that lead forward, for every number of arcs at once.
//!
//! Bellman's recursion: `D_k[j] = min_{i < j} D_{k-1}[i] + c[i][j]`, in `O(K n^2)` for all counts up to `K`.

use crate::{Error, Result};

/// Costs of arcs between `nodes` nodes in a row, `[from, to]`; only those with `to > from` are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Arcs<'a> {
    costs: &'a [f64],
    nodes: usize,
}

impl<'a> Arcs<'a> {
    /// Checks shape and values; an infinite cost forbids an arc.
    ///
    /// # Errors
    /// [`Error::Argument`] for fewer than two or more than 2^16 nodes, a shape that is not square, and for costs forward
    /// that are not a number or minus infinity.
    pub fn new(name: &str, costs: &'a [f64], nodes: usize) -> Result<Self> {
        if !(2..=1 << 16).contains(&nodes) || nodes * nodes != costs.len() {
            let got = format!("{} costs of {nodes} nodes", costs.len());
            return Err(Error::argument(name, got, "a square of 2 to 2**16 nodes"));
        }
        let arcs = Self { costs, nodes };
        for from in 0..nodes {
            if let Some(at) = arcs.forward(from).iter().position(|cost| cost.is_nan() || *cost == f64::NEG_INFINITY) {
                let got = format!("{} from node {from} to node {}", arcs.forward(from)[at], from + 1 + at);
                return Err(Error::argument(name, got, "costs that are numbers or infinite"));
            }
        }
        Ok(arcs)
    }

    /// Costs from a node to the ones after it.
    fn forward(&self, from: usize) -> &'a [f64] {
        &self.costs[from * self.nodes + from + 1..(from + 1) * self.nodes]
    }
}

/// Cheapest walks from the first node to the last.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortestPaths {
    /// Cost of the cheapest walk of `k + 1` arcs; infinite if there is none.
    pub costs: Vec<f64>,
    /// Its nodes, `k + 2` of them; empty if there is none. Of equally cheap walks the one with the lowest nodes from
    /// the end backwards.
    pub nodes: Vec<Vec<usize>>,
}

/// The cheapest walks of exactly 1, 2, ..., `most` arcs.
///
/// # Errors
/// [`Error::Argument`] for no arcs or more than there are nodes to visit; whatever `check` returns.
pub fn shortest_paths(arcs: &Arcs<'_>, most: usize, check: &dyn Fn() -> Result<()>) -> Result<ShortestPaths> {
    let nodes = arcs.nodes;
    check_count("steps", most, nodes)?;
    let mut reached = vec![f64::INFINITY; nodes];
    reached[0] = 0.0;
    let mut before: Vec<Vec<u32>> = Vec::with_capacity(most);
    let mut found = ShortestPaths { costs: Vec::with_capacity(most), nodes: Vec::with_capacity(most) };
    for count in 1..=most {
        check()?;
        let mut next = vec![f64::INFINITY; nodes];
        let mut from = vec![u32::MAX; nodes];
        for (node, &cost) in reached.iter().enumerate().take(nodes - 1) {
            if cost < f64::INFINITY {
                relax(cost, arcs.forward(node), node as u32, &mut next[node + 1..], &mut from[node + 1..]);
            }
        }
        before.push(from);
        found.costs.push(next[nodes - 1]);
        found.nodes.push(if next[nodes - 1] < f64::INFINITY { walk(&before, count, nodes) } else { Vec::new() });
        reached = next;
    }
    Ok(found)
}

fn check_count(name: &str, count: usize, nodes: usize) -> Result<()> {
    if count == 0 || count >= nodes {
        return Err(Error::argument(name, count, format!("an integer from 1 to {}", nodes - 1)));
    }
    Ok(())
}

/// Selections instead of branches, so that the compiler makes vectors of it.
fn relax(cost: f64, arcs: &[f64], node: u32, next: &mut [f64], from: &mut [u32]) {
    for ((arc, next), from) in arcs.iter().zip(next).zip(from) {
        let total = cost + arc;
        let better = total < *next;
        *next = if better { total } else { *next };
        *from = if better { node } else { *from };
    }
}

fn walk(before: &[Vec<u32>], count: usize, nodes: usize) -> Vec<usize> {
    let mut at = nodes - 1;
    let mut found = vec![at];
    for from in before[..count].iter().rev() {
        at = from[at] as usize;
        found.push(at);
    }
    found.reverse();
    found
}

/// The cheapest walk of exactly `count` arcs of which exactly `second` are of the second kind; the kind of each arc.
///
/// `O(count second n^2)`. The cost is infinite and the walk empty if there is none.
///
/// # Errors
/// [`Error::Argument`] for arcs of different nodes, counts out of range; whatever `check` returns.
pub fn shortest_paths_of_two(
    first_arcs: &Arcs<'_>,
    second_arcs: &Arcs<'_>,
    count: usize,
    second: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<(f64, Vec<usize>, Vec<bool>)> {
    let nodes = first_arcs.nodes;
    if second_arcs.nodes != nodes {
        let allowed = format!("as many as of the first kind, {nodes}");
        return Err(Error::argument("second", format_args!("{} nodes", second_arcs.nodes), allowed));
    }
    check_count("steps", count, nodes)?;
    if second > count {
        return Err(Error::argument("second_steps", second, format!("at most steps, {count}")));
    }
    // One layer for each number of arcs of the second kind so far. A predecessor is its node, doubled, plus the kind.
    let mut reached = vec![vec![f64::INFINITY; nodes]; second + 1];
    reached[0][0] = 0.0;
    let mut before = Vec::with_capacity(count);
    for _ in 0..count {
        check()?;
        let mut next = vec![vec![f64::INFINITY; nodes]; second + 1];
        let mut from = vec![vec![u32::MAX; nodes]; second + 1];
        for layer in 0..=second {
            for node in 0..nodes - 1 {
                let tag = 2 * node as u32;
                let cost = reached[layer][node];
                if cost < f64::INFINITY {
                    let arcs = first_arcs.forward(node);
                    relax(cost, arcs, tag, &mut next[layer][node + 1..], &mut from[layer][node + 1..]);
                }
                if layer > 0 && reached[layer - 1][node] < f64::INFINITY {
                    let (cost, arcs) = (reached[layer - 1][node], second_arcs.forward(node));
                    relax(cost, arcs, tag + 1, &mut next[layer][node + 1..], &mut from[layer][node + 1..]);
                }
            }
        }
        before.push(from);
        reached = next;
    }
    let cost = reached[second][nodes - 1];
    if cost == f64::INFINITY {
        return Ok((cost, Vec::new(), Vec::new()));
    }
    let (mut at, mut layer) = (nodes - 1, second);
    let (mut walked, mut kinds) = (vec![at], Vec::with_capacity(count));
    for from in before.iter().rev() {
        let tag = from[layer][at];
        let is_second = tag % 2 == 1;
        kinds.push(is_second);
        layer -= usize::from(is_second);
        at = (tag / 2) as usize;
        walked.push(at);
    }
    walked.reverse();
    kinds.reverse();
    Ok((cost, walked, kinds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Kind, Stream, Units, integers};

    fn costs(seed: u64, nodes: usize, high: u64) -> Vec<f64> {
        let mut values = vec![0i64; nodes * nodes];
        let length = values.len();
        integers(
            Stream::new(seed, "costs", 0, Kind::Integers),
            Units::Range { first: 0, count: 1 },
            length,
            high,
            &mut values,
        )
        .unwrap();
        // Some arcs are forbidden.
        values.iter().map(|&value| if value == 0 { f64::INFINITY } else { value as f64 }).collect()
    }

    /// Every walk, by recursion: cost, nodes, kinds.
    fn all(kinds: &[&[f64]], nodes: usize, left: usize, at: usize) -> Vec<(f64, Vec<usize>, Vec<usize>)> {
        if left == 0 {
            return if at == nodes - 1 { vec![(0.0, vec![at], vec![])] } else { vec![] };
        }
        let mut found = vec![];
        for to in at + 1..nodes {
            for (kind, costs) in kinds.iter().enumerate() {
                for (cost, mut rest, mut taken) in all(kinds, nodes, left - 1, to) {
                    rest.insert(0, at);
                    taken.insert(0, kind);
                    found.push((cost + costs[at * nodes + to], rest, taken));
                }
            }
        }
        found
    }

    #[test]
    fn walks_are_those_of_brute_force_for_every_count() {
        for seed in 0..40 {
            for nodes in [2, 3, 6, 8] {
                let values = costs(seed, nodes, 12);
                let arcs = Arcs::new("costs", &values, nodes).unwrap();
                let found = shortest_paths(&arcs, nodes - 1, &|| Ok(())).unwrap();
                for count in 1..nodes {
                    let walks = all(&[&values], nodes, count, 0);
                    let least = walks.iter().map(|walk| walk.0).fold(f64::INFINITY, f64::min);
                    assert_eq!(found.costs[count - 1], least);
                    let nodes = &found.nodes[count - 1];
                    if least == f64::INFINITY {
                        assert!(nodes.is_empty());
                    } else {
                        assert!(walks.iter().any(|walk| walk.0 == least && walk.1 == *nodes));
                    }
                }
            }
        }
    }

    #[test]
    fn walks_of_two_kinds_are_those_of_brute_force_for_every_budget() {
        for seed in 0..20 {
            let nodes = 6;
            let (first, second) = (costs(seed, nodes, 9), costs(100 + seed, nodes, 9));
            let arcs = [Arcs::new("a", &first, nodes).unwrap(), Arcs::new("b", &second, nodes).unwrap()];
            for count in 1..nodes {
                for budget in 0..=count {
                    let found = shortest_paths_of_two(&arcs[0], &arcs[1], count, budget, &|| Ok(())).unwrap();
                    let walks = all(&[&first, &second], nodes, count, 0);
                    let walks: Vec<_> =
                        walks.into_iter().filter(|walk| walk.2.iter().sum::<usize>() == budget).collect();
                    let least = walks.iter().map(|walk| walk.0).fold(f64::INFINITY, f64::min);
                    assert_eq!(found.0, least);
                    if least < f64::INFINITY {
                        let kinds: Vec<usize> = found.2.iter().map(|&kind| usize::from(kind)).collect();
                        assert!(walks.iter().any(|walk| walk.0 == least && walk.1 == found.1 && walk.2 == kinds));
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_arguments_are_refused_by_name() {
        let values = vec![1.0; 9];
        assert!(Arcs::new("costs", &values, 2).unwrap_err().to_string().starts_with("costs"));
        assert!(Arcs::new("costs", &values[..1], 1).is_err());
        let arcs = Arcs::new("costs", &values, 3).unwrap();
        for most in [0, 3] {
            assert!(shortest_paths(&arcs, most, &|| Ok(())).unwrap_err().to_string().starts_with("steps"));
        }
        assert!(shortest_paths_of_two(&arcs, &arcs, 1, 2, &|| Ok(())).is_err());
        assert!(shortest_paths(&arcs, 2, &|| Err(Error::Interrupted)).is_err());
        let mut wrong = values.clone();
        wrong[1] = f64::NAN;
        assert!(Arcs::new("costs", &wrong, 3).unwrap_err().to_string().contains("from node 0 to node 1"));
        wrong[1] = 1.0;
        wrong[3] = f64::NAN;
        // Backwards: never looked at.
        assert!(Arcs::new("costs", &wrong, 3).is_ok());
    }
}
