"""The objective's promises, its refusals, and what public implementations stumbled over."""

import math

import pytest
import torch
from torch import nn

from distillrs import random
from distillrs.diffusion import (
    JVP,
    AdaptivePower,
    Averaged,
    AverageVelocity,
    Batch,
    Central,
    ConsistencyBoundary,
    Cosine,
    Data,
    Diagonal,
    DiffusersNetwork,
    Endpoint,
    Eulerian,
    FlowMap,
    Guided,
    InKinds,
    Jump,
    KindMetric,
    Lagrangian,
    LatentBoundary,
    LogVariance,
    MaskNonFinite,
    Network,
    OnAndOff,
    PriorOnly,
    PseudoHuber,
    Self,
    Semigroup,
    Solver,
    SquaredError,
    StateMap,
    TangentNormalisation,
    Teacher,
    TeacherPath,
    Translated,
    Weighted,
    sample,
)  # fmt: skip
from distillrs.diffusion.randomness import Replay
from distillrs.errors import ArgumentError
from distillrs.evaluate.beds import Gaussian
from distillrs.frozen import Frozen
from distillrs.schedule import (
    EDM,
    VP,
    Adjacent,
    AnyPair,
    FromNoise,
    Grid,
    MinSNR,
    Neighbouring,
    RectifiedFlow,
    Residual,
    Segments,
    Times,
    Triangle,
    Uniform,
    WithDiagonal,
    spaced,
)  # fmt: skip
from distillrs.step import Step

PATH = RectifiedFlow()
X0 = random.normal(16, 3, step=0, name="x0", dtype=torch.float64)
TEACHER = Gaussian((0.0, 0.5, 1.0), (1.0, 0.5, 0.7)).on(PATH)
PAIRS = Triangle(diagonal=0.25, law=Uniform(0.1, 0.9))


class Net(nn.Module):
    def __init__(self, dropout=0.0, dtype=torch.float64, times=2):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(3 + times, 32, dtype=dtype), nn.Linear(32, 3, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, *times, label=None):
        hidden = torch.tanh(self.first(torch.cat([x, torch.stack(times, 1)], 1)))
        if label is not None:
            hidden = hidden * (1 + label[:, None].to(hidden.dtype))
        return self.last(self.dropout(hidden))


def build(network=None, **changes):
    settings = {"path": PATH, "source": TEACHER, "residual": Eulerian(), "pairs": PAIRS} | changes
    return FlowMap(Network(network or Net()), **settings)


def test_it_owns_no_network_and_its_turn_is_the_students():
    network = Net()
    objective = build(network, source=Teacher(Network(Frozen(Net(times=1)), times="t"), "velocity"))
    assert list(objective.parameters()) == []
    assert objective.state_dict() == {}
    assert objective.turns(0) == ("student",)
    assert objective.parameter_groups() == {"student": list(network.parameters())}
    learned = build(network, balance=[LogVariance()])
    assert set(learned.parameter_groups()) == {"student", "balance"}
    assert len(list(learned.parameters())) == 2
    with pytest.raises(ArgumentError, match=r"^turn: got 'critic'"):
        objective(Batch(X0), 0, turn="critic")


