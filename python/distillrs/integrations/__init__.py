"""Thin hooks into other people's packages; each module imports its package when it is used."""

from __future__ import annotations
