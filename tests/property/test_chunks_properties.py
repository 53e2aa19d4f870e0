"""Chunks of two token streams, and what is added up over them, against definitions written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from distillrs import _core
from distillrs import knowledge as kn
from distillrs.knowledge import Inputs
from distillrs.knowledge.chunks import reference_chunks


@st.composite
def streams(draw, length):
    """Spans of one side: cuts of a text of some bytes, tokens without any, special tokens; perhaps not to its end."""
    cuts = sorted(draw(st.sets(st.integers(1, length), max_size=length)) if length else [])
    spans, reached = [], 0
    for cut in cuts:
        kinds = draw(st.lists(st.sampled_from(["special", "empty"]), max_size=1))
        spans += [(-1, -1) if kind == "special" else (reached, reached) for kind in kinds]
        spans.append((reached, cut))
        reached = cut
    if draw(st.booleans()):
        spans.append(draw(st.sampled_from([(-1, -1), (reached, reached)])))
    return spans


@st.composite
def batches(draw):
    rows = draw(st.lists(st.integers(0, 9), max_size=5))
    pairs = [(draw(streams(length)), draw(streams(length))) for length in rows]
    shifts = [draw(st.integers(0, 3)) for _ in rows]
    moved = [
        tuple([(a + by, b + by) if a >= 0 else (a, b) for a, b in side] for side in pair)
        for pair, by in zip(pairs, shifts, strict=True)
    ]
    return [first for first, _ in moved], [second for _, second in moved]


def padded(rows, extra=0):
    width = max((len(row) for row in rows), default=0) + extra
    return torch.tensor([row + [(-1, -1)] * (width - len(row)) for row in rows], dtype=torch.int64).reshape(
        len(rows), width, 2
    )


def lines(tensor, rows):
    return [line[: len(row)] for line, row in zip(tensor.tolist(), rows, strict=True)]


@given(
    batch=batches(),
    minimum=st.integers(1, 4),
    threshold=st.sampled_from([0.1, 0.5]),
    likely=st.none() | st.integers(0, 2**31),
    extra=st.integers(0, 2),
    threads=st.sampled_from([1, 3]),
)
def test_chunks_are_those_of_the_plain_loop(batch, minimum, threshold, likely, extra, threads):
    student, teacher = batch
    own, other = padded(student, extra), padded(teacher)
    boundary = None
    if likely is not None:
        generator = torch.Generator().manual_seed(likely)
        boundary = torch.empty(other.shape[:2], dtype=torch.float64).uniform_(-4, 0, generator=generator)
    before = _core.threads()
    _core.set_threads(threads)
    found = kn.token_chunks(
        own.transpose(0, 1).contiguous().transpose(0, 1),
        other,
        minimum_bytes=minimum,
        boundary=boundary,
        threshold=threshold,
    )
    _core.set_threads(before)
    rows = None if boundary is None else boundary.tolist()
    first, second, ends = reference_chunks(student, teacher, minimum, rows, threshold)
    assert lines(found.student, student) == first
    assert lines(found.teacher, teacher) == second
    assert [[end for end in row if end >= 0] for row in found.ends.tolist()] == ends
    for side, numbers in (("student", found.student), ("teacher", found.teacher)):
        offsets, tokens = found.groups(side)
        assert len(offsets) == sum(map(len, ends)) + 1
        flat = [(row, chunk) for row, each in enumerate(ends) for chunk in range(len(each))]
        for place, (row, chunk) in enumerate(flat):
            expected = (numbers[row] == chunk).nonzero()[:, 0] + row * numbers.shape[1]
            assert tokens[offsets[place] : offsets[place + 1]].tolist() == expected.tolist()


@given(batch=batches())
def test_chunks_tile_the_text_up_to_the_last_common_byte(batch):
    student, teacher = batch
    found = kn.token_chunks(padded(student), padded(teacher))
    for row, sides in enumerate(zip(student, teacher, strict=True)):
        ends = [end for end in found.ends[row].tolist() if end >= 0]
        reached = [{b for a, b in side if b > a >= 0} for side in sides]
        assert ends == sorted(reached[0] & reached[1])
        for side, numbers in zip(sides, (found.student[row], found.teacher[row]), strict=True):
            start = next((a for a, _ in side if a >= 0), 0)
            for chunk, (begin, end) in enumerate(zip([start, *ends], ends, strict=False)):
                inside = [span for span, number in zip(side, numbers.tolist(), strict=False) if number == chunk]
                assert (inside[0][0], inside[-1][1]) == (begin, end)
                assert all(span[1] == after[0] for span, after in itertools.pairwise(inside))


@given(data=st.data())
def test_shared_tokens_are_those_of_equal_bytes(data):
    token = st.none() | st.binary(max_size=2)
    student, teacher = (data.draw(st.lists(token, max_size=12)) for _ in range(2))
    expected = []
    for number, each in enumerate(student):
        is_first = bool(each) and student.index(each) == number
        expected.append(teacher.index(each) if is_first and each in teacher else -1)
    assert kn.shared_tokens(student, teacher).tolist() == expected


def case(seed, boundary=False):
    """Logits, ids and chunks of two rows in float64, some tokens of which are no part of the text."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for vocabulary in (7, 5):
        rows = []
        for _ in range(2):
            cuts = sorted(set(torch.randint(1, 9, (6,), generator=generator).tolist()))
            spans = [(-1, -1)] if vocabulary == 5 or torch.rand((), generator=generator) < 0.5 else []
            rows.append(spans + list(zip([0, *cuts], cuts, strict=False)))
        spans = padded(rows, 1)
        logits = torch.randn(*spans.shape[:2], vocabulary, generator=generator, dtype=torch.float64)
        sides.append((spans, logits, torch.randint(0, vocabulary, spans.shape[:2], generator=generator)))
    (own, student, ids), (other, teacher, teacher_ids) = sides
    chunks = kn.token_chunks(own, other)
    fields = {
        "input_ids": ids,
        "teacher_input_ids": teacher_ids,
        "chunks": chunks.student,
        "teacher_chunks": chunks.teacher,
    }
    return student.requires_grad_(), teacher, Inputs((), {}, fields)