@pytest.mark.parametrize(
    "residual",
    [
        Eulerian(),
        Semigroup(middle="uniform"),
        OnAndOff(Diagonal(), Lagrangian()),
        OnAndOff(Diagonal(), Semigroup(middle="uniform")),
    ],
)
def test_micro_batches_add_up_to_the_batch(residual):
    """The draws belong to global rows, and items normalises."""
    objective = build(residual=residual)
    whole = objective(Batch(X0), Step(3, seed=5)).total
    parts = [
        objective(Batch(X0[start : start + 8]), Step(3, seed=5, first_unit=start, items=16)).total for start in (0, 8)
    ]
    assert float(sum(parts).detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    assert float(build(residual=residual, seed=5)(Batch(X0), 3).total.detach()) == float(whole.detach())


def test_a_wrapped_student_is_called_in_the_networks_place():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return self.inner(*args, **kwargs)

    network = Net()
    objective, wrapped = build(network, residual=Diagonal()), Wrapped(network)
    expected = objective(Batch(X0), 1)
    assert float(objective(Batch(X0), 1, student=wrapped).total.detach()) == float(expected.total.detach())
    assert wrapped.calls == 1


@pytest.mark.parametrize("residual", [Eulerian(Central(1e-4)), Lagrangian(Central(1e-4))])
def test_dropout_is_the_same_in_every_call_of_a_difference(residual):
    """Otherwise the derivative is noise: it grows as the step shrinks."""
    network = Net(dropout=0.5).train()
    losses = {}
    for name, derivative in (("difference", residual.derivative), ("exact", JVP())):
        torch.manual_seed(7)
        losses[name] = build(network, residual=type(residual)(derivative))(Batch(X0), 2)
    assert float(losses["difference"].total.detach()) == pytest.approx(float(losses["exact"].total.detach()), rel=1e-4)


def test_dropout_is_the_same_in_student_and_target():
    network = Net(dropout=0.5).train()
    objective = build(network, residual=Eulerian(Solver(1e-5)))
    assert float(objective(Batch(X0), 2).terms["loss"]) < 1e-7
    torch.manual_seed(3)
    objective(Batch(X0), 2)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    network(X0, X0[:, 0], X0[:, 0])
    assert torch.equal(torch.get_rng_state(), after)


def test_targets_carry_no_gradient():
    """Of every residual: the gradient is that of the metric at a constant target."""
    for residual in (Eulerian(), Eulerian(Solver(0.1)), Lagrangian(), Semigroup(), Eulerian(scale="state")):
        network, kept = Net(), []

        def metric(prediction, target, kept=kept):
            kept.append(target)
            return SquaredError()(prediction, target)

        build(network, residual=residual, metric=metric)(Batch(X0), 0).total.backward()
        assert not kept[0].requires_grad
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_half_precision_computes_its_tangent_in_single():
    network = Net(dtype=torch.bfloat16)
    kept = []

    def metric(prediction, target):
        kept.append(target.dtype)
        return SquaredError()(prediction, target)

    objective = build(network, source=Data(), metric=metric)
    loss = objective(Batch(X0.bfloat16()), 0)
    assert kept == [torch.float32]
    assert bool(loss.total.isfinite())


def test_the_boundaries_of_consistency_models():
    """The published coefficients, the identity at the least level, and both limits of the latent one."""
    path, head = EDM(), ConsistencyBoundary(0.002)
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    t = path.time_of_sigma(sigma)
    state, network = head.weights(path, t, t)
    assert torch.allclose(state, 0.25 / ((sigma - 0.002) ** 2 + 0.25))
    assert torch.allclose(network, 0.5 * (sigma - 0.002) / (sigma**2 + 0.25).sqrt())
    assert (float(state[0]), float(network[0])) == (1.0, 0.0)
    vp, latent = VP.betas(), LatentBoundary("noise")
    t = torch.tensor([0.0, 1e-6, 0.001, 0.5, 1.0], dtype=torch.float64)
    state, network = latent.weights(vp, t, t)
    plain = Jump("noise").weights(vp, t, torch.zeros_like(t))
    scaled = 10_000 * t
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
    assert torch.allclose(state[1:], (skip + out * plain.state)[1:])
    assert (float(state[0]), float(network[0])) == (1.0, 0.0)
    # One row of a thousand from the data it is within a part in four hundred of the plain prediction.
    assert torch.allclose(network[2:], plain.network[2:], rtol=2e-3)
    assert torch.allclose(state[2:], plain.state[2:], rtol=3e-3)
    near = float(vp.sigma(1e-6))
    assert abs(float(network[1])) < 0.03 * near


def test_metrics():
    first, second = X0.reshape(16, 3, 1), X0.flip(0).reshape(16, 3, 1)
    squares = (first - second).square().flatten(1)
    assert torch.allclose(SquaredError()(first, second), squares.mean(1))
    assert torch.allclose(SquaredError("sum")(first, second), squares.sum(1))
    c = 0.00054 * math.sqrt(3)
    assert torch.allclose(PseudoHuber()(first, second), (squares.sum(1) + c * c).sqrt() - c)
    linear = PseudoHuber(growth="linear", reduction="mean")(first, second)
    assert torch.allclose(linear, ((squares.sum(1) + (0.00054 * 3) ** 2).sqrt() - 0.00054 * 3) / 3)
    assert torch.allclose(Cosine()(first, 3 * first), torch.zeros(16, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(Cosine()(first, -first), torch.full((16,), 2.0, dtype=torch.float64))
    tiny = torch.full((1, 3), 1e-9, dtype=torch.float64)
    assert float(PseudoHuber()(tiny, 0 * tiny)) == pytest.approx(3e-18 / (2 * c), rel=1e-6)


def test_the_tangents_norm_is_divided_or_not():
    tangent = X0 * torch.logspace(-3, 3, 16, dtype=torch.float64)[:, None]
    norm = tangent.norm(dim=1, keepdim=True)
    assert torch.allclose(TangentNormalisation(0.1).tangent(tangent), tangent / (norm + 0.1))
    divided = TangentNormalisation(0.1, per_element=True).tangent(tangent)
    assert torch.allclose(divided, tangent / (norm / math.sqrt(3) + 0.1))


def test_the_unweighted_loss_is_always_reported():
    plain = build()(Batch(X0), 4)
    rules = [Weighted(MinSNR(), "velocity"), AdaptivePower(0.5), LogVariance()]
    weighted = build(balance=rules)(Batch(X0), 4)
    assert float(weighted.terms["loss"]) == pytest.approx(float(plain.total.detach()))
    assert float(weighted.terms["weighted"]) == pytest.approx(float(weighted.total.detach()))
    assert float(weighted.terms["weighted"]) != pytest.approx(float(plain.total.detach()))
    uniform = build(balance=Weighted(lambda rows: 2 + 0 * rows.t))(Batch(X0), 4)
    assert float(uniform.total.detach()) == pytest.approx(2 * float(plain.total.detach()))


def test_learned_weights_start_as_none_and_learn_the_logarithm_of_the_loss():
    torch.manual_seed(0)
    network, rule = Net(), LogVariance()
    objective = build(network, balance=[rule])
    plain = build(network)
    assert float(objective(Batch(X0), 1).total.detach()) == pytest.approx(float(plain(Batch(X0), 1).total.detach()))
    optimiser = torch.optim.Adam(rule.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        objective(Batch(X0), 1).total.backward()
        optimiser.step()
    kept = []
    build(network, metric=lambda a, b: kept.append(SquaredError()(a, b)) or kept[0])(Batch(X0), 1)
    # At w = log L every row's loss is 1 + log L, and nothing is below that.
    least = float((1 + kept[0].detach().log()).mean())
    assert least - 1e-6 <= float(objective(Batch(X0), 1).total.detach()) < least + 0.3


def test_rows_that_are_not_finite_are_masked_and_counted():
    class Broken(Net):
        def forward(self, x, *times):
            value = super().forward(x, *times)
            return torch.where((x[:, :1] > 0.5), value / 0, value)

    network = Broken()
    bad = build(network)(Batch(X0), 0)
    assert not bool(bad.total.isfinite())
    objective = build(network, balance=[MaskNonFinite(), TangentNormalisation()])
    loss = objective(Batch(X0), 0)
    assert bool(loss.total.isfinite())
    assert 0 < float(loss.terms["masked"]) < 1
    assert bool(loss.terms["loss"].isfinite())


def test_the_masked_rows_leave_the_others_gradient():
    class SpoiltScore:
        def predict(self, x, t, condition=None):
            value, kind = TEACHER.predict(x, t)
            value = value.clone()
            value[3] = math.nan
            return type(TEACHER.predict(x, t))(value, kind)

    one, other = Net(), Net()
    build(one, source=SpoiltScore(), balance=MaskNonFinite())(Batch(X0), 0).total.backward()
    keep = torch.arange(16) != 3
    times = PAIRS.draw(16, step=0)
    full = build(other, metric=lambda a, b: SquaredError()(a, b) * keep)(Batch(X0), 0)
    full.total.backward()
    assert times.t.shape == (16,)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(first.grad, second.grad, rtol=1e-9, atol=1e-12)


def test_sources_give_the_velocity_they_name():
    """Data, teacher, self and average on the diagonal, each against its formula."""
    network, average = Net(), Net()
    nn.init.normal_(average.last.weight)
    times = PAIRS.draw(16, step=0, name="t")
    t = times.t[:, None]
    noise = random.normal(16, 3, step=0, name="noise", dtype=torch.float64)
    x = (1 - t) * X0 + t * noise
    own = network(x, times.t, times.t).detach()
    cases = {
        Data(): noise - X0,
        TEACHER: TEACHER.velocity(x, times.t),
        Self(): own,
        Averaged(Network(average)): average(x, times.t, times.t).detach(),
    }
    for source, velocity in cases.items():
        kept = []
        build(
            network,
            source=source,
            residual=Diagonal(),
            metric=lambda a, b, kept=kept: kept.append(b) or SquaredError()(a, b),
        )(Batch(X0), 0)
        assert torch.allclose(kept[0], velocity, rtol=1e-9, atol=1e-12), source


@pytest.mark.parametrize(("scale", "convention"), [(3.0, "from_unconditional"), (2.0, "from_conditional")])
def test_guidance_is_converted_by_name_and_needs_one_call(scale, convention):
    calls = []

    class Labelled:
        def predict(self, x, t, condition=None):
            calls.append(len(x))
            value, kind = TEACHER.predict(x, t)
            return type(TEACHER.predict(x, t))(value + condition["label"][:, None], kind)

    label, none = torch.ones(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    kept = []
    objective = build(
        residual=Diagonal(), source=Guided(Labelled(), scale, convention),
        metric=lambda a, b: kept.append(b) or SquaredError()(a, b),
    )  # fmt: skip
    objective(Batch(X0, {"label": label}, {"label": none}), 0)
    assert calls == [32]
    times = PAIRS.draw(16, step=0, name="t").t
    noise = random.normal(16, 3, step=0, name="noise", dtype=torch.float64)
    x = PATH.corrupt(X0, noise, times)
    expected = PATH.convert(TEACHER.predict(x, times).value + 3.0, x, times, kind="x0", to="velocity")
    assert torch.allclose(kept[0], expected, rtol=1e-9)
    alone = Guided(Labelled(), scale, convention, null={"label": none})
    assert torch.allclose(alone.predict(x, times, {"label": label}).value, TEACHER.predict(x, times).value + 3.0)


@pytest.mark.parametrize("head", [AverageVelocity(), Jump("noise"), Jump("velocity")], ids=str)
@pytest.mark.parametrize("residual", [Eulerian(), Lagrangian()], ids=["eulerian", "lagrangian"])
def test_the_target_is_the_output_that_solves_the_residual(head, residual):
    """With a network that is constant dF/dt = 0, and the target solves a linear equation."""
    path = EDM(5.0)
    bed = Gaussian((0.0, 0.5, 1.0), (1.0, 0.5, 0.7))
    value, kept = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), []

    class Constant(nn.Module):
        def forward(self, x, t, r):
            return value + 0 * x

    build(
        Constant(), path=path, head=head, residual=residual, source=bed.on(path),
        metric=lambda a, b: kept.append(b) or SquaredError()(a, b),
    )(Batch(X0), 0)  # fmt: skip
    times = PAIRS.draw(16, step=0, name="t")
    t, r, h = times.t, times.r, 1e-6
    x = path.corrupt(X0, random.normal(16, 3, step=0, name="noise", dtype=torch.float64), t)
    state, network = (weight[:, None] for weight in head.weights(path, t, r))
    moved = (t + h, r) if isinstance(residual, Eulerian) else (t, r + h)
    back = (t - h, r) if isinstance(residual, Eulerian) else (t, r - h)
    state_rate, network_rate = (
        (high - low)[:, None] / (2 * h)
        for high, low in zip(head.weights(path, *moved), head.weights(path, *back), strict=True)
    )
    if isinstance(residual, Eulerian):
        rate = state * bed.on(path).velocity(x, t) + state_rate * x + network_rate * kept[0]
    else:
        rate = state_rate * x + network_rate * kept[0] - bed.on(path).velocity(state * x + network * value, r)
    assert float(rate.abs().max()) < 1e-6 * float(1 + kept[0].abs().max()) * 25


def test_differences_at_the_ends_of_time_are_of_the_steps_that_were_taken():
    function = lambda x, t, r: t[:, None] * x + 2 * r[:, None] * x
    t = torch.tensor([1.0, 0.999, 0.5, 0.002], dtype=torch.float64)
    r = torch.tensor([0.0, 0.001, 0.4, 0.0], dtype=torch.float64)
    x, zero, module = X0[:4], torch.zeros(4, dtype=torch.float64), Net()
    replay = Replay(module, x.device)
    for direction, rate in (
        ((0 * x, zero + 1, zero), x),
        ((0 * x, zero, zero + 1), 2 * x),
        ((x, zero + 1, zero), None),
    ):
        found = Central(5e-3).along(function, (x, t, r), direction, module, replay, False)
        assert torch.allclose(found.value, function(x, t, r))
        if rate is not None:
            assert torch.allclose(found.slope, rate, rtol=1e-9)
        else:
            exact = JVP().along(function, (x, t, r), direction, module, replay, False)
            assert torch.allclose(found.slope[1:3], exact.slope[1:3], atol=0.02)


def test_rows_keep_their_conditions_when_the_diagonal_is_split_off():
    network = Net()
    label, none = torch.arange(16), torch.full((16,), 20) + torch.arange(16)
    losses = []
    for null in (None, {"label": none}):
        objective = build(
            network, residual=OnAndOff(Diagonal(), Eulerian()), source=Guided(Data(), 2.0, null=null),
            condition_dropout=0.3,
        )  # fmt: skip
        losses.append(objective(Batch(X0, {"label": label}, {"label": none}), 3))
    # Off the diagonal and on it the Eulerian residual is one and the same.
    whole = build(network, residual=Eulerian(), source=Guided(Data(), 2.0), condition_dropout=0.3)
    losses.append(whole(Batch(X0, {"label": label}, {"label": none}), 3))
    for loss in losses[1:]:
        assert float(loss.total.detach()) == pytest.approx(float(losses[0].total.detach()), rel=1e-9)


def test_coupled_noise_is_the_batchs_own():
    noise = random.normal(16, 3, step=9, name="mine", dtype=torch.float64)
    kept = []
    objective = build(
        residual=Endpoint(space="state"), source=None, metric=lambda a, b: kept.append(b) or SquaredError()(a, b)
    )
    objective(Batch(X0, noise=noise), 0)
    r = PAIRS.draw(16, step=0, name="t").r[:, None]
    assert torch.allclose(kept[0], (1 - r) * X0 + r * noise)


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Doubling(nn.Module):
    def forward(self, x):
        return Custom.apply(x)


class Attention(nn.Module):
    def forward(self, x):
        heads = x[:, None, None, :]
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0, 0]


@pytest.mark.parametrize("part", [Doubling(), Attention()], ids=["function", "attention"])
def test_a_part_without_a_forward_derivative_is_named_with_the_remedy(part):
    class Outer(Net):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Identity(), part)

        def forward(self, x, *times):
            return self.block(super().forward(x, *times))

    network = Outer()
    with pytest.raises(ArgumentError, match=rf"^network: got 'block.1 \({type(part).__name__}\).*Central"):
        build(network)(Batch(X0), 0)
    assert bool(build(network, residual=Eulerian(Central(1e-3)))(Batch(X0), 0).total.isfinite())


def test_other_failures_of_a_network_are_its_own():
    class Failing(Net):
        def forward(self, x, *times):
            raise RuntimeError("out of something")

    with pytest.raises(RuntimeError, match="out of something"):
        build(Failing())(Batch(X0), 0)


GRID = spaced(4, PATH)
BOUNDARY = {"path": EDM(), "head": ConsistencyBoundary(), "source": Gaussian((0.0,) * 3, (1.0,) * 3).on(EDM())}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "^source: got None"),
        ({"source": "teacher"}, "^source: got 'str'"),
        ({"residual": Lagrangian(), "source": Data()}, "^source: got Data.*straight chord"),
        ({"residual": Semigroup(Solver()), "source": Data()}, "^source: got Data.*straight chord"),
        ({"residual": Semigroup(Solver()), "source": Guided(Data(), 2.0)}, "^source: got Guided.*straight chord"),
        ({"residual": Eulerian(Solver(0.1, "heun")), "source": Data()}, "^source: got Data.*straight chord"),
        ({"states": PriorOnly((3,)), "source": Data()}, "^source: got Data.*not noised data"),
        ({"states": TeacherPath(GRID), "source": Data()}, "^source: got Data.*not noised data"),
        ({"residual": Endpoint(), "states": PriorOnly((3,))}, "^states: got PriorOnly"),
        (BOUNDARY | {"residual": Lagrangian()}, "^residual: got Lagrangian"),
        (BOUNDARY | {"residual": Semigroup()}, "^residual: got Semigroup"),
        (BOUNDARY | {"residual": Diagonal()}, "^residual: got Diagonal"),
        (BOUNDARY | {"residual": Eulerian(Solver(0.1)), "source": Self()}, "^source: got Self"),
        (BOUNDARY | {"residual": Eulerian(Solver(0.1)), "source": Guided(Data(), 2.0)}, "^source: got Guided"),
        ({"head": Jump("x0")}, "^scale: got .*vanishes"),
        ({"path": Residual()}, "^path: got Residual"),
        ({"condition_dropout": 2.0}, "^condition_dropout: got 2.0"),
        ({"pairs": Uniform()}, "^pairs: got Uniform"),
        ({"states": "noise"}, "^states: got 'noise'"),
        ({"residual": JVP()}, "^residual: got JVP"),
        ({"balance": [3]}, "^balance: got 3"),
    ],
)
def test_what_makes_no_sense_together_is_refused_with_the_reason(changes, message):
    with pytest.raises(ArgumentError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build()(X0, 0), "^batch: got 'Tensor'"),
        (lambda: build()(Batch(size=3), 0), "^x0: got None"),
        (lambda: build(condition_dropout=0.5)(Batch(X0), 0), "^null_condition: got None"),
        (lambda: build(source=Guided(TEACHER, 2.0))(Batch(X0), 0), "^null_condition: got None"),
        (lambda: build(residual=Eulerian(Solver()))(Batch(X0), 0), "^pairs: got 'a law of two times'"),
        (lambda: build(states=TeacherPath(GRID))(Batch(path_states=X0[:, None]), 0), "^path_states: got"),
        (lambda: build(metric=lambda a, b: (a - b).square().mean())(Batch(X0), 0), "^metric: got"),
        (lambda: Batch(X0, noise=X0[:, :2]), "^noise: got"),
        (lambda: Batch(X0, {"label": torch.zeros(3)}), "^condition: got"),
        (lambda: Batch(X0.long()), "^x0: got"),
        (lambda: Batch(X0.numpy()), "^x0: got 'ndarray'"),
        (lambda: Batch(size=-1), "^size: got -1"),
        (lambda: Batch(size=2.5), "^size: got 2.5"),
        (lambda: Batch(size=True), "^size: got True"),
        (lambda: Batch(X0, size=len(X0) + 1), "^size: got"),
        (lambda: Batch(X0, X0), "^condition: got 'Tensor'"),
        (lambda: PriorOnly(3), "^shape: got 3"),
        (lambda: TeacherPath((1.0, 0.0)), "^grid: got 'tuple'"),
        (
            lambda: PriorOnly((3, 2)).draw(Batch(noise=X0[:, :2]), Triangle().draw(len(X0), step=0), PATH, Step(0)),
            r"^noise: got 'shape .*allowed is \[n, 3, 2\]",
        ),
        (lambda: build(metric=3), "^metric: got 3"),
        (lambda: build(target=Net()), "^target: got 'Net'"),
        (lambda: build(condition_dropout="a"), "^condition_dropout: got 'a'"),
        (lambda: Averaged(Net()), "^network: got 'Net'"),
        (lambda: Translated(Net(), VP(), "v", PATH), "^network: got 'Net'"),
        (lambda: Translated(Network(Net()), "vp", "v", PATH), "^own: got 'vp'"),
        (lambda: InKinds(3), "^parts: got 3"),
        (lambda: sample(StateMap(Network(Net()), PATH), X0, (1.0, 0.0)), "^grid: got 'tuple'"),
        (lambda: sample(Net(), X0, GRID), "^map: got 'Net'"),
        (lambda: sample(StateMap(Network(Net()), PATH), 3, GRID), "^noise: got 'int'"),
        (lambda: Batch().rows, "^size: got None"),
        (lambda: Central(0.7), "^step: got 0.7"),
        (lambda: Solver(0.1, "rk4"), "method.*'rk4'"),
        (lambda: Solver(2.0), "^step: got 2.0"),
        (lambda: Eulerian(Solver(0.1), scale="state"), "^derivative: got Solver"),
        (lambda: Eulerian(scale="none"), "scale.*'none'"),
        (lambda: Eulerian(Solver(0.1), differentiate=True), "^differentiate: got True"),
        (lambda: Eulerian(scale="state", differentiate=True), "^differentiate: got True"),
        (lambda: build(metric=InKinds((KindMetric("x0", SquaredError()),))), "^metric: got InKinds"),
        (lambda: InKinds(()), "^parts: got"),
        (lambda: KindMetric("image", SquaredError()), "kind.*'image'"),
        (lambda: Guided(Self(), "guidance"), "^scale: got 'guidance'"),
        (lambda: Translated(Network(Net()), VP(), "eps", PATH), "kind.*'eps'"),
        (lambda: Translated(Network(Net()), VP(), "v", PATH, least=0.0), "^least: got 0.0"),
        (lambda: FromNoise(gap=0.0), "^gap: got 0.0"),
        (lambda: FromNoise(0.5), "^law: got 0.5"),
        (lambda: AnyPair((0.5, 0.5)), "^times: got"),
        (lambda: sample([StateMap(Network(Net()), PATH)], X0, spaced(2, PATH)), "^map: got '1 maps'"),
        (lambda: Lagrangian(Solver(0.1), differentiate=True), "^differentiate: got True"),
        (lambda: Semigroup(Solver(0.1)), "^via: got Solver"),
        (lambda: Semigroup(middle="end"), "middle.*'end'"),
        (lambda: Endpoint(space="image"), "space.*'image'"),
        (lambda: OnAndOff(Diagonal(), OnAndOff(Diagonal(), Eulerian())), "^off: got OnAndOff"),
        (lambda: Guided(Guided(TEACHER, 2.0), 2.0), "^score: got Guided"),
        (lambda: Guided(TEACHER, 2.0, "cfg"), "convention.*'cfg'"),
        (lambda: Guided(TEACHER, 2.0).predict(X0, X0[:, 0]), "^null: got None"),
        (lambda: Jump("epsilon"), "kind.*'epsilon'"),
        (lambda: Network("net"), "^module: got 'str'"),
        (lambda: Network(Net(), times="s"), "times.*'s'"),
        (lambda: DiffusersNetwork(Net(), times="r", second="timestep_cond"), "^second: got 'timestep_cond'"),
        (lambda: Network(Net(), clock="index"), "^path: got None"),
        (lambda: Network(Net(), times="t_gap", clock="angle", path=VP()), "^clock: got 'angle'"),
        (lambda: PseudoHuber(0.0), "^factor: got 0.0"),
        (lambda: SquaredError("median"), "reduction.*'median'"),
        (lambda: AdaptivePower(-1.0), "^power: got -1.0"),
        (lambda: TangentNormalisation(0.0), "^constant: got 0.0"),
        (lambda: Adjacent(Segments(2), 1.0), "^end: got 1.0"),
        (lambda: Neighbouring((0.5,)), "^times: got"),
        (lambda: WithDiagonal(Segments(2), 2.0), "^share: got 2.0"),
        (lambda: sample(StateMap(Network(Net()), PATH), X0, spaced(2, VP())), "^grid: got"),
        (lambda: sample(StateMap(Network(Net()), PATH), X0, GRID, method="sde"), "method.*'sde'"),
        (
            lambda: sample(StateMap(Network(Net()), EDM(), ConsistencyBoundary()), X0, spaced(2, EDM())),
            "^method: got 'ode'.*'renoise'",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_laws_of_neighbours_and_diagonals():
    times = Adjacent(Neighbouring((0.1, 0.4, 0.7, 1.0)), 0.1).draw(3000, step=0)
    assert set(zip(times.t.tolist(), times.middle.tolist(), strict=True)) == {(0.4, 0.1), (0.7, 0.4), (1.0, 0.7)}
    assert times.r.unique().tolist() == [0.1]
    assert float((times.t == 0.4).double().mean()) == pytest.approx(1 / 3, abs=0.04)
    segmented = Adjacent(Neighbouring((0.1, 0.4, 0.7, 1.0)), Segments(2)).draw(3000, step=0)
    assert bool((segmented.middle >= segmented.r).all())
    assert set(segmented.r.tolist()) == {0.0, 0.5}
    mixed = WithDiagonal(Neighbouring((0.0, 0.5, 1.0)), 0.6, Uniform(0.2, 0.3)).draw(3000, step=0)
    on = mixed.t == mixed.r
    assert float(on.double().mean()) == pytest.approx(0.6, abs=0.04)
    assert bool(((mixed.t[on] >= 0.2) & (mixed.t[on] <= 0.3)).all())


def test_laws_of_pairs_of_a_list_and_of_pure_noise():
    times = AnyPair((1.0, 0.1, 0.7, 0.4)).draw(6000, step=0)
    pairs = list(zip(times.t.tolist(), times.r.tolist(), strict=True))
    assert set(pairs) == {(0.4, 0.1), (0.7, 0.1), (0.7, 0.4), (1.0, 0.1), (1.0, 0.4), (1.0, 0.7)}
    assert all(pairs.count(pair) == pytest.approx(1000, abs=120) for pair in set(pairs))
    assert times.middle is None
    noise = FromNoise(Uniform(0.1, 1.0), 0.25).draw(2000, 2, step=0)
    assert torch.equal(noise.t, torch.ones(2000, 2, dtype=torch.float64))
    assert torch.equal(noise.middle, (noise.r + 0.25).clamp(max=1))
    assert 0.1 <= float(noise.r.min()) < 0.12
    assert float(noise.r.mean()) == pytest.approx(0.55, abs=0.02)
    assert FromNoise().draw(3, step=0).middle is None


def test_a_stochastic_sampler_goes_two_steps_and_one_back():
    """Meng et al. (2023): noise that takes the state from alpha_s, sigma_s to exactly the earlier time's spread."""
    network, path, one = Net(), VP.cosine(), torch.ones(16, dtype=torch.float64)
    student = StateMap(Network(network), path, AverageVelocity())
    grid = spaced(3, path)
    times = grid.times.tolist()
    x = float(grid.sigmas[0]) * X0
    for index in range(3):
        t, r = times[index], times[min(index + 2, 3)]
        x = x + (r - t) * network(x, t * one, r * one)
        if index < 2:
            up = times[index + 1]
            ratio = float(path.alpha(up) / path.alpha(r))
            spread = float(path.sigma(up)) ** 2 - (ratio * float(path.sigma(r))) ** 2
            x = ratio * x + spread**0.5 * random.normal(16, 3, step=4, name=f"renoise/{index}", dtype=torch.float64)
    assert torch.allclose(sample(student, X0, grid, method="stochastic", step=4), x, rtol=1e-9, atol=1e-12)


def test_a_sampler_changes_networks_on_the_way():
    first, second = StateMap(Network(Net()), PATH), StateMap(Network(Net()), PATH)
    grid = spaced(2, PATH)
    half, whole = Grid([1.0, 0.5], PATH), Grid([0.5, 0.0], PATH)
    middle = sample(first, X0, half)
    # The second grid begins at half the noise: the state stands for noise of deviation one half.
    assert torch.allclose(sample([first, second], X0, grid), sample(second, middle / 0.5, whole))


@pytest.mark.parametrize("method", ["renoise", "anchor"])
def test_samplers_go_up_again_with_the_noise_they_name(method):
    network = Net()
    student = StateMap(Network(network), PATH, AverageVelocity())
    grid, x = spaced(3, PATH), X0
    one = torch.ones(16, dtype=torch.float64)
    for index, (t, r) in enumerate(((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0))):
        x = x - t * network(x, t * one, 0 * one)
        fresh = random.normal(16, 3, step=4, name=f"renoise/{index}", dtype=torch.float64)
        x = (1 - r) * x + r * (fresh if method == "renoise" else X0)
    found = sample(student, X0, grid, method=method, step=4)
    assert torch.allclose(found, x, rtol=1e-9, atol=1e-12)


def test_stored_states_are_those_of_the_nearest_times():
    states = torch.arange(5.0).expand(6, 5).clone()[..., None] + 10 * torch.arange(6.0)[:, None, None]
    t = torch.tensor([1.0, 0.9, 0.52, 0.51, 0.3, 0.02], dtype=torch.float64)
    r = torch.tensor([0.0, 0.9, 0.48, 0.27, 0.3, 0.01], dtype=torch.float64)
    middle = torch.tensor([0.6, 0.9, 0.5, 0.4, 0.3, 0.015], dtype=torch.float64)
    drawn = TeacherPath(GRID).draw(Batch(path_states=states), Times(t, r, middle), PATH, Step(0))
    assert drawn.t.tolist() == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    # The third and the last met and are a step apart now; the second and the fifth were meant to meet.
    assert drawn.r.tolist() == [0.0, 1.0, 0.25, 0.25, 0.25, 0.0]
    assert drawn.middle.tolist() == [0.5, 1.0, 0.5, 0.5, 0.25, 0.0]
    assert drawn.x[:, 0].tolist() == [0, 10, 22, 32, 43, 53]
    assert drawn.end[:, 0].tolist() == [4, 10, 23, 33, 43, 54]


def test_only_the_asked_calls_of_a_sampler_are_differentiated():
    network = Net()
    student = StateMap(Network(network), PATH, AverageVelocity())
    assert not sample(student, X0, GRID).requires_grad
    every = sample(student, X0, GRID, gradient="last", every=True)
    assert every.requires_grad
    whole = sample(student, X0, GRID, gradient="all")
    last = sample(student, X0, GRID, gradient="last")
    assert torch.equal(whole, last)
    grads = [torch.autograd.grad(value.sum(), network.first.weight)[0] for value in (whole, last)]
    assert not torch.allclose(*grads)
