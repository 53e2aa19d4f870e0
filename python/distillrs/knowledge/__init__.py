"""Smaller or other models: a term matches an aligned pair of tapped tensors under a divergence."""

from __future__ import annotations

from distillrs.knowledge.alignments import Alignment, Chain, Pooled, Projector, Through, identity, layer_pairs
from distillrs.knowledge.balance import Balance, GradientBalance, LossRatio
from distillrs.knowledge.contrast import InfoNCE, NoiseContrast
from distillrs.knowledge.divergences import (
    L1,
    MSE,
    Bernoulli,
    Cosine,
    DecoupledKL,
    Divergence,
    NormalisedMSE,
    PlackettLuce,
    SmoothL1,
)
from distillrs.knowledge.engine import Objective
from distillrs.knowledge.heads import Head, Projected
from distillrs.knowledge.inputs import Inputs
from distillrs.knowledge.relations import AttentionMap, Gram, HeadRelations, PairDistances, TripletAngles
from distillrs.knowledge.rows import EntropyFilter, Labelled, Mask, PerRow, RowPart, SelfPaced, Shifted
from distillrs.knowledge.snapshots import SnapshotRing, SnapshotTable
from distillrs.knowledge.stages import Stage
from distillrs.knowledge.taps import AnyTap, Output, Record, Run, Tap, record, release
from distillrs.knowledge.targets import Arithmetic, FromTeacher, Geometric, Labels, Target, optimal_weight
from distillrs.knowledge.teachers import (
    Cached,
    Ensemble,
    FrozenTeacher,
    Request,
    SelfTeacher,
    Teacher,
    random_teacher,
)
from distillrs.knowledge.terms import Term
from distillrs.knowledge.view import View

__all__ = [
    "L1",
    "MSE",
    "Alignment",
    "AnyTap",
    "Arithmetic",
    "AttentionMap",
    "Balance",
    "Bernoulli",
    "Cached",
    "Chain",
    "Cosine",
    "DecoupledKL",
    "Divergence",
    "Ensemble",
    "EntropyFilter",
    "FromTeacher",
    "FrozenTeacher",
    "Geometric",
    "GradientBalance",
    "Gram",
    "Head",
    "HeadRelations",
    "InfoNCE",
    "Inputs",
    "Labelled",
    "Labels",
    "LossRatio",
    "Mask",
    "NoiseContrast",
    "NormalisedMSE",
    "Objective",
    "Output",
    "PairDistances",
    "PerRow",
    "PlackettLuce",
    "Pooled",
    "Projected",
    "Projector",
    "Record",
    "Request",
    "RowPart",
    "Run",
    "SelfPaced",
    "SelfTeacher",
    "Shifted",
    "SmoothL1",
    "SnapshotRing",
    "SnapshotTable",
    "Stage",
    "Tap",
    "Target",
    "Teacher",
    "Term",
    "Through",
    "TripletAngles",
    "View",
    "identity",
    "layer_pairs",
    "optimal_weight",
    "random_teacher",
    "record",
    "release",
]
