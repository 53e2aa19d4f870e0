"""Fewer examples: a synthetic set is moved until a signal measured on it agrees with the same on the real set."""

from __future__ import annotations

from distillrs.condense.balance import BalancedScale
from distillrs.condense.committee import Committee
from distillrs.condense.experts import ExpertProgress, ExpertTraining, Snapshots
from distillrs.condense.export import ImageExport, export_image_folder, to_hugging_face
from distillrs.condense.factors import Additive, Enlarged, Factors
from distillrs.condense.file import CondensedSet, load
from distillrs.condense.functional import FunctionalNetwork
from distillrs.condense.guard import Guard
from distillrs.condense.initial import Judgement, expert_features, judge, nearest_to_centres, rightly_classified
from distillrs.condense.inner import Target
from distillrs.condense.labels import HardLabels, Labels, SoftLabels
from distillrs.condense.matching import Perturbation, TrajectoryMatching
from distillrs.condense.modifiers import ClippedLoss, InputGradientPenalty, SharpnessAware
from distillrs.condense.perturbation import FilterPerturbation
from distillrs.condense.real import RealExamples
from distillrs.condense.recovery import Recovery
from distillrs.condense.signal_matching import SignalMatching
from distillrs.condense.signals import ClassMeans, Examples, GradientSignal, KernelMoments, Signal, penultimate
from distillrs.condense.statistics import BatchNormStatistics, normalising_by_batch
from distillrs.condense.synthetic import Synthetic, draw_per_class
from distillrs.condense.trees import FrequentTreeSets, TreeSets, load_tree_sets
from distillrs.condense.unroll import Unroll, Unrolled
from distillrs.condense.views import ViewLabels, ViewPlan, read_labels, write_labels
from distillrs.condense.windows import TrajectoryStore, Windows, inner_batches, intermediate_targets

__all__ = [
    "Additive",
    "BalancedScale",
    "BatchNormStatistics",
    "ClassMeans",
    "ClippedLoss",
    "Committee",
    "CondensedSet",
    "Enlarged",
    "Examples",
    "ExpertProgress",
    "ExpertTraining",
    "Factors",
    "FilterPerturbation",
    "FrequentTreeSets",
    "FunctionalNetwork",
    "GradientSignal",
    "Guard",
    "HardLabels",
    "ImageExport",
    "InputGradientPenalty",
    "Judgement",
    "KernelMoments",
    "Labels",
    "Perturbation",
    "RealExamples",
    "Recovery",
    "SharpnessAware",
    "Signal",
    "SignalMatching",
    "Snapshots",
    "SoftLabels",
    "Synthetic",
    "Target",
    "TrajectoryMatching",
    "TrajectoryStore",
    "TreeSets",
    "Unroll",
    "Unrolled",
    "ViewLabels",
    "ViewPlan",
    "Windows",
    "draw_per_class",
    "expert_features",
    "export_image_folder",
    "inner_batches",
    "intermediate_targets",
    "judge",
    "load",
    "load_tree_sets",
    "nearest_to_centres",
    "normalising_by_batch",
    "penultimate",
    "read_labels",
    "rightly_classified",
    "to_hugging_face",
    "write_labels",
]
