"""Published systems by name, each a short composition of engine parts."""

from __future__ import annotations

from distillrs.recipes.alm import alm
from distillrs.recipes.attention_to_mamba import attention_to_mamba
from distillrs.recipes.attention_transfer import attention_transfer
from distillrs.recipes.boot import boot
from distillrs.recipes.cda import cda, cda_initial, cda_views
from distillrs.recipes.consistency import consistency_average_rate, consistency_distillation, consistency_training, ict
from distillrs.recipes.contrastive_kd import contrastive_kd
from distillrs.recipes.cv_dd import cv_dd, cv_dd_initial, cv_dd_prior, cv_dd_views, cv_dd_voice
from distillrs.recipes.datm import datm, datm_experts, datm_initial
from distillrs.recipes.dc import dc
from distillrs.recipes.decoupled_kd import decoupled_kd
from distillrs.recipes.ded import ded, ded_teacher
from distillrs.recipes.distiller_mi_alpha import distiller_mi_alpha
from distillrs.recipes.distilling_step_by_step import distilling_step_by_step
from distillrs.recipes.distillspec import distillspec
from distillrs.recipes.diswot import diswot, diswot_score
from distillrs.recipes.dm import dm
from distillrs.recipes.dmd2 import dmd2
from distillrs.recipes.fair_latent_distill import fair_latent_distill, fair_latent_teacher
from distillrs.recipes.fitnets import fitnets
from distillrs.recipes.flow_map_self_distillation import flow_map_self_distillation
from distillrs.recipes.freeflow import freeflow
from distillrs.recipes.ftd import ftd, ftd_experts, ftd_initial
from distillrs.recipes.guided_distillation import guidance_scales, guided_distillation
from distillrs.recipes.hinton import hinton
from distillrs.recipes.infer_ufc import infer_ufc, infer_ufc_initial, infer_ufc_views
from distillrs.recipes.instaflow import instaflow
from distillrs.recipes.mdm import mdm, mdm_initial
from distillrs.recipes.mean_flow import mean_flow
from distillrs.recipes.mf_rae import mf_rae
from distillrs.recipes.mirage import mirage
from distillrs.recipes.mtt import mtt
from distillrs.recipes.nemotron_elastic import nemotron_elastic
from distillrs.recipes.opt_traj_distill import opt_traj_distill
from distillrs.recipes.optin import optin
from distillrs.recipes.pcoreset import pcoreset, pcoreset_probabilities, pcoreset_queries
from distillrs.recipes.peek import FrameScorer, peek, peek_batch
from distillrs.recipes.progressive_distillation import progressive_distillation
from distillrs.recipes.ps_kd import ps_kd
from distillrs.recipes.quantized_distillation import differentiable_quantization, quantized_distillation
from distillrs.recipes.random_real_soft_labels import random_real_soft_labels
from distillrs.recipes.rcm import rcm
from distillrs.recipes.rded import rded
from distillrs.recipes.relational_kd import relational_kd
from distillrs.recipes.repblend import repblend, repblend_initial
from distillrs.recipes.rfpp import rfpp
from distillrs.recipes.self_distill_optimal_weight import self_distill_optimal_weight, self_distill_share
from distillrs.recipes.shortcut import shortcut
from distillrs.recipes.smooth_expert import smooth_expert, smooth_expert_experts, smooth_expert_initial
from distillrs.recipes.swiftbrush import swiftbrush
from distillrs.recipes.tdm import tdm
from distillrs.recipes.tesla import tesla
from distillrs.recipes.uni_instruct import diff_instruct, f_distill, sid, uni_instruct

__all__ = [
    "FrameScorer",
    "alm",
    "attention_to_mamba",
    "attention_transfer",
    "boot",
    "cda",
    "cda_initial",
    "cda_views",
    "consistency_average_rate",
    "consistency_distillation",
    "consistency_training",
    "contrastive_kd",
    "cv_dd",
    "cv_dd_initial",
    "cv_dd_prior",
    "cv_dd_views",
    "cv_dd_voice",
    "datm",
    "datm_experts",
    "datm_initial",
    "dc",
    "decoupled_kd",
    "ded",
    "ded_teacher",
    "diff_instruct",
    "differentiable_quantization",
    "distiller_mi_alpha",
    "distilling_step_by_step",
    "distillspec",
    "diswot",
    "diswot_score",
    "dm",
    "dmd2",
    "f_distill",
    "fair_latent_distill",
    "fair_latent_teacher",
    "fitnets",
    "flow_map_self_distillation",
    "freeflow",
    "ftd",
    "ftd_experts",
    "ftd_initial",
    "guidance_scales",
    "guided_distillation",
    "hinton",
    "ict",
    "infer_ufc",
    "infer_ufc_initial",
    "infer_ufc_views",
    "instaflow",
    "mdm",
    "mdm_initial",
    "mean_flow",
    "mf_rae",
    "mirage",
    "mtt",
    "nemotron_elastic",
    "opt_traj_distill",
    "optin",
    "pcoreset",
    "pcoreset_probabilities",
    "pcoreset_queries",
    "peek",
    "peek_batch",
    "progressive_distillation",
    "ps_kd",
    "quantized_distillation",
    "random_real_soft_labels",
    "rcm",
    "rded",
    "relational_kd",
    "repblend",
    "repblend_initial",
    "rfpp",
    "self_distill_optimal_weight",
    "self_distill_share",
    "shortcut",
    "sid",
    "smooth_expert",
    "smooth_expert_experts",
    "smooth_expert_initial",
    "swiftbrush",
    "tdm",
    "tesla",
    "uni_instruct",
]
