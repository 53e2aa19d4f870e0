"""Replacing attention by mixers of fixed memory, by the paths of modules."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from distillrs.checks import check_choice, check_instance, check_names
from distillrs.errors import argument_error, unknown_name_error
from distillrs.knowledge.forms.mixers import LinearAttention, MambaMixer
from distillrs.knowledge.forms.recurrence import CHUNK


def mixer_paths(network: nn.Module, kind: type[LinearAttention] = LinearAttention) -> list[str]:
    """Paths of the mixers in a network, in order.

    Args:
        network: Any module.
        kind: Which mixers; a Mamba mixer is a linear attention, too.

    Raises:
        ArgumentError: No network, or no class of mixers.
    """
    check_instance("network", network, nn.Module, "a torch.nn.Module")
    if not isinstance(kind, type) or not issubclass(kind, LinearAttention):
        raise argument_error("kind", kind, "LinearAttention or MambaMixer")
    return [path for path, module in network.named_modules() if isinstance(module, kind)]


def convert_mixers(
    network: nn.Module,
    paths: str | Sequence[str] = "*.self_attn",
    kind: Literal["linear", "mamba"] = "linear",
    *,
    features: int | None = None,
    initial: Literal["identity", "random"] = "identity",
    kernel: int = 4,
    chunk: int = CHUNK,
    seed: int = 0,
) -> list[str]:
    """Replaces modules of a network, in place: attention by a mixer, linear attention by its equal in Mamba.

    All other weights stay, so a deep copy of a teacher becomes the student. What an already converted network was
    trained to is kept. A checkpoint of a converted network is loaded into one that was converted in the same way.

    Args:
        network: The network to change.
        paths: Paths or patterns of modules' paths ("model.layers.*.self_attn").
        kind: "linear" for :class:`LinearAttention`, "mamba" for :class:`MambaMixer`.
        features: See :class:`FeatureMap`; for attention alone.
        initial: See :class:`FeatureMap`; for attention alone.
        kernel: See :class:`MambaMixer`.
        chunk: See :class:`LinearAttention`; for attention alone.
        seed: See :class:`FeatureMap`; for attention alone.

    Returns:
        The paths of what was replaced, in order.

    Raises:
        UnknownNameError: A path that leads nowhere.
        ArgumentError: A pattern that nothing matches, or a module that cannot be replaced by this kind; the network is
            then as it was.
    """
    check_instance("network", network, nn.Module, "a torch.nn.Module")
    check_choice("kind", kind, ("linear", "mamba"))
    patterns = [paths] if isinstance(paths, str) else paths
    check_names("paths", patterns, "a path or pattern, or a list of some")
    if not patterns:
        raise argument_error("paths", paths, "a path or pattern, or a list of at least one")
    new: dict[str, LinearAttention] = {}
    for path in _matching(network, patterns):
        module = network.get_submodule(path)
        if isinstance(module, MambaMixer) or (kind == "linear" and isinstance(module, LinearAttention)):
            raise argument_error("paths", f"{path!r}, a {type(module).__name__}", f"what is not yet {kind}")
        linear = (
            module
            if isinstance(module, LinearAttention)
            else LinearAttention(module, features, initial, seed=seed, chunk=chunk)
        )
        new[path] = MambaMixer(linear, kernel) if kind == "mamba" else linear
    for path, mixer in new.items():
        network.set_submodule(path, mixer)
    return list(new)


def _matching(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in network.named_modules() if name]
    chosen = set()
    for pattern in patterns:
        found = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise unknown_name_error("paths", pattern, near)
        chosen |= found
    return [name for name in names if name in chosen]