def by_hand(logits, ids, numbers, chunk):
    """Log-likelihood of one chunk of one row; None where the row's first token is in it."""
    places = [place for place, number in enumerate(numbers.tolist()) if number == chunk]
    if not places or places[0] == 0:
        return None
    return sum(logits[place - 1].log_softmax(-1)[ids[place]] for place in places)


@given(seed=st.integers(0, 2**31))
def test_chunks_add_up_shifted_log_probabilities(seed):
    student, teacher, inputs = case(seed)
    found = kn.Chunks().of_batch(student, teacher, inputs)
    upstream, total = torch.randn(found.student.shape, dtype=torch.float64), 0.0
    for row in range(2):
        for chunk in range(found.present.shape[1]):
            sums = [
                by_hand(logits[row], inputs.fields[ids][row], inputs.fields[numbers][row], chunk)
                for logits, ids, numbers in (
                    (student, "input_ids", "chunks"),
                    (teacher, "teacher_input_ids", "teacher_chunks"),
                )
            ]
            assert bool(found.present[row, chunk]) == all(each is not None for each in sums)
            if found.present[row, chunk]:
                torch.testing.assert_close(found.student[row, chunk, 0], sums[0])
                torch.testing.assert_close(found.teacher[row, chunk, 0], sums[1])
                total = total + upstream[row, chunk, 0] * sums[0]
    if isinstance(total, torch.Tensor):
        kept = torch.where(found.present[..., None], found.student, 0.0)
        gradients = torch.autograd.grad(
            ((upstream * kept).sum(), total), student, (torch.tensor(1.0), torch.tensor(-1.0))
        )
        assert gradients[0].abs().max() < 1e-10


@given(seed=st.integers(0, 2**31), threshold=st.sampled_from([0.0, 0.3, 0.6]))
def test_joined_chunks_end_where_the_teacher_expects_a_word_to_end(seed, threshold):
    student, teacher, inputs = case(seed)
    masks = torch.arange(7) % 3 == 0, torch.arange(5) % 2 == 0
    found = kn.Chunks(boundary=kn.Boundary(*masks, threshold)).of_batch(student, teacher, inputs)
    for row in range(2):
        sums, number, broken = [0.0, 0.0], 0, False
        for chunk in range(found.present.shape[1]):
            parts, likely = [], []
            for logits, ids, numbers, mask in (
                (student, "input_ids", "chunks", masks[0]),
                (teacher, "teacher_input_ids", "teacher_chunks", masks[1]),
            ):
                line = inputs.fields[numbers][row]
                places = (line == chunk).nonzero()[:, 0]
                if not len(places):
                    break
                parts.append(by_hand(logits[row], inputs.fields[ids][row], line, chunk))
                likely.append(logits[row, places[-1]].softmax(-1)[mask].sum().log())
            if len(parts) < 2:
                break
            broken = broken or None in parts
            sums = [total + (part if part is not None else 0) for total, part in zip(sums, parts, strict=True)]
            if likely[1].exp() > threshold:
                assert bool(found.present[row, number]) == (not broken)
                if not broken:
                    torch.testing.assert_close(found.student[row, number, 0], sums[0] + likely[0])
                    torch.testing.assert_close(found.teacher[row, number, 0], sums[1] + likely[1])
                sums, number, broken = [0.0, 0.0], number + 1, False
        assert not found.present[row, number:].any()


