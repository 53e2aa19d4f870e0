"""A term over a head that is left out gives what it gives over the logits, and nobody forms them."""

import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import distillrs as dr
from distillrs import ops
from distillrs.errors import ArgumentError
from distillrs.knowledge import (
    MSE,
    Ensemble,
    Head,
    Inputs,
    Labels,
    Mask,
    Objective,
    Output,
    Projector,
    SelfPaced,
    SelfTeacher,
    Shifted,
    Tap,
    Term,
    record,
)

V, ROWS = 30, (3, 5)


class Model(nn.Module):
    """A body and a head, as language models have them; what the head gives may be changed on the way out."""

    def __init__(self, width, seed, bias=False, tied=False, change=lambda x: x):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(V, width)
        self.body = nn.Linear(width, width)
        self.lm_head = nn.Linear(width, V, bias=bias)
        if tied:
            self.lm_head.weight = self.embedding.weight
        self.change = change

    def forward(self, input_ids, attention_mask=None):
        hidden = self.body(self.embedding(input_ids)).tanh()
        return {"logits": self.change(self.lm_head(hidden)), "hidden_states": (hidden,)}


def batch(seed=0):
    ids = torch.randint(0, V, ROWS, generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, 2:4] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": (ids % 7 != 0).long()}


def outcome(student, teacher, terms, wrapped=None, step=0):
    student.zero_grad()
    objective = Objective(student, teacher, terms)
    loss = objective(batch(), step, student=wrapped)
    loss.total.backward()
    return loss.total.detach(), [parameter.grad.clone() for parameter in student.parameters()]


def assert_equal(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=1e-6, atol=1e-6)
    for one, other in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


