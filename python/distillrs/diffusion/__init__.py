"""Few-step generators by flow maps: one map, five residuals.

``Phi(x, t, r) = A(t, r) x + B(t, r) F(x, t, r)`` carries a state along a flow from time ``t`` to ``r``. A
:class:`FlowMap` puts together a path, a head (A, B), a source of velocities, states, a law of times, a residual, a
metric and rules of balance; what makes no sense together is refused with the reason. Recipes name published choices.
"""

from __future__ import annotations

from distillrs.diffusion import denoisers
from distillrs.diffusion.balance import (
    AdaptivePower,
    Balance,
    LogVariance,
    MaskNonFinite,
    Rows,
    TangentNormalisation,
    Weighted,
)
from distillrs.diffusion.combined_states import Blend, Mix
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.derivatives import JVP, Central, Derivative, Solver
from distillrs.diffusion.few_step import FewStepSampler
from distillrs.diffusion.flow_map import FlowMap
from distillrs.diffusion.heads import AverageVelocity, ConsistencyBoundary, Head, HeadWeights, Jump, LatentBoundary
from distillrs.diffusion.matching.adversary import Adversary, AdversaryLoss
from distillrs.diffusion.matching.auxiliaries import Auxiliary, AuxiliaryLoss, Consistency, KernelMoments, MeanVariance
from distillrs.diffusion.matching.critics import Critic
from distillrs.diffusion.matching.gaps import (
    DistributionGap,
    ExpandedGap,
    FisherGap,
    Gap,
    GapView,
    GuidanceGap,
    SampleGap,
)
from distillrs.diffusion.matching.levels import Noised, Within, noised
from distillrs.diffusion.matching.matcher import Matcher
from distillrs.diffusion.matching.ratios import LogRatio, RatioWeights, ratio_weights
from distillrs.diffusion.matching.reals import Checkpoints, Real, RealView
from distillrs.diffusion.matching.rollouts import (
    AlongTrajectory,
    NoisedInputs,
    Planned,
    Rolled,
    Rollout,
    one_step,
    simulated,
)
from distillrs.diffusion.matching.scene import Scene
from distillrs.diffusion.matching.tally import Evaluations
from distillrs.diffusion.matching.terms import Match
from distillrs.diffusion.matching.weights import GapWeight, LevelWeight, MeanAbsolute
from distillrs.diffusion.metrics import Cosine, InKinds, KindMetric, Metric, PseudoHuber, SquaredError
from distillrs.diffusion.networks import DiffusersNetwork, FunctionModule, Network, NetworkAdapter
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
from distillrs.diffusion.shared_base import SharedBase
from distillrs.diffusion.sources import Averaged, Call, Data, Guided, Self, Source
from distillrs.diffusion.state_map import StateMap
from distillrs.diffusion.states import Batch, Drawn, NoisedData, PriorOnly, States, TeacherPath
from distillrs.diffusion.stored_paths import StoredPaths
from distillrs.diffusion.translated import Translated
from distillrs.low_rank import LowRank
from distillrs.schedule import Prediction

__all__ = [
    "JVP",
    "AdaptivePower",
    "Adversary",
    "AdversaryLoss",
    "AlongTrajectory",
    "Auxiliary",
    "AuxiliaryLoss",
    "AverageVelocity",
    "Averaged",
    "Balance",
    "Batch",
    "Blend",
    "Call",
    "Central",
    "Checkpoints",
    "Compared",
    "Condition",
    "Consistency",
    "ConsistencyBoundary",
    "Cosine",
    "Critic",
    "Data",
    "Derivative",
    "Diagonal",
    "DiffusersNetwork",
    "DistributionGap",
    "Drawn",
    "Endpoint",
    "Eulerian",
    "Evaluations",
    "ExpandedGap",
    "FewStepSampler",
    "FisherGap",
    "FlowMap",
    "FunctionModule",
    "Gap",
    "GapView",
    "GapWeight",
    "GuidanceGap",
    "Guided",
    "Head",
    "HeadWeights",
    "InKinds",
    "Jump",
    "KernelMoments",
    "KindMetric",
    "Lagrangian",
    "LatentBoundary",
    "LevelWeight",
    "LogRatio",
    "LogVariance",
    "LowRank",
    "MaskNonFinite",
    "Match",
    "Matcher",
    "MeanAbsolute",
    "MeanVariance",
    "Metric",
    "Mix",
    "Network",
    "NetworkAdapter",
    "Noised",
    "NoisedData",
    "NoisedInputs",
    "OnAndOff",
    "Planned",
    "Prediction",
    "PriorOnly",
    "Problem",
    "PseudoHuber",
    "RatioWeights",
    "Real",
    "RealView",
    "Residual",
    "Rolled",
    "Rollout",
    "Rows",
    "SampleGap",
    "SamplerMethod",
    "Scene",
    "Score",
    "Self",
    "Semigroup",
    "SharedBase",
    "Solver",
    "Source",
    "SquaredError",
    "StateMap",
    "States",
    "StoredPaths",
    "TangentNormalisation",
    "Teacher",
    "TeacherPath",
    "Translated",
    "Weighted",
    "Within",
    "denoisers",
    "noised",
    "one_step",
    "ratio_weights",
    "sample",
    "simulated",
    "trig_scale",
    "velocity_of",
]
