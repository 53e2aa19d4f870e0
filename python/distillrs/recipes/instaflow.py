"""InstaFlow: straighten a flow, then take one step of it."""

from __future__ import annotations

from typing import Literal

from torch import nn

from distillrs.diffusion import Data, Diagonal, Endpoint, FlowMap, Metric, NetworkAdapter, NoisedData
from distillrs.errors import argument_error
from distillrs.recipes._maps import adapted
from distillrs.registry import recipe
from distillrs.schedule import Neighbouring, RectifiedFlow, Triangle, Uniform


@recipe(
    id="instaflow",
    source="Liu, Zhang, Ma, Peng, Liu: InstaFlow: One Step is Enough for High-Quality Diffusion-Based Text-to-Image "
    "Generation, ICLR 2024",
    equation="reflow: |v(x_t, t) - (z - x)|^2 on pairs x = ODE(z); distil: |z - v(z, 1) - x|^2 on pairs of the reflow",
    deviations=[
        "Time runs from data at 0; the paper's from noise.",
        "The last stage's metric is the squared error unless another is given: LPIPS needs a pretrained network.",
    ],
    engine="diffusion",
)
def instaflow(
    network: nn.Module | NetworkAdapter,
    stage: Literal["reflow", "distil"] = "reflow",
    metric: Metric | None = None,
    seed: int = 0,
) -> FlowMap:
    """One stage of InstaFlow, on pairs of noise and what a teacher makes of it: ``Batch(x0, noise=noise)``.

    - ``reflow``: the pairs are the teacher's; regression onto the straight line between them gives a flow whose
      coupling costs less to transport. ``E|v(t z + (1 - t) x, t) - (z - x)|^2``.
    - ``distil``: the pairs are the reflow's own; one step is to arrive. ``E d(z - v(z, 1), x)``.

    Labels, guidance and flips must stay with both sides of a pair. Distilling without a reflow fails: the coupling is
    too tangled for one step.

    Args:
        network: v, called with (x, t, **condition); it begins as the teacher, then as the reflow.
        stage: Which.
        metric: d of the second stage; ``None`` for the squared error.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective of the stage.

    Raises:
        ArgumentError: Another stage.
    """
    if stage not in ("reflow", "distil"):
        raise argument_error("stage", stage, "'reflow' or 'distil'")
    adapter = adapted(network, times="t")
    if stage == "reflow":
        return FlowMap(
            adapter,
            path=RectifiedFlow(),
            states=NoisedData(coupled=True),
            residual=Diagonal(Data()),
            pairs=Triangle(diagonal=1.0, diagonal_law=Uniform()),
            seed=seed,
        )
    return FlowMap(
        adapter,
        path=RectifiedFlow(),
        states=NoisedData(coupled=True),
        residual=Endpoint(space="state"),
        pairs=Neighbouring((0.0, 1.0)),
        metric=metric,
        seed=seed,
    )
