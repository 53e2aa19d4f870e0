"""Selection of real data: coresets, clustering, nearest neighbours, and choice within a budget.

Distances are Euclidean and exact in float64, whatever the dtype of the points; ties go to the lowest index; results
depend neither on the number of threads nor on the processor; memory grows with the points, never with their square.
Picks come in order, and the first of them are what a smaller number would have given, but where a method says that it
looks at the number. Points are arrays, memory-mapped ones among them, or tensors; ``memory_budget`` counts what is
taken beside them, and the pages of a mapped file are the system's own.
"""

from __future__ import annotations

from distillrs.select._balanced_partition import balanced_partition
from distillrs.select._budget import budget
from distillrs.select._facility_location import facility_location
from distillrs.select._frequent_sets import FrequentSets, frequent_sets
from distillrs.select._frequent_trees import Trees, frequent_trees
from distillrs.select._herding import herding
from distillrs.select._k_center import k_center
from distillrs.select._k_means import Clusters, k_means
from distillrs.select._k_medoids import k_medoids
from distillrs.select._max_min import max_min
from distillrs.select._min_hash import MinHash, min_hash
from distillrs.select._nearest import Neighbours, nearest
from distillrs.select._picks import Picks
from distillrs.select._stratified import stratified

__all__ = [
    "Clusters",
    "FrequentSets",
    "MinHash",
    "Neighbours",
    "Picks",
    "Trees",
    "balanced_partition",
    "budget",
    "facility_location",
    "frequent_sets",
    "frequent_trees",
    "herding",
    "k_center",
    "k_means",
    "k_medoids",
    "max_min",
    "min_hash",
    "nearest",
    "stratified",
]
