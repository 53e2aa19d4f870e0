"""Recipes whose target, bound or search is what is new: each held to its formula, and the runs that must agree."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import recipes
from distillrs.errors import ArgumentError
from distillrs.knowledge import Entry, Output, Tap
from distillrs.registry import find_recipe

EXAMPLES = 24
EPOCH = 3


def network(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()


def data():
    torch.manual_seed(9)
    return torch.randn(EXAMPLES, 5).double(), torch.arange(EXAMPLES) % 3


def rows_at(index):
    """Each epoch is an order of all examples."""
    order = dr.random.permutation(EXAMPLES, step=index // EPOCH, name="epoch")
    return order.chunk(EPOCH)[index % EPOCH]


# ps-kd


def ps_kd(student, past):
    if past == "table":
        return recipes.ps_kd(student, EXAMPLES, 3).double()
    return recipes.ps_kd(student, past="weights", epoch_steps=EPOCH)


def run(past, steps, until=None, state=None, refresh=False):
    x, y = data()
    student = network()
    objective = ps_kd(student, past)
    optimiser = torch.optim.SGD(student.parameters(), 0.5, momentum=0.9)
    first = 0
    if state is not None:
        saved = torch.load(io.BytesIO(state), weights_only=True)
        student.load_state_dict(saved["student"])
        optimiser.load_state_dict(saved["optimiser"])
        objective.load_state_dict(saved["objective"])
        first = saved["next"]
    losses = []
    for index in range(first, steps if until is None else until):
        if refresh and index % EPOCH == 0:
            objective((x, y, torch.arange(EXAMPLES)), dr.Step(index, total=steps))
        rows = rows_at(index)
        loss = objective((x[rows], y[rows], rows), dr.Step(index, total=steps))
        losses.append(loss.total.detach())
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    buffer = io.BytesIO()
    saved = {"student": student.state_dict(), "optimiser": optimiser.state_dict(), "objective": objective.state_dict()}
    torch.save(saved | {"next": steps if until is None else until}, buffer)
    return student, torch.stack(losses), buffer.getvalue()


def test_the_target_of_ps_kd_is_the_label_softened_by_the_prediction_of_the_epoch_before():
    x, y = data()
    student = network()
    objective = ps_kd(student, "table")
    optimiser = torch.optim.SGD(student.parameters(), 0.5)
    past = F.one_hot(y, 3).double()
    for index in range(4 * EPOCH):
        rows = rows_at(index)
        loss = objective((x[rows], y[rows], rows), dr.Step(index, total=4 * EPOCH))
        share = 0.8 * index / (4 * EPOCH - 1)
        target = (1 - share) * F.one_hot(y[rows], 3) + share * past[rows]
        expected = F.cross_entropy(student(x[rows]), target)
        entropy = -torch.special.xlogy(target, target).sum(1).mean()
        torch.testing.assert_close(loss.total, expected - entropy)
        weights = list(student.parameters())
        slopes = [torch.autograd.grad(each, weights) for each in (loss.total, expected)]
        for one, other in zip(*slopes, strict=True):
            torch.testing.assert_close(one, other)
        past[rows] = student(x[rows]).softmax(1).detach()
        for weight, slope in zip(weights, slopes[0], strict=True):
            weight.grad = slope
        optimiser.step()


def test_table_and_weights_agree_over_a_run_where_nothing_is_augmented():
    """A pass at each epoch's beginning writes down what the copy of the weights would say all epoch long."""
    steps = 5 * EPOCH
    student, losses, _ = run("weights", steps)
    other, same, _ = run("table", steps, refresh=True)
    torch.testing.assert_close(losses, same, rtol=0, atol=1e-6)
    for one, two in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    _, apart, _ = run("table", steps)
    assert float((losses - apart).abs().max()) > 1e-4


