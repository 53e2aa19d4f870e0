"""`check_divergence` passes what is right and sees what is not; the strategies give what they say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import ops
from distillrs.testing import check_divergence, strategies


@pytest.mark.parametrize(
    "divergence",
    [
        ops.ForwardKL(),
        ops.ReverseKL(),
        ops.JensenShannon(0.2),
        ops.SkewKL(0.3),
        ops.SkewReverseKL(0.3),
        ops.TotalVariation(),
        ops.Alpha(2.0),
        ops.Alpha(-0.5),
        ops.Mixture({ops.ForwardKL(): torch.linspace(0, 1, 6), ops.ReverseKL(): 0.5}),
    ],
    ids=str,
)
def test_the_built_in_divergences_pass(divergence):
    check_divergence(divergence)


class WrongSlope(ops.ReverseKL):
    def derivative(self, log_p, log_q):
        return log_q.exp() * (log_q - log_p)


class NotZero(ops.ForwardKL):
    """A cross-entropy: the right gradient, the wrong value."""

    def value(self, log_p, log_q):
        return -log_p.exp() * log_q


class Negative(ops.ForwardKL):
    def value(self, log_p, log_q):
        return -super().value(log_p, log_q)

    def derivative(self, log_p, log_q):
        return -super().derivative(log_p, log_q)


class WrongShape(ops.ForwardKL):
    def derivative(self, log_p, log_q):
        return super().derivative(log_p, log_q).sum(-1)


@pytest.mark.parametrize(
    ("divergence", "message"),
    [
        (WrongSlope(), "differs from finite differences of the value"),
        (NotZero(), "equal rows have a divergence"),
        (Negative(), "a divergence of -"),
        (WrongShape(), "the derivative has shape"),
    ],
)
def test_mistakes_are_seen(divergence, message):
    with pytest.raises(AssertionError, match=message):
        check_divergence(divergence)


@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_strategies_give_rows(data, dtype):
    rows = data.draw(strategies.logits(2, 3, 7, dtype=dtype))
    assert rows.shape == (2, 3, 7)
    assert rows.dtype == dtype
    assert (rows.amax(-1) > -math.inf).all()
    topk = data.draw(strategies.top_k(4, 7, temperatures=(2.0,)))
    assert topk.ids.shape[0] == 4
    for each in (topk, topk.at(2.0)):
        total = each.log_probs.exp().sum(-1) + each.tail_log_mass.exp()
        torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64))
