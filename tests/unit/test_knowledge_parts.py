"""Row weights, targets, teachers, balances and stages of the knowledge engine."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import ops, schedule, trajectory
from distillrs.knowledge import Labels, Objective, Output, Term

LOGITS = Output("logits")


def network(width=6, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, classes)).double()


def batch(n=8, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 5, dtype=torch.float64), torch.arange(n) % 3


def value(term, data=None, step=0, student=None, teachers=None):
    """The one term's value and the gradient of its total by the first layer."""
    student = student or network()
    teachers = teachers if teachers is not None else dr.Frozen(network(seed=1))
    loss = Objective(student, teachers, [term])(data if data is not None else batch(), step)
    return loss.total, torch.autograd.grad(loss.total, student[0].weight)[0]


def kl(p, q):
    return torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.log()), 0.0).sum(1)


def outputs(temperature=1.0):
    x, y = batch()
    return (network(seed=1)(x) / temperature).softmax(1).detach(), network()(x), y


# Rows


KEEP = torch.arange(8) % 2 == 0
WEIGHT = torch.linspace(0, 2, 8).double()


@pytest.mark.parametrize("divergence", [ops.ForwardKL(), kn.MSE()])
@pytest.mark.parametrize(
    ("rows", "normaliser", "weights", "divisor"),
    [
        (lambda view: KEEP, "rows", KEEP, 4),
        (lambda view: WEIGHT, "rows", WEIGHT, 8),
        (lambda view: WEIGHT, "weights", WEIGHT, WEIGHT.sum()),
        ([lambda view: KEEP, lambda view: WEIGHT], "rows", KEEP * WEIGHT, 4),
        ([lambda view: KEEP, lambda view: WEIGHT], "weights", KEEP * WEIGHT, WEIGHT[KEEP].sum()),
        (lambda view: WEIGHT, 5.0, WEIGHT, 5),
    ],
)
def test_masks_define_the_mean_and_weights_weigh_in_it(divergence, rows, normaliser, weights, divisor):
    x, _ = batch()
    student, teacher = network()(x), network(seed=1)(x)
    is_kl = isinstance(divergence, ops.ForwardKL)
    losses = kl(teacher.softmax(1), student.softmax(1)) if is_kl else (student - teacher).square().mean(1)
    found, _ = value(Term(LOGITS, divergence=divergence, rows=rows, normaliser=normaliser), x)
    torch.testing.assert_close(found, (weights * losses).sum() / divisor)


def test_rows_that_are_masked_may_hold_anything():
    """A padded position's features may not be a number; neither loss nor gradient may see it."""
    x, _ = batch()
    student = network()
    keep = torch.ones(8, dtype=torch.bool)
    keep[3] = False
    poisoned = lambda run: torch.where(keep[:, None], run.output, torch.nan)
    for divergence in (kn.MSE(), kn.NormalisedMSE(), kn.Cosine(), kn.SmoothL1(), ops.ReverseKL()):
        clean = value(Term(LOGITS, divergence=divergence, rows=lambda view: keep), x, student=student)
        term = Term(poisoned, poisoned, divergence=divergence, rows=lambda view: keep)
        dirty = value(term, x, student=student)
        torch.testing.assert_close(dirty[0], clean[0])
        assert torch.isfinite(clean[1]).all()


def test_entropy_filters_follow_their_ramps():
    p, z, _ = outputs()
    entropy = -(p * p.log()).sum(1)
    limit = float(entropy.median())
    losses = kl(p, z.softmax(1)).detach()
    rows = kn.EntropyFilter("teacher", high=schedule.LinearRamp(0.0, limit, steps=2))
    assert value(Term(LOGITS, rows=rows, normaliser="weights"))[0] == 0
    found, _ = value(Term(LOGITS, rows=rows, normaliser="weights"), step=2)
    torch.testing.assert_close(found.detach(), losses[entropy <= limit].mean())
    q = z.softmax(1).detach()
    own = -(q * q.log()).sum(1)
    found, _ = value(Term(LOGITS, rows=kn.EntropyFilter("student", low=float(own.median()))))
    torch.testing.assert_close(found.detach(), losses[own >= own.median()].sum() / 8)


