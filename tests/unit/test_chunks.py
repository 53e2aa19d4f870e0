"""Chunks in terms and objectives; what is refused, and with which words."""

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import _core, ops
from distillrs import knowledge as kn
from distillrs.errors import ArgumentError, UnknownNameError
from distillrs.knowledge import Inputs, Objective, Output, Term

SPANS = torch.tensor([[[-1, -1], [0, 1], [1, 2], [2, 3]], [[-1, -1], [0, 1], [1, 2], [2, 3]]])
WORDS = torch.tensor([[[-1, -1], [0, 2], [2, 3]], [[-1, -1], [0, 3], [-1, -1]]])


class Net(nn.Module):
    """Logits of the next token from this one alone."""

    def __init__(self, vocabulary, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(vocabulary, 4, dtype=torch.float64)
        self.head = nn.Linear(4, vocabulary, dtype=torch.float64)

    def forward(self, input_ids):
        return self.head(self.table(input_ids))


def batch(own=SPANS, other=WORDS):
    chunks = kn.token_chunks(own, other)
    return {
        "input_ids": torch.arange(own[..., 0].numel()).reshape(own.shape[:2]) % 6,
        "teacher_input_ids": torch.arange(other[..., 0].numel()).reshape(other.shape[:2]) % 5,
        "chunks": chunks.student,
        "teacher_chunks": chunks.teacher,
    }


def objective(term, own=6, other=5):
    prefixed = kn.Prefixed("teacher_")
    teacher = kn.FrozenTeacher(dr.Frozen(Net(other, 1)), prefixed)
    withheld = ("chunks", "teacher_chunks", *prefixed.entries)
    return Objective(Net(own, 0), teacher, [term], withheld=withheld)


def alm(tau=10.0, **options):
    return Term(
        Output(),
        align=kn.Chunks(),
        divergence=kn.Bernoulli("log_probabilities"),
        temperature=tau,
        name="chunks",
        **options,
    )


def test_a_term_over_chunks_is_the_mean_over_those_there_are():
    found = objective(alm())
    data = batch()
    student = found.student(data["input_ids"]).log_softmax(-1)
    teacher = found.teachers["main"].network.module(data["teacher_input_ids"]).log_softmax(-1)
    ids, teacher_ids = data["input_ids"], data["teacher_input_ids"]
    lq = [
        student[0, 0, ids[0, 1]] + student[0, 1, ids[0, 2]],
        student[0, 2, ids[0, 3]],
        sum(student[1, t, ids[1, t + 1]] for t in range(3)),
    ]
    lp = [teacher[0, 0, teacher_ids[0, 1]], teacher[0, 1, teacher_ids[0, 2]], teacher[1, 0, teacher_ids[1, 1]]]
    a, b = (torch.stack(lp) / 10).exp(), (torch.stack(lq) / 10).exp()
    expected = (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()).mean()
    torch.testing.assert_close(found(data).total, expected)
    # Of rows without a chunk nothing is left but a graph.
    nothing = batch(SPANS, torch.full_like(WORDS, -1))
    loss = found(nothing).total
    assert float(loss.detach()) == 0
    loss.backward()


def test_equal_tokenizers_are_compared_token_by_token():
    data = batch(SPANS, SPANS) | {"teacher_input_ids": batch()["input_ids"]}
    found = objective(alm(), other=6)
    student, teacher = found.student(data["input_ids"]), found.teachers["main"].network.module(data["input_ids"])
    chosen = [
        logits[:, :-1].log_softmax(-1).gather(-1, data["input_ids"][:, 1:, None]) for logits in (student, teacher)
    ]
    view = kn.View(Inputs(), 0, 0, None, temperature=10.0, teacher_temperature=10.0)
    expected = kn.Bernoulli("log_probabilities").rows(*chosen, view).mean()
    torch.testing.assert_close(found(data).total, expected)


def test_chunk_ends_pass_through_a_chain_with_what_is_there():
    projector = kn.Projector(4, 4).double()
    term = Term("table", align=kn.Chain(kn.ChunkEnds(), projector), divergence=kn.MSE(), name="hidden")
    found = objective(term)
    data = batch()
    own, other = found.student.table(data["input_ids"]), found.teachers["main"].network.module.table
    other = other(data["teacher_input_ids"])
    expected = torch.stack(
        [
            (projector.project(own[row, place]) - other[row, at]).square().mean()
            for row, place, at in ((0, 2, 1), (0, 3, 2), (1, 3, 1))
        ]
    ).mean()
    torch.testing.assert_close(found(data).total, expected)
    assert [id(each) for each in found.parameters()] == [id(each) for each in projector.parameters()]


def test_logits_at_chunk_ends_are_compared_over_shared_tokens():
    shared = kn.shared_tokens([b"a", b"b", b"c", b"d", b"e", b"f"], [b"b", b"a", None, b"xx", b"f"])
    assert shared.tolist() == [1, 0, -1, -1, -1, 4]
    found = objective(
        Term(Output(), align=kn.Chain(kn.ChunkEnds(), kn.VocabularyMap(shared, 5)), divergence=ops.ForwardKL())
    )
    data = batch()
    total = found(data).total
    assert total > 0
    total.backward()
    assert all(each.grad.abs().sum() > 0 for each in found.student.parameters())


def test_examples_can_be_chosen_within_chunks():
    weights = torch.tensor([1, 0])
    full, half = objective(alm()), objective(alm(rows=kn.Where("task", 1)))
    data = batch()
    half.withheld = (*half.withheld, "task")
    alone = {name: value[:1] for name, value in data.items()}
    torch.testing.assert_close(half(data | {"task": weights}).total, full(alone).total)


def test_the_limit_is_that_of_large_temperatures():
    large = objective(alm(1e8, scale=1e8))(batch()).total
    term = Term(Output(), align=kn.Chunks(), divergence=kn.BernoulliLimit(), name="limit")
    torch.testing.assert_close(large, objective(term)(batch()).total, rtol=1e-5, atol=1e-7)


def test_padding_may_hold_anything():
    data = batch()
    data["chunks"] = torch.cat([data["chunks"], torch.full((2, 1), -1)], 1)
    data["input_ids"] = torch.cat([data["input_ids"], torch.full((2, 1), -100)], 1)
    logits = torch.randn(2, 5, 6)
    logits[:, 3:] = torch.nan
    student, teacher = logits.requires_grad_(), torch.randn(2, 3, 5)
    boundary = kn.Boundary(torch.arange(6) > 2, torch.arange(5) > 2, 0.0)
    inputs = Inputs((), {}, data)
    for alignment in (kn.Chunks(), kn.Chunks(boundary=boundary)):
        found = alignment.of_batch(student, teacher, inputs)
        if alignment.boundary is None:
            kept = torch.where(found.present[..., None], found.student, 0.0)
            (gradient,) = torch.autograd.grad(kept.sum(), student)
            assert gradient.isfinite().all()
            assert gradient[:, :3].abs().sum() > 0


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        (SPANS[:, :, 0], WORDS, "student_spans: got '?torch.int64"),
        (SPANS.int(), WORDS, "student_spans: got '?torch.int32"),
        (SPANS, WORDS[:1], "teacher_spans: got '?1 rows"),
        (SPANS, torch.where(WORDS >= 0, WORDS + 1, -1), r"teacher_spans: got '?row 0 from byte 1"),
        (
            torch.tensor([[[0, 2], [3, 4]]]),
            torch.tensor([[[0, 4]]]),
            r"student_spans: got '?\(3, 4\) for token 1 of row 0",
        ),
        (
            torch.tensor([[[0, 4]]]),
            torch.tensor([[[0, 3], [2, 4]]]),
            r"teacher_spans: got '?\(2, 4\) for token 1 of row 0",
        ),
        (torch.tensor([[[0, 4]]]), torch.tensor([[[1, 4]]]), "teacher_spans: got '?row 0 from byte 1"),
    ],
)
def test_spans_that_do_not_follow_each_other_are_refused(own, other, message):
    with pytest.raises(ArgumentError, match=message):
        kn.token_chunks(own, other)


