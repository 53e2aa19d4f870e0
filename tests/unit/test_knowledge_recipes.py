"""The classics of distillation: each held to its formula written out, and trained on the digits."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillrs as dr
from distillrs import evaluate, knowledge, recipes, trajectory
from distillrs.knowledge import Tap
from distillrs.registry import find_recipe

FEATURES = Tap("head", "input")


class Net(nn.Sequential):
    def __init__(self, width, seed):
        torch.manual_seed(seed)
        parts = {
            "low": nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            "high": nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            "flat": nn.Flatten(),
            "head": nn.Linear(4 * width, 10),
        }
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def maps(net, x):
    low = net.low(x)
    high = net.high(low)
    return low, high, high.flatten(1), net.head(high.flatten(1))


def kl(t, s, temperature):
    p, q = (t / temperature).softmax(1), (s / temperature).softmax(1)
    return (p * (p / q).log()).sum(1).mean()


def make(name, student, teacher, labels=None, **options):
    arguments = {
        "attention-transfer": {"layers": [("low", "low"), ("high", "high")]},
        "relational-kd": {"features": FEATURES},
        "contrastive-kd": {
            "features": FEATURES,
            "student_width": student.head.in_features,
            "teacher_width": teacher.head.in_features,
            "examples": 1300 if labels is None else len(labels),
            "labels": labels,
            "negatives": 256,
            "width": 16,
        },
        "fitnets": {
            "guided": "low",
            "hint": "low",
            "student_width": student.head.in_features // 4,
            "teacher_width": teacher.head.in_features // 4,
            "hint_steps": 15,
        },
    }
    return find_recipe(name).function(student, teacher, **(arguments.get(name, {}) | options))


NAMES = ["hinton", "attention-transfer", "relational-kd", "decoupled-kd", "contrastive-kd", "fitnets"]


def by_hand(name, objective, student, teacher, batch):
    """The published formula at step 20 of 40, or 0 for the hint of FitNets."""
    x, y, ids = batch
    s, t = maps(student, x), [each.detach() for each in maps(teacher, x)]
    ce = F.cross_entropy(s[3], y)
    if name == "hinton":
        return 0.9 * 16 * kl(t[3], s[3], 4) + 0.1 * ce
    if name == "attention-transfer":
        gap = 0
        for own, other in zip(s[:2], t[:2], strict=True):
            q = [F.normalize(m.pow(2).mean(1).flatten(1)) for m in (own, other)]
            gap = gap + (q[0] - q[1]).pow(2).mean()
        return ce + 1000 * gap
    if name == "relational-kd":
        gaps = []
        for e in (s[2], t[2]):
            distances = torch.cdist(e, e, compute_mode="donot_use_mm_for_euclid_dist")
            edges = F.normalize(e[None] - e[:, None], dim=2)
            gaps.append((distances / distances[distances > 0].mean(), torch.bmm(edges, edges.transpose(1, 2))))
        return ce + 25 * F.smooth_l1_loss(gaps[0][0], gaps[1][0]) + 50 * F.smooth_l1_loss(gaps[0][1], gaps[1][1])
    if name == "decoupled-kd":
        q, p = (s[3] / 4).softmax(1), (t[3] / 4).softmax(1)
        own = F.one_hot(y, 10).bool()
        two = [torch.stack([each[own], each[~own].reshape(len(y), 9).sum(1)], 1) for each in (p, q)]
        target = F.kl_div(two[1].log(), two[0], reduction="batchmean")
        rest = [(each / 4)[~own].reshape(len(y), 9).log_softmax(1) for each in (t[3], s[3])]
        return ce + 16 * (target + 8 * F.kl_div(rest[1], rest[0].exp(), reduction="batchmean"))
    if name == "contrastive-kd":
        term = objective.stages[0].terms[0]
        part = term.divergence
        own, other = (F.normalize(head(e)) for head, e in ((term.align.student, s[2]), (term.align.teacher, t[2])))
        index = torch.cat([ids[:, None], part._draw(ids, dr.Step(20, total=40))], 1)
        loss, k, n = 0, index.shape[1] - 1, len(part.student_memory)
        for anchor, memory in ((own, part.teacher_memory.clone()), (other, part.student_memory.clone())):
            out = torch.exp(torch.bmm(memory[index], anchor[:, :, None])[..., 0] / 0.07)
            out = out / (out.mean().detach() * n)
            loss = loss - (out[:, 0] / (out[:, 0] + k / n + 1e-7)).log().sum()
            loss = loss - ((k / n) / (out[:, 1:] + k / n + 1e-7)).log().sum()
        return ce + 0.8 * loss / len(y)
    share = (20 - 15) / (40 - 15 - 1)
    return ce + (4 * (1 - share) + share) * kl(t[3], s[3], 3)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_published_formula(name):
    student, teacher = Net(3, 1).double(), Net(5, 2).double()
    torch.manual_seed(3)
    x, y, ids = torch.randn(12, 1, 8, 8).double(), torch.arange(12) % 10, torch.randperm(40)[:12]
    with torch.no_grad():
        teacher.head.weight.mul_(5)
    objective = make(name, student, teacher, torch.arange(40) % 10).double()
    expected = by_hand(name, objective, student, teacher, (x, y, ids))
    loss = objective((x, y, ids), dr.Step(20, total=40))
    torch.testing.assert_close(loss.total, expected, rtol=1e-6, atol=1e-9)
    weights = list(student.parameters())
    for one, other in zip(
        torch.autograd.grad(loss.total, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_the_hint_of_fitnets_comes_first_and_reaches_the_lower_part_alone():
    student, teacher = Net(3, 1).double(), Net(5, 2).double()
    objective = make("fitnets", student, teacher).double()
    x = torch.randn(6, 1, 8, 8).double()
    loss = objective((x, torch.arange(6)), dr.Step(3, total=40))
    projector = objective.parts[0]
    made = torch.einsum("oc,bchw->bohw", projector.weight, student.low(x)) + projector.bias[:, None, None]
    torch.testing.assert_close(loss.total, 0.5 * (made - teacher.low(x)).square().mean())
    loss.total.backward()
    assert student.low[0].weight.grad.abs().sum() > 0
    assert student.high[0].weight.grad is None
    only = make("fitnets", student, teacher, trainable=["low"]).double()
    only((x, torch.arange(6)), dr.Step(0, total=40))
    assert not student.high[0].weight.requires_grad
    only((x, torch.arange(6)), dr.Step(15, total=40))
    assert student.high[0].weight.requires_grad


@pytest.fixture(scope="module")
def digits():
    data = evaluate.data.load("digits")
    teacher = Net(16, 7)
    run(teacher, data, lambda net: torch.optim.Adam(net.parameters(), 0.01), None, 240)
    return data, teacher


def run(student, data, optimiser, objective, steps):
    optimiser = optimiser(student)
    for index in range(steps):
        rows = dr.random.choice(len(data.x_train), 64, step=index, name="batch")
        x, y = data.x_train[rows], data.y_train[rows]
        if objective is None:
            loss = F.cross_entropy(student(x), y)
        else:
            loss = objective((x, y, rows), dr.Step(index, total=steps)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_a_student_on_the_digits(name, digits):
    data, teacher = digits
    assert evaluate.accuracy(teacher, data.x_test, data.y_test) > 0.93
    student = Net(6, 1)
    objective = make(name, student, teacher, data.y_train)
    groups = [parameter for group in objective.parameter_groups().values() for parameter in group]
    assert (len(objective.parameter_groups()) == 2) == (name in ("contrastive-kd", "fitnets"))
    before = evaluate.accuracy(student, data.x_test, data.y_test)
    own = [parameter.detach().clone() for parameter in objective.parameters()]
    run(student, data, lambda net: torch.optim.Adam(groups, 0.01), objective, 240)
    after = evaluate.accuracy(student, data.x_test, data.y_test)
    # Cross-entropy alone reaches .96 here; the maps of attention transfer outweigh it at first, and reach .79.
    assert after > 0.75
    assert before < 0.3
    assert all(not torch.equal(one, other) for one, other in zip(own, objective.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_is(name):
    card = find_recipe(name)
    assert card.engine == "knowledge"
    assert card.function is getattr(recipes, name.replace("-", "_"))
    assert card.source
    assert card.equation
    assert set(card.optimisers) <= {"student", "objective"}
    assert math.isfinite(sum(rates["lr"] for rates in card.optimisers.values()))


def test_without_labels_hinton_is_the_teacher_alone():
    student, teacher = Net(3, 1), Net(5, 2)
    x = torch.randn(4, 1, 8, 8)
    loss = recipes.hinton(student, teacher, weight=1.0)(x, 0)
    torch.testing.assert_close(loss.total, 16 * kl(teacher(x), student(x), 4), rtol=1e-4, atol=1e-6)
    assert set(loss.terms) == {"distillation"}


@pytest.fixture
def classes():
    torch.manual_seed(0)
    return nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 5), torch.randn(7, 6), torch.randint(5, (7,))


def test_a_recipe_s_teacher_may_be_an_ensemble(classes):
    student, first, second, x, labels = classes
    ensemble = knowledge.Ensemble([dr.Frozen(first), dr.Frozen(second)])
    found = recipes.hinton(student, ensemble, temperature=2.0, weight=1.0)((x, labels)).total
    mean = ((first(x).softmax(1) + second(x).softmax(1)) / 2).log()
    assert torch.allclose(found, 4 * kl(mean, student(x), 2.0), rtol=1e-5)


def test_a_recipe_s_teacher_may_be_a_cache(classes, tmp_path):
    student, teacher, _, x, _ = classes
    settings = {"vocabulary": 5, "k": 5, "code": "f16", "temperatures": (2.0,)}
    with trajectory.TeacherCache.create(tmp_path / "cache", fingerprint=trajectory.UNCHECKED, **settings) as cache:
        cache.append("rows", teacher(x).detach())
        rows = cache.index(["rows"])[0] + torch.arange(7)
        written = recipes.hinton(student, knowledge.Cached(cache), temperature=2.0, weight=1.0)
        found = written({"input": x, "teacher_rows": rows}).total
    live = recipes.hinton(student, teacher, temperature=2.0, weight=1.0)({"input": x}).total
    assert torch.allclose(found, live, rtol=1e-2)
