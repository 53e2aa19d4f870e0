"""Student forms: weights on few levels, parts left out, other mixers in the place of attention."""

from __future__ import annotations

from distillrs.knowledge.forms.convert import convert_mixers, mixer_paths
from distillrs.knowledge.forms.mixer_state import MixerState
from distillrs.knowledge.forms.mixers import FeatureMap, LinearAttention, MambaMixer
from distillrs.knowledge.forms.protocol import Form, Stepped
from distillrs.knowledge.forms.recurrence import chunked_recurrence
from distillrs.knowledge.forms.structure import Attention, FeedForward, Masks, Slot, Structure, ungate
from distillrs.knowledge.forms.tokens import Tokens

__all__ = [
    "Attention",
    "FeatureMap",
    "FeedForward",
    "Form",
    "LinearAttention",
    "MambaMixer",
    "Masks",
    "MixerState",
    "Slot",
    "Stepped",
    "Structure",
    "Tokens",
    "chunked_recurrence",
    "convert_mixers",
    "mixer_paths",
    "ungate",
]
