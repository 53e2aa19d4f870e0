"""Student forms: a network with weights on few levels, or without some of its parts."""

from __future__ import annotations

from distillrs.knowledge.forms.protocol import Form, Stepped
from distillrs.knowledge.forms.structure import Attention, FeedForward, Masks, Slot, Structure, ungate

__all__ = ["Attention", "FeedForward", "Form", "Masks", "Slot", "Stepped", "Structure", "ungate"]