SETTINGS = {
    "plain": {},
    "squared": {"temperature": 2.0, "temperature_rule": "squared"},
    "two temperatures": {"temperature": 2.0, "teacher_temperature": 3.0, "divergence": ops.JensenShannon(0.3)},
    "shifted": {"rows": Shifted(), "divergence": ops.ReverseKL()},
    "weights": {"rows": [Mask(), lambda view: view.inputs.tensor("input_ids") / V], "normaliser": "weights"},
    "by losses": {"rows": [Shifted(), SelfPaced(5.0)]},
    "one temperature each": {"temperature": 1 + torch.arange(15.0).reshape(ROWS) / 10},
    "mixture": {"divergence": ops.Mixture({ops.ForwardKL(): 0.5, ops.TotalVariation(): torch.rand(ROWS)})},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_and_its_gradients_are_those_of_the_logits(name, tied):
    student, teacher = Model(8, 0, bias=not tied, tied=tied), dr.Frozen(Model(12, 1, bias=True))
    # Three rows at a time.
    heads = outcome(student, teacher, [Term(Head("lm_head", chunk_bytes=3 * 8 * V), **SETTINGS[name])])
    assert_equal(heads, outcome(student, teacher, [Term(Output("logits"), **SETTINGS[name])]))


@pytest.mark.parametrize("rows", [None, Shifted(), [Shifted(), Mask()], [Shifted(), SelfPaced(6.0)]])
def test_the_cross_entropy_with_labels_is_too(rows):
    student = Model(8, 0, bias=True)
    terms = [[Term(tap, target=Labels(), rows=rows, scale=0.5)] for tap in (Head(), Output("logits"))]
    assert_equal(outcome(student, None, terms[0]), outcome(student, None, terms[1]))


def test_micro_batches_add_up_over_a_global_count():
    student, teacher = Model(8, 0), dr.Frozen(Model(12, 1))
    step = dr.Step(0, items=37)
    found, expected = (
        outcome(student, teacher, [Term(tap, rows=Shifted()), Term(tap, target=Labels(), rows=Shifted())], step=step)
        for tap in (Head(), Output("logits"))
    )
    assert_equal(found, expected)


class Largest(TorchDispatchMode):
    """The most bytes that a tensor of an operation's result holds."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


def most_bytes(tap, others=()):
    # Many rows, so that logits are the largest by far.
    student, teacher = Model(8, 0), dr.Frozen(Model(12, 1))
    objective = Objective(student, teacher, [Term(tap), Term(tap, target=Labels(), rows=Shifted()), *others])
    ids = torch.arange(64 * 50).reshape(64, 50) % V
    with Largest() as largest:
        objective({"input_ids": ids, "labels": ids}).total.backward()
    return largest.bytes


def test_nobody_forms_the_logits_on_either_side():
    logits = 4 * 64 * 50 * V
    head = Head("lm_head", chunk_bytes=20 * 8 * V)
    assert most_bytes(Output("logits")) >= logits
    # Labels are int64, and the teacher is 12 wide.
    assert most_bytes(head) <= 8 * 64 * 50 * 12 < logits
    # Nor beside taps that do not look at them.
    assert most_bytes(head, [Term("body", align=Projector(8, 12), divergence=MSE())]) < logits


@pytest.mark.parametrize(
    "tap",
    [Output("logits"), Output(0), Tap("lm_head"), lambda run: run.output["logits"]],
    ids=["field", "0", "tap", "f"],
)
def test_beside_a_tap_that_looks_at_the_logits_they_are_formed(tap):
    if tap == Output(0):
        model = nn.Sequential()
        model.lm_head = nn.Linear(4, V, bias=False)
        inputs = Inputs((torch.randn(3, 4),))

        class Pair(nn.Module):
            def __init__(self):
                super().__init__()
                self.lm_head = model.lm_head

            def forward(self, x):
                return self.lm_head(x), x

        network = Pair()
    else:
        network, inputs = Model(8, 0), Inputs((batch()["input_ids"],))
    found = record(network, [Head(), tap], inputs).values
    projected = found[Head()]
    torch.testing.assert_close(found[tap], projected.hidden @ projected.weight.T)
    assert "forward" not in vars(network.lm_head)


@pytest.mark.parametrize("find_unused", [False, True])
def test_under_data_parallelism_the_head_s_gradient_is_there(find_unused):
    student, teacher = Model(8, 0, tied=True), dr.Frozen(Model(12, 1))
    term = [Term(Head(), rows=Shifted())]
    expected = outcome(student, teacher, term)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(student, find_unused_parameters=find_unused)
        for _ in range(2):
            assert_equal(outcome(student, teacher, term, wrapped), expected)
    finally:
        torch.distributed.destroy_process_group()


# Where a compiled part begins, torch looks at the gradient of what goes in, and warns of it.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_body_keeps_its_head_and_a_compiled_network_is_refused():
    student, teacher = Model(8, 0), dr.Frozen(Model(12, 1))
    term = [Term(Head())]
    expected = outcome(student, teacher, term)
    student.body.compile(backend="eager")
    assert_equal(outcome(student, teacher, term), expected)
    with pytest.raises(ArgumentError, match=r"a head within what torch.compile compiled.*body alone"):
        record(torch.compile(Model(8, 0), backend="eager"), [Head()], Inputs((batch()["input_ids"],)))
    torch._dynamo.reset()


def test_under_autocast_the_head_computes_in_its_dtype():
    student, teacher = Model(8, 0, bias=True), dr.Frozen(Model(12, 1))
    found = []
    for tap in (Head(), Output("logits")):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(outcome(student, teacher, [Term(tap)]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=3e-2, atol=3e-4)


def test_a_network_may_be_its_own_teacher():
    student = Model(8, 0)
    head = outcome(student, SelfTeacher(), [Term(Head(), divergence=ops.ReverseKL())])
    assert abs(float(head[0])) < 1e-6


def test_the_head_is_whole_again_when_the_network_raises():
    network = Model(8, 0)
    with pytest.raises(IndexError):
        record(network, [Head()], Inputs((torch.tensor([[V]]),)))
    assert "forward" not in vars(network.lm_head)
    assert network(batch()["input_ids"])["logits"].shape == (*ROWS, V)


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def replaced(make):
    model = Model(8, 0)
    model.lm_head = make(model.lm_head)
    return model


def with_forward(head):
    head.forward = lambda x: nn.functional.linear(x, head.weight)
    return head


class Twice(Model):
    def forward(self, input_ids):
        super().forward(input_ids)
        return super().forward(input_ids)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: Model(8, 0, change=lambda x: 30 * (x / 30).tanh()),
            "student tap 'lm_head': got .*changes what this head",
        ),
        (lambda: Model(8, 0, change=lambda x: 2 * x), "changes what this head gives"),
        (lambda: Model(8, 0, change=lambda x: x[:, -1:]), "changes what this head gives"),
        (lambda: replaced(lambda head: Own(8, V)), "got 'Own', allowed is an nn.Linear"),
        (lambda: replaced(lambda head: nn.Sequential(head)), "got 'Sequential', allowed is an nn.Linear"),
        (lambda: replaced(with_forward), "whose forward was replaced"),
        (lambda: Twice(8, 0), "got '2 calls in one forward pass'"),
    ],
)
def test_a_head_that_cannot_be_left_out_is_refused(network, message):
    with pytest.raises(ArgumentError, match=message):
        record(network(), [Head()], Inputs((batch()["input_ids"],)), who="student")


def call(term, teacher=None):
    return Objective(Model(8, 0), teacher or dr.Frozen(Model(12, 1)), [term])(batch())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Head(""), "path: got ''"),
        (lambda: Head(chunk_bytes=0), "chunk_bytes: got 0"),
        (lambda: Term(Head(), Output("logits")), "teacher: got 'logits beside a Head'"),
        (lambda: Term(Output("logits"), Head()), "student: got 'logits beside a Head'"),
        (lambda: Term([Head(), "body"]), "student: got 'lm_head, body beside a Head'"),
        (lambda: Term(Head(), divergence=MSE()), "divergence: got 'MSE with a Head'"),
        (lambda: Term(Head(), align=Projector(3, 3)), "align: got 'Projector'"),
        (lambda: Term(Head(), target=Labels(0.1)), "target: got 'Labels.* with a Head'"),
        (lambda: Term(Head(), target=Labels(), temperature=2.0), "target: got 'Labels.* with a Head'"),
        (lambda: call(Term(Head("head"))), "tap: got 'head'"),
        (lambda: call(Term(Head()), Ensemble([dr.Frozen(Model(12, 1))])), "the tap 'lm_head' of an ensemble"),
        (lambda: record(Model(8, 0), [Head(), Head("body")], Inputs((batch()["input_ids"],))), "one Head of a network"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((ArgumentError, dr.errors.UnknownNameError), match=message):
        make()


def test_not_a_number_is_not_hidden():
    student = Model(8, 0)
    with torch.no_grad():
        student.lm_head.weight[3] = math.nan
    objective = Objective(student, dr.Frozen(Model(12, 1)), [Term(Head())])
    assert math.isnan(objective(batch()).total.detach())
