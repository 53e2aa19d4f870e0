"""A sampler in one file: a small network, the times it visits, and the way back to raw examples."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from distillrs import random, transforms
from distillrs.checks import is_number
from distillrs.configuration import convert
from distillrs.diffusion import denoisers
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.networks import Network, Times
from distillrs.diffusion.samplers import SamplerMethod, sample
from distillrs.diffusion.state_map import StateMap
from distillrs.errors import ArgumentError, DataError, argument_error, unknown_name_error
from distillrs.files import write_whole
from distillrs.schedule import Grid, RectifiedFlow
from distillrs.step import Step
from distillrs.transforms import Transform

FORMAT = "distillrs.sampler"
VERSION = 1
# Values of examples that are drawn together; a network needs many times their memory.
_TOGETHER = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class FewStepSampler:
    """Draws examples with a network of :mod:`~distillrs.diffusion.denoisers` on a rectified flow.

    Attributes:
        network: The network, which predicts velocities, or mean velocities of a way.
        name: Of the network: "mlp" or "unet".
        options: Of the network.
        shape: Of one example.
        classes: Name of each class; empty for a network that is told none.
        grids: The times to visit, by number of steps.
        times: Which times the network is told: "t", or "t_gap" for a map.
        method: How to go from time to time; see :func:`~distillrs.diffusion.sample`.
        transform: From raw examples to what the network sees.
    """

    network: nn.Module
    name: str
    options: Mapping[str, Any]
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    grids: Mapping[int, Grid]
    times: Times
    method: SamplerMethod
    transform: Transform

    def __post_init__(self) -> None:
        if not isinstance(self.network, nn.Module):
            raise argument_error("network", type(self.network).__name__, "a torch module")
        denoisers.check_options(self.name, self.options)
        if self.times not in ("t", "t_gap"):
            raise argument_error("times", self.times, "'t' or 't_gap'")
        if self.method not in get_args(SamplerMethod):
            raise unknown_name_error("method", self.method, list(get_args(SamplerMethod)))
        if not isinstance(self.grids, Mapping) or not self.grids:
            raise argument_error("grids", self.grids, "the times of one number of steps or more")
        for steps, grid in self.grids.items():
            if not isinstance(grid, Grid) or grid.steps != steps or not isinstance(grid.path, RectifiedFlow):
                raise argument_error("grids", f"{grid} under {steps}", "rectified flow's grids by their steps")

    @property
    def map(self) -> StateMap:
        """The network as a map between times."""
        return StateMap(Network(self.network, times=self.times), RectifiedFlow())

    def condition(self, labels: Tensor | None) -> Condition:
        """The network's condition for class numbers."""
        return {"label": labels} if self.classes else None

    def grid(self, steps: int | None = None) -> Grid:
        """The times for a number of steps; for the most there are by default.

        Raises:
            ArgumentError: For a number that the sampler has no times for.
        """
        steps = max(self.grids) if steps is None else steps
        if not isinstance(steps, Hashable) or steps not in self.grids:
            raise argument_error("steps", steps, f"one of {', '.join(map(str, sorted(self.grids)))}")
        return self.grids[steps]

    @torch.no_grad()
    def run(self, noise: Tensor, labels: Tensor | None = None, *, steps: int | None = None, seed: int = 0) -> Tensor:
        """Samples in the network's space from given noise, some rows at a time, so that memory stays small.

        Args:
            noise: Standard normal, ``[n, ...]``.
            labels: Class numbers, int64 ``[n]``; needed by a network with classes, ``None`` for one without.
            steps: Number of steps; the most there are by default.
            seed: Of noise that is added on the way, for methods that do.

        Returns:
            ``[n, ...]``, in the type of the network's weights.

        Raises:
            ArgumentError: Noise of another shape than examples, or labels that are not class numbers of its rows.
        """
        shape = tuple(self.shape)
        if not isinstance(noise, Tensor) or not noise.is_floating_point() or tuple(noise.shape[1:]) != shape:
            got = f"shape {tuple(noise.shape)} of {noise.dtype}" if isinstance(noise, Tensor) else type(noise).__name__
            raise argument_error("noise", got, f"a floating-point tensor {['n', *shape]}")
        grid, labels = self.grid(steps), self._labels(labels, len(noise))
        noise = noise.to(next(self.network.parameters()).dtype)
        labels = None if labels is None else labels.to(noise.device)
        at_once = max(_TOGETHER // math.prod(shape), 1)
        found = [
            sample(
                self.map,
                noise[first : first + at_once],
                grid,
                self.condition(None if labels is None else labels[first : first + at_once]),
                method=self.method,
                # A row's noise on the way is that of its place in the whole.
                step=Step(0, seed=seed, first_unit=first),
            )
            for first in range(0, max(len(noise), 1), at_once)
        ]
        return torch.cat(found)

    def _labels(self, labels: object, count: int) -> Tensor | None:
        """Class numbers of so many rows, checked."""
        if not self.classes:
            if labels is not None:
                raise argument_error("labels", labels, "None: this network was made without classes")
            return None
        allowed = f"{count} class numbers below {len(self.classes)}"
        try:
            found = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError, OverflowError) as failure:
            raise argument_error("labels", labels, allowed) from failure
        whole = not found.is_floating_point() and not found.is_complex() and found.dtype != torch.bool
        # No labels of no rows are an empty tensor of whatever type.
        if found.shape != (count,) or not (whole or not count):
            raise argument_error("labels", f"{found.dtype} of shape {tuple(found.shape)}", allowed)
        if count and not (int(found.min()) >= 0 and int(found.max()) < len(self.classes)):
            raise argument_error("labels", found.tolist()[:10], allowed)
        return found.long()

    def __call__(
        self, count: int, *, labels: Tensor | Sequence[int] | None = None, steps: int | None = None, seed: int = 0
    ) -> Tensor:
        """Draws raw examples, ``[count, ...]``, float32 at least; the same for the same seed.

        Args:
            count: How many.
            labels: Class number of each; by default every class in turn.
            steps: Number of steps; the most there are by default.
            seed: Of the noise.

        Raises:
            ArgumentError: A count or labels that make no sense, or steps that the sampler has no times for.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise argument_error("count", count, "a positive integer")
        weight = next(self.network.parameters())
        if labels is None and self.classes:
            labels = torch.arange(count) % len(self.classes)
        chosen = self._labels(labels, count)
        noise = random.normal(count, *self.shape, step=Step(0, seed=seed), name="sampler", device=weight.device)
        found = self.run(noise, None if chosen is None else chosen.to(weight.device), steps=steps, seed=seed)
        return self.transform.inverse(found.cpu().to(torch.promote_types(found.dtype, torch.float32)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, whole or not at all.

        Args:
            path: The file; its folder is made if it is not there.
        """
        page = {
            "format": FORMAT,
            "version": VERSION,
            "network": {"name": self.name, "options": dict(self.options)},
            "shape": list(self.shape),
            "classes": list(self.classes),
            "grids": {str(steps): grid.times.tolist() for steps, grid in self.grids.items()},
            "times": self.times,
            "method": self.method,
            "path": "RectifiedFlow",
            "transform": self.transform.describe(),
        }
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"transform.{name}": value for name, value in self.transform.tensors().items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        file = FilePath(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, safetensors.torch.save(tensors, {"distillrs": json.dumps(page, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FewStepSampler:
        """Reads what :meth:`save` wrote; nothing in the file is executed.

        Args:
            path: The file.

        Raises:
            DataError: There is no such file.
            ArgumentError: A file of another kind, or one whose parts do not fit together.
        """
        try:
            with safetensors.safe_open(os.fspath(path), "pt") as opened:
                page = _page(path, opened.metadata() or {})
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        except FileNotFoundError as failure:
            raise DataError(f"path: there is no file {path}") from failure
        except (safetensors.SafetensorError, OSError) as failure:
            raise argument_error("path", str(path), f"a safetensors file ({failure})") from failure
        shape = convert(page.get("shape"), tuple[int, ...], "shape")
        classes = convert(page.get("classes"), tuple[str, ...], "classes")
        described = convert(page.get("network"), dict[str, Any], "network")
        name = convert(described.get("name"), str, "network.name")
        options = convert(described.get("options"), dict[str, Any], "network.options")
        weights = {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}
        network = _network(name, shape, len(classes), options, weights)
        own = {key.removeprefix("transform."): value for key, value in tensors.items() if key.startswith("transform.")}
        grids = convert(page.get("grids"), dict[str, tuple[float, ...]], "grids")
        return cls(
            network,
            name,
            options,
            shape,
            classes,
            {_steps(steps): Grid(times, RectifiedFlow()) for steps, times in grids.items()},
            convert(page.get("times"), Times, "times"),
            convert(page.get("method"), SamplerMethod, "method"),
            _transform(convert(page.get("transform"), dict[str, Any], "transform"), own, shape),
        )


def _page(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    allowed = f"a sampler's file of version {VERSION}"
    try:
        page = json.loads(metadata.get("distillrs", ""))
    except (ValueError, RecursionError) as failure:
        raise argument_error("path", str(path), allowed) from failure
    if not isinstance(page, dict) or page.get("format") != FORMAT or page.get("version") != VERSION:
        raise argument_error("path", str(path), allowed)
    if page.get("path") != "RectifiedFlow":
        raise argument_error("path", page.get("path"), "RectifiedFlow")
    return page


def _network(
    name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any], weights: dict[str, Tensor]
) -> nn.Module:
    # What a page claims must be as large as what the file holds: first by what no network can do with less, as even
    # one without memory takes its time to put together; then, without memory, tensor by tensor.
    denoisers.check_options(name, options)
    values = sum(value.numel() for value in weights.values())
    most = {"width": values, "depth": len(weights)}
    for option, value in options.items():
        if is_number(value) and value > most.get(option, values):
            got = f"{option} {value} beside {len(weights)} tensors of {values} numbers"
            raise argument_error("network", got, "one as large as the file's tensors")
    try:
        with torch.device("meta"):
            claimed = denoisers.build(name, shape, classes, **options)
    except RuntimeError as failure:  # more numbers than torch can count
        got = f"{name} with {options} for {shape}"
        raise argument_error("network", got, "one as large as the file's tensors") from failure
    sizes = {key: tuple(value.shape) for key, value in claimed.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if sizes != found:
        odd = sorted(set(sizes.items()) ^ set(found.items()))[:3]
        raise argument_error("network", f"tensors such as {odd}", f"those of {name} with {options}")
    dtypes = {value.dtype for value in weights.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise argument_error("network", f"tensors of {sorted(map(str, dtypes))}", "tensors of one floating-point type")
    network = denoisers.build(name, shape, classes, **options).to(dtypes.pop())
    network.load_state_dict(weights)
    return network.eval()


def _transform(described: dict[str, Any], tensors: dict[str, Tensor], shape: tuple[int, ...]) -> Transform:
    found = transforms.restore(described, tensors)
    try:
        found.inverse(torch.empty(1, *shape, device="meta"))
    except ArgumentError as failure:
        raise argument_error("transform", described.get("kind"), f"one of examples of shape {shape}") from failure
    return found


def _steps(text: str) -> int:
    if not text.isdecimal():
        raise argument_error("grids", text, "numbers of steps")
    return int(text)
