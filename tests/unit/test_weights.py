import math

import pytest
import torch

from distillrs import random
from distillrs.errors import ArgumentError
from distillrs.schedule import (
    EDM,
    VP,
    MinSNR,
    PreconditionedWeight,
    RectifiedFlow,
    SigmoidWeight,
    Trig,
    TruncatedSNR,
    UniformWeight,
    error_scale,
)  # fmt: skip

PATHS = [EDM(), VP(), RectifiedFlow(), Trig(0.5)]
KINDS = ["x0", "noise", "v", "velocity", "score"]
WEIGHTS = [TruncatedSNR(), MinSNR(), SigmoidWeight(), PreconditionedWeight(), UniformWeight("velocity")]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_a_weight_gives_one_loss_whatever_is_compared(path, weight):
    x, one, other = (random.normal(4, 3, step=0, name=name, dtype=torch.float64) for name in "xab")
    t = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64)
    losses = []
    for kind in KINDS:
        error = path.convert(one, x, t, kind="x0", to=kind) - path.convert(other, x, t, kind="x0", to=kind)
        losses.append(weight.at(path, t, kind) * error.square().sum(1))
    for loss in losses[1:]:
        assert torch.allclose(loss, losses[0], rtol=1e-9)


def test_published_weights():
    path, t = VP(), torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    snr = alpha**2 / sigma**2
    assert torch.allclose(TruncatedSNR().at(path, t), torch.maximum(snr, torch.ones_like(snr)))
    assert torch.allclose(MinSNR().at(path, t, "noise"), torch.minimum(snr, torch.full_like(snr, 5.0)) / snr)
    assert torch.allclose(SigmoidWeight(1.5).at(path, t, "noise"), torch.sigmoid(1.5 - snr.log()))
    assert torch.allclose(UniformWeight("noise").at(path, t), snr)
    assert torch.allclose(UniformWeight("noise").at(path, t, "noise"), torch.ones_like(t))
    # The velocity of a rectified flow is (x - x0) / t.
    assert torch.allclose(UniformWeight("velocity").at(RectifiedFlow(), t), t**-2)
    sigma = EDM().sigma(t)
    assert torch.allclose(PreconditionedWeight().at(EDM(), t), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    assert torch.allclose(PreconditionedWeight().at(EDM(), t, "F"), torch.ones_like(t))
    assert torch.allclose(error_scale(EDM(), t, kind="noise", to="x0"), -sigma)


def test_weights_are_finite_where_their_loss_is():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(SigmoidWeight().at(EDM(), ends)[0]) == pytest.approx(math.exp(2))
    assert MinSNR().at(RectifiedFlow(), ends).tolist() == [5.0, 0.0]
    assert TruncatedSNR().at(RectifiedFlow(), ends)[1] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UniformWeight("epsilon"), "kind.*'epsilon'"),
        (lambda: MinSNR(0.0), "^ceiling: got 0.0"),
        (lambda: TruncatedSNR(-1.0), "^floor: got -1.0"),
        (lambda: SigmoidWeight(math.nan), "^bias: got nan"),
        (lambda: MinSNR().at(EDM(), 1.5), "^t: got 1.5"),
        (lambda: MinSNR().at(EDM(), 0.5, "epsilon"), "kind.*'epsilon'"),
        (lambda: UniformWeight("F").at(VP(), 0.5), "^kind: got 'F'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
