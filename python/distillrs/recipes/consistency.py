"""Consistency models: distillation from a teacher, and training without one."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from distillrs.diffusion import (
    ConsistencyBoundary,
    Data,
    Eulerian,
    FlowMap,
    Metric,
    NetworkAdapter,
    PseudoHuber,
    Score,
    Solver,
    Teacher,
    Weighted,
)
from distillrs.diffusion.balance import Rows
from distillrs.errors import argument_error
from distillrs.recipes._maps import (
    check_length,
    check_levels,
    doubling_levels,
    frozen,
    growing_levels,
    levels_law,
    preconditioned,
    run_length,
)
from distillrs.registry import recipe
from distillrs.schedule import EDM, BinnedLogNormal, Neighbouring, PairLaw
from distillrs.step import Step


@recipe(
    id="consistency_distillation",
    source="Song, Dhariwal, Chen, Sutskever: Consistency Models, ICML 2023",
    equation="d(f(x_{n+1}, t_{n+1}), sg f_avg(x_n, t_n)), x_n a Heun step of the teacher from x_{n+1} = x + t_{n+1} z",
    deviations=[
        "The metric is the squared error unless another is given: LPIPS needs a pretrained network.",
        "The average that makes the targets is the user's (rate .95 in the paper); without one the present weights do.",
    ],
    engine="diffusion",
)
def consistency_distillation(
    network: nn.Module | NetworkAdapter,
    teacher: nn.Module | NetworkAdapter | Score,
    levels: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    rho: float = 7.0,
    solver: str = "heun",
    metric: Metric | None = None,
    average: nn.Module | NetworkAdapter | None = None,
    seed: int = 0,
) -> FlowMap:
    """Consistency distillation on EDM's path.

    With ``f(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4)``, the identity at ``sigma_min``, and neighbouring
    levels of EDM's grid, each equally likely::

        x_{n+1} = x0 + sigma_{n+1} z        x_n = one step of the teacher's flow from there
        L = d(f(x_{n+1}, sigma_{n+1}), sg f_avg(x_n, sigma_n))

    Args:
        network: F, called with (scaled x, log(sigma) / 4); or an adapter.
        teacher: EDM's network of the same form, or any score.
        levels: N.
        sigma_min: Where f is the identity.
        sigma_max: First level.
        sigma_data: Standard deviation of the data.
        rho: Of the grid.
        solver: "heun", "euler" or "ddim".
        metric: d; ``None`` for the squared error.
        average: The moving average of ``network`` that makes targets.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; samples are drawn by :func:`distillrs.diffusion.sample` with ``method="renoise"``.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    path = EDM(sigma_max, sigma_data)
    if solver not in ("heun", "euler", "ddim"):
        raise argument_error("solver", solver, "'heun', 'euler' or 'ddim'")
    check_levels(levels, levels, ("levels", "levels"))
    score = teacher if isinstance(teacher, Score) else Teacher(preconditioned(frozen(teacher), path, "teacher"), "F")
    return FlowMap(
        preconditioned(network, path),
        path=path,
        head=ConsistencyBoundary(sigma_min),
        source=score,
        residual=Eulerian(Solver(None, solver)),  # type: ignore[arg-type]  # checked above
        pairs=levels_law(lambda step: levels, Neighbouring, path, sigma_min, rho),
        metric=metric,
        target=None if average is None else preconditioned(average, path, "average"),
        seed=seed,
    )


