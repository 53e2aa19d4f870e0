"""Smaller or other models: a term matches an aligned pair of tapped tensors under a divergence."""

from __future__ import annotations

from distillrs.knowledge import forms
from distillrs.knowledge.alignments import (
    Aligned,
    Alignment,
    BatchAlignment,
    Chain,
    Pooled,
    Projector,
    Through,
    identity,
    layer_pairs,
)
from distillrs.knowledge.balance import Balance, GradientBalance, LossRatio
from distillrs.knowledge.chunks import Boundary, ChunkEnds, Chunks, TokenChunks, token_chunks
from distillrs.knowledge.contrast import InfoNCE, NoiseContrast
from distillrs.knowledge.corpus import Corpus, Example, Task, TextMix, paired_batch
from distillrs.knowledge.divergences import (
    L1,
    MSE,
    Bernoulli,
    BernoulliLimit,
    Brier,
    Cosine,
    DecoupledKL,
    Divergence,
    NormalisedMSE,
    PlackettLuce,
    SmoothL1,
)
from distillrs.knowledge.engine import Objective
from distillrs.knowledge.heads import Head, Projected
from distillrs.knowledge.inputs import Inputs, Prefixed
from distillrs.knowledge.mutual_information import MutualInformation
from distillrs.knowledge.rankings import ListMLE
from distillrs.knowledge.relations import (
    AttentionMap,
    ClassGradients,
    Gram,
    HeadRelations,
    PairDistances,
    TripletAngles,
)
from distillrs.knowledge.ridge import RidgeGenerations
from distillrs.knowledge.rows import EntropyFilter, Labelled, Mask, PerRow, RowPart, SelfPaced, Shifted, Where
from distillrs.knowledge.sampling import Speculated, acceptance, block_length, sample_text, speculative_sample, speed_up
from distillrs.knowledge.search import Evolution, Scored
from distillrs.knowledge.snapshots import SnapshotRing, SnapshotTable
from distillrs.knowledge.stages import Stage
from distillrs.knowledge.subclasses import SubClasses, SubClassSplit, class_log_probs
from distillrs.knowledge.taps import AnyTap, Entry, Output, Record, Run, Tap, record, release
from distillrs.knowledge.targets import Arithmetic, FromTeacher, Geometric, Labels, Target, optimal_weight
from distillrs.knowledge.teachers import Cached, Ensemble, FrozenTeacher, Request, SelfTeacher, Teacher, random_teacher
from distillrs.knowledge.terms import Term
from distillrs.knowledge.view import View
from distillrs.knowledge.vocabularies import VocabularyMap, shared_tokens

__all__ = [
    "L1",
    "MSE",
    "Aligned",
    "Alignment",
    "AnyTap",
    "Arithmetic",
    "AttentionMap",
    "Balance",
    "BatchAlignment",
    "Bernoulli",
    "BernoulliLimit",
    "Boundary",
    "Brier",
    "Cached",
    "Chain",
    "ChunkEnds",
    "Chunks",
    "ClassGradients",
    "Corpus",
    "Cosine",
    "DecoupledKL",
    "Divergence",
    "Ensemble",
    "EntropyFilter",
    "Entry",
    "Evolution",
    "Example",
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
    "ListMLE",
    "LossRatio",
    "Mask",
    "MutualInformation",
    "NoiseContrast",
    "NormalisedMSE",
    "Objective",
    "Output",
    "PairDistances",
    "PerRow",
    "PlackettLuce",
    "Pooled",
    "Prefixed",
    "Projected",
    "Projector",
    "Record",
    "Request",
    "RidgeGenerations",
    "RowPart",
    "Run",
    "Scored",
    "SelfPaced",
    "SelfTeacher",
    "Shifted",
    "SmoothL1",
    "SnapshotRing",
    "SnapshotTable",
    "Speculated",
    "Stage",
    "SubClassSplit",
    "SubClasses",
    "Tap",
    "Target",
    "Task",
    "Teacher",
    "Term",
    "TextMix",
    "Through",
    "TokenChunks",
    "TripletAngles",
    "View",
    "VocabularyMap",
    "Where",
    "acceptance",
    "block_length",
    "class_log_probs",
    "forms",
    "identity",
    "layer_pairs",
    "optimal_weight",
    "paired_batch",
    "random_teacher",
    "record",
    "release",
    "sample_text",
    "shared_tokens",
    "speculative_sample",
    "speed_up",
    "token_chunks",
]
