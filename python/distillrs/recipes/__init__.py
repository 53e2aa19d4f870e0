"""Published systems by name, each a short composition of engine parts."""

from __future__ import annotations

from distillrs.recipes.attention_to_mamba import attention_to_mamba
from distillrs.recipes.attention_transfer import attention_transfer
from distillrs.recipes.consistency import (
    consistency_average_rate,
    consistency_distillation,
    consistency_training,
    ict,
)
from distillrs.recipes.contrastive_kd import contrastive_kd
from distillrs.recipes.datm import datm, datm_experts, datm_initial
from distillrs.recipes.decoupled_kd import decoupled_kd
from distillrs.recipes.fitnets import fitnets
from distillrs.recipes.ftd import ftd, ftd_experts, ftd_initial
from distillrs.recipes.hinton import hinton
from distillrs.recipes.instaflow import instaflow
from distillrs.recipes.mean_flow import mean_flow
from distillrs.recipes.mtt import mtt
from distillrs.recipes.nemotron_elastic import nemotron_elastic
from distillrs.recipes.optin import optin
from distillrs.recipes.progressive_distillation import progressive_distillation
from distillrs.recipes.quantized_distillation import differentiable_quantization, quantized_distillation
from distillrs.recipes.relational_kd import relational_kd
from distillrs.recipes.shortcut import shortcut
from distillrs.recipes.smooth_expert import smooth_expert, smooth_expert_experts, smooth_expert_initial
from distillrs.recipes.tesla import tesla

__all__ = [
    "attention_to_mamba",
    "attention_transfer",
    "consistency_average_rate",
    "consistency_distillation",
    "consistency_training",
    "contrastive_kd",
    "datm",
    "datm_experts",
    "datm_initial",
    "decoupled_kd",
    "differentiable_quantization",
    "fitnets",
    "ftd",
    "ftd_experts",
    "ftd_initial",
    "hinton",
    "ict",
    "instaflow",
    "mean_flow",
    "mtt",
    "nemotron_elastic",
    "optin",
    "progressive_distillation",
    "quantized_distillation",
    "relational_kd",
    "shortcut",
    "smooth_expert",
    "smooth_expert_experts",
    "smooth_expert_initial",
    "tesla",
]