@pytest.mark.parametrize("divergence", [ops.ForwardKL(), kn.MSE()])
@pytest.mark.parametrize("hard", [False, True])
def test_self_paced_rows_weigh_by_their_own_loss_without_a_gradient_of_the_weight(divergence, hard):
    x, _ = batch()
    student = network()
    p, _, _ = outputs()
    z = student(x)
    losses = kl(p, z.softmax(1)) if isinstance(divergence, ops.ForwardKL) else (z - network(seed=1)(x)).square().mean(1)
    limit = float(losses.detach().quantile(0.7))
    weight = (losses < limit).double() if hard else (1 - losses / limit).clamp(0, 1)
    expected = (weight.detach() * losses).mean()
    found, slope = value(Term(LOGITS, divergence=divergence, rows=kn.SelfPaced(limit, hard)), x, student=student)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, student[0].weight)[0])


def test_rows_that_do_not_fit_are_named():
    with pytest.raises(dr.errors.ArgumentError, match=r"rows: <lambda>: got 'shape \(3,\)'"):
        value(Term(LOGITS, rows=lambda view: torch.ones(3)))
    with pytest.raises(dr.errors.UnknownNameError, match="batch entry: got 'attention_mask'"):
        value(Term(LOGITS, rows=kn.Mask()))
    with pytest.raises(dr.errors.ArgumentError, match="for shifted labels"):
        value(Term(LOGITS, rows=kn.Shifted()))


# Temperatures


def test_temperatures_of_rows_sides_and_steps():
    x, _ = batch()
    per_row = torch.linspace(1, 4, 8).double()
    p, q = (network(seed=1)(x) / per_row[:, None]).softmax(1), (network()(x) / per_row[:, None]).softmax(1)
    expected = (per_row**2 * kl(p, q)).mean()
    for temperature in (per_row, kn.PerRow(lambda view: per_row)):
        found, _ = value(Term(LOGITS, temperature=temperature, temperature_rule="squared"), x)
        torch.testing.assert_close(found, expected)
    ramp = schedule.LinearRamp(1.0, 5.0, steps=4)
    found, _ = value(Term(LOGITS, temperature=ramp, teacher_temperature=2.0), x, step=2)
    expected = kl((network(seed=1)(x) / 2).softmax(1), (network()(x) / 3).softmax(1)).mean()
    torch.testing.assert_close(found, expected)
    found, _ = value(Term(LOGITS, divergence=kn.DecoupledKL(), temperature=ramp, temperature_rule="squared"), step=2)
    plain, _ = value(Term(LOGITS, divergence=kn.DecoupledKL(), temperature=3.0))
    torch.testing.assert_close(found, 9 * plain)


# Targets

THIRTY = torch.full((8,), 0.3)


@pytest.mark.parametrize("divergence", [ops.ForwardKL(), ops.ReverseKL(), ops.TotalVariation()])
@pytest.mark.parametrize(
    "share", [0.3, schedule.Constant(0.3), torch.full((8,), 0.3), kn.PerRow(lambda view: torch.full((8,), 0.3))]
)
def test_mixes_of_targets(divergence, share):
    p, z, y = outputs(2.0)
    soft = 0.9 * F.one_hot(y, 3) + 0.1 / 3
    geometric = soft**0.7 * p**0.3
    mixes = {
        kn.Arithmetic(share, Labels(0.1)): 0.7 * soft + 0.3 * p,
        kn.Geometric(share, Labels(0.1)): geometric / geometric.sum(1, keepdim=True),
        Labels(0.1): soft,
    }
    for target, expected in mixes.items():
        found, _ = value(Term(LOGITS, divergence=divergence, target=target, teacher_temperature=2.0))
        rows = ops.row_divergence(z, expected.log(), divergence)
        torch.testing.assert_close(found, rows, rtol=1e-6, atol=1e-9)


