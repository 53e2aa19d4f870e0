"""Thin hooks: ``transformers``, ``accelerate``, ``lightning``, ``diffusers`` and ``sklearn``.

Each is a module or package of its own, named after the other people's package that it serves, and is imported by name:
``from distillrs.integrations import transformers``. None of them imports its package before it is used. With each of
the trainers, and in a plain loop, an objective gives the same losses.
"""

from __future__ import annotations

from distillrs.integrations.bookkeeping import count_items

__all__ = ["count_items"]
