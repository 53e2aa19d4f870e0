"""What must not go wrong silently: low precision, rows of zeros, counts of items, copies of an objective."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import ops, recipes
from distillrs.errors import ArgumentError
from distillrs.integrations import count_items
from distillrs.knowledge import Labels, Objective, Output, Term
from distillrs.knowledge.numerics import unit
from distillrs.knowledge.teachers import add_member

LOGITS = Output("logits")


class Tokens(nn.Module):
    """Logits and features of every position."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)

    def forward(self, tokens):
        return {"logits": self.head(self.body(tokens))}


def tokens(rows=3, length=8):
    torch.manual_seed(3)
    ids = torch.randint(0, 7, (rows, length))
    return {"tokens": ids, "labels": ids.clone()}


def test_unit_vectors_are_those_of_normalize_and_leave_zeros_alone():
    torch.manual_seed(0)
    vectors = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unit(vectors), F.normalize(vectors, dim=-1))
    assert torch.autograd.gradcheck(unit, vectors)
    zero = torch.zeros(2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(unit(zero).sum(), zero)
    assert (slope == 0).all()


@pytest.mark.parametrize(
    ("term", "limit"),
    [
        (Term("0", align=kn.TripletAngles(), divergence=kn.MSE()), 1e3),
        (Term("0", align=kn.Gram("examples", "vectors"), divergence=kn.MSE()), 1e3),
        (Term("0", align=kn.Gram("examples", "rows"), divergence=kn.MSE()), 1e3),
        (Term("0", divergence=kn.NormalisedMSE()), 1e3),
        (Term("0", divergence=kn.Cosine()), 1e3),
        (Term("0", divergence=kn.InfoNCE()), 1e3),
    ],
)
def test_a_row_of_zeros_does_not_outweigh_the_others(term, limit):
    student, teacher = nn.Sequential(nn.Linear(5, 4)), nn.Sequential(nn.Linear(5, 4))
    with torch.no_grad():
        student[0].bias.zero_()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    x[2] = 0
    loss = Objective(student, dr.Frozen(teacher), [term])(x, 0).total
    loss.backward()
    assert torch.isfinite(loss)
    assert float(student[0].bias.grad.abs().max()) < limit


@pytest.mark.parametrize(
    "align", [kn.TripletAngles(), kn.Gram("examples", "rows"), kn.Gram("examples", "size"), kn.Gram("examples")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_relations_are_the_same_under_autocast(align, dtype):
    x = 40 * torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    student, teacher = nn.Sequential(nn.Identity(), nn.Linear(32, 32)), nn.Sequential(nn.Identity())
    objective = Objective(student, dr.Frozen(teacher), [Term("0", align=align, divergence=kn.MSE())])
    plain = objective(x, 0).total
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(objective(x, 0).total, plain)


def test_a_feature_term_weighs_the_same_with_a_count_of_items():
    terms = [Term(LOGITS, rows=kn.Shifted(), name="kl"), Term("body", divergence=kn.MSE(), name="mse")]
    objective = Objective(Tokens(0), dr.Frozen(Tokens(1)), terms)
    batch = tokens()
    alone = objective(batch, 0)
    counted = objective(batch, dr.Step(0, items=int(count_items(objective, batch))))
    for name in ("kl", "mse"):
        torch.testing.assert_close(counted.terms[name], alone.terms[name])
    assert counted.total.dtype == torch.float32


def test_labels_that_a_term_ignores_are_not_counted():
    terms = [Term(LOGITS, rows=kn.Shifted(ignore_index=0), name="kl")]
    objective = Objective(Tokens(0), dr.Frozen(Tokens(1)), terms)
    batch = tokens()
    batch["labels"][:, ::2] = 0
    items = int(count_items(objective, batch))
    assert items == int((batch["labels"][:, 1:] != 0).sum())
    torch.testing.assert_close(objective(batch, dr.Step(0, items=items)).total, objective(batch, 0).total)


def keep(view):
    return view.inputs.tensor("keep") != 0


@pytest.mark.parametrize("mask", [kn.Mask("keep"), kn.Where("keep", 1), keep])
def test_a_mask_beside_the_labels_does_not_change_the_scale(mask):
    terms = [Term(LOGITS, rows=[kn.Shifted(), mask], name="kl")]
    objective = Objective(Tokens(0), dr.Frozen(Tokens(1)), terms, withheld=["keep"])
    batch = tokens() | {"keep": torch.arange(24).reshape(3, 8) % 2}
    items = int(count_items(objective, batch))
    torch.testing.assert_close(objective(batch, dr.Step(0, items=items)).total, objective(batch, 0).total)


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("make", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), lambda it: it])
def test_labels_outside_of_the_classes_are_refused_by_copies_too(label, make):
    student = nn.Linear(5, 3)
    objective = make(Objective(student, None, [Term(LOGITS, target=Labels())]))
    x = torch.randn(4, 5)
    assert torch.isfinite(objective((x, torch.tensor([0, 1, -100, 2])), 0).total)
    with pytest.raises(ArgumentError, match=rf"^labels: got {label}, allowed is classes from 0 to 2"):
        objective((x, torch.tensor([0, label, 1, 2])), 0)


def test_rare_entries_survive_an_ensemble():
    logits = torch.tensor([[0.0, -110.0, -5.0]])
    total = None
    for weight in (0.5, 0.5, 0.0):
        total = add_member(total, logits, weight, "probability")
    torch.testing.assert_close(total, logits.log_softmax(-1))


def test_many_weights_in_half_precision_still_have_a_sum():
    weights = torch.ones(80_000, dtype=torch.float16)
    torch.manual_seed(0)
    student, teacher, x = nn.Linear(1, 1), nn.Linear(1, 1), torch.ones(len(weights), 1)

    def loss(given):
        term = Term(LOGITS, divergence=kn.MSE(), rows=lambda view: given, normaliser="weights")
        return Objective(student, dr.Frozen(teacher), [term])(x, 0).total.detach()

    assert float(loss(weights)) > 0
    torch.testing.assert_close(loss(weights), loss(weights.float()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Term("0", align=kn.Projector(4, 3), target=Labels()), "^align: got"),
        (lambda: Term("0", divergence=kn.MSE(), temperature=4.0, temperature_rule="squared"), "^temperature_rule: got"),
        (lambda: Term("0", divergence=kn.MSE(), temperature=4.0), "^temperature: got '4.0 with MSE, which divides"),
        (lambda: Term("0", divergence=kn.InfoNCE(), temperature=0.1), "^temperature: got '0.1 with InfoNCE"),
        (lambda: Term("0", divergence=kn.BernoulliLimit(), teacher_temperature=2.0), "^teacher_temperature: got"),
        (lambda: recipes.hinton(nn.Linear(2, 2), nn.Linear(2, 2), weight=1.5), "^weight: got 1.5"),
        (
            lambda: Objective(
                nn.Linear(5, 3), dr.Frozen(nn.Linear(5, 3)), [Term(LOGITS, temperature=lambda step: 0.0)]
            )(torch.randn(2, 5), 0),
            "^temperature: got 0.0",
        ),
    ],
)
def test_what_would_change_the_loss_unseen_is_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_tensor_of_temperatures_may_stand_beside_a_number():
    student, teacher = nn.Linear(5, 3), nn.Linear(5, 3)
    term = Term(LOGITS, divergence=ops.ForwardKL(), temperature=torch.full((4,), 2.0), teacher_temperature=2.0)
    plain = Term(LOGITS, divergence=ops.ForwardKL(), temperature=2.0)
    x = torch.randn(4, 5)
    found = [Objective(student, dr.Frozen(teacher), [each])(x, 0).total for each in (term, plain)]
    torch.testing.assert_close(*found)