def test_wrong_settings_are_named():
    with pytest.raises(ArgumentError, match="minimum_bytes"):
        kn.token_chunks(SPANS, WORDS, minimum_bytes=0)
    with pytest.raises(ArgumentError, match="boundary"):
        kn.token_chunks(SPANS, WORDS, boundary=torch.zeros(2, 4))
    with pytest.raises(ArgumentError, match="threshold"):
        kn.token_chunks(SPANS, WORDS, threshold=1.0)
    with pytest.raises(ArgumentError, match="side"):
        kn.token_chunks(SPANS, WORDS).groups("both")
    with pytest.raises(ArgumentError, match="student"):
        kn.Boundary(torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match=r"align: got '?Chunks called without a batch"):
        kn.Chunks()(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ArgumentError, match=r"student\[1\]"):
        kn.shared_tokens([b"a", "b"], [])
    for ids, vocabulary in (([-1], 2), ([0, 0], 2), ([3], 2)):
        with pytest.raises(ArgumentError, match="teacher_ids"):
            kn.VocabularyMap(torch.tensor(ids), vocabulary)
    with pytest.raises(ArgumentError, match="outside"):
        kn.VocabularyMap(torch.tensor([0, 1]), 3)
    with pytest.raises(ArgumentError, match=r"student: got '?shape"):
        kn.VocabularyMap(torch.tensor([0, -1]), 3)(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match="names"):
        kn.Prefixed("teacher_", ())