@given(seed=st.integers(0, 2**31))
def test_chunk_ends_are_the_last_tokens_of_chunks(seed):
    student, teacher, inputs = case(seed)
    found = kn.ChunkEnds().of_batch(student, teacher, inputs)
    for row in range(2):
        for chunk in range(found.present.shape[1]):
            places = [(inputs.fields[name][row] == chunk).nonzero()[:, 0] for name in ("chunks", "teacher_chunks")]
            assert bool(found.present[row, chunk]) == bool(len(places[0]) and len(places[1]))
            if found.present[row, chunk]:
                assert torch.equal(found.student[row, chunk], student[row, places[0][-1]])
                assert torch.equal(found.teacher[row, chunk], teacher[row, places[1][-1]])


@given(seed=st.integers(0, 2**31), tau=st.sampled_from([1.0, 10.0, 100.0]))
def test_the_loss_is_least_where_likelihoods_agree_and_tends_to_its_limit(seed, tau):
    generator = torch.Generator().manual_seed(seed)
    teacher = -torch.empty(6, 1, dtype=torch.float64).exponential_(0.3, generator=generator) - 1e-3
    student = (-torch.empty(6, 1, dtype=torch.float64).exponential_(0.3, generator=generator) - 1e-3).requires_grad_()
    view = kn.View(Inputs(), 0, 0, student, teacher, temperature=tau, teacher_temperature=tau)
    divergence = kn.Bernoulli("log_probabilities")
    a, b = (teacher / tau).exp(), (student / tau).exp()
    expected = a * (a / b).log() + (1 - a) * torch.log((1 - a) / (1 - b))
    losses = divergence.rows(student, teacher, view)
    torch.testing.assert_close(losses, expected[:, 0])
    assert (losses >= 0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    torch.testing.assert_close(gradient, (b - a) / (1 - b) / tau)
    same = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(divergence.rows(same, teacher, view).sum(), same)
    assert gradient.abs().max() < 1e-12
    limit = kn.BernoulliLimit().rows(student, teacher, view)
    lp, lq = teacher[:, 0], student[:, 0]
    torch.testing.assert_close(limit, lp - lq + lp * ((-lq).log() - (-lp).log()))
    far = kn.View(Inputs(), 0, 0, student, teacher, temperature=1e7, teacher_temperature=1e7)
    torch.testing.assert_close(1e7 * divergence.rows(student, teacher, far), limit, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_stays_finite_where_a_side_is_certain(dtype):
    teacher = torch.tensor([[0.0], [0.0], [-80.0], [-1e-9]], dtype=dtype)
    student = torch.tensor([[0.0], [-3.0], [0.0], [-200.0]], dtype=dtype, requires_grad=True)
    for divergence, tau in ((kn.Bernoulli("log_probabilities"), 100.0), (kn.BernoulliLimit(), 1.0)):
        view = kn.View(Inputs(), 0, 0, student, teacher, temperature=tau, teacher_temperature=tau)
        losses = divergence.rows(student, teacher, view)
        (gradient,) = torch.autograd.grad(losses.sum(), student)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()
        assert losses[0] < 1e-4


@given(seed=st.integers(0, 2**31), outside=st.sampled_from(["event", "renormalised"]))
def test_a_vocabulary_map_gives_the_masses_of_shared_tokens_and_of_the_rest(seed, outside):
    generator = torch.Generator().manual_seed(seed)
    own, other = 8, 6
    order = torch.randperm(other, generator=generator)[: int(torch.randint(1, other, (), generator=generator))]
    ids = torch.full((own,), -1)
    ids[torch.randperm(own, generator=generator)[: len(order)]] = order
    student = torch.randn(2, 3, own, generator=generator, dtype=torch.float64)
    teacher = 30 * torch.randn(2, 3, other, generator=generator, dtype=torch.float64)
    found = kn.VocabularyMap(ids, other, outside=outside)(student, teacher)
    inside = [(ids >= 0).nonzero()[:, 0], ids[ids >= 0]]
    for log_probs, logits, kept in zip(found, (student, teacher), inside, strict=True):
        p = logits.softmax(-1)
        shared = p[..., kept]
        left = torch.tensor([column not in kept.tolist() for column in range(logits.shape[-1])])
        expected = torch.cat([shared, p[..., left].sum(-1, keepdim=True)], -1)
        if outside == "renormalised":
            expected = shared / shared.sum(-1, keepdim=True)
        torch.testing.assert_close(log_probs.exp(), expected)
    if outside == "event":
        fine = F.kl_div(
            student[..., :other].log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
        )
        same = torch.where(torch.arange(other) < 3, torch.arange(other), -1)
        coarse = kn.VocabularyMap(same, other)(student[..., :other], teacher)
        lower = (coarse[1].exp() * (coarse[1] - coarse[0])).sum(-1)
        assert (lower <= fine.sum(-1) + 1e-9).all()
        assert math.isfinite(float(np.asarray(lower.sum())))
