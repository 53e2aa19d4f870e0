"""Selection of real data: clustering and nearest neighbours.

Distances are Euclidean and exact in float64, whatever the dtype of the points; ties go to the lowest index; results
depend neither on the number of threads nor on the processor; memory grows with the points, never with their square.
"""

from __future__ import annotations

from distillrs.select._k_means import Clusters, k_means
from distillrs.select._nearest import Neighbours, nearest

__all__ = ["Clusters", "Neighbours", "k_means", "nearest"]