def test_a_one_hot_target_under_the_forward_kl_is_the_cross_entropy_at_any_temperature():
    p, z, y = outputs()
    torch.testing.assert_close(value(Term(LOGITS, target=Labels()))[0], F.cross_entropy(z, y))
    torch.testing.assert_close(value(Term(LOGITS, target=Labels(), temperature=3.0))[0], F.cross_entropy(z / 3, y))
    squared = Term(LOGITS, target=Labels(), temperature=3.0, temperature_rule="squared")
    torch.testing.assert_close(value(squared)[0], 9 * F.cross_entropy(z / 3, y))
    smooth = F.cross_entropy(z, y, label_smoothing=0.2)
    q = 0.8 * F.one_hot(y, 3) + 0.2 / 3
    torch.testing.assert_close(value(Term(LOGITS, target=Labels(0.2)))[0], smooth + (q * q.log()).sum(1).mean())
    mixed, _ = value(Term(LOGITS, target=kn.Arithmetic(1.0)))
    torch.testing.assert_close(mixed, kl(p, z.softmax(1)).mean())


@pytest.mark.parametrize(
    "parts",
    [
        {"target": Labels()},
        {"target": kn.Arithmetic(0.5)},
        {"divergence": kn.DecoupledKL()},
        {"divergence": kn.PlackettLuce()},
    ],
)
def test_rows_without_a_label_do_not_count_where_labels_are_needed(parts):
    term = Term(LOGITS, **parts)
    x, y = batch()
    missing = y.clone()
    missing[[1, 5]] = -100
    kept = missing != -100
    for one, other in zip(value(term, (x, missing)), value(term, (x[kept], y[kept])), strict=True):
        torch.testing.assert_close(one, other)


def test_labels_that_are_none_are_refused():
    x, y = batch()
    for labels, what in ((y + 1, "classes from 0 to 2"), (y.double(), "int64"), (y[:3], "rows' shape")):
        with pytest.raises(dr.errors.ArgumentError, match=what):
            value(Term(LOGITS, target=Labels()), (x, labels))


def test_the_optimal_weight_is_that_of_a_grid():
    torch.manual_seed(0)
    for _ in range(20):
        y, u, v = (torch.randn(9, 2) for _ in range(3))
        grid = torch.linspace(0, 1, 1001)
        errors = torch.stack([(a * u + (1 - a) * v - y).square().sum() for a in grid])
        assert kn.optimal_weight(y, u, v) == pytest.approx(float(grid[errors.argmin()]), abs=1e-3)
    assert kn.optimal_weight(y, u, u) == 1.0
    with pytest.raises(dr.errors.ArgumentError, match=r"^truth: got"):
        kn.optimal_weight(y, u, v[:3])


def test_contraction_of_the_anchors_holds_where_it_is_promised_and_fails_where_it_is_not():
    """Trap: the arithmetic anchor contracts both KLs and the total variation, the geometric one KL(base || .) alone."""
    torch.manual_seed(0)
    a, broken = 0.3, 0
    for _ in range(200):
        base, q = (2 * torch.randn(2, 4).double()).softmax(1)
        arithmetic = a * base + (1 - a) * q
        geometric = base**a * q ** (1 - a)
        geometric = geometric / geometric.sum()

        def distance(kind, m):
            pair = {"forward": (base, m), "reverse": (m, base)}.get(kind)  # noqa: B023
            return (base - m).abs().sum() / 2 if pair is None else kl(pair[0][None], pair[1][None])[0]  # noqa: B023

        for kind in ("forward", "reverse", "total"):
            assert distance(kind, arithmetic) <= (1 - a) * distance(kind, q) + 1e-12
        assert distance("forward", geometric) <= (1 - a) * distance("forward", q) + 1e-12
        broken += bool(distance("total", geometric) > (1 - a) * distance("total", q) + 1e-9)
    assert broken > 0