@pytest.mark.parametrize("past", ["table", "weights"])
@pytest.mark.parametrize("cut", [1, EPOCH, 2 * EPOCH + 1])
def test_a_run_of_ps_kd_goes_on_bit_for_bit(past, cut):
    steps = 4 * EPOCH
    student, losses, _ = run(past, steps)
    _, first, state = run(past, steps, until=cut)
    other, rest, _ = run(past, steps, state=state)
    assert torch.equal(torch.cat([first, rest]), losses)
    for one, two in zip(student.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


# self-distillation


def test_the_gradient_of_a_generation_is_that_of_both_squared_errors():
    x, y = data()
    student, teacher = network(), network(1)
    loss = recipes.self_distill_optimal_weight(student, teacher, 0.35)((x, y), 0).total
    p, t, onehot = student(x).softmax(1), teacher(x).softmax(1).detach(), F.one_hot(y, 3)
    both = 0.35 * (p - onehot).square().sum(1).mean() + 0.65 * (p - t).square().sum(1).mean()
    for one, other in zip(
        torch.autograd.grad(loss, list(student.parameters())),
        torch.autograd.grad(both, list(student.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_share_is_that_of_the_best_mix_of_predictions_and_modes_stay():
    x, y = data()
    teacher, alone = network(1).train(), network(2).eval()
    share = recipes.self_distill_share(teacher, alone, x, y, batch=7)
    u, v, onehot = teacher(x).softmax(1), alone(x).softmax(1), F.one_hot(y, 3)
    errors = [
        float((a * u + (1 - a) * v - onehot).square().sum().detach()) for a in torch.linspace(0, 1, 1001).tolist()
    ]
    assert abs(errors.index(min(errors)) / 1000 - share) <= 1e-3
    assert teacher.training
    assert not alone.training
    assert recipes.self_distill_share(teacher, teacher, x, y) == 1.0


# distiller-mi-alpha


def test_the_value_of_distiller_is_the_outputs_less_the_information_of_every_layer():
    x, y = data()
    student, teacher = network(), network(1, 8)
    layers = [("0", "0"), ("1", "1")]
    objective = recipes.distiller_mi_alpha(
        student, teacher, layers, 6, 8, alpha=0.5, beta=0.7, width=4, temperature=2.0, weight=0.4, task_weight=0.3
    ).double()
    assert len(objective.parameter_groups()["objective"]) == 2 * (2 + 2 + 2)
    loss = objective((x, y, torch.arange(EXAMPLES)), 0)
    s, t = student(x), teacher(x).detach()
    expected = 0.4 * 4 * F.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean")
    expected = expected + 0.3 * F.cross_entropy(s, y)
    for term, number in zip(objective.stages[0].terms, (1, 2), strict=False):
        own = term.align.student(student[:number](x))
        other = term.align.teacher(teacher[:number](x).detach())
        f = other @ own.T
        bounds = []
        for i in range(EXAMPLES):
            rest = [j for j in range(EXAMPLES) if j != i]
            joint = sum(
                f[i, i] - (0.5 * f[i, [k for k in range(EXAMPLES) if k != j]].exp().mean() + 0.5).log() for j in rest
            ) / len(rest)
            mean = f[i, rest].exp().mean()
            bounds.append(1 + joint - mean / (0.5 * mean + 0.5))
        expected = expected - 0.7 * torch.stack(bounds).mean()
    torch.testing.assert_close(loss.total, expected)
    again = recipes.distiller_mi_alpha(student, teacher, layers, 6, 8, width=4).double()
    assert torch.equal(next(again.parameters()), next(objective.parameters()))


def test_distiller_trains_student_embeddings_and_baselines():
    x, y = data()
    student, teacher = network(), network(1, 8)
    objective = recipes.distiller_mi_alpha(student, teacher, [("1", "1")], 6, 8, width=4).double()
    groups = objective.parameter_groups()
    optimiser = torch.optim.Adam([parameter for group in groups.values() for parameter in group], 0.02)
    before = [parameter.detach().clone() for group in groups.values() for parameter in group]
    information = []
    for index in range(150):
        loss = objective((x, y, torch.arange(EXAMPLES)), index)
        information.append(-float(loss.terms["information/0"]))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    after = [parameter for group in groups.values() for parameter in group]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert information[-1] > information[0] + 1.5
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


# diswot


class Small(nn.Module):
    def __init__(self, width, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(width, 4)
        self.double()

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def images():
    torch.manual_seed(5)
    return torch.randn(12, 1, 6, 6).double(), torch.arange(12) % 4


def test_the_score_of_diswot_is_that_of_its_formula_with_the_gradients_of_a_backward_pass():
    x, y = images()
    student, teacher = Small(3), Small(7, 1)
    relations, semantics = [], []
    for net in (student, teacher):
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        semantics.append(F.normalize(net.head.weight.grad @ net.head.weight.grad.T, dim=1))
        flat = net.body(x).flatten(1).detach()
        relations.append(F.normalize(flat @ flat.T, dim=1))
    expected = -(relations[0] - relations[1]).square().sum() / 12**2
    expected = expected - (semantics[0] - semantics[1]).square().sum() / 4**2
    before = copy.deepcopy(student.state_dict())
    score = recipes.diswot_score(student, teacher, (x, y), features="body", classifier="head")
    assert score == pytest.approx(float(expected), rel=1e-9)
    assert all(torch.equal(one, before[name]) for name, one in student.state_dict().items())
    same = recipes.diswot_score(student, student, (x, y), features="body", classifier="head")
    assert same == pytest.approx(0, abs=1e-12)
    only = recipes.diswot_score(student, teacher, (x, y), features="body", classifier="head", semantic=0.0)
    assert only == pytest.approx(-float((relations[0] - relations[1]).square().sum() / 12**2), rel=1e-9)


def test_the_classes_relations_are_more_than_signs_and_take_other_widths():
    """Trap: the Gram matrix of one class's map has rank one: its rows, brought to length 1, are equal up to signs."""
    torch.manual_seed(0)
    logits, features, y = torch.randn(12, 4).double(), torch.randn(12, 5).double(), torch.arange(12) % 4
    own = (logits.softmax(1) - F.one_hot(y, 4)).T @ features / 12
    rank_one = F.normalize(own[0][:, None] * own[0], dim=1)
    torch.testing.assert_close(rank_one.abs(), rank_one[:1].abs().expand_as(rank_one))
    relations, wider = kn.ClassGradients()((logits, features, y), (logits, torch.cat([features] * 2, 1), y))
    assert relations.shape == wider.shape == (4, 4)
    torch.testing.assert_close(relations, wider)
    assert float((relations.abs() - relations[:1].abs()).abs().max()) > 0.05


def test_the_classes_relations_have_a_gradient_and_leave_out_what_has_no_label():
    x, y = images()
    net = Small(3)
    logits, features = net(x).detach().requires_grad_(), net.body(x).mean((2, 3)).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kn.ClassGradients()((a, b, y), (a, b, y))[0], (logits, features))
    marked = y.masked_fill(torch.arange(12) < 4, -100)
    whole, part = kn.ClassGradients()((logits, features, marked), (logits[4:], features[4:], y[4:]))
    torch.testing.assert_close(whole, part)
    dead = kn.ClassGradients()((logits, torch.zeros_like(features), y), (logits, features, y))[0]
    assert (dead == 0).all()


def test_diswot_is_a_loss_of_distillation_too():
    x, y = images()
    student, teacher = Small(3), Small(7, 1)
    objective = recipes.diswot(student, teacher, "body", "head", task_weight=1.0)
    optimiser = torch.optim.Adam(student.parameters(), 0.02)
    values = []
    for index in range(60):
        loss = objective((x, y), index)
        values.append(loss.terms)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    for name in ("relation", "semantic", "task"):
        assert values[-1][name] < values[0][name]


class Normalised(nn.Module):
    """Everything whose answer depends on the mode."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(6, 4)
        self.double()

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def test_a_network_fits_itself_best_and_scoring_leaves_it_as_it_was():
    student, twin, other = Normalised(0), Normalised(0), Normalised(1)
    x, y = images()
    before = copy.deepcopy(student.state_dict())
    found = recipes.diswot_score(student, twin, (3 * x + 1, y), features="body", classifier="head")
    assert found == 0
    scores = [
        recipes.diswot_score(student, other, (3 * x + 1, y), features="body", classifier="head") for _ in range(2)
    ]
    assert scores[0] == scores[1] < 0
    assert student.training
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_embeddings_keep_their_own_precision(dtype):
    """A student in another precision than the trained heads, and no autocast."""
    x, y = (each[:8] for each in data())
    made = {
        "contrastive": lambda one, two: recipes.contrastive_kd(one, two, "1", 6, 9, EXAMPLES, negatives=4, width=3),
        "information": lambda one, two: recipes.distiller_mi_alpha(one, two, [("1", "1")], 6, 9, width=3),
    }
    for make in made.values():
        plain, student = network().float(), network().to(dtype)
        expected = make(plain, network(1, 9).float())((x.float(), y, torch.arange(8)), 0).total
        found = make(student, network(1, 9).to(dtype))((x.to(dtype), y, torch.arange(8)), 0).total
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
        found.backward()
        assert student[0].weight.grad.dtype == dtype
        assert float(student[0].weight.grad.abs().sum()) > 0


# all of them


@pytest.mark.parametrize("name", ["ps-kd", "self-distill-optimal-weight", "distiller-mi-alpha", "diswot"])
def test_each_says_what_it_is(name):
    card = find_recipe(name)
    assert card.engine == "knowledge"
    assert card.function is getattr(recipes, name.replace("-", "_"))
    assert card.source
    assert card.equation
    assert set(card.optimisers) <= {"student", "objective"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.ps_kd(network()), "^examples: got None, allowed is a positive integer for past='table'"),
        (lambda: recipes.ps_kd(network(), 4), "^classes: got None"),
        (lambda: recipes.ps_kd(network(), 0, 3), "^examples: got 0"),
        (lambda: recipes.ps_kd(network(), past="weights"), "^epoch_steps: got None"),
        (lambda: recipes.ps_kd(network(), past="weights", epoch_steps=3, process_group=1), "^process_group: got 'int'"),
        (lambda: recipes.ps_kd(network(), 4, 3, "logits"), "^past: got 'logits'"),
        (lambda: recipes.ps_kd(network(), 4, 3, last_share=1.2), "^last_share: got 1.2"),
        (lambda: recipes.self_distill_optimal_weight(network(), network(), 1.5), "^share: got 1.5"),
        (lambda: recipes.self_distill_optimal_weight(network(), network(), "a"), "^share: got 'a'"),
        (
            lambda: recipes.self_distill_share(network(), network(), *data()[:1], data()[1][:3]),
            "^labels: got '3 for 24",
        ),
        (
            lambda: recipes.self_distill_share(network(), network(), data()[0], data()[1] + 1),
            "^labels: got 'torch.int64",
        ),
        (lambda: recipes.distiller_mi_alpha(network(), network(), ["01"], 6, 6), "^layers: got '01'"),
        (lambda: recipes.distiller_mi_alpha(network(), network(), [("0", "0")], 6, 6, alpha=2), "^alpha: got 2"),
        (
            lambda: recipes.diswot_score(None, Small(3), images(), features="body", classifier="head"),
            "^student: got 'NoneType'",
        ),
        (
            lambda: recipes.diswot(Small(3), Small(3), "body", "body")(images(), 0),
            "^student: got 'shapes",
        ),
        (lambda: kn.ClassGradients()(torch.ones(2), torch.ones(2)), "^student: got 'one tensor'"),
        (
            lambda: kn.ClassGradients()(*([(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 3]))] * 2)),
            "^labels: got 3",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_an_entry_of_the_batch_is_a_tap():
    x, y = data()
    found = kn.record(network(), [Entry("labels"), Output(), Tap("0")], kn.Inputs((x,), {}, {"labels": y}))
    assert torch.equal(found.values[Entry("labels")], y)
    assert str(Entry("labels")) == "labels"
    with pytest.raises(dr.errors.UnknownNameError, match="batch entry"):
        kn.record(network(), [Entry("masks")], kn.Inputs((x,), {}, {"labels": y}))
