//! Selection among points: clustering and nearest neighbours.
//!
//! Distances are Euclidean and exact: candidates come from `f32` products of centred points, and whatever lies within
//! the rounding error of those products is decided again in `f64`, in the difference form, with one order of summation.
//! So results do not depend on threads or on the processor, a large offset of all points does not cancel, and ties go
//! to the lowest index. The full matrix of distances is never held.

mod k_means;
mod kernel;
mod nearest;
mod points;

pub use k_means::{Clusters, Settings, k_means};
pub use nearest::{Neighbours, nearest};
pub use points::Points;