# Teachers


def test_ensembles_combine_outputs():
    x, _ = batch()
    members = [network(seed=seed) for seed in (1, 2, 3)]
    logits = torch.stack([member(x).detach() for member in members])
    weights = torch.tensor([0.5, 0.25, 0.25]).double()
    expected = {
        "probability": (weights[:, None, None] * logits.softmax(2)).sum(0),
        "logit": (weights[:, None, None] * logits).sum(0).softmax(1),
        "vote": (weights[:, None, None] * F.one_hot(logits.argmax(2), 3)).sum(0),
    }
    for how, p in expected.items():
        teacher = kn.Ensemble([dr.Frozen(member) for member in members], how, weights=[2, 1, 1])
        found, _ = value(Term(LOGITS), x, teachers=teacher)
        torch.testing.assert_close(found, kl(p, network()(x).softmax(1)).mean(), rtol=1e-9, atol=1e-12)
    with pytest.raises(dr.errors.ArgumentError, match="'1' of an ensemble"):
        value(Term("1", divergence=kn.MSE()), x, teachers=teacher)
    for arguments, name in ((([],), "members"), (([dr.Frozen(network())], "mean"), "how")):
        with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
            kn.Ensemble(*arguments)
    with pytest.raises(dr.errors.ArgumentError, match=r"^weights: got"):
        kn.Ensemble([dr.Frozen(network())], weights=[0.0])


def test_the_student_teaches_itself_without_a_gradient_of_the_teacher():
    class Exits(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.early, self.late = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 3)
            self.double()

        def forward(self, x):
            hidden = self.stem(x).tanh()
            return {"early": self.early(hidden), "late": self.late(hidden)}

    torch.manual_seed(0)
    student = Exits()
    x, _ = batch()
    loss = Objective(student, kn.SelfTeacher(), [Term(Output("early"), Output("late"))])(x, 0)
    made = student(x)
    torch.testing.assert_close(loss.total, kl(made["late"].softmax(1), made["early"].softmax(1)).mean())
    loss.total.backward()
    assert student.late.weight.grad is None
    assert student.early.weight.grad is not None


