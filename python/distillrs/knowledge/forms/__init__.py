"""Student forms: weights on few levels, parts left out, other mixers in the place of attention."""

from __future__ import annotations

from distillrs.knowledge.forms.adapted import Adapted
from distillrs.knowledge.forms.convert import convert_mixers, mixer_paths
from distillrs.knowledge.forms.elastic import Elastic, router_of
from distillrs.knowledge.forms.importance import Importance, masks_within, output_changes
from distillrs.knowledge.forms.levels import bits_by_gradient
from distillrs.knowledge.forms.mixer_state import MixerState
from distillrs.knowledge.forms.mixers import FeatureMap, LinearAttention, MambaMixer
from distillrs.knowledge.forms.nesting import ActivationImportance, activation_importance, layer_order, nested
from distillrs.knowledge.forms.protocol import Form, Stepped, begin_step
from distillrs.knowledge.forms.pruned import Pruned
from distillrs.knowledge.forms.quantised import LearnedLevels, Quantised, gradient_bits
from distillrs.knowledge.forms.recurrence import chunked_recurrence
from distillrs.knowledge.forms.router import Router, Sizes
from distillrs.knowledge.forms.structure import Attention, FeedForward, Masks, Slot, Structure, ungate
from distillrs.knowledge.forms.tokens import Tokens
from distillrs.low_rank import LowRank

__all__ = [
    "ActivationImportance",
    "Adapted",
    "Attention",
    "Elastic",
    "FeatureMap",
    "FeedForward",
    "Form",
    "Importance",
    "LearnedLevels",
    "LinearAttention",
    "LowRank",
    "MambaMixer",
    "Masks",
    "MixerState",
    "Pruned",
    "Quantised",
    "Router",
    "Sizes",
    "Slot",
    "Stepped",
    "Structure",
    "Tokens",
    "activation_importance",
    "begin_step",
    "bits_by_gradient",
    "chunked_recurrence",
    "convert_mixers",
    "gradient_bits",
    "layer_order",
    "masks_within",
    "mixer_paths",
    "nested",
    "output_changes",
    "router_of",
    "ungate",
]
