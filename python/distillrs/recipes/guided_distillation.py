"""Guided diffusion models: guidance into the network, then steps out of the sampler."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.diffusion import Diagonal, FlowMap, Guided, Jump, NetworkAdapter, Score, Weighted
from distillrs.errors import argument_error
from distillrs.random import Units
from distillrs.recipes._maps import adapted, teacher_score
from distillrs.recipes.progressive_distillation import progressive_distillation
from distillrs.registry import recipe
from distillrs.schedule import VP, Kind, Path, Triangle, TruncatedSNR, Uniform
from distillrs.step import Step


@recipe(
    id="guided-distillation",
    source="Meng, Rombach, Gao, Kingma, Ermon, Ho, Salimans: On Distillation of Guided Diffusion Models, CVPR 2023",
    equation="max(SNR, 1) |x_eta(z_t, c, w) - sg((1 + w) x_T(z_t, c) - w x_T(z_t))|^2, w ~ U[0, 4]; then two "
    "DDIM steps of the student before in one",
    deviations=["The cosine path is Nichol and Dhariwal's with its offset of .008; the paper's has none."],
    engine="diffusion",
)
def guided_distillation(
    network: nn.Module | NetworkAdapter,
    teacher: nn.Module | NetworkAdapter | Score,
    stage: Literal["guidance", "halving"] = "guidance",
    sampling_steps: int = 4,
    name: str = "guidance",
    path: Path | None = None,
    kind: Kind = "v",
    seed: int = 0,
) -> FlowMap:
    """One stage of the distillation of a guided teacher. The student takes the guidance w as a condition.

    - ``guidance``: one call of the student is to equal the two of the guided teacher, ``(1 + w) c - w u``. The batch
      brings each row's w (:func:`guidance_scales`) and a null condition for the teacher::

          Batch(x0, {"label": label, "guidance": guidance_scales(len(x0), step)}, {"label": none})

    - ``halving``: a round of progressive distillation; the teacher is the student of the stage before and takes w, too.

    Samples are drawn with ``method="ode"`` or, anew at every step, ``method="stochastic"``.

    Args:
        network: The student, called with (x, t, guidance=w, **condition).
        teacher: Called with (x, t, **condition) in the first stage, as the student in the second; or any score.
        stage: Which.
        sampling_steps: N of a halving: the student's number of steps.
        name: Of the condition's entry that holds w.
        path: ``None`` for the cosine.
        kind: What the networks predict.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective of the stage.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    if stage == "halving":
        return progressive_distillation(network, teacher, sampling_steps, path, kind, seed)
    if stage != "guidance":
        raise argument_error("stage", stage, "'guidance' or 'halving'")
    return FlowMap(
        adapted(network, times="t"),
        path=VP.cosine() if path is None else path,
        head=Jump(kind),
        source=Guided(teacher_score(teacher, kind), name, "from_conditional"),
        residual=Diagonal(),
        pairs=Triangle(diagonal=1.0, diagonal_law=Uniform()),
        balance=Weighted(TruncatedSNR(), kind),
        seed=seed,
    )


def guidance_scales(
    units: Units, step: Step | int, low: float = 0.0, high: float = 4.0, device: torch.device | str | None = None
) -> Tensor:
    """A guidance for each row, every one of a range equally likely.

    Args:
        units: Number of rows, or their global ids.
        step: Where in the run.
        low: Least w, in the convention ``c + w (c - u)``.
        high: Greatest.
        device: Of the result.

    Returns:
        float32 ``[n]``.

    Raises:
        ArgumentError: A range that is none.
    """
    if not 0 <= low <= high < float("inf"):
        raise argument_error("high", (low, high), "0 <= low <= high, finite")
    share = random.uniform(units, step=step, name="guidance", dtype=torch.float64)
    return (low + (high - low) * share).to(device=device, dtype=torch.float32)
