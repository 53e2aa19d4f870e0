"""The chunked recurrence and the reading of masks against loops over tokens, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs.errors import ArgumentError
from distillrs.knowledge.forms import Tokens, chunked_recurrence


def by_token(queries, keys, values, log_decay, segments, memory):
    """The recurrence as it is written, one token after the other."""
    batch, heads, length, _ = queries.shape
    groups = keys.shape[1]
    outputs = []
    for b in range(batch):
        per_group = []
        for g in range(groups):
            state = memory[b, g] if memory is not None else queries.new_zeros(keys.shape[-1], values.shape[-1])
            rows = []
            for t in range(length):
                if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                    state = torch.zeros_like(state)
                decay = 1.0 if log_decay is None else log_decay[b, g, t].exp()
                state = decay * state + torch.outer(keys[b, g, t], values[b, g, t])
                own = range(g * heads // groups, (g + 1) * heads // groups)
                rows.append(torch.stack([queries[b, h, t] @ state for h in own]))
            per_group.append((torch.stack(rows, 1), state))
        outputs.append((torch.cat([each for each, _ in per_group]), torch.stack([state for _, state in per_group])))
    return torch.stack([each for each, _ in outputs]), torch.stack([state for _, state in outputs])


@st.composite
def problems(draw):
    batch, groups, repeats = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    length, features, width = draw(st.integers(1, 11)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    parts = [normal(batch, groups * repeats, length, features), normal(batch, groups, length, features)]
    parts.append(normal(batch, groups, length, width))
    if draw(st.booleans()):
        parts = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in parts]
    scale = draw(st.sampled_from([0.0, 0.3, 400.0]))
    log_decay = -scale * normal(batch, groups, length).abs() if draw(st.booleans()) else None
    begins = torch.rand(batch, length, generator=generator) < 0.3
    segments = begins.cumsum(-1) if draw(st.booleans()) else None
    memory = normal(batch, groups, features, width) if draw(st.booleans()) else None
    return *parts, log_decay, segments, memory


@given(problems(), st.integers(1, 12))
def test_chunks_give_what_the_loop_over_tokens_gives_with_its_gradients(problem, chunk):
    given_parts = [
        each.clone().requires_grad_() if each is not None and each.is_floating_point() else each for each in problem
    ]
    leaves = [each for each in given_parts if each is not None and each.is_floating_point()]
    queries, keys, values, log_decay, segments, memory = given_parts
    found = chunked_recurrence(
        queries, keys, values, log_decay=log_decay, segments=segments, memory=memory, chunk=chunk
    )
    expected = by_token(*given_parts)
    weights = [torch.linspace(-1, 2, each.numel(), dtype=each.dtype).view_as(each) for each in expected]
    gradients = []
    for outputs in (found, expected):
        total = sum((weight * each).sum() for weight, each in zip(weights, outputs, strict=True))
        gradients.append(torch.autograd.grad(total, leaves, allow_unused=True))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for one, other in zip(*gradients, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if one is None else one, zero.to(one) if other is None else other, rtol=1e-8, atol=1e-8
        )


@given(problems(), st.integers(1, 4), st.integers(0, 10))
def test_a_sequence_in_two_parts_gives_what_it_gives_at_once(problem, chunk, cut):
    queries, keys, values, log_decay, _, memory = problem
    cut = min(cut, queries.shape[2])
    whole, last = chunked_recurrence(queries, keys, values, log_decay=log_decay, memory=memory, chunk=chunk)
    parts = []
    for part in (slice(0, cut), slice(cut, None)):
        decay = None if log_decay is None else log_decay[:, :, part]
        each, memory = chunked_recurrence(
            queries[:, :, part], keys[:, :, part], values[:, :, part], log_decay=decay, memory=memory, chunk=chunk
        )
        parts.append(each)
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(memory, last, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 2**31), st.integers(1, 7), st.booleans(), st.booleans())
def test_a_mask_of_padding_and_documents_is_read_back(seed, length, additive, padded):
    generator = torch.Generator().manual_seed(seed)
    documents = (torch.rand(2, length, generator=generator) < 0.3).cumsum(-1)
    there = torch.rand(2, length, generator=generator) < (0.7 if padded else 1.1)
    mask = (documents[:, :, None] == documents[:, None]) & there[:, None] & torch.ones(length, length).tril().bool()
    given_mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min) if additive else mask
    tokens = Tokens.of_mask(given_mask[:, None], length)
    assert torch.equal(tokens.there, there)
    segments = torch.zeros(2, length, dtype=torch.int64) if tokens.segments is None else tokens.segments
    assert (segments.diff(dim=-1) >= 0).all()
    again = (segments[:, :, None] == segments[:, None]) & there[:, None] & torch.ones(length, length).tril().bool()
    assert torch.equal(again[there], mask[there])


@given(st.integers(2, 6), st.data())
def test_a_mask_that_says_more_is_refused(length, data):
    row = data.draw(st.integers(1, length - 1))
    column = data.draw(st.integers(0, length - 1).filter(lambda c: c != row and c != row - 1))
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[row, column] ^= True
    if column < row or column > row:
        with pytest.raises(ArgumentError, match="attention_mask"):
            Tokens.of_mask(mask[None, None], length)
