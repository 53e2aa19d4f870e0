"""Few-step generators by flow maps: one map, five residuals.

``Phi(x, t, r) = A(t, r) x + B(t, r) F(x, t, r)`` carries a state along a flow from time ``t`` to ``r``. A
:class:`FlowMap` puts together a path, a head (A, B), a source of velocities, states, a law of times, a residual, a
metric and rules of balance; what makes no sense together is refused with the reason. Recipes name published choices.
"""

from __future__ import annotations

from distillrs.diffusion.balance import (
    AdaptivePower,
    Balance,
    LogVariance,
    MaskNonFinite,
    Rows,
    TangentNormalisation,
    Weighted,
)
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.derivatives import JVP, Central, Derivative, Solver
from distillrs.diffusion.flow_map import FlowMap
from distillrs.diffusion.heads import AverageVelocity, ConsistencyBoundary, Head, HeadWeights, Jump, LatentBoundary
from distillrs.diffusion.metrics import Cosine, InKinds, KindMetric, Metric, PseudoHuber, SquaredError
from distillrs.diffusion.networks import DiffusersNetwork, Network, NetworkAdapter
from distillrs.diffusion.residuals import (
    Compared,
    Diagonal,
    Endpoint,
    Eulerian,
    Lagrangian,
    OnAndOff,
    Problem,
    Residual,
    Semigroup,
    trig_scale,
)
from distillrs.diffusion.samplers import SamplerMethod, sample
from distillrs.diffusion.scores import Score, Teacher, velocity_of
from distillrs.diffusion.sources import Averaged, Call, Data, Guided, Self, Source
from distillrs.diffusion.state_map import StateMap
from distillrs.diffusion.states import Batch, Drawn, NoisedData, PriorOnly, States, TeacherPath
from distillrs.diffusion.translated import Translated
from distillrs.schedule import Prediction

__all__ = [
    "JVP",
    "AdaptivePower",
    "AverageVelocity",
    "Averaged",
    "Balance",
    "Batch",
    "Call",
    "Central",
    "Compared",
    "Condition",
    "ConsistencyBoundary",
    "Cosine",
    "Data",
    "Derivative",
    "Diagonal",
    "DiffusersNetwork",
    "Drawn",
    "Endpoint",
    "Eulerian",
    "FlowMap",
    "Guided",
    "Head",
    "HeadWeights",
    "InKinds",
    "Jump",
    "KindMetric",
    "Lagrangian",
    "LatentBoundary",
    "LogVariance",
    "MaskNonFinite",
    "Metric",
    "Network",
    "NetworkAdapter",
    "NoisedData",
    "OnAndOff",
    "Prediction",
    "PriorOnly",
    "Problem",
    "PseudoHuber",
    "Residual",
    "Rows",
    "SamplerMethod",
    "Score",
    "Self",
    "Semigroup",
    "Solver",
    "Source",
    "SquaredError",
    "StateMap",
    "States",
    "TangentNormalisation",
    "Teacher",
    "TeacherPath",
    "Translated",
    "Weighted",
    "sample",
    "trig_scale",
    "velocity_of",
]
