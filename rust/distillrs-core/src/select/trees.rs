//! Computation trees of graphs: what a graph network of some depth sees from a node.
//!
//! The tree of depth 0 of a node is its label; that of depth l + 1 is its label with the trees of depth l of the nodes
//! that send to it, each under the edge's label (walks back are kept). Two trees are equal when root labels and the
//! multisets of children are: a tree is known by its root's label and the sorted pairs of edge label and child, and gets
//! a number for each distinct one. Numbers are compared in full, so different trees never share one (Gupta and others,
//! "Mirage: model-agnostic graph distillation for graph classification", 2024; the rounds are those of Weisfeiler and
//! Leman).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::{Error, Result, parallel};

/// Several graphs as one list of nodes and one of edges.
#[derive(Debug, Clone, Copy)]
pub struct Graphs<'a> {
    /// Label of every node.
    pub labels: &'a [i64],
    /// Graph of every node.
    pub graphs: &'a [i64],
    /// Node that each edge leaves.
    pub sources: &'a [i64],
    /// Node that each edge reaches.
    pub targets: &'a [i64],
    /// Label of every edge; all alike without.
    pub edge_labels: Option<&'a [i64]>,
}

/// The distinct trees of one depth.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Level {
    /// Label of each tree's root.
    pub labels: Vec<i64>,
    /// Where each tree's children begin, and where the last one's end.
    pub offsets: Vec<i64>,
    /// Children: numbers of trees one less deep.
    pub children: Vec<i64>,
    /// Labels of the edges to them.
    pub edge_labels: Vec<i64>,
}

/// All trees of some graphs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trees {
    /// Each node's tree at the full depth.
    pub nodes: Vec<i64>,
    /// The distinct trees, from depth 0 to the full one; numbered as their first nodes come.
    pub levels: Vec<Level>,
    /// The first node of each tree at the full depth.
    pub roots: Vec<i64>,
    /// Nodes that have it.
    pub counts: Vec<i64>,
    /// Graphs in which it occurs.
    pub supports: Vec<i64>,
}

/// Nodes that one task takes.
const TASK: usize = 4096;

/// Hashes keys by folded products, in a third of the standard one's time. Keys that collide are told apart by comparison.
struct Folded(u64);

impl Default for Folded {
    fn default() -> Self {
        Self(0x243f_6a88_85a3_08d3)
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_ne_bytes(*word)));
        rest.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Finds the computation trees of every node. `check` is asked before every level whether to go on.
