"""Adapters: any network as ``F(x, t, r, condition)``, whatever its signature and its clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from distillrs.diffusion.conditions import Condition
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Clock, Path
from distillrs.schedule._times import as_time
from distillrs.schedule.path import check_path

Times: TypeAlias = Literal["t", "r", "t_r", "t_gap"]
"""Which times a network is given: the first; the second, for maps that all begin at pure noise; both; the first and the
way to the second, ``t - r``."""


class FunctionModule(nn.Module):
    """A plain function as a module: for networks that are called in another order, or by other keywords.

    ::

        Network(FunctionModule(lambda net, x, t, r, label: net(t, r, image=x, y=label), net))

    The function is given the modules and does not close over them, so that a copy (of a moving average, of a worker)
    calls its own ones.

    Args:
        function: ``function(*modules, x, *times, **condition)``, of the shape of ``x``.
        *modules: What it calls; none for a function in closed form.

    Raises:
        ArgumentError: For what cannot be called, or no modules.
    """

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        if isinstance(function, nn.Module) or not callable(function):
            raise argument_error("function", type(function).__name__, "a function of the modules, a state and times")
        for module in modules:
            _check_module("modules", module, "torch modules")
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor, *times: Tensor, **condition: Any) -> Tensor:
        """The function's value."""
        return self.function(*self.parts, x, *times, **condition)


class NetworkAdapter(Protocol):
    """What the engine calls."""

    @property
    def module(self) -> nn.Module:
        """The network itself, for its parameters and its mode."""
        ...

    @property
    def two_times(self) -> bool:
        """Whether the second time reaches the network."""
        ...

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
        """Of the shape of ``x``, for float64 times ``[n]`` of the path."""
        ...

    def replaced(self, module: nn.Module) -> NetworkAdapter:
        """The same adapter around a wrapped network (data parallel, compiled)."""
        ...


@dataclass(frozen=True, slots=True)
class _Clocked:
    """What adapters share: the network's clock, and the scale of its input.

    Attributes:
        module: The network.
        times: Which times it is given.
        clock: How it is told a time. A gap is told by ``time`` or ``thousand`` alone.
        path: What the clock and the input's scale are of; not needed for ``time`` and ``thousand``.
        clock_factor: Multiplies what the clock says, as EDM's networks take ``log(sigma) / 4``.
        scale_input: Whether the network sees ``x / sqrt(alpha^2 sigma_data^2 + sigma^2)``, of deviation 1.
    """

    module: nn.Module
    times: Times = "t_r"
    clock: Clock = "time"
    path: Path | None = None
    clock_factor: float = 1.0
    scale_input: bool = False

    def __post_init__(self) -> None:
        allowed = "a torch module; FunctionModule(function, module) makes one of a plain function"
        _check_module("module", self.module, allowed)
        if self.times not in get_args(Times):
            raise unknown_name_error("times", self.times, list(get_args(Times)))
        if self.clock not in get_args(Clock):
            raise unknown_name_error("clock", self.clock, list(get_args(Clock)))
        if self.path is not None:
            check_path("path", self.path)
        if self.path is None and (self.scale_input or self.clock not in ("time", "thousand")):
            raise argument_error("path", None, f"a path, which the clock {self.clock!r} or the input's scale is of")
        if self.times == "t_gap" and self.clock not in ("time", "thousand"):
            raise argument_error("clock", self.clock, "'time' or 'thousand' for a network that is given a gap")

    @property
    def two_times(self) -> bool:
        """Whether the second time reaches the network."""
        return self.times != "t"

    def replaced(self, module: nn.Module) -> Any:
        """The same adapter around another module."""
        return replace(self, module=module)

    def _input(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.scale_input:
            return x
        assert self.path is not None
        scale = self.path._deviation(as_time(t))
        return x / scale.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))

    def _told(self, t: Tensor, r: Tensor, dtype: torch.dtype) -> list[Tensor]:
        told = {"t": (t,), "r": (r,), "t_r": (t, r)}.get(self.times) or (t, t - r)
        clocks = (self._clock(time) for time in told)
        return [(clock if self.clock_factor == 1 else clock * self.clock_factor).to(dtype) for clock in clocks]

    def _clock(self, time: Tensor) -> Tensor:
        if self.clock == "time":
            return time
        if self.clock == "thousand":
            return time * 1000
        assert self.path is not None
        return self.path.clock(time, to=self.clock)


def _check_module(name: str, value: object, allowed: str) -> None:
    if not isinstance(value, nn.Module):
        raise argument_error(name, type(value).__name__, allowed)


def _output(value: Any, x: Tensor, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != x.shape:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise argument_error(name, f"an output of {got}", f"a tensor of the input's shape, {tuple(x.shape)}")
    return value


@dataclass(frozen=True, slots=True)
class Network(_Clocked):
    """A plain module: ``module(x, t, r, **condition)``.

    Times come as ``[n]`` in the type of ``x``: ``t``, then ``r`` or ``t - r`` if the network takes two. The condition's
    entries are keyword arguments. A network with another order or other keywords goes through :class:`FunctionModule`.
    """

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
        """See :class:`NetworkAdapter`."""
        value = self.module(self._input(x, t), *self._told(t, r, x.dtype), **(condition or {}))
        return _output(value, x, "network")


@dataclass(frozen=True, slots=True)
class DiffusersNetwork(_Clocked):
    """A denoiser of diffusers (UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, ...).

    It is called ``module(x, timestep=t, return_dict=False, **condition)[0]``; condition entries are its own keyword
    arguments (``encoder_hidden_states``, ``class_labels``). Networks that were trained on a table take
    ``clock="index"`` with their path; flow-matching ones ``clock="thousand"``.

    Attributes:
        second: The keyword that takes the second time (``timestep_cond``, or ``class_labels`` of a network whose
            ``class_embed_type`` is "timestep"), for ``times`` other than "t".
        learned_variance: Whether the output has twice the channels, the second half a variance, which is dropped.
    """

    second: str | None = None
    learned_variance: bool = False

    def __post_init__(self) -> None:
        _Clocked.__post_init__(self)
        if (self.second is None) != (self.times in ("t", "r")):
            allowed = "a keyword of the network for two times, and None for one (times='t' or 'r')"
            raise argument_error("second", self.second, allowed)

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
        """See :class:`NetworkAdapter`."""
        # These networks embed times in float32; in bfloat16 neighbouring rows of a table would merge.
        told = self._told(t, r, torch.promote_types(x.dtype, torch.float32))
        arguments = dict(condition or {})
        if self.second is not None:
            if self.second in arguments:
                raise argument_error("condition", self.second, f"names other than {self.second!r}, the second time's")
            arguments[self.second] = told[1]
        value = self.module(self._input(x, t), timestep=told[0], return_dict=False, **arguments)[0]
        if self.learned_variance:
            value = value[:, : x.shape[1]]
        return _output(value, x, "network")
