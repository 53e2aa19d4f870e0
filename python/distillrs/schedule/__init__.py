"""Noise paths, laws of time, grids, solvers and their optimiser, rollout plans, and pure functions of the step."""

from __future__ import annotations

from distillrs.schedule.buffers import BufferMove, MovingBuffer
from distillrs.schedule.derived_pairs import Adjacent, AnyPair, FromNoise, Neighbouring, ScheduledPairs, WithDiagonal
from distillrs.schedule.gaussian_paths import EDM, RectifiedFlow, Trig
from distillrs.schedule.grids import Grid, ddim, karras, shifted, spaced
from distillrs.schedule.laws import (
    Levels,
    LogitNormal,
    LogNormal,
    Shifted,
    Stratified,
    TimeLaw,
    Uniform,
    UShaped,
    shift_time,
)
from distillrs.schedule.optimise import FoundGrid, Method, MixedGrid, optimise_grid, optimise_mixed
from distillrs.schedule.pair_laws import BinnedLogNormal, Nested, PairLaw, Segments, Times, Triangle
from distillrs.schedule.path import Clock, Kind, Moved, Path
from distillrs.schedule.plans import CacheOperation, Move, RolloutPlan
from distillrs.schedule.predictions import Convention, Prediction, guide
from distillrs.schedule.ramps import (
    Constant,
    Cosine,
    Doubling,
    ExpandingWindow,
    Feedback,
    Halving,
    LinearRamp,
    Ramp,
    WarmUp,
)
from distillrs.schedule.residual import Residual
from distillrs.schedule.solvers import (
    Coefficients,
    Solver,
    Stages,
    Velocity,
    coefficients,
    evaluations,
    integrate,
    momentum_displacement,
    stages,
)
from distillrs.schedule.tables import Table
from distillrs.schedule.trajectories import Trajectories
from distillrs.schedule.variance_preserving import VP, AlphaTable, CosineAlpha, LinearBeta, Signal, SubVP
from distillrs.schedule.weights import (
    LossWeight,
    MinSNR,
    PreconditionedWeight,
    SigmoidWeight,
    TruncatedSNR,
    UniformWeight,
    error_scale,
)

__all__ = [
    "EDM",
    "VP",
    "Adjacent",
    "AlphaTable",
    "AnyPair",
    "BinnedLogNormal",
    "BufferMove",
    "CacheOperation",
    "Clock",
    "Coefficients",
    "Constant",
    "Convention",
    "Cosine",
    "CosineAlpha",
    "Doubling",
    "ExpandingWindow",
    "Feedback",
    "FoundGrid",
    "FromNoise",
    "Grid",
    "Halving",
    "Kind",
    "Levels",
    "LinearBeta",
    "LinearRamp",
    "LogNormal",
    "LogitNormal",
    "LossWeight",
    "Method",
    "MinSNR",
    "MixedGrid",
    "Move",
    "Moved",
    "MovingBuffer",
    "Neighbouring",
    "Nested",
    "PairLaw",
    "Path",
    "PreconditionedWeight",
    "Prediction",
    "Ramp",
    "RectifiedFlow",
    "Residual",
    "RolloutPlan",
    "ScheduledPairs",
    "Segments",
    "Shifted",
    "SigmoidWeight",
    "Signal",
    "Solver",
    "Stages",
    "Stratified",
    "SubVP",
    "Table",
    "TimeLaw",
    "Times",
    "Trajectories",
    "Triangle",
    "Trig",
    "TruncatedSNR",
    "UShaped",
    "Uniform",
    "UniformWeight",
    "Velocity",
    "WarmUp",
    "WithDiagonal",
    "coefficients",
    "ddim",
    "error_scale",
    "evaluations",
    "guide",
    "integrate",
    "karras",
    "momentum_displacement",
    "optimise_grid",
    "optimise_mixed",
    "shift_time",
    "shifted",
    "spaced",
    "stages",
]
