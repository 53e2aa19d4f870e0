"""Critics: the fake score, fitted on the generator's samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from distillrs.diffusion.checks import check_adapter, is_number
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.matching.levels import WITHIN, Noised, Within, draw_noised
from distillrs.diffusion.matching.rollouts import Rolled
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.diffusion.state_map import per_row
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Kind, LossWeight, Path, Prediction, TimeLaw, Uniform, error_scale
from distillrs.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class Critic:
    """A score that is fitted: it learns what the generator's samples look like under noise.

    The loss of a row is the mean over its elements of ``w(t) |prediction - target|^2`` in one kind of prediction. Where
    a rollout ends in a state ``x_s`` above the data, no clean sample belongs to ``x_t = a x_s + s_(t|s) eps``. There
    ``transition`` regresses the clean state ``x_s / alpha_s - alpha_t sigma_s^2 / (alpha_s^2 s_(t|s)) eps``, whose mean
    given ``x_t`` is exact ("Phased DMD", 2025), with the residual times ``s_(t|s) / sigma_t``, as its variance asks;
    and ``sample`` the generator's estimate ``x`` with the weight ``exp(mean(eps^2) / 2 - mean(eps_x^2) / 2)``,
    ``eps_x = (x_t - alpha_t x) / sigma_t``, of trajectory distribution matching (Luo et al., 2025).

    Attributes:
        network: The network in its adapter: a copy of the teacher, or a view with a low-rank adapter of a
            :class:`SharedBase`.
        kind: What it predicts.
        law: Of the levels.
        within: Their bounds.
        compare: The kind in which errors are taken; ``None`` for the one that is predicted.
        weight: ``w``; ``None`` for 1.
        target: See above.
        pull: Share of the way from the critic's parameters to the generator's that :meth:`Matcher.after_step` goes:
            0.001 in "Continuous-time distribution matching" (2026). 0 for none.
        scale: Factor of its loss.
    """

    network: NetworkAdapter
    kind: Kind
    law: TimeLaw = field(default_factory=lambda: Uniform(0.02, 0.98))
    within: Within = "all"
    compare: Kind | None = None
    weight: LossWeight | None = None
    target: Literal["transition", "sample"] = "transition"
    pull: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_adapter("network", self.network)
        for name, kind in (("kind", self.kind), ("compare", self.compare)):
            if kind is not None and kind not in get_args(Kind):
                raise unknown_name_error(name, kind, list(get_args(Kind)))
        if not isinstance(self.law, TimeLaw):
            raise argument_error("law", self.law, "a law of time")
        if self.within not in WITHIN:
            raise unknown_name_error("within", self.within, list(WITHIN))
        if self.weight is not None and not isinstance(self.weight, LossWeight):
            raise argument_error("weight", self.weight, "a LossWeight or None")
        if self.target not in ("transition", "sample"):
            raise unknown_name_error("target", self.target, ["transition", "sample"])
        if not (is_number(self.pull) and 0 <= self.pull <= 1):
            raise argument_error("pull", self.pull, "a share from 0 to 1")
        if not (is_number(self.scale) and self.scale > 0):
            raise argument_error("scale", self.scale, "a positive number")

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        """See :class:`Score`."""
        return Prediction(self.network(x, t, t, condition), self.kind)

    def fit(self, path: Path, rolled: Rolled, condition: Condition, step: Step, name: str = "critic") -> Tensor:
        """The loss of each row, ``[n]``.

        Args:
            path: The path.
            rolled: Samples without a graph.
            condition: Of the rows; the critic is never guided.
            step: Where in the run.
            name: What the draws are for.
        """
        drawn = draw_noised(path, rolled, self.law, self.within, step, name)
        value = self.network(drawn.x_t, drawn.t, drawn.t, condition)
        compare = self.kind if self.compare is None else self.compare
        wide = torch.promote_types(value.dtype, torch.float32)
        value, x_t = value.to(wide), drawn.x_t.to(wide)
        if rolled.state is None:
            found = value
            if compare != self.kind:
                found = path.convert(value, x_t, drawn.t, kind=self.kind, to=compare)
            error = found - _target(path, rolled.x.to(wide), drawn.noise.to(wide), drawn.t, compare)
        else:
            found = path.convert(value, x_t, drawn.t, kind=self.kind, to="x0")
            error = self._above(path, rolled, drawn, found)
            error = per_row(error_scale(path, drawn.t, kind="x0", to=compare), error) * error
        rows = error.square().flatten(1).mean(1)
        if self.weight is not None:
            rows = rows * self.weight.at(path, drawn.t, compare).to(rows)
        return rows

    def _above(self, path: Path, rolled: Rolled, drawn: Noised, found: Tensor) -> Tensor:
        """The error as one of x0, times the square root of its weight."""
        assert rolled.state is not None
        assert rolled.end is not None
        t, alpha, sigma = drawn.t, path.alpha(drawn.t), path.sigma(drawn.t)
        if self.target == "sample":
            total = (drawn.x_t - per_row(alpha, rolled.x) * rolled.x) / per_row(sigma, rolled.x)
            excess = (drawn.noise.square() - total.square()).flatten(1).mean(1).double() / 4
            return per_row(excess.exp(), found) * (found - rolled.x)
        s = rolled.end.to(t.device)
        alpha_s = path.alpha(s)
        # The target times s_(t|s), which stays finite where t comes near s.
        of_state = per_row(drawn.spread / alpha_s, found) * rolled.state
        of_noise = per_row(alpha * path.sigma(s).square() / alpha_s.square(), found) * drawn.noise
        return (per_row(drawn.spread, found) * found - (of_state - of_noise)) / per_row(sigma, found)


def _target(path: Path, x0: Tensor, noise: Tensor, t: Tensor, kind: Kind) -> Tensor:
    # From both, not from one and the state: a conversion would divide by what is small near the ends.
    scale, data, of_noise = (per_row(part, x0) for part in path._row(kind, t))
    return (data * x0 + of_noise * noise) / scale


def pull_towards(module: nn.Module, student: nn.Module, share: float) -> None:
    """Moves a network's parameters a share of the way to another's, by name.

    Raises:
        ArgumentError: Parameters that do not correspond.
    """
    own, other = _named(module), _named(student)
    if set(own) != set(other) or any(own[name].shape != other[name].shape for name in own):
        differ = sorted(name for name in {*own, *other} if name not in own or name not in other)
        got = f"a critic that differs in {', '.join(differ[:3]) or 'shapes'}"
        raise argument_error("pull", got, "0, or networks with equal parameters")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.lerp_(other[name].detach().to(parameter), share)


def _named(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name.replace("_orig_mod.", "").removeprefix("module."): parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