@recipe(
    id="consistency_training",
    source="Song, Dhariwal, Chen, Sutskever: Consistency Models, ICML 2023",
    equation="d(f(x + t_{n+1} z, t_{n+1}), sg f_avg(x + t_n z, t_n)), N(k) growing from 2 to 150",
    deviations=[
        "The metric is the squared error unless another is given: LPIPS needs a pretrained network.",
        "The average that makes the targets is the user's; its rate at a step is consistency_average_rate.",
    ],
    engine="diffusion",
)
def consistency_training(
    network: nn.Module | NetworkAdapter,
    start_levels: int = 2,
    end_levels: int = 150,
    steps: int | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    rho: float = 7.0,
    metric: Metric | None = None,
    average: nn.Module | NetworkAdapter | None = None,
    seed: int = 0,
) -> FlowMap:
    """Consistency training: as the distillation, with the example's own noise in the teacher's place.

    ::

        L = d(f(x0 + sigma_{n+1} z, sigma_{n+1}), sg f_avg(x0 + sigma_n z, sigma_n))      the same x0 and z

    Args:
        network: F, called with (scaled x, log(sigma) / 4); or an adapter.
        start_levels: s_0 of ``N(k) = ceil(sqrt(k/K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1``.
        end_levels: s_1.
        steps: K; ``None`` takes the run's, ``step.total``.
        sigma_min: Where f is the identity.
        sigma_max: First level.
        sigma_data: Standard deviation of the data.
        rho: Of the grid.
        metric: d; ``None`` for the squared error.
        average: The moving average of ``network`` that makes targets.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    path = EDM(sigma_max, sigma_data)
    check_levels(start_levels, end_levels)
    check_length(steps)

    def count(step: Step) -> int:
        return growing_levels(step.index, run_length(step, steps), start_levels, end_levels)

    return _without_a_teacher(
        network,
        path,
        sigma_min,
        levels_law(count, Neighbouring, path, sigma_min, rho),
        metric=metric,
        target=None if average is None else preconditioned(average, path, "average"),
        seed=seed,
    )


def consistency_average_rate(
    step: Step | int, steps: int | None = None, start_levels: int = 2, end_levels: int = 150, rate: float = 0.9
) -> float:
    """``exp(s_0 log(mu_0) / N(k))``: the rate of the average that makes the targets of consistency training.

    Args:
        step: Where in the run.
        steps: K; ``None`` takes the run's.
        start_levels: s_0.
        end_levels: s_1.
        rate: mu_0.
    """
    step = Step.of(step)
    check_levels(start_levels, end_levels)
    levels = growing_levels(step.index, run_length(step, steps), start_levels, end_levels)
    return math.exp(start_levels * math.log(rate) / levels)


@recipe(
    id="ict",
    source="Song, Dhariwal: Improved Techniques for Training Consistency Models, ICLR 2024",
    equation="d(f(x + s_{i+1} z), sg f(x + s_i z)) / (s_{i+1} - s_i), d = sqrt(|.|^2 + c^2) - c, c = .00054 sqrt(D)",
    deviations=["Dropout (.3 on CIFAR-10) is the network's; its mask is the same in both calls, as in the paper."],
    engine="diffusion",
)
def ict(
    network: nn.Module | NetworkAdapter,
    start_levels: int = 10,
    end_levels: int = 1280,
    steps: int | None = None,
    mean: float = -1.1,
    std: float = 2.0,
    huber: float = 0.00054,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    rho: float = 7.0,
    seed: int = 0,
) -> FlowMap:
    """Improved consistency training.

    ::

        L = (sqrt(|f(x_{i+1}) - sg f(x_i)|^2 + c^2) - c) / (sigma_{i+1} - sigma_i),      c = huber sqrt(D)
        P(i) ~ erf((log sigma_{i+1} - mean) / (sqrt(2) std)) - erf((log sigma_i - mean) / (sqrt(2) std))
        N(k) = min(s_0 2^floor(k / K'), s_1) + 1,      K' = floor(K / (log2 floor(s_1 / s_0) + 1))

    The targets are made by the present weights: an average there is the flaw that this removes. The average for
    sampling (rate .99993) is the trainer's.

    Args:
        network: F, called with (scaled x, log(sigma) / 4); or an adapter.
        start_levels: s_0.
        end_levels: s_1.
        steps: K; ``None`` takes the run's, ``step.total``.
        mean: Of log sigma.
        std: Of log sigma.
        huber: c over the root of the dimension.
        sigma_min: Where f is the identity.
        sigma_max: First level.
        sigma_data: Standard deviation of the data.
        rho: Of the grid.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    path = EDM(sigma_max, sigma_data)
    check_levels(start_levels, end_levels)
    check_length(steps)

    def count(step: Step) -> int:
        return doubling_levels(step.index, run_length(step, steps), start_levels, end_levels)

    return _without_a_teacher(
        network,
        path,
        sigma_min,
        levels_law(count, lambda times: BinnedLogNormal(times, mean, std, path), path, sigma_min, rho),
        metric=PseudoHuber(huber),
        balance=Weighted(_one_over_step),
        seed=seed,
    )


def _without_a_teacher(
    network: nn.Module | NetworkAdapter, path: EDM, sigma_min: float, pairs: PairLaw, **parts: Any
) -> FlowMap:
    """Consistency between neighbouring levels of one example with its own noise."""
    return FlowMap(
        preconditioned(network, path),
        path=path,
        head=ConsistencyBoundary(sigma_min),
        residual=Eulerian(Solver(None), source=Data()),
        pairs=pairs,
        **parts,
    )


def _one_over_step(rows: Rows) -> Tensor:
    assert rows.middle is not None
    return 1 / (rows.path.sigma(rows.t) - rows.path.sigma(rows.middle))
