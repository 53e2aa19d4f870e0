"""`check_objective` and `check_selector` pass what is right and see what is not; `strategies.points` gives points."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillrs as dr
from distillrs import ops, schedule, select
from distillrs.errors import ArgumentError
from distillrs.knowledge import Labels, NormalisedMSE, Objective, Output, Projector, Term
from distillrs.testing import check_objective, check_selector, strategies


class Network(nn.Module):
    def __init__(self, width, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(5, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def batch(start=0, end=8):
    generator = torch.Generator().manual_seed(4)
    x, labels = torch.randn(8, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator)
    return {"x": x[start:end], "labels": labels[start:end]}


def distilling():
    student, teacher = Network(4, 0), Network(6, 1)
    terms = [
        Term(Output("logits"), divergence=ops.ForwardKL(), temperature=2.0, scale=schedule.LinearRamp(1.0, 0.5)),
        Term("body", align=Projector(4, 6), divergence=NormalisedMSE(), scale=0.5),
        Term(Output("logits"), target=Labels(), scale=0.1),
    ]
    return Objective(student, dr.Frozen(teacher), terms), (student, teacher)


def test_an_objective_of_knowledge_passes():
    objective, networks = distilling()
    before = [parameter.clone() for network in networks for parameter in network.parameters()]
    generator = torch.random.get_rng_state()
    check_objective(objective, batch(), networks=networks, parts=[batch(0, 3), batch(3, 8)])
    after = [parameter for network in networks for parameter in network.parameters()]
    assert all(map(torch.equal, before, after))
    assert all(parameter.grad is None for parameter in after)
    assert torch.equal(generator, torch.random.get_rng_state())


class Plain(nn.Module):
    """A small objective that is right; each subclass below breaks one promise."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "student", Network(4, 0))
        self.bias = nn.Parameter(torch.zeros(3))

    def losses(self, batch):
        return nn.functional.cross_entropy(self.student(batch["x"]) + self.bias, batch["labels"], reduction="none")

    def forward(self, batch, step=0, *, turn=None):
        if turn not in (None, "student"):
            raise ArgumentError(f"turn: got {turn!r}, allowed is 'student'")
        losses, items = self.losses(batch), step.items if isinstance(step, dr.Step) else None
        total = losses.sum() / (len(losses) if items is None else items)
        return dr.Loss(total, {"task": total.detach()})

    def turns(self, step):
        return ("student",)

    def parameter_groups(self):
        return {"student": list(self.student.parameters()), "objective": [self.bias]}

    def count_items(self, batch):
        return torch.tensor(len(batch["labels"]))


class NamesOneTurn(Plain):
    def turns(self, step):
        return "student"


class NoTurn(Plain):
    def turns(self, step):
        return ()


class TakesAnyTurn(Plain):
    def forward(self, batch, step=0, *, turn=None):
        return super().forward(batch, step)


class TermsWithAGraph(Plain):
    def forward(self, batch, step=0, *, turn=None):
        total = super().forward(batch, step, turn=turn).total
        return dr.Loss(total, {"task": total})


class NoGraph(Plain):
    def forward(self, batch, step=0, *, turn=None):
        loss = super().forward(batch, step, turn=turn)
        return dr.Loss(loss.total.detach(), loss.terms)


class PerExample(Plain):
    def forward(self, batch, step=0, *, turn=None):
        return dr.Loss(self.losses(batch), {})


class PlainTensor(Plain):
    def forward(self, batch, step=0, *, turn=None):
        return super().forward(batch, step, turn=turn).total


class NotFinite(Plain):
    def losses(self, batch):
        return super().losses(batch) / 0


class GlobalDraws(Plain):
    def losses(self, batch):
        return super().losses(batch) * torch.rand(len(batch["x"]))


class LocalMean(Plain):
    def forward(self, batch, step=0, *, turn=None):
        return super().forward(batch, 0, turn=turn)


class OwnsTheStudent(Plain):
    def __init__(self):
        super().__init__()
        self.held = self.student


class KeepsTheStudent(Plain):
    def state_dict(self, *args, **kwargs):
        return {**super().state_dict(), "head": self.student.head.weight.detach()}


class Forgets(Plain):
    def state_dict(self, *args, **kwargs):
        return {}

    def load_state_dict(self, state, *args, **kwargs):
        return None


class LoadsNothing(Plain):
    def load_state_dict(self, state, *args, **kwargs):
        return None


class Elsewhere(Plain):
    def parameter_groups(self):
        return {"student": [nn.Parameter(torch.zeros(1))]}


class Twice(Plain):
    def parameter_groups(self):
        return {"student": [self.bias], "objective": [self.bias]}


