import pytest
import torch

from distillrs import random
from distillrs.errors import ArgumentError
from distillrs.schedule import EDM, RectifiedFlow, guide

C, U = (random.normal(3, 2, step=0, name=name, dtype=torch.float64) for name in "cu")


def test_the_two_conventions_differ_by_one():
    for scale in (0.0, 1.0, 7.5):
        expected = (1 - scale) * U + scale * C
        assert torch.allclose(guide(C, U, scale), expected)
        assert torch.allclose(guide(C, U, scale - 1, "from_conditional"), expected)
    scales = torch.tensor([0.0, 1.0, 4.0])
    assert torch.allclose(guide(C, U, scales)[2], 4 * C[2] - 3 * U[2])
    assert guide(C.half(), U.half(), 2.0).dtype == torch.float16


@pytest.mark.parametrize("path", [RectifiedFlow(), EDM()], ids=str)
def test_every_kind_is_guided_alike(path):
    x, t = random.normal(3, 2, step=0, name="x", dtype=torch.float64), 0.4
    told = lambda value: path.convert(value, x, t, kind="x0", to="velocity")
    assert torch.allclose(told(guide(C, U, 3.0)), guide(told(C), told(U), 3.0))


def test_an_unknown_convention_is_refused_by_name():
    with pytest.raises(ArgumentError, match=r"convention.*'cfg'"):
        guide(C, U, 2.0, "cfg")
