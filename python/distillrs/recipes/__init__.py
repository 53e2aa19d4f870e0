"""Published systems by name, each a short composition of engine parts."""

from __future__ import annotations

from distillrs.recipes.datm import datm, datm_experts, datm_initial
from distillrs.recipes.ftd import ftd, ftd_experts, ftd_initial
from distillrs.recipes.mtt import mtt
from distillrs.recipes.smooth_expert import smooth_expert, smooth_expert_experts, smooth_expert_initial
from distillrs.recipes.tesla import tesla

__all__ = [
    "datm",
    "datm_experts",
    "datm_initial",
    "ftd",
    "ftd_experts",
    "ftd_initial",
    "mtt",
    "smooth_expert",
    "smooth_expert_experts",
    "smooth_expert_initial",
    "tesla",
]
