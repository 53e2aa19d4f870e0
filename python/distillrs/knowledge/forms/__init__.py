"""Student forms: a network with weights on few levels, or without some of its parts."""

from __future__ import annotations

from distillrs.knowledge.forms.levels import bits_by_gradient
from distillrs.knowledge.forms.protocol import Form, Stepped, begin_step
from distillrs.knowledge.forms.quantised import LearnedLevels, Quantised, gradient_bits
from distillrs.knowledge.forms.structure import Attention, FeedForward, Masks, Slot, Structure, ungate

__all__ = [
    "Attention",
    "FeedForward",
    "Form",
    "LearnedLevels",
    "Masks",
    "Quantised",
    "Slot",
    "Stepped",
    "Structure",
    "begin_step",
    "bits_by_gradient",
    "gradient_bits",
    "ungate",
]