///
/// # Errors
/// [`Error::Argument`] for lengths that differ, an edge to a node that is not there or between two graphs; whatever
/// `check` returns.
pub fn computation_trees(graphs: &Graphs<'_>, depth: usize, check: &dyn Fn() -> Result<()>) -> Result<Trees> {
    let nodes = graphs.labels.len();
    let edges = graphs.sources.len();
    if graphs.graphs.len() != nodes {
        return Err(Error::argument("graphs", format_args!("{} values", graphs.graphs.len()), format!("{nodes}")));
    }
    if graphs.targets.len() != edges || graphs.edge_labels.is_some_and(|labels| labels.len() != edges) {
        return Err(Error::argument("edges", "lists of several lengths", "lists of one length"));
    }
    for &node in graphs.sources.iter().chain(graphs.targets) {
        if usize::try_from(node).map_or(true, |node| node >= nodes) {
            return Err(Error::argument("edges", node, format!("nodes from 0 to {nodes} - 1")));
        }
    }
    let graph_of = |node: i64| graphs.graphs[node as usize];
    let mut ends = graphs.sources.iter().zip(graphs.targets);
    if let Some(edge) = ends.position(|(&source, &target)| graph_of(source) != graph_of(target)) {
        return Err(Error::argument("edges", format_args!("'edge {edge} between two graphs'"), "edges within a graph"));
    }
    let mut starts = vec![0usize; nodes + 1];
    graphs.targets.iter().for_each(|&target| starts[target as usize + 1] += 1);
    (0..nodes).for_each(|node| starts[node + 1] += starts[node]);
    let mut next = starts.clone();
    let mut senders = vec![(0i64, 0usize); edges];
    for edge in 0..edges {
        let place = &mut next[graphs.targets[edge] as usize];
        senders[*place] = (graphs.edge_labels.map_or(0, |labels| labels[edge]), graphs.sources[edge] as usize);
        *place += 1;
    }
    let mut trees = vec![0i64; nodes];
    let mut levels = Vec::with_capacity(depth + 1);
    for level in 0..=depth {
        check()?;
        let ranges: Vec<_> = (0..nodes).step_by(TASK).map(|first| first..nodes.min(first + TASK)).collect();
        let keys = parallel::map(ranges, |range| {
            let edges = if level > 0 { starts[range.end] - starts[range.start] } else { 0 };
            let (mut values, mut ends) = (Vec::with_capacity(range.len() + 2 * edges), Vec::with_capacity(range.len()));
            let mut children = Vec::new();
            for node in range {
                values.push(graphs.labels[node]);
                if level > 0 {
                    children.clear();
                    children
                        .extend(senders[starts[node]..starts[node + 1]].iter().map(|&(label, id)| (label, trees[id])));
                    children.sort_unstable();
                    values.extend(children.iter().flat_map(|&(label, tree)| [label, tree]));
                }
                ends.push(values.len());
            }
            (values, ends)
        });
        let mut known: HashMap<&[i64], i64, BuildHasherDefault<Folded>> = HashMap::default();
        let mut found = Level { offsets: vec![0], ..Level::default() };
        let mut node = 0;
        for (values, ends) in &keys {
            let mut first = 0;
            for &end in ends {
                let key = &values[first..end];
                let number = known.len() as i64;
                trees[node] = *known.entry(key).or_insert_with(|| {
                    found.labels.push(key[0]);
                    for pair in key[1..].chunks_exact(2) {
                        found.edge_labels.push(pair[0]);
                        found.children.push(pair[1]);
                    }
                    found.offsets.push(found.children.len() as i64);
                    number
                });
                node += 1;
                first = end;
            }
        }
        levels.push(found);
    }
    let distinct = levels.last().map_or(0, |level: &Level| level.labels.len());
    let (mut roots, mut counts, mut supports) = (vec![-1; distinct], vec![0; distinct], vec![0; distinct]);
    for (node, &tree) in trees.iter().enumerate() {
        if counts[tree as usize] == 0 {
            roots[tree as usize] = node as i64;
        }
        counts[tree as usize] += 1;
    }
    // The nodes of a graph one after the other, as they mostly are: a stable sort is one pass then.
    let mut order: Vec<usize> = (0..nodes).collect();
    order.sort_by_key(|&node| graphs.graphs[node]);
    let mut last = vec![0; distinct];
    for node in order {
        let (tree, graph) = (trees[node] as usize, graphs.graphs[node]);
        if supports[tree] == 0 || last[tree] != graph {
            supports[tree] += 1;
            last[tree] = graph;
        }
    }
    Ok(Trees { nodes: trees, levels, roots, counts, supports })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_a_path_are_told_apart_by_what_they_see() {
        // 0 - 1 - 2 - 3, all labels alike: ends and middles differ at depth 1, nothing else does.
        let (sources, targets) = ([0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]);
        let graphs =
            Graphs { labels: &[7; 4], graphs: &[0; 4], sources: &sources, targets: &targets, edge_labels: None };
        let found = computation_trees(&graphs, 1, &|| Ok(())).unwrap();
        assert_eq!(found.nodes, [0, 1, 1, 0]);
        assert_eq!((found.counts, found.supports, found.roots), (vec![2, 2], vec![1, 1], vec![0, 1]));
        assert_eq!(found.levels[1].children, [0, 0, 0]);
        assert_eq!(computation_trees(&graphs, 0, &|| Ok(())).unwrap().nodes, [0; 4]);
        assert!(computation_trees(&graphs, 1, &|| Err(Error::Interrupted)).is_err());
        let wrong = Graphs { targets: &[1, 0, 2, 1, 3, 4], ..graphs };
        assert!(computation_trees(&wrong, 1, &|| Ok(())).unwrap_err().to_string().starts_with("edges: got 4"));
        let apart = Graphs { graphs: &[0, 0, 0, 1], ..graphs };
        let message = computation_trees(&apart, 1, &|| Ok(())).unwrap_err().to_string();
        assert!(message.starts_with("edges: got 'edge 4 between two graphs"), "{message}");
    }

    #[test]
    fn supports_count_graphs_whose_nodes_are_mixed() {
        let graphs = Graphs {
            labels: &[1, 1, 2, 1, 1],
            graphs: &[3, -1, 3, 3, -1],
            sources: &[],
            targets: &[],
            edge_labels: None,
        };
        let found = computation_trees(&graphs, 0, &|| Ok(())).unwrap();
        assert_eq!((found.counts, found.supports), (vec![4, 1], vec![2, 1]));
    }
}
