"""Sub-classes: classes are sums of them, and splits keep the teacher's classes."""

import math

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import ops
from distillrs.errors import ArgumentError
from distillrs.knowledge import Labels, Objective, Output, Term

CLASSES, PER_CLASS, WIDTH = 3, 4, 8
LOGITS = Output("logits")


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def fitted(dtype=torch.float64, sharpness=0.5, per_class=PER_CLASS, seed=1):
    features = rows(300, WIDTH, seed=seed) * torch.arange(1, WIDTH + 1) + 3
    labels, weight = torch.arange(300) % CLASSES, rows(CLASSES, WIDTH, seed=seed + 1)
    split = kn.SubClassSplit.fit(features.to(dtype), labels, weight.to(dtype), per_class, sharpness)
    return split, features, labels, weight


def test_a_class_has_what_its_sub_classes_have():
    logits = rows(5, 2, CLASSES * PER_CLASS) * 3
    p = logits.softmax(-1)
    for index in [(0, 0), (4, 1)]:
        for c in range(CLASSES):
            total = sum(float(p[index][c * PER_CLASS + s]) for s in range(PER_CLASS))
            found = float(kn.class_log_probs(logits, PER_CLASS)[index][c].exp())
            assert math.isclose(found, total, rel_tol=1e-12)
    far = torch.tensor([[-1e4, -1e4, 0.0, 1.0]])
    expected = torch.tensor([[-1e4 + math.log(2), math.log(1 + math.e)]])
    torch.testing.assert_close(kn.class_log_probs(far, 2), expected - math.log(1 + math.e))


def test_the_gradient_is_shared_by_the_share_of_the_class():
    logits = rows(6, CLASSES * PER_CLASS).requires_grad_()
    teacher = rows(6, CLASSES, seed=3)
    align = kn.SubClasses(PER_CLASS)
    loss = ops.row_divergence(*align(logits, teacher), ops.ForwardKL(), reduction="sum", backend="torch")
    loss.backward()
    q = logits.detach().softmax(-1).view(6, CLASSES, PER_CLASS)
    # d KL / d z_cs = (q_c - p_c) q_s|c
    classes = q.sum(-1)
    expected = (classes - teacher.softmax(-1))[..., None] * q / classes[..., None]
    torch.testing.assert_close(logits.grad, expected.flatten(1))


