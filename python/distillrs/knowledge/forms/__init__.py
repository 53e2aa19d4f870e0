"""Student forms: another shape of a network, which a form makes, trains under the same terms, and exports."""

from __future__ import annotations

from distillrs.knowledge.forms.convert import convert_mixers, mixer_paths
from distillrs.knowledge.forms.mixer_state import MixerState
from distillrs.knowledge.forms.mixers import FeatureMap, LinearAttention, MambaMixer
from distillrs.knowledge.forms.recurrence import chunked_recurrence
from distillrs.knowledge.forms.tokens import Tokens

__all__ = [
    "FeatureMap",
    "LinearAttention",
    "MambaMixer",
    "MixerState",
    "Tokens",
    "chunked_recurrence",
    "convert_mixers",
    "mixer_paths",
]