def test_a_balance_whose_reference_has_left_gives_factors_of_one():
    terms = [
        Term(LOGITS, name="kd", scale=dr.schedule.LinearRamp(1.0, 0.0, steps=2)),
        Term(LOGITS, target=Labels(), name="ce"),
    ]
    objective = Objective(nn.Linear(5, 3), dr.Frozen(nn.Linear(5, 3)), terms, balance=kn.LossRatio("kd"))
    x, y = torch.randn(4, 5), torch.arange(4) % 3
    loss = objective((x, y), 5)
    torch.testing.assert_close(loss.total.detach(), loss.terms["ce"])


@pytest.mark.parametrize("rows", [kn.Labelled(), None])
def test_rows_that_are_not_those_that_are_counted_do_not_change_the_scale(rows):
    """One term's rows have a next token, the other's are all: the count is of the first kind."""
    terms = [Term(LOGITS, rows=kn.Shifted(), name="kl"), Term(LOGITS, target=Labels(), rows=rows, name="task")]
    objective = Objective(Tokens(0), dr.Frozen(Tokens(1)), terms)
    batch = tokens()
    batch["labels"][:, 5:] = -100
    items = int(count_items(objective, batch))
    found, expected = objective(batch, dr.Step(0, items=items)), objective(batch, 0)
    for name in ("kl", "task"):
        torch.testing.assert_close(found.terms[name], expected.terms[name])


def test_weights_from_a_function_add_up_over_micro_batches():
    weights = torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
    terms = [Term(LOGITS, rows=[kn.Shifted(), lambda view: view.inputs.tensor("weight")], name="kl")]
    objective = Objective(Tokens(0), dr.Frozen(Tokens(1)), terms, withheld=["weight"])
    whole = tokens(4) | {"weight": weights}
    whole["labels"][3, 2:] = -100
    parts = [{name: value[rows] for name, value in whole.items()} for rows in (slice(0, 1), slice(1, 4))]
    items = int(count_items(objective, whole))
    found = sum(objective(part, dr.Step(0, items=items)).total for part in parts)
    torch.testing.assert_close(found, objective(whole, 0).total)


def test_a_term_whose_gradient_is_zero_takes_no_part_in_the_balance():
    class Nothing(kn.Divergence):
        def rows(self, student, teacher, view):
            return 0 * (student - teacher).square().sum(-1)

    terms = [Term(LOGITS, name="kl"), Term(LOGITS, divergence=Nothing(), name="nothing")]
    objective = Objective(Tokens(0), dr.Frozen(Tokens(1)), terms, balance=kn.GradientBalance("head"))
    found = objective(tokens(), 0)
    assert found.terms["factor/nothing"] == 1
    torch.testing.assert_close(found.terms["factor/kl"], torch.tensor(1.0))
    torch.testing.assert_close(found.total.detach(), found.terms["kl"])


def test_a_row_of_zeros_is_at_a_right_angle_to_any():
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    losses = kn.Cosine().rows(zero, torch.ones(2, 3).double(), None)
    assert (losses == 1).all()
    assert (torch.autograd.grad(losses.sum(), zero)[0] == 0).all()