def test_batches_that_do_not_fit_are_named():
    found, data = objective(alm()), batch()
    with pytest.raises(UnknownNameError, match="chunks"):
        found({name: value for name, value in data.items() if name != "chunks"})
    with pytest.raises(UnknownNameError, match="teacher_input_ids"):
        found({name: value for name, value in data.items() if name != "teacher_input_ids"})
    with pytest.raises(ArgumentError, match=r"batch\['chunks'\]"):
        found(data | {"chunks": data["chunks"][:, 1:]})
    with pytest.raises(ArgumentError, match=r"batch\['chunks'\]: got '?chunks from 0 to 3"):
        found(data | {"chunks": torch.arange(4).expand(2, 4).contiguous()})
    longer = {name: torch.cat([data[name]] * 2) for name in ("teacher_input_ids", "teacher_chunks")}
    with pytest.raises(ArgumentError, match=r"^teacher: got '4 rows', allowed is 2, the student's"):
        found(data | longer)


def test_large_batches_are_their_parts_at_any_thread_count():
    """So many tokens that several threads have work, each row with cuts of its own."""
    rows, length = 2100, 64
    places = torch.arange(length)
    own = torch.stack([places, places + 1], 1).expand(rows, -1, -1).contiguous()
    ends = 2 + torch.arange(rows)[:, None] % 7 + places[None] * (1 + torch.arange(rows)[:, None] % 5)
    other = torch.stack([torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1), ends], -1)
    parts = [kn.token_chunks(first, second) for first, second in zip(own.split(100), other.split(100), strict=True)]
    before = _core.threads()
    for threads in (1, 3):
        _core.set_threads(threads)
        found = kn.token_chunks(own, other)
        _core.set_threads(before)
        for name in ("student", "teacher", "ends"):
            assert torch.equal(getattr(found, name), torch.cat([getattr(part, name) for part in parts]))
    broken = own.clone()
    broken[[1500, 2050], 3, 0] = 0
    with pytest.raises(ArgumentError, match="of row 1500"):
        kn.token_chunks(broken, other)
