"""Fewer examples: a synthetic set is moved until a signal measured on it agrees with the same on the real set."""

from __future__ import annotations

from distillrs.condense.balance import BalancedScale
from distillrs.condense.committee import Committee
from distillrs.condense.experts import ExpertProgress, ExpertTraining, Snapshots
from distillrs.condense.export import ImageExport, export_image_folder, to_hugging_face
from distillrs.condense.factors import Additive, BlockAdditive, Enlarged, Factors
from distillrs.condense.file import CondensedSet, load
from distillrs.condense.functional import FunctionalNetwork
from distillrs.condense.gradient_distillation import DomainBatch, GradientAmplifier, GradientDistillation, mixed_target
from distillrs.condense.gradient_statistics import Subspace
from distillrs.condense.guard import Guard
from distillrs.condense.initial import Judgement, expert_features, judge, nearest_to_centres, rightly_classified
from distillrs.condense.inner import Target
from distillrs.condense.labels import HardLabels, Labels, SoftLabels
from distillrs.condense.latents import (
    FairAutoencoder,
    GaussianCode,
    LatentDistillation,
    distance_covariance,
    generated,
)
from distillrs.condense.matching import Perturbation, TrajectoryMatching
from distillrs.condense.merging import merge_about
from distillrs.condense.modifiers import ClippedLoss, InputGradientPenalty, SharpnessAware
from distillrs.condense.pair_matching import PairDistributionMatching, sphere_energy
from distillrs.condense.pair_targets import PairTargets, balanced_similarity_loss
from distillrs.condense.pair_training import record_pair_experts, train_pairs
from distillrs.condense.pair_trajectories import PairTrajectoryMatching
from distillrs.condense.pairs import PairedSynthetic, PairNetwork, Pairs, contrastive_loss, spread_pairs
from distillrs.condense.perturbation import FilterPerturbation
from distillrs.condense.real import RealExamples
from distillrs.condense.recovery import Recovery
from distillrs.condense.signal_matching import SignalMatching
from distillrs.condense.signals import ClassMeans, Examples, GradientSignal, KernelMoments, Signal, penultimate
from distillrs.condense.statistics import BatchNormStatistics, normalising_by_batch
from distillrs.condense.synthetic import Synthetic, draw_per_class
from distillrs.condense.trees import FrequentTreeSets, TreeSets, load_tree_sets
from distillrs.condense.unroll import Unroll, Unrolled
from distillrs.condense.views import MixedLabels, ViewLabels, ViewPlan, read_labels, write_labels
from distillrs.condense.windows import TrajectoryStore, Windows, inner_batches, intermediate_targets

__all__ = [
    "Additive",
    "BalancedScale",
    "BatchNormStatistics",
    "BlockAdditive",
    "ClassMeans",
    "ClippedLoss",
    "Committee",
    "CondensedSet",
    "DomainBatch",
    "Enlarged",
    "Examples",
    "ExpertProgress",
    "ExpertTraining",
    "Factors",
    "FairAutoencoder",
    "FilterPerturbation",
    "FrequentTreeSets",
    "FunctionalNetwork",
    "GaussianCode",
    "GradientAmplifier",
    "GradientDistillation",
    "GradientSignal",
    "Guard",
    "HardLabels",
    "ImageExport",
    "InputGradientPenalty",
    "Judgement",
    "KernelMoments",
    "Labels",
    "LatentDistillation",
    "MixedLabels",
    "PairDistributionMatching",
    "PairNetwork",
    "PairTargets",
    "PairTrajectoryMatching",
    "PairedSynthetic",
    "Pairs",
    "Perturbation",
    "RealExamples",
    "Recovery",
    "SharpnessAware",
    "Signal",
    "SignalMatching",
    "Snapshots",
    "SoftLabels",
    "Subspace",
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
    "balanced_similarity_loss",
    "contrastive_loss",
    "distance_covariance",
    "draw_per_class",
    "expert_features",
    "export_image_folder",
    "generated",
    "inner_batches",
    "intermediate_targets",
    "judge",
    "load",
    "load_tree_sets",
    "merge_about",
    "mixed_target",
    "nearest_to_centres",
    "normalising_by_batch",
    "penultimate",
    "read_labels",
    "record_pair_experts",
    "rightly_classified",
    "sphere_energy",
    "spread_pairs",
    "to_hugging_face",
    "train_pairs",
    "write_labels",
]
