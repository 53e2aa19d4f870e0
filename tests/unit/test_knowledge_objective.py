"""The contract of the knowledge engine's objective."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import default_collate

import distillrs as dr
from distillrs import knowledge, ops, schedule
from distillrs.knowledge import Labels, Objective, Output, Projector, Shifted, Term

LOGITS = Output("logits")


def network(width=6, classes=3, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, classes)).to(dtype)


class Language(nn.Module):
    """Token by token, so that a batch's rows do not depend on each other."""

    def __init__(self, width=6, vocabulary=11, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(vocabulary, width)
        self.layer = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary)
        self.double()

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.head(torch.tanh(self.layer(self.embed(input_ids))))}


def text(batch=4, length=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (batch, length), generator=generator)
    mask = torch.rand(batch, length, generator=generator) < 0.8
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


def part(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def batch(n=7, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 5, dtype=torch.float64), torch.arange(n) % 3


def gradients(loss, module):
    return torch.autograd.grad(loss.total, list(module.parameters()), allow_unused=True)


def three_terms(student, teacher, **options):
    return Objective(
        student,
        dr.Frozen(teacher),
        [
            Term(LOGITS, temperature=4.0, temperature_rule="squared", scale=0.9),
            Term("1", align=Projector(6, 8).double(), divergence=knowledge.NormalisedMSE(), name="hint"),
            Term(LOGITS, target=Labels(), scale=0.1, name="task"),
        ],
        **options,
    )


def test_it_is_an_objective_that_owns_its_projector_alone():
    student, teacher = network(), network(8, seed=1)
    objective = three_terms(student, teacher)
    assert isinstance(objective, dr.Objective)
    assert objective.turns(0) == ("student",)
    groups = objective.parameter_groups()
    assert [id(p) for p in groups["student"]] == [id(p) for p in student.parameters()]
    assert [id(p) for p in groups["objective"]] == [id(p) for p in objective.parameters()]
    assert list(objective.state_dict()) == ["parts.0.weight", "parts.0.bias"]
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(dr.errors.ArgumentError, match=r"^turn: got"):
        objective(batch(), 0, turn="critic")


def test_the_total_is_the_sum_of_the_scaled_terms_by_hand():
    student, teacher = network(), network(8, seed=1)
    objective = three_terms(student, teacher)
    x, y = batch()
    loss = objective((x, y), 0)
    z, t = student(x), teacher(x)
    kl = F.kl_div((z / 4).log_softmax(1), (t / 4).softmax(1), reduction="batchmean") * 16
    projector = objective.parts[0]
    hidden = F.normalize(torch.tanh(student[0](x)) @ projector.weight.T + projector.bias, dim=1)
    hint = (hidden - F.normalize(torch.tanh(teacher[0](x)), dim=1)).square().sum(1).mean()
    expected = 0.9 * kl + hint + 0.1 * F.cross_entropy(z, y)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    assert set(loss.terms) == {"ForwardKL(logits)", "hint", "task"}
    torch.testing.assert_close(loss.terms["ForwardKL(logits)"], kl.detach())
    assert not any(term.requires_grad for term in loss.terms.values())
    found = torch.autograd.grad(loss.total, list(student.parameters()))
    for one, other in zip(found, torch.autograd.grad(expected, list(student.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_batches_of_every_form_are_the_same_batch():
    class Named(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    student, teacher = Named(network()), Named(network(seed=1))
    objective = Objective(student, dr.Frozen(teacher), [Term(LOGITS), Term(LOGITS, target=Labels())])
    x, y = batch()
    ids = torch.arange(7)
    expected = objective((x, y), 0).total
    examples = default_collate([{"x": a, "labels": b, "ids": i} for a, b, i in zip(x, y, ids, strict=True)])
    for form in ([x, y], (x, y, ids), examples, knowledge.Inputs((x,), {}, {"labels": y})):
        assert torch.equal(objective(form, 0).total, expected)
    read = Objective(
        student,
        dr.Frozen(teacher),
        objective.stages[0].terms,
        inputs=lambda b: knowledge.Inputs((), {"x": b.x}, b.rest),
    )
    own = type("Own", (), {"x": x, "rest": {"labels": y}})()
    assert torch.equal(read(own, 0).total, expected)
    unlabelled = Objective(student, dr.Frozen(teacher), [Term(LOGITS)])
    assert torch.equal(unlabelled(x, 0).total, unlabelled((x,), 0).total)
    for wrong in ("text", (x, y, ids, y), 3):
        with pytest.raises(dr.errors.ArgumentError, match=r"^batch: got"):
            objective(wrong, 0)
    with pytest.raises(dr.errors.ArgumentError, match="no labels"):
        objective(x, 0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch, where a compiled graph breaks
def test_the_student_may_come_wrapped():
    student, teacher = network(), network(8, seed=1)
    objective = three_terms(student, teacher)
    expected = objective(batch(), 0).total
    torch._dynamo.reset()
    compiled = torch.compile(student, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(objective(batch(), 0, student=compiled).total, expected)
    knowledge.release(compiled)
    torch._dynamo.reset()
    parallel = nn.DataParallel(student)
    torch.testing.assert_close(objective(batch(), 0, student=parallel).total, expected)


def test_it_follows_to_with_its_teacher_and_leaves_the_student():
    student, teacher = network(), network(8, seed=1)
    objective = three_terms(student, teacher)
    objective.to(torch.float32)
    assert teacher[0].weight.dtype == torch.float32
    assert objective.parts[0].weight.dtype == torch.float32
    assert student[0].weight.dtype == torch.float64


def test_a_teacher_runs_once_without_a_graph_in_evaluation_mode():
    """However many terms ask, and whoever put it into training mode."""
    calls = []

    class Watched(nn.Sequential):
        def forward(self, x):
            calls.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    teacher = Watched(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    frozen = dr.Frozen(teacher)
    student = network()
    objective = Objective(
        student,
        frozen,
        [
            Term(LOGITS),
            Term("2", "1", divergence=knowledge.MSE(), align=Projector(3, 6).double()),
            Term("0", "0", divergence=knowledge.L1()),
        ],
    )
    teacher.train()
    before = teacher[1].running_mean.clone()
    first = objective(batch(), 0).total
    assert calls == [(False, False)]
    assert torch.equal(objective(batch(), 0).total, first)
    assert torch.equal(teacher[1].running_mean, before)
    first.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_only_frozen_networks_and_teachers_are_taken():
    student = network()
    for teachers, name in ((network(), "teachers"), ({"a": network()}, r"teachers\['a'\]"), ("x", "teachers")):
        with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got .*dr.Frozen"):
            Objective(student, teachers, [Term(LOGITS)])
    with pytest.raises(dr.errors.UnknownNameError, match=r"teacher_name: got 'min'.*did you mean 'main'"):
        Objective(student, dr.Frozen(network()), [Term(LOGITS, teacher_name="min")])
    with pytest.raises(dr.errors.ArgumentError, match=r"^student: got"):
        Objective(dr.Frozen(student), None, [Term(LOGITS, target=Labels())])
    with pytest.raises(dr.errors.ArgumentError, match=r"^terms: got"):
        Objective(student, None)
    Objective(student, None, [Term(LOGITS, target=Labels())])(batch(), 0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"student": 3}, "student"),
        ({"divergence": "kl"}, "divergence"),
        ({"divergence": ops.ForwardKL}, "divergence"),
        ({"target": "labels"}, "target"),
        ({"divergence": knowledge.MSE(), "target": Labels()}, "target"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"teacher_temperature": -1.0}, "teacher_temperature"),
        ({"temperature": 4.0, "teacher_temperature": 2.0, "temperature_rule": "squared"}, "temperature_rule"),
        ({"temperature_rule": "cubed"}, "temperature_rule"),
        ({"scale": float("nan")}, "scale"),
        ({"normaliser": "mean"}, "normaliser"),
        ({"normaliser": 0}, "normaliser"),
        ({"rows": "labels"}, "rows"),
        ({"align": 3}, "align"),
    ],
)
def test_a_term_refuses_what_makes_no_sense(options, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        Term(**({"student": LOGITS} | options))


def test_shifted_labels_are_next_token_prediction():
    student, teacher = Language(), Language(9, seed=1)
    data = text()
    rows = Shifted("labels")
    objective = Objective(
        student,
        dr.Frozen(teacher),
        [Term(LOGITS, rows=rows, name="kd"), Term(LOGITS, target=Labels(), rows=rows, name="ce")],
    )
    loss = objective(data, 0)
    z, t = (each(data["input_ids"])["logits"][:, :-1].reshape(-1, 11) for each in (student, teacher))
    labels = data["labels"][:, 1:].reshape(-1)
    keep = labels != -100
    kd = (t.softmax(1) * (t.log_softmax(1) - z.log_softmax(1))).sum(1)[keep].mean()
    torch.testing.assert_close(loss.terms["kd"], kd.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.terms["ce"], F.cross_entropy(z, labels).detach(), rtol=1e-12, atol=0)


MIXED = [
    Term(LOGITS, rows=Shifted("labels"), temperature=2.0, temperature_rule="squared"),
    Term(LOGITS, target=Labels(smoothing=0.1), rows=Shifted("labels"), scale=0.3),
    Term(LOGITS, target=Labels(), rows=Shifted("labels"), scale=0.3),
]


def test_unequal_micro_batches_add_up_to_one_batch():
    """With a global count, whatever each part's own count is; without it they would not."""
    data = text(6)
    data["labels"][0, 2:] = -100
    items = int((data["labels"][:, 1:] != -100).sum())
    student, teacher = Language(), Language(9, seed=1)
    objective = Objective(student, dr.Frozen(teacher), MIXED)
    whole = objective(data, 0)
    parts = [part(data, slice(0, 1)), part(data, slice(1, 6))]
    losses = [objective(each, dr.Step(0, items=items)) for each in parts]
    torch.testing.assert_close(sum(loss.total for loss in losses), whole.total)
    for name, value in whole.terms.items():
        torch.testing.assert_close(sum(loss.terms[name] for loss in losses), value)
    expected = gradients(whole, student)
    found = [gradients(loss, student) for loss in losses]
    for first, second, one in zip(*found, expected, strict=True):
        torch.testing.assert_close(first + second, one)
    local = sum(objective(each, 0).total for each in parts) / 2
    assert not torch.allclose(local, whole.total, rtol=1e-3)


def test_identical_micro_batches_give_the_gradient_of_one():
    """For features of all tokens and of examples too, whose rows are not the items."""
    data = text(4)
    items = 2 * int((data["labels"] != -100).sum())
    student, teacher = Language(), Language(9, seed=1)
    pooled = lambda run: run.output["logits"].mean(1)
    objective = Objective(
        student,
        dr.Frozen(teacher),
        [
            Term("layer", align=Projector(6, 9).double(), divergence=knowledge.MSE()),
            Term("layer", align=knowledge.Gram("tokens"), divergence=knowledge.MSE(), rows=knowledge.Mask()),
            Term(pooled, divergence=knowledge.Cosine()),
            Term(LOGITS, divergence=ops.ReverseKL(), rows=knowledge.EntropyFilter(high=2.3), normaliser="weights"),
        ],
    )
    one = objective(data, 0)
    twice = objective(data, dr.Step(0, items=items))
    torch.testing.assert_close(2 * twice.total, one.total)
    for found, expected in zip(gradients(twice, student), gradients(one, student), strict=True):
        torch.testing.assert_close(2 * found, expected) if expected is not None else None


def test_items_are_examples_where_there_are_no_labels_of_classes():
    student, teacher = network(), network(seed=1)
    objective = Objective(student, dr.Frozen(teacher), [Term(LOGITS), Term("1", divergence=knowledge.MSE())])
    x, y = batch(6)
    whole = objective(x, 0).total
    parts = [objective(x[rows], dr.Step(0, items=6)).total for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), whole)
    parts = [objective((x[rows], y[rows]), dr.Step(0, items=6)).total for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("items", [None, 12])
def test_a_batch_without_a_row_that_counts_gives_zero_with_a_graph(items):
    data = text()
    data["labels"].fill_(-100)
    data["attention_mask"].fill_(0)
    student, teacher = Language(), Language(9, seed=1)
    rows = Shifted("labels")
    objective = Objective(
        student,
        dr.Frozen(teacher),
        [
            *MIXED,
            Term(LOGITS, rows=rows, normaliser="weights"),
            Term(LOGITS, rows=[rows, knowledge.SelfPaced(1.0)]),
            Term("layer", align=Projector(6, 9).double(), divergence=knowledge.NormalisedMSE(), rows=knowledge.Mask()),
        ],
    )
    with torch.no_grad():
        student.head.bias.fill_(torch.nan)
    loss = objective(data, dr.Step(0, items=items))
    assert loss.total.item() == 0
    for gradient in gradients(loss, student):
        assert gradient is None or not gradient.any()


def test_ramps_scale_the_terms_and_a_term_of_scale_zero_is_not_computed():
    calls = []
    teacher = network(seed=1)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    student = network()
    ramp = schedule.LinearRamp(1.0, 0.0, steps=4)
    objective = Objective(
        student, dr.Frozen(teacher), [Term(LOGITS, scale=ramp, name="kd"), Term(LOGITS, target=Labels())]
    )
    x, y = batch()
    kd, ce = (objective((x, y), 0).terms[name] for name in ("kd", "Labels(logits)"))
    torch.testing.assert_close(objective((x, y), 1).total.detach(), 0.75 * kd + ce)
    calls.clear()
    last = objective((x, y), 4)
    assert not calls
    assert set(last.terms) == {"Labels(logits)"}
    alone = Objective(student, dr.Frozen(teacher), [Term(LOGITS, scale=ramp)])
    nothing = alone((x, y), 9)
    assert nothing.total.item() == 0
    nothing.total.backward()
    relative = Objective(student, dr.Frozen(teacher), [Term(LOGITS, scale=schedule.LinearRamp(1, 0), name="kd")])
    torch.testing.assert_close(relative((x, y), dr.Step(2, total=5)).total.detach(), 0.5 * kd)


def test_the_state_restores_what_the_objective_owns():
    objective = three_terms(network(), network(8, seed=1))
    for parameter in objective.parameters():
        nn.init.normal_(parameter)
    buffer = io.BytesIO()
    torch.save(objective.state_dict(), buffer)
    buffer.seek(0)
    other = three_terms(network(), network(8, seed=1))
    assert other(batch(), 0).total != objective(batch(), 0).total
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(batch(), 0).total, objective(batch(), 0).total)


def test_a_run_goes_on_bit_for_bit_and_moves_student_and_projector():
    def run(steps, state=None, keep=None):
        student = network()
        objective = three_terms(student, network(8, seed=1))
        optimiser = torch.optim.Adam([p for group in objective.parameter_groups().values() for p in group], 0.01)
        saved = {}
        if state is not None:
            student.load_state_dict(state["student"])
        dr.fit(
            objective,
            optimiser,
            8,
            batches=lambda step: batch(seed=step.index),
            callback=lambda p: (
                saved.update(copy.deepcopy({"student": student.state_dict(), "run": p.state()}))
                or p.step.index + 1 == steps
            ),
            state=state["run"] if state else None,
        )
        return saved

    whole, half = run(8), run(4)
    rest = run(8, half)
    for name, value in whole["student"].items():
        assert torch.equal(rest["student"][name], value)
        assert not torch.equal(network().state_dict()[name], value)
    for name, value in whole["run"]["objective"].items():
        assert torch.equal(rest["run"]["objective"][name], value)


def test_equal_names_are_told_apart():
    student = network()
    objective = Objective(student, dr.Frozen(network(seed=1)), [Term(LOGITS), Term(LOGITS, temperature=2.0)])
    assert set(objective(batch(), 0).terms) == {"ForwardKL(logits)", "ForwardKL(logits)#2"}


def test_parts_in_lower_precision_give_losses_in_single():
    student, teacher = network(dtype=torch.bfloat16), network(8, seed=1, dtype=torch.bfloat16)
    objective = Objective(
        student,
        dr.Frozen(teacher),
        [
            Term(LOGITS),
            Term("1", align=Projector(6, 8), divergence=knowledge.MSE()),
            Term("1", align=knowledge.Gram("examples"), divergence=knowledge.MSE()),
        ],
    )
    x, y = batch()
    loss = objective((x.bfloat16(), y), 0)
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


def test_mixed_precision_by_autocast():
    student, teacher = network(dtype=torch.float32), network(8, seed=1, dtype=torch.float32)
    objective = Objective(
        student, dr.Frozen(teacher), [Term(LOGITS), Term("1", align=Projector(6, 8), divergence=knowledge.MSE())]
    )
    x, y = batch()
    exact = objective((x.float(), y), 0).total
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective((x.float(), y), 0).total
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.01)
