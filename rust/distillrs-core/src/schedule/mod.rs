//! Choosing the times of a sampler: shortest paths with a given number of edges.

mod shortest_path;

pub use shortest_path::{Arcs, ShortestPaths, shortest_paths, shortest_paths_of_two};
