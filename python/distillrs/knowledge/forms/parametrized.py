"""Parametrizations on and off a module, where torch would let copies of it disturb each other."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def register(module: nn.Module, name: str, step: nn.Module) -> None:
    """Puts a parametrization on a parameter, without running it.

    Args:
        module: Whose parameter it is.
        name: The parameter's.
        step: A map of the parameter that keeps shape and type.
    """
    _own_class(module)
    parametrize.register_parametrization(module, name, step, unsafe=True)


def remove(module: nn.Module, name: str) -> None:
    """Takes all parametrizations off a parameter, which stays the same object with the values that were trained."""
    _own_class(module)
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def _own_class(module: nn.Module) -> None:
    # torch keeps the parameters' properties in a class that it makes for the module, which copy.deepcopy shares between
    # module and copy: what is put on or taken off one would be so on the other.
    if parametrize.is_parametrized(module):
        old: Any = type(module)
        entries = {name: value for name, value in vars(old).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(old.__name__, old.__bases__, entries)
