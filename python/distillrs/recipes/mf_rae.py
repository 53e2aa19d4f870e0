"""Mean flows of a teacher, begun by regression onto its paths."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from distillrs.diffusion import (
    AdaptivePower,
    Central,
    Data,
    Derivative,
    Endpoint,
    Eulerian,
    FlowMap,
    NetworkAdapter,
    Score,
    SquaredError,
    TeacherPath,
)
from distillrs.errors import argument_error
from distillrs.recipes._maps import adapted, teacher_score
from distillrs.registry import recipe
from distillrs.schedule import AnyPair, Grid, LogitNormal, RectifiedFlow, Shifted, Triangle


@recipe(
    id="mf-rae",
    source="Hu et al.: MeanFlow Transformers with Representation Autoencoders, 2025",
    equation="|u(x_i, t_i, t_j) - (x_i - x_j) / (t_i - t_j)|^2 on a teacher's path, then "
    "|u - sg(v_T - (t - r) du/dt)|^4 / sg(. + c)",
    deviations=["The share off the diagonal is drawn row by row, not as a fixed part of the batch."],
    engine="diffusion",
)
def mf_rae(
    network: nn.Module | NetworkAdapter,
    stage: Literal["mid_training", "distil", "tune"] = "distil",
    teacher: nn.Module | NetworkAdapter | Score | None = None,
    grid: Grid | None = None,
    shift: float = 1.0,
    mean: float = -0.4,
    std: float = 1.0,
    off_diagonal: float = 0.25,
    derivative: Derivative | None = None,
    constant: float = 1e-3,
    condition_dropout: float = 0.0,
    seed: int = 0,
) -> FlowMap:
    """One stage of a mean flow in a latent space of many dimensions, where training from scratch is unstable.

    - ``mid_training``: the batch brings a teacher's states along a grid (``Batch(path_states=...)``, 16 Euler steps in
      the paper); any two of them say a mean velocity, ``u(x_i, t_i, t_j) = (x_i - x_j) / (t_i - t_j)``.
    - ``distil``: ``u - sg(v_T - (t - r) du/dt)``, the total derivative along the teacher's velocity.
    - ``tune``: the same along the example's own velocity ``eps - x0``, without the teacher.

    The last two have ``e^2 / sg(e^2 + c)`` of a row's squared error e, and times of a logit-normal law shifted by
    ``shift = sqrt(dimension / 4096)``.

    Args:
        network: u, called with (x, t, t - r, **condition).
        stage: Which.
        teacher: The velocity v_T, called with (x, t, **condition), or any score; for ``distil``.
        grid: Times of the teacher's states; for ``mid_training``.
        shift: Of times, towards noise above 1.
        mean: Of the logit of times before the shift.
        std: Likewise.
        off_diagonal: Share of rows with r below t.
        derivative: ``None`` for central differences of 5e-3, the paper's.
        constant: c.
        condition_dropout: Probability of a row to have the null condition; .1 in the paper.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective of the stage.

    Raises:
        ArgumentError: A value that is not allowed, or a stage without what it needs.
    """
    adapter, path = adapted(network, times="t_gap"), RectifiedFlow()
    if stage == "mid_training":
        if not isinstance(grid, Grid):
            raise argument_error("grid", grid, "the grid of the teacher's states")
        return FlowMap(
            adapter,
            path=path,
            states=TeacherPath(grid),
            residual=Endpoint(),
            pairs=AnyPair(tuple(grid.times.tolist())),
            condition_dropout=condition_dropout,
            seed=seed,
        )
    if stage not in ("distil", "tune"):
        raise argument_error("stage", stage, "'mid_training', 'distil' or 'tune'")
    if stage == "distil" and teacher is None:
        raise argument_error("teacher", None, "a network or a score: only 'tune' does without")
    return FlowMap(
        adapter,
        path=path,
        source=Data() if stage == "tune" or teacher is None else teacher_score(teacher, "velocity"),
        residual=Eulerian(Central(5e-3) if derivative is None else derivative),
        pairs=Triangle(diagonal=1 - off_diagonal, law=Shifted(LogitNormal(mean, std), shift)),
        metric=_fourth,
        balance=AdaptivePower(1.0, constant),
        condition_dropout=condition_dropout,
        seed=seed,
    )


def _fourth(prediction: Tensor, target: Tensor) -> Tensor:
    return SquaredError("sum")(prediction, target).square()
