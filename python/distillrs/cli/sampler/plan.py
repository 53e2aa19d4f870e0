"""From what the user said to the whole configuration of ``distillrs distill-sampler``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distillrs import configuration
from distillrs.cli.plan import as_tables, source, stem
from distillrs.cli.sampler.methods import METHODS, Method, find
from distillrs.cli.sampler.settings import SamplerSettings, check_rates
from distillrs.configuration import convert, from_dict, merge
from distillrs.diffusion import FewStepSampler, denoisers
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import RectifiedFlow, spaced

if TYPE_CHECKING:
    from distillrs.evaluate.data import DataBundle
    from distillrs.transforms import Transform

DEFAULT_METHOD = "flow-map"
DEFAULT_STEPS = 4
# Up to this many values an example is small enough for a perceptron.
_SMALL_EXAMPLE = 256


def request(file: Mapping[str, Any], flags: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Puts together what was asked for: flags win over the file, assignments over flags.

    Args:
        file: Content of ``--config``.
        flags: Values of flags, as a nested configuration.
        assignments: ``key=value`` of each ``--set``: a dotted key of the configuration, or an option of the method by
            its name alone.

    Returns:
        A partial configuration.

    Raises:
        UnknownNameError: A method, a key or an option that does not exist.
    """
    asked = merge(as_tables(file), as_tables(flags))
    pairs = [configuration.parse_assignment(text) for text in assignments]
    # The method first, because the others are looked up among its options.
    for key, value in pairs:
        if key in ("method", "method.name"):
            asked = merge(asked, {"method": {"name": value}})
    method = find(convert(asked.get("method", {}).get("name", DEFAULT_METHOD), str, "method.name"))
    asked = merge(asked, {"method": {"name": method.name}})
    top = [field.name for field in fields(SamplerSettings)]
    options = method.options()
    for key, value in pairs:
        if key in ("method", "method.name"):
            continue
        if key == "network":
            asked = merge(asked, {key: {"name": value}})
        elif "." in key or key in top:
            asked = merge(asked, configuration.nest(key, value))
        elif key in options:
            asked = merge(asked, {"method": {"options": {key: value}}})
        else:
            raise unknown_name_error("set", key, sorted({*options, *top}))
    return asked


def resolve(asked: Mapping[str, Any], bundle: DataBundle, *, processors: int) -> SamplerSettings:
    """Completes a request by the defaults for its data and its method.

    Args:
        asked: See :func:`request`.
        bundle: The data.
        processors: How many may be used.

    Raises:
        UnknownNameError: A key that does not exist; the nearest one is suggested.
        ArgumentError: A value that is not allowed.
    """
    method, found = METHODS[asked["method"]["name"]], source(asked)
    steps = convert(asked.get("steps", DEFAULT_STEPS), int, "steps")
    network = convert(asked.get("network", {}).get("name", network_name(bundle.shape)), str, "network.name")
    if network not in denoisers.DENOISERS:
        raise unknown_name_error("network", network, list(denoisers.DENOISERS))
    basis = merge(
        preset(network, method, processors=processors),
        {
            "data": found.data,
            "steps": steps,
            "duplicates": found.duplicates,
            "out": f"out/{stem(found.data)}-{steps}-steps-{method.name}",
        },
    )
    settings = merge(basis, asked)
    own = convert(settings["method"].get("options", {}), dict[str, Any], "method.options")
    settings["method"] = {**settings["method"], "options": method.complete(own)}
    return from_dict(SamplerSettings, settings)


def network_name(shape: Sequence[int]) -> str:
    """The architecture for examples of this shape."""
    return "unet" if len(shape) == 3 and math.prod(shape) > _SMALL_EXAMPLE else "mlp"