def test_sub_classes_in_a_term_learn_from_teacher_and_labels():
    torch.manual_seed(0)
    student, teacher = nn.Linear(5, CLASSES * PER_CLASS), nn.Linear(5, CLASSES)
    terms = [
        Term(LOGITS, align=kn.SubClasses(PER_CLASS), temperature=2.0, temperature_rule="squared", name="soft"),
        Term(lambda run: kn.class_log_probs(run.output, PER_CLASS), target=Labels(), name="hard"),
    ]
    x, y = torch.randn(16, 5), torch.arange(16) % CLASSES
    loss = Objective(student, dr.Frozen(teacher), terms)((x, y), 0)
    own = kn.class_log_probs(student(x), PER_CLASS)
    soft = nn.functional.kl_div(
        (own / 2).log_softmax(-1), (teacher(x) / 2).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(loss.terms["soft"], 4 * soft.detach())
    torch.testing.assert_close(loss.terms["hard"], nn.functional.nll_loss(own, y).detach())
    loss.total.backward()
    assert student.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_split_keeps_the_classes(dtype):
    split, features, _, _ = fitted()
    logits = (rows(300, CLASSES, seed=9) * 4).to(dtype)
    found = split.to(torch.float32)(rows(300, CLASSES * PER_CLASS, dtype=dtype), (logits, features.to(dtype)))[1]
    p = logits.double().softmax(-1)
    torch.testing.assert_close(found.exp().view(300, CLASSES, PER_CLASS).sum(-1).double(), p, rtol=0, atol=1e-6)
    assert found.exp().view(300, CLASSES, PER_CLASS).std(0).min() > 1e-3


def test_the_split_is_the_written_formula():
    split, features, labels, weight = fitted()
    logits = rows(300, CLASSES, seed=9)
    found = split.log_probs(logits, features).view(300, CLASSES, PER_CLASS)
    null = torch.eye(WIDTH, dtype=torch.float64) - torch.linalg.pinv(weight) @ weight
    for c in range(CLASSES):
        mean = features[labels == c].mean(0)
        own = (features[labels == c] - mean) @ null
        left = torch.linalg.svd(own, full_matrices=False)[2][: PER_CLASS // 2]
        z = (features - mean) @ null @ left.mT
        z = z / z[labels == c].std(0, correction=0)
        signs = (z[0] * (split.directions[c] @ (features[0] - mean))).sign()
        u = torch.cat([z * signs, -z * signs], -1) / 0.5
        torch.testing.assert_close(found[:, c], logits.log_softmax(-1)[:, c, None] + u.log_softmax(-1))


def test_what_the_head_reads_does_not_split():
    split, features, _, weight = fitted()
    logits = rows(300, CLASSES, seed=9)
    moved = features + rows(300, CLASSES, seed=4) @ weight * 10
    torch.testing.assert_close(split.log_probs(logits, moved), split.log_probs(logits, features), rtol=0, atol=1e-8)
    off = features + rows(300, WIDTH, seed=4)
    assert (split.log_probs(logits, off) - split.log_probs(logits, features)).abs().max() > 0.1


def test_an_excluded_class_stays_excluded():
    split, features, _, _ = fitted()
    logits = rows(300, CLASSES, seed=9)
    logits[:, 1] = -torch.inf
    found = split.log_probs(logits, features).view(300, CLASSES, PER_CLASS)
    assert (found[:, 1] == -torch.inf).all()
    assert found[:, [0, 2]].isfinite().all()


class Network(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(5, width), nn.Tanh()), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_split_in_a_term_is_saved_and_not_trained():
    torch.manual_seed(0)
    teacher, student = Network(2, 16), Network(2 * PER_CLASS, 6)
    x, y = torch.randn(64, 5), torch.arange(64) % 2
    features = teacher.body(x).detach()
    split = kn.SubClassSplit.fit(features, y, teacher.head.weight, PER_CLASS)
    term = Term(LOGITS, (LOGITS, "body"), align=split, temperature=2.0, name="split")
    objective = Objective(student, dr.Frozen(teacher), [term])
    assert list(objective.parameter_groups()) == ["student"]
    assert {name.rpartition(".")[2] for name in objective.state_dict()} == {"directions", "centres"}
    losses = []
    optimiser = torch.optim.Adam(student.parameters(), 0.02)
    for step in range(150):
        loss = objective((x, y), step)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < 0.3 * losses[0]
    agree = kn.class_log_probs(student(x), PER_CLASS).argmax(-1) == teacher(x).argmax(-1)
    assert agree.float().mean() > 0.9


FEATURES, LABELS, WEIGHT = rows(12, WIDTH), torch.arange(12) % 2, rows(2, WIDTH, seed=2)


def fit(**arguments):
    given = {"features": FEATURES, "labels": LABELS, "weight": WEIGHT, **arguments}
    return kn.SubClassSplit.fit(**given)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: kn.class_log_probs("a", 2), "logits"),
        (lambda: kn.class_log_probs(torch.zeros(2, 5), 2), "logits"),
        (lambda: kn.class_log_probs(torch.zeros(()), 2), "logits"),
        (lambda: kn.class_log_probs(torch.zeros(2, 0), 2), "logits"),
        (lambda: kn.class_log_probs(torch.zeros(2, 4, dtype=torch.int64), 2), "logits"),
        (lambda: kn.class_log_probs(torch.zeros(2, 4), 0), "per_class"),
        (lambda: kn.SubClasses(True), "per_class"),
        (lambda: kn.SubClasses(10**30), "per_class"),
        (lambda: kn.SubClasses(2)(torch.zeros(2, 5), None), "student"),
        (lambda: kn.SubClasses(2)("a", None), "student"),
        (lambda: fit(features=[1]), "features"),
        (lambda: fit(features=FEATURES * math.nan), "features"),
        (lambda: fit(features=FEATURES[:, :1]), "weight"),
        (lambda: fit(features=FEATURES * 0), "features"),
        (lambda: fit(labels=LABELS[:3]), "labels"),
        (lambda: fit(labels=LABELS + 1), "labels"),
        (lambda: fit(labels=LABELS * 0), "features"),
        (lambda: fit(weight=None), "weight"),
        (lambda: fit(weight=WEIGHT * math.inf), "weight"),
        (lambda: fit(per_class=3), "per_class"),
        (lambda: fit(per_class="2"), "per_class"),
        (lambda: fit(per_class=14), "features"),
        (lambda: fit(sharpness=0), "sharpness"),
        (lambda: fit().log_probs(torch.zeros(2, 3), torch.zeros(2, WIDTH)), "logits"),
        (lambda: fit().log_probs(torch.zeros(2, 2), torch.zeros(3, WIDTH)), "features"),
        (lambda: fit()(torch.zeros(2, 4), torch.zeros(2, 2)), "teacher"),
        (lambda: fit()(torch.zeros(2, 3), (torch.zeros(2, 2), torch.zeros(2, WIDTH))), "student"),
        (lambda: kn.SubClassSplit(torch.zeros(2, 3), torch.zeros(2, 3)), "directions"),
        (lambda: kn.SubClassSplit(torch.zeros(2, 1, 3), torch.zeros(2, 2)), "centres"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, name):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        call()