def test_a_teacher_may_see_other_inputs_and_a_random_one_is_always_the_same():
    x, _ = batch()
    member = network(seed=1)
    shifted = kn.FrozenTeacher(dr.Frozen(member), inputs=lambda given: kn.Inputs((given.args[0] + 1,)))
    found, _ = value(Term(LOGITS), x, teachers=shifted)
    torch.testing.assert_close(found, kl(member(x + 1).softmax(1), network()(x).softmax(1)).mean())
    before = torch.get_rng_state()
    first, second, other = (kn.random_teacher(lambda: nn.Linear(5, 3), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [teacher.network.module.weight for teacher in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not weights[0].requires_grad


def test_a_ring_of_past_weights_is_the_student_of_then_and_is_saved():
    x, y = batch()

    def run(steps, state=None):
        student = network()
        objective = Objective(
            student, kn.SnapshotRing(2, every=3), [Term(LOGITS), Term(LOGITS, target=Labels(), scale=0.5)]
        )
        optimiser = torch.optim.SGD(student.parameters(), 0.5)
        history, start = [], 0
        if state:
            student.load_state_dict(state["student"])
            objective.load_state_dict(torch.load(io.BytesIO(state["objective"]), weights_only=True))
            start = state["next"]
        for index in range(start, steps):
            history.append(copy.deepcopy(student))
            for rows in (slice(0, 4), slice(4, 8)):
                loss = objective((x[rows], y[rows]), dr.Step(index, items=8))
                loss.total.backward()
            optimiser.step()
            optimiser.zero_grad()
        buffer = io.BytesIO()
        torch.save(objective.state_dict(), buffer)
        return (
            student,
            objective,
            history,
            {"student": student.state_dict(), "objective": buffer.getvalue(), "next": steps},
        )

    student, objective, history, _ = run(8)
    ring = objective.teachers["main"]
    assert ring.taken_at == [3, 6]
    with torch.no_grad():
        found = objective((x, y), 8).terms["ForwardKL(logits)"]
    mean = (history[3](x).softmax(1) + history[6](x).softmax(1)).detach() / 2
    torch.testing.assert_close(found, kl(mean, student(x).softmax(1)).mean().detach())
    assert not list(ring.parameters())
    early = Objective(network(seed=4), kn.SnapshotRing(2, every=3), [Term(LOGITS)])
    with torch.no_grad():
        assert float(early((x, y), 0).total.abs()) < 1e-9
    assert early.teachers["main"].taken_at == []
    assert float(early((x, y), 0).total.detach().abs()) < 1e-9
    assert early.teachers["main"].taken_at == [0]
    rest, _, _, _ = run(8, run(5)[3])
    for one, other in zip(rest.parameters(), student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_table_of_past_predictions_is_by_id_saved_and_left_alone_by_evaluation():
    """Trap: whatever the order of the examples, each meets its own earlier prediction."""
    x, y = batch()
    student = network()
    target = kn.Arithmetic(schedule.LinearRamp(0.0, 0.8, steps=4))
    objective = Objective(student, kn.SnapshotTable(8, 3).double(), [Term(LOGITS, target=target)])
    order = torch.tensor([5, 0, 7, 2, 1, 3, 6, 4])
    first = objective((x[order], y[order], order), 2)
    torch.testing.assert_close(first.total, F.cross_entropy(student(x), y))
    past = student(x).softmax(1).detach()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3)
        objective((x[order], y[order], order), 2)
    rows = torch.tensor([6, 2, 3])
    mixed = 0.6 * F.one_hot(y[rows], 3) + 0.4 * past[rows]
    expected = kl(mixed, student(x[rows]).softmax(1)).mean()
    buffer = io.BytesIO()
    torch.save(objective.state_dict(), buffer)
    torch.testing.assert_close(objective((x[rows], y[rows], rows), 2).total, expected)
    other = Objective(student, kn.SnapshotTable(8, 3).double(), [Term(LOGITS, target=target)])
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    torch.testing.assert_close(other((x[rows], y[rows], rows), 2).total, expected)
    for ids in (rows.double(), rows + 6, torch.zeros(3, 2, dtype=torch.int64)):
        with pytest.raises(dr.errors.ArgumentError, match=r"^batch\['ids'\]: got"):
            objective((x[rows], y[rows], ids), 2)


def test_answers_from_a_cache_are_those_of_the_live_top_k(tmp_path):
    """Trap: nothing is renormalised; rows without an answer weigh nothing."""
    x, y = batch()
    teacher, student = network(classes=9, seed=1), network(classes=9)
    logits = teacher(x).detach().float()
    with trajectory.TeacherCache.create(
        tmp_path / "cache", 9, 4, trajectory.UNCHECKED, temperatures=(1.0, 2.0), code="f16"
    ) as cache:
        cache.append("a", logits)
    with trajectory.TeacherCache.open(tmp_path / "cache", trajectory.UNCHECKED) as cache:
        rows = cache.index(["a"])[0] + torch.arange(8)
        rows[[2, 3]] = -1
        objective = Objective(
            student, kn.Cached(cache), [Term(LOGITS, temperature=2.0, temperature_rule="squared")], inputs=None
        )

        class Named(nn.Module):
            def forward(self, x):
                return student(x)

        loss = objective({"x": x, "labels": y, "teacher_rows": rows}, 0, student=Named())
        kept = rows >= 0
        top = ops.TopK.from_logits(logits[kept], 4, (2.0,))
        expected = 4 * ops.sparse_row_divergence(student(x[kept]), top, ops.ForwardKL(), temperature=2.0)
        torch.testing.assert_close(loss.total, expected, rtol=1e-2, atol=1e-3)
        full = 4 * ops.row_divergence(student(x[kept]), logits[kept], ops.ForwardKL(), temperature=2.0)
        assert loss.total < full
        with pytest.raises(dr.errors.ArgumentError, match="'1' of a cache"):
            Objective(student, kn.Cached(cache), [Term("1", divergence=kn.MSE())])(
                {"x": x, "teacher_rows": rows}, 0, student=Named()
            )


# Balance and stages


def test_balances_bring_terms_to_size():
    x, y = batch()
    student = network()
    terms = [Term(LOGITS, name="kd"), Term("1", divergence=kn.MSE(), name="hint", scale=100.0)]
    for balance in (kn.LossRatio("kd", 0.5), kn.LossRatio("kd", {"hint": 0.5})):
        loss = Objective(student, dr.Frozen(network(seed=1)), terms, balance=balance)((x, y), 0)
        torch.testing.assert_close(loss.total.detach(), 1.5 * loss.terms["kd"])
    plain = Objective(student, dr.Frozen(network(seed=1)), terms)
    balanced = Objective(student, dr.Frozen(network(seed=1)), terms, balance=kn.GradientBalance("0"))
    loss = balanced((x, y), 0)
    norms = {}
    for name, term in zip(("kd", "hint"), terms, strict=True):
        alone = Objective(student, dr.Frozen(network(seed=1)), [term])((x, y), 0)
        slopes = torch.autograd.grad(alone.total, list(student[0].parameters()))
        norms[name] = torch.cat([slope.flatten() for slope in slopes]).norm()
    mean = (norms["kd"] + norms["hint"]) / 2
    for name, norm in norms.items():
        torch.testing.assert_close(loss.terms[f"factor/{name}"], mean / norm)
    expected = mean / norms["kd"] * loss.terms["kd"] + 100 * mean / norms["hint"] * loss.terms["hint"]
    torch.testing.assert_close(loss.total.detach(), expected)
    loss.total.backward()
    assert plain((x, y), 0).total.requires_grad
    with pytest.raises(dr.errors.UnknownNameError, match="reference"):
        Objective(student, dr.Frozen(network(seed=1)), terms, balance=kn.LossRatio("kl"))


def test_stages_follow_each_other_and_train_what_they_name():
    student = network()
    x, y = batch()
    first = kn.Stage(
        [Term("1", divergence=kn.MSE(), name="hint", scale=schedule.LinearRamp(1.0, 0.0, steps=4))], 2, trainable=["0"]
    )
    second = kn.Stage([Term(LOGITS, name="kd", scale=schedule.LinearRamp(0.0, 1.0))])
    objective = Objective(student, dr.Frozen(network(seed=1)), stages=[first, second])
    optimiser = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    before = copy.deepcopy(student.state_dict())
    assert len(objective.parameter_groups()["student"]) == 4
    for index in range(2):
        loss = objective((x, y), dr.Step(index, total=5))
        assert set(loss.terms) == {"hint"}
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    after = student.state_dict()
    assert torch.equal(after["2.weight"], before["2.weight"])
    assert not torch.equal(after["0.weight"], before["0.weight"])
    loss = objective((x, y), dr.Step(3, total=5))
    assert set(loss.terms) == {"kd"}
    torch.testing.assert_close(loss.total.detach(), 0.5 * loss.terms["kd"])
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert len(objective.parameter_groups()["student"]) == 4


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: kn.Stage([]), "terms"),
        (lambda: kn.Stage([Term(LOGITS)], 0), "steps"),
        (lambda: kn.Stage([Term(LOGITS)], 1, trainable="0"), "trainable"),
        (lambda: Objective(network(), dr.Frozen(network()), stages=[kn.Stage([Term(LOGITS)])] * 2), "steps"),
        (lambda: Objective(network(), dr.Frozen(network()), stages=[]), "stages"),
        (lambda: Objective(network(), dr.Frozen(network()), [Term(LOGITS)], stages=[]), "terms"),
        (lambda: kn.Projector(0, 3), "in_features"),
        (lambda: kn.Chain(), "parts"),
        (lambda: kn.Gram("words"), "of"),
        (lambda: kn.HeadRelations(0), "heads"),
        (lambda: kn.AttentionMap(0), "p"),
        (lambda: kn.layer_pairs(3, 2), "student_layers"),
        (lambda: kn.layer_pairs(2, 3, "every"), "how"),
        (lambda: kn.layer_pairs(2, 3, [0, 3]), "how"),
        (lambda: kn.Labels(1.0), "smoothing"),
        (lambda: kn.Arithmetic(1.5), "share"),
        (lambda: kn.SelfPaced(0.0), "threshold"),
        (lambda: kn.EntropyFilter("both"), "of"),
        (lambda: kn.PerRow(3.0), "function"),
        (lambda: kn.InfoNCE(0.0), "temperature"),
        (lambda: kn.InfoNCE(queue=3), "width"),
        (lambda: kn.NoiseContrast(1, 3), "examples"),
        (lambda: kn.NoiseContrast(4, 3, labels=torch.zeros(4, dtype=torch.int64)), "labels"),
        (lambda: kn.NoiseContrast(4, 3, momentum=1.0), "momentum"),
        (lambda: kn.SnapshotRing(0), "count"),
        (lambda: kn.SnapshotTable(4, 0), "classes"),
        (lambda: kn.FrozenTeacher(network()), "network"),
        (lambda: kn.Cached("path"), "cache"),
        (lambda: kn.LossRatio("a", -1.0), "ratio"),
        (lambda: kn.Bernoulli("odds"), "given"),
        (lambda: kn.SmoothL1(0.0), "beta"),
        (lambda: kn.NormalisedMSE("none"), "by"),
        (lambda: kn.Through(3), "student"),
        (lambda: value(Term("1", "0", divergence=kn.MSE(), align=kn.Projector(5, 6))), "student"),
        (lambda: value(Term("1", "2", divergence=kn.MSE())), "teacher"),
        (lambda: value(Term(("0", "1"), divergence=kn.MSE())), "align"),
        (
            lambda: value(Term(LOGITS, divergence=kn.InfoNCE()), {"input": batch()[0], "ids": torch.arange(3)}),
            r"batch\['ids'\]",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        make()


def test_a_divergence_and_a_teacher_of_ones_own():
    class Angle(kn.Divergence):
        def rows(self, student, teacher, view):
            return (student * teacher).sum(-1).square()

    class Constant(kn.Teacher):
        def answers(self, request):
            return {tap: torch.full((len(request.inputs.args[0]), 3), 2.0).double() for tap in request.taps}

    x, _ = batch()
    found, _ = value(Term(LOGITS, divergence=Angle()), x, teachers=Constant())
    torch.testing.assert_close(found, (2 * network()(x)).sum(1).square().mean())

    class Silent(kn.Teacher):
        def answers(self, request):
            return {}

    with pytest.raises(dr.errors.ArgumentError, match="no answer for 'logits'"):
        value(Term(LOGITS), x, teachers=Silent())


def test_several_taps_make_one_term():
    x, _ = batch()
    align = kn.Chain(lambda s, t: (torch.stack(s, 1), torch.stack(t, 1)), kn.Gram("tokens", "none"))
    found, _ = value(Term(("0", "1"), align=align, divergence=kn.MSE()), x)
    grams = []
    for seed in (0, 1):
        net = network(seed=seed)
        both = torch.stack([net[0](x), net[0](x).tanh()], 1)
        grams.append(both @ both.mT)
    torch.testing.assert_close(found, (grams[0] - grams[1]).square().mean())
