"""Student forms: a network with weights on few levels, or without some of its parts."""

from __future__ import annotations

from distillrs.knowledge.forms.importance import Importance, masks_within, output_changes
from distillrs.knowledge.forms.levels import bits_by_gradient
from distillrs.knowledge.forms.protocol import Form, Stepped, begin_step
from distillrs.knowledge.forms.pruned import Pruned
from distillrs.knowledge.forms.quantised import LearnedLevels, Quantised, gradient_bits
from distillrs.knowledge.forms.structure import Attention, FeedForward, Masks, Slot, Structure, ungate

__all__ = [
    "Attention",
    "FeedForward",
    "Form",
    "Importance",
    "LearnedLevels",
    "Masks",
    "Pruned",
    "Quantised",
    "Slot",
    "Stepped",
    "Structure",
    "begin_step",
    "bits_by_gradient",
    "gradient_bits",
    "masks_within",
    "output_changes",
    "ungate",
]
