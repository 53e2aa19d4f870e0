"""Selection of real data: coresets, clustering and nearest neighbours.

Distances are Euclidean and exact in float64, whatever the dtype of the points; ties go to the lowest index; results
depend neither on the number of threads nor on the processor; memory grows with the points, never with their square.
Picks come in order, and the first of them are what a smaller number would have given.
"""

from __future__ import annotations

from distillrs.select._herding import herding
from distillrs.select._k_center import k_center
from distillrs.select._k_means import Clusters, k_means
from distillrs.select._nearest import Neighbours, nearest
from distillrs.select._picks import Picks

__all__ = ["Clusters", "Neighbours", "Picks", "herding", "k_center", "k_means", "nearest"]
