//! Selection among points: coresets, clustering and nearest neighbours.
//!
//! Distances are Euclidean and exact: candidates come from `f32` products of centred points, and whatever lies within
//! the rounding error of those products is decided again in `f64`, in the difference form, with one order of summation.
//! So results do not depend on threads or on the processor, a large offset of all points does not cancel, and ties go
//! to the lowest index. A matrix of all pairs is held only where a caller grants the bytes.

mod balanced;
mod budget;
mod compact;
mod exact;
mod facility;
mod farthest;
mod herding;
mod k_center;
mod k_means;
mod k_medoids;
mod kernel;
mod mapped;
mod max_min;
mod middle;
mod min_hash;
mod nearest;
mod partitioned;
mod peers;
mod points;
mod reach;
mod sparse;
mod trees;

pub use balanced::balanced_partition;
pub use budget::budget;
pub use facility::{Facility, facility_location, facility_location_sharded};
pub use herding::herding;
pub use k_center::{Centres, k_center, k_center_sharded};
pub use k_means::{Clusters, Settings, k_means};
pub use k_medoids::{Medoids, Swaps, k_medoids};
pub use max_min::{Apart, Distance, levenshtein, max_min};
pub use min_hash::{candidate_pairs, min_hash};
pub use nearest::{Neighbours, nearest};
pub use partitioned::facility_location_weighted;
pub use peers::{Alone, Peers, Shard};
pub use points::Points;
pub use sparse::facility_location_sparse;
pub use trees::{Graphs, Level, Trees, computation_trees};

/// Points in the order in which they were picked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Picks {
    /// Rows of the points.
    pub ids: Vec<i64>,
    /// What each pick was worth when it was made, by the selector's own measure.
    pub gains: Vec<f64>,
}