def checked(objective):
    check_objective(objective, batch(), networks=[objective.student], parts=[batch(0, 3), batch(3, 8)])


def test_a_plain_objective_passes():
    checked(Plain())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NamesOneTurn, "turns are a str"),
        (NoTurn, "there is no turn"),
        (TakesAnyTurn, "a turn that is none is taken"),
        (TermsWithAGraph, "'task' carries a graph"),
        (NoGraph, "the total has no graph"),
        (PerExample, r"the total has the shape \(8,\)"),
        (PlainTensor, "a Tensor and no distillrs.Loss"),
        (NotFinite, "the total is inf"),
        (GlobalDraws, "a draw from a global generator"),
        (LocalMean, "parts add up to"),
        (OwnsTheStudent, "the objective owns 'body.weight'"),
        (KeepsTheStudent, "the objective's state holds 'head.weight'"),
        (Forgets, "a parameter that the objective owns is not in its state"),
        (LoadsNothing, "'bias' does not come back"),
        (Elsewhere, "reaches no parameter of the groups"),
        (Twice, "a parameter stands in two groups"),
    ],
)
def test_a_fault_of_an_objective_is_seen(kind, message):
    with pytest.raises(AssertionError, match=message):
        checked(kind())


SELECTORS = {
    "k_center": partial(select.k_center, seed=3),
    "facility_location": select.facility_location,
    "herding": select.herding,
}


@pytest.mark.parametrize("name", SELECTORS)
def test_the_library_s_selectors_pass(name):
    check_selector(SELECTORS[name])


def norms(points, k):
    """A selector that is right: the longest first."""
    if not 0 <= k <= len(points) or not points.isfinite().all():
        raise ArgumentError("points or k: not allowed")
    squares = points.double().square().sum(1)
    ids = squares.argsort(descending=True, stable=True)[:k]
    return select.Picks(ids, squares[ids])


def shorter(points, k):
    return norms(points, max(k - 1, 0))


def reversed_order(points, k):
    found = norms(points, k)
    return select.Picks(found.ids.flip(0), found.gains.flip(0))


def with_repeats(points, k):
    found = norms(points, k)
    return select.Picks(found.ids[:1].expand(k).clone(), found.gains)


def in_float(points, k):
    found = norms(points, k)
    return select.Picks(found.ids, found.gains.float())


def beyond(points, k):
    found = norms(points, k)
    return select.Picks(found.ids + len(points), found.gains)


def changing(points, k):
    found = norms(points, k)
    points[0] += 1
    return found


def by_layout(points, k):
    return norms(points if points.is_contiguous() else -points.flip(0), k)


def by_dtype(points, k):
    return norms(points if points.dtype == torch.float32 else points.flip(0), k)


def at_random(points, k):
    norms(points, k)
    ids = torch.randperm(len(points))[:k]
    return select.Picks(ids, torch.zeros(k, dtype=torch.float64))


def other_gains(points, k):
    found = norms(points, k)
    return select.Picks(found.ids, found.gains / max(k, 1))


def takes_infinity(points, k):
    return norms(points.nan_to_num(posinf=1.0), k)


def takes_too_many(points, k):
    return norms(points, min(k, len(points)))


def takes_fewer_than_none(points, k):
    return norms(points, max(k, 0))


def plain_ids(points, k):
    return norms(points, k).ids


def test_a_plain_selector_passes():
    check_selector(norms)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (shorter, "12 picks were asked for"),
        (reversed_order, "picks are not the first of 12"),
        (with_repeats, "a point is picked twice"),
        (in_float, "gains are torch.float32"),
        (beyond, "an id is no row"),
        (changing, "the points were changed"),
        (by_layout, "the layout of the points"),
        (by_dtype, "the same numbers in float64"),
        (at_random, "the same points give other picks"),
        (other_gains, "the gains of 1 picks are not the first of 12"),
        (takes_infinity, "a point that is not finite: taken"),
        (takes_too_many, "more picks than points: taken"),
        (takes_fewer_than_none, "a negative number of picks: taken"),
        (plain_ids, "a Tensor and no select.Picks"),
    ],
)
def test_a_fault_of_a_selector_is_seen(selector, message):
    with pytest.raises(AssertionError, match=message):
        check_selector(selector)


@given(data=st.data(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_points_are_what_they_say(data, dtype):
    found = data.draw(strategies.points(maximum_count=12, minimum_count=2, maximum_width=3, dtype=dtype))
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert 2 <= found.shape[0] <= 12
    assert 1 <= found.shape[1] <= 3
    apart = data.draw(strategies.points(dtype=torch.float64, repeated=False))
    assert len(apart.unique(dim=0)) == len(apart)
