"""Heads, maps and adapters on random paths and times."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distillrs import random
from distillrs.diffusion import (
    AverageVelocity,
    Batch,
    Central,
    Eulerian,
    FlowMap,
    Jump,
    Lagrangian,
    Network,
    Semigroup,
    Solver,
    StateMap,
    Teacher,
)  # fmt: skip
from distillrs.evaluate.beds import Gaussian
from distillrs.schedule import EDM, VP, RectifiedFlow, SubVP, Triangle, Trig, Uniform
from distillrs.step import Step

PATHS = st.one_of(
    st.builds(EDM, st.floats(1, 80), st.floats(0.2, 2)),
    st.builds(Trig, st.floats(0.2, 2)),
    st.sampled_from([RectifiedFlow(), VP(), VP.cosine(), SubVP()]),
)
HEADS = st.one_of(
    st.just(AverageVelocity()), st.builds(Jump, st.sampled_from(["x0", "noise", "v", "velocity", "score"]))
)
TIMES = st.floats(0.05, 0.95)


def normal(name, *shape):
    return random.normal(shape[0], *shape[1:], step=0, name=name, dtype=torch.float64)


class Constant(nn.Module):
    """A network that says the same whatever it is asked."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x, *times):
        return self.value + 0 * x


@given(PATHS, HEADS, TIMES, TIMES)
def test_maps_are_the_identity_on_the_diagonal_and_leave_it_with_their_velocity(path, head, t, r):
    x, output = normal("x", 4, 2), normal("f", 4, 2)
    student = StateMap(Network(Constant(output)), path, head)
    times = torch.full((4,), t, dtype=torch.float64)
    assert torch.allclose(student(x, times, times), x, rtol=1e-9, atol=1e-9 * float(1 + output.abs().max()))
    one = torch.ones_like(times)
    _, slope = torch.func.jvp(lambda r: student.join(output, x, times, r), (times,), (one,))
    velocity = student.predict(x, times).value
    scale = float(1 + velocity.abs().max())
    assert torch.allclose(slope, velocity, rtol=1e-6, atol=1e-8 * scale)
    back = head.output_of_velocity(path, velocity, x, times)
    assert torch.allclose(back, output, rtol=1e-5, atol=1e-6 * scale)
    ends = torch.full((4,), r, dtype=torch.float64)
    if isinstance(head, Jump) and head.kind != "score":
        # The state at r of the data and the noise that the prediction claims.
        claimed = [path.convert(output, x, t, kind=head.kind, to=kind) for kind in ("x0", "noise")]
        expected = path.corrupt(*claimed, r)
        scale = float(1 + sum(part.abs().max() for part in claimed)) * float(1 + path.sigma(r))
        assert torch.allclose(student(x, times, ends), expected, rtol=1e-6, atol=1e-7 * scale)


@given(PATHS, st.floats(-2, 2), st.floats(0.3, 2), st.integers(0, 100), st.sampled_from(["jvp", "central", "solver"]))
def test_residuals_of_the_flow_of_any_gaussian_vanish(path, mean, deviation, seed, mode):
    bed = Gaussian((mean,), (deviation,))

    class Exact(nn.Module):
        def forward(self, x, t, r):
            gap = torch.where(t == r, torch.full_like(t, 1e-3), t - r)
            r = t - gap
            return (bed.flow(x, t, r, path) - x) / (r - t)[:, None]

    derivative = {"jvp": {}, "central": {"derivative": Central(1e-4)}, "solver": {"derivative": Solver(0.005, "heun")}}
    for residual in (Eulerian(**derivative[mode]), Lagrangian(**derivative[mode]), Semigroup()):
        objective = FlowMap(
            Network(Exact()), path=path, source=bed.on(path), residual=residual,
            pairs=Triangle(diagonal=0.0, law=Uniform(0.1, 0.9)),
        )  # fmt: skip
        batch = Batch(bed.sample(8, step=Step(0, seed=seed)))
        loss = float(objective(batch, Step(1, seed=seed)).terms["loss"])
        scale = 1 + float(path.sigma(1.0)) ** 2 + float(path.sigma_derivative(0.1)) ** 2
        assert loss <= 1e-6 * scale * (1 + mean**2)


@given(PATHS, st.sampled_from(["x0", "noise", "v", "velocity"]), TIMES, TIMES)
def test_a_ddim_step_is_the_same_whatever_the_teacher_predicts(path, kind, one, other):
    t, r = max(one, other), min(one, other)
    x, x0 = normal("x", 3, 2), normal("x0", 3, 2)
    times, ends = (torch.full((3,), value, dtype=torch.float64) for value in (t, r))
    value = path.convert(x0, x, t, kind="x0", to=kind)
    score = Teacher(Network(Constant(value), times="t"), kind)
    found = Solver().advance(score, path, x, times, ends, None)
    noise = path.convert(x0, x, t, kind="x0", to="noise")
    expected = path.corrupt(x0, noise, r)
    scale = float(1 + value.abs().max() + noise.abs().max()) * float(1 + path.sigma(1.0))
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-8 * scale)
