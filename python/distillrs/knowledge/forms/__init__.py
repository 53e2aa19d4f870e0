"""Student forms: weights on few levels, parts left out, other mixers in the place of attention."""

from __future__ import annotations

from distillrs.knowledge.forms.convert import convert_mixers, mixer_paths
from distillrs.knowledge.forms.elastic import Elastic, router_of
from distillrs.knowledge.forms.mixer_state import MixerState
from distillrs.knowledge.forms.mixers import FeatureMap, LinearAttention, MambaMixer
from distillrs.knowledge.forms.nesting import ActivationImportance, activation_importance, layer_order, nested
from distillrs.knowledge.forms.protocol import Form, Stepped
from distillrs.knowledge.forms.recurrence import chunked_recurrence
from distillrs.knowledge.forms.router import Router, Sizes
from distillrs.knowledge.forms.structure import Attention, FeedForward, Masks, Slot, Structure, ungate
from distillrs.knowledge.forms.tokens import Tokens

__all__ = [
    "ActivationImportance",
    "Attention",
    "Elastic",
    "FeatureMap",
    "FeedForward",
    "Form",
    "LinearAttention",
    "MambaMixer",
    "Masks",
    "MixerState",
    "Router",
    "Sizes",
    "Slot",
    "Stepped",
    "Structure",
    "Tokens",
    "activation_importance",
    "chunked_recurrence",
    "convert_mixers",
    "layer_order",
    "mixer_paths",
    "nested",
    "router_of",
    "ungate",
]
