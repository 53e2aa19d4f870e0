"""PCoreSet: the objective by its formula, picks by brute force."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distillrs import random, recipes
from distillrs.errors import ArgumentError


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.ce, self.kd = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        features = torch.tanh(self.body(x))
        return {"ce": self.ce(features), "kd": self.kd(features)}


def parts():
    student = TwoHeads().double()
    teacher = nn.Linear(4, 3).double()
    x = random.normal(8, 4, step=0, name="x", dtype=torch.float64)
    y = torch.tensor([0, -100, 2, -100, -100, 1, -100, -100])
    return student, teacher, x, y


def by_hand(student, teacher, x, y, temperature, weight):
    found, target = student(x), (teacher(x) / temperature).softmax(1).detach()
    rows = y != -100

    def kl(rows):
        student_rows = (found["kd"][rows] / temperature).log_softmax(1)
        return temperature**2 * F.kl_div(student_rows, target[rows], reduction="sum") / max(1, int(rows.sum()))

    task = F.cross_entropy(found["ce"][rows], y[rows]) if rows.any() else 0.0
    return (1 - weight) * task + weight * (kl(rows) + kl(~rows))


@pytest.mark.parametrize("known", ["some", "all", "none"])
def test_the_objective_is_its_formula(known):
    student, teacher, x, y = parts()
    y = {"some": y, "all": torch.arange(8) % 3, "none": torch.full((8,), -100)}[known]
    objective = recipes.pcoreset(student, teacher, temperature=2.5, weight=0.3)
    loss = objective((x, y)).total
    expected = by_hand(student, teacher, x, y, 2.5, 0.3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    names = list(student.parameters())
    found = torch.autograd.grad(3 * loss, names, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(3 * expected, names, allow_unused=True, materialize_grads=True)
    assert all(torch.allclose(one, other, rtol=1e-8, atol=1e-12) for one, other in zip(found, wanted, strict=True))


def test_probabilities_are_the_mix_of_both_heads():
    student, _, x, _ = parts()
    found = student(x)
    p = recipes.pcoreset_probabilities(found["ce"], found["kd"], share=0.2, beta=4.0)
    assert torch.allclose(p, 0.8 * found["ce"].softmax(1) + 0.2 * (found["kd"] / 4).softmax(1))
    assert not p.requires_grad
    for bad, message in (({"share": 1.5}, "share"), ({"beta": 0.0}, "beta")):
        with pytest.raises(ArgumentError, match=message):
            recipes.pcoreset_probabilities(found["ce"], found["kd"], **bad)
    with pytest.raises(ArgumentError, match="kd"):
        recipes.pcoreset_probabilities(found["ce"], found["kd"][:2])
    with pytest.raises(ArgumentError, match="weight"):
        recipes.pcoreset(*parts()[:2], weight=2.0)


def brute_force(p, centres, k):
    """All distances to everything picked, for each pick; ties to the lowest row."""
    centres, found = list(centres), []
    for _ in range(k):
        near = (p[:, None] - p[centres][None]).square().sum(-1).sqrt().min(1).values
        near[centres] = -1.0
        found.append(int(near.argmax()))
        centres.append(found[-1])
    return found


@pytest.mark.parametrize("seed", range(3))
def test_queries_are_those_of_brute_force(seed):
    p = (4 * random.normal(150, 7, step=seed, name="p", dtype=torch.float64)).softmax(1)
    p[30:40] = p[:10]  # duplicates are at distance 0 of each other
    labelled = torch.tensor([5, 77, 140])
    picks = recipes.pcoreset_queries(p, labelled, 60)
    assert picks.ids.tolist() == brute_force(p, labelled.tolist(), 60)
    assert not set(picks.ids.tolist()) & set(labelled.tolist())
    assert recipes.pcoreset_queries(p, labelled, 20).ids.tolist() == picks.ids[:20].tolist()
    # In half precision rows sum to 1 less exactly.
    assert len(recipes.pcoreset_queries(p.bfloat16(), labelled, 5)) == 5


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_queries_of_flat_and_of_sharp_predictions_are_those_of_brute_force(scale):
    # In multiples of 2^-12 every squared distance is exact, so that ties are ties; the sharp ones have hundreds.
    p = ((scale * random.normal(1000, 50, step=0, name="p")).softmax(1) * 2**12).round() / 2**12
    labelled = random.choice(1000, 50, step=0, name="labelled")
    queries = recipes.pcoreset_queries(p, labelled, 100).ids.tolist()
    p, centres = p.double(), labelled.tolist()
    for _ in range(100):
        near = torch.cdist(p, p[centres], compute_mode="donot_use_mm_for_euclid_dist").min(1).values
        near[centres] = -1.0
        centres.append(int(near.argmax()))
    assert queries == centres[50:]


def test_queries_refuse_what_are_no_probabilities_and_no_rows():
    p = torch.full((6, 4), 0.25)
    assert recipes.pcoreset_queries(p, torch.zeros(0, dtype=torch.int64), 6).ids.sort().values.tolist() == list(
        range(6)
    )
    for bad in (4 * p, torch.tensor([[1.5, -0.5]]), p[0], p * torch.nan):
        with pytest.raises(ArgumentError, match=r"^(probabilities|points): got"):
            recipes.pcoreset_queries(bad, torch.tensor([0]), 0)
    for bad in ([6], [-1], [1, 1], [0.0], [[0]]):
        with pytest.raises(ArgumentError, match=r"^labelled: got"):
            recipes.pcoreset_queries(p, torch.tensor(bad), 1)