def preset(network: str, method: Method, *, processors: int = 1) -> dict[str, Any]:
    """The configuration but for what only the user knows; for a result within minutes on two processors.

    Args:
        network: Name of the architecture.
        method: How the student is distilled.
        processors: How many may be used.
    """
    small = network == "mlp"
    rates = {
        "student": 2e-3 if small else 5e-4,
        "generator": 5e-4 if small else 1e-4,
        "critic": 1e-3 if small else 4e-4,
    }
    student_steps = {"flow-map": 1500, "dmd2": 2500}[method.name]
    return {
        "method": {"name": method.name},
        "network": {"name": network, "options": {"width": 128, "depth": 3} if small else {"width": 24, "depth": 3}},
        "teacher": {
            "steps": 1200 if small else 2000,
            "batch_size": 128 if small else 64,
            "learning_rate": 2e-3 if small else 1e-3,
            "average": 0.995,
            "sampling_steps": 50,
        },
        "student": {
            "steps": student_steps,
            "batch_size": 128 if small else 64,
            "rates": {name: rates[name] for name in method.turns},
            "average": 0.995,
            "check_every": student_steps // 6,
        },
        "evaluation": {"samples": 1000, "neighbours": 5},
        "transform": "standardise",
        "seed": 0,
        "device": "cpu",
        # Work on a perceptron is too little to share: handing it around takes longer than doing it.
        "threads": 1 if small else processors,
    }


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that is settled before the first phase.

    Attributes:
        settings: The configuration.
        bundle: Raw data.
        transform: From raw examples to the network's input.
        device: Where networks live.
    """

    settings: SamplerSettings
    bundle: DataBundle
    transform: Transform
    device: torch.device

    @property
    def method(self) -> Method:
        """How the student is distilled."""
        return METHODS[self.settings.method.name]

    def network(self) -> nn.Module:
        """A fresh teacher, on the device."""
        chosen, bundle = self.settings.network, self.bundle
        made = denoisers.build(
            chosen.name, bundle.shape, len(bundle.classes), seed=self.settings.seed, **chosen.options
        )
        return made.to(self.device)

    def teacher(self, network: nn.Module) -> FewStepSampler:
        """A trained teacher as a sampler by Euler's steps."""
        steps = {self.settings.teacher.sampling_steps, *self.settings.counts}
        path = RectifiedFlow()
        grids = {count: spaced(count, path) for count in sorted(steps)}
        chosen, bundle = self.settings.network, self.bundle
        return FewStepSampler(
            network.eval(),
            chosen.name,
            chosen.options,
            bundle.shape,
            bundle.classes,
            grids,
            "t",
            "ode",
            self.transform,
        )

    def student(self, network: nn.Module) -> FewStepSampler:
        """A trained student as a sampler."""
        chosen, bundle, method = self.settings.network, self.bundle, self.method
        grids = {count: method.grid(self.settings.steps, count) for count in self.settings.counts}
        return FewStepSampler(
            network.eval(),
            chosen.name,
            chosen.options,
            bundle.shape,
            bundle.classes,
            grids,
            method.times,
            method.way,
            self.transform,
        )


def prepare(settings: SamplerSettings, bundle: DataBundle) -> Prepared:
    """Settles what every phase needs.

    Raises:
        UnknownNameError: An option that the network does not have.
        ArgumentError: The device is not there, too few real examples to compare with, or parts that do not fit.
    """
    from distillrs.cli.preparation import device, make_transform

    least = settings.evaluation.neighbours + 1
    for name, rows in (("training", bundle.x_train), ("test", bundle.x_test)):
        if len(rows) < least:
            got = f"{len(rows)} {name} examples"
            raise argument_error("data", got, f"{least} or more, as evaluation.neighbours asks")
    denoisers.check_options(settings.network.name, settings.network.options)
    made = Prepared(settings, bundle, make_transform(settings.transform, bundle.x_train), device(settings.device))
    # What does not fit together is refused before anything is computed.
    own = made.method.arguments(settings.method.options)
    began = made.method.begin(made.network(), bundle.shape, settings.steps, own)
    check_rates(settings.student.rates, began.objective.turns(0))
    return made
