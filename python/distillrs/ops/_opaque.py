"""Calls that neither compilers nor function transforms of torch look into, and what says so."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from distillrs.errors import argument_error

F = TypeVar("F", bound=Callable[..., Any])

_REASON = (
    "distillrs.ops are no custom operators, whose results may share no memory with their arguments: the gradient that "
    "is formed on the way forward could not take the logits' place. The call runs as it is, between compiled parts"
)


def opaque(function: F) -> F:
    """Leaves a function out of compiled graphs, with the reason in the compiler's messages where torch takes one.

    Args:
        function: One of ``ops``.
    """
    # torch 2.6 takes no reason.
    takes_reason = "reason" in inspect.signature(torch.compiler.disable).parameters
    settings = {"reason": _REASON} if takes_reason else {}
    left_out: F = torch.compiler.disable(function, **settings)  # type: ignore[no-untyped-call]  # untyped in torch
    return left_out


def apply(kind: type[torch.autograd.Function], name: str, *arguments: Any) -> Any:
    """What an ``autograd.Function`` gives; transforms of ``torch.func`` are refused in our words.

    Args:
        kind: The function.
        name: Of its first argument, as the caller wrote it.
        *arguments: Of the function.

    Raises:
        ArgumentError: A transform of ``torch.func`` is at work.
    """
    try:
        return kind.apply(*arguments)
    except RuntimeError as failure:
        if "setup_context" not in str(failure):
            raise
        given = arguments[0]
        got = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        got += " inside a transform of torch.func, such as grad or vmap"
        allowed = "a plain tensor; differentiate with torch.autograd.grad or backward()"
        raise argument_error(name, got, allowed) from failure
