"""Distributions whose scores are known exactly: what a sampler or an objective is held against.

Every bed gives exact scores on any Gaussian path::

    bed = evaluate.beds.digits_kde()
    teacher = bed.on(schedule.RectifiedFlow(), guidance=2.0)
    noise = random.normal(256, 64, step=0, name="noise", dtype=torch.float64)
    endpoints = teacher.endpoints(noise, condition={"label": labels})

A teacher answers ``predict(x, t, condition)`` as any network of the diffusion engine does.
"""

from __future__ import annotations

from distillrs.evaluate.beds.digits import digits_kde
from distillrs.evaluate.beds.exact import ExactScore
from distillrs.evaluate.beds.gaussian import Gaussian
from distillrs.evaluate.beds.kernel import KernelDensity
from distillrs.evaluate.beds.mixture import LineMixture

__all__ = ["ExactScore", "Gaussian", "KernelDensity", "LineMixture", "digits_kde"]
