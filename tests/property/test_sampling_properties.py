"""Drawing from models, verified drafts, mixes of sources: against exact distributions and plain loops."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import ops, random
from distillrs.errors import ArgumentError
from distillrs.knowledge.sampling import pick, tempered

VOCABULARY = 5


class Markov(nn.Module):
    """The next token from the last two."""

    def __init__(self, seed, scale=1.5, vocabulary=VOCABULARY):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Embedding(vocabulary, vocabulary, dtype=torch.float64)
        self.second = nn.Embedding(vocabulary, vocabulary, dtype=torch.float64)
        self.first.weight.data *= scale
        self.second.weight.data *= scale
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids):
        before = torch.cat([input_ids[:, :1], input_ids[:, :-1]], 1)
        return self.dropout(self.first(input_ids) + self.second(before))


@torch.no_grad()
def chances(model, prompt, tokens):
    """Exact probability of every continuation of some tokens."""
    model = model.eval()
    found = {}
    for more in itertools.product(range(VOCABULARY), repeat=tokens):
        ids = torch.tensor([[*prompt, *more]])
        log_probs = model(ids).log_softmax(-1)[0]
        found[more] = float(sum(log_probs[len(prompt) - 1 + at, token] for at, token in enumerate(more)).exp())
    return found


def p_value(rows, expected):
    """Of a chi-square test of continuations against their exact probabilities."""
    counts = dict.fromkeys(expected, 0)
    for row in rows.tolist():
        counts[tuple(row)] += 1
    rare = [key for key, chance in expected.items() if chance * len(rows) < 5]
    cells = [(counts[key], chance * len(rows)) for key, chance in expected.items() if key not in rare]
    if rare:
        cells.append((sum(counts[key] for key in rare), sum(expected[key] for key in rare) * len(rows)))
    statistic = sum((seen - wanted) ** 2 / max(wanted, 1e-9) for seen, wanted in cells)
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


PROMPT = [1, 3]


def prompts(rows):
    return torch.tensor([PROMPT]).expand(rows, -1).contiguous()


@pytest.mark.parametrize("draft_length", [1, 2, 4])
def test_verified_text_has_the_targets_distribution(draft_length):
    target, draft = Markov(0), Markov(1)
    found = kn.speculative_sample(target, draft, prompts(6000), 5, step=dr.Step(0, seed=3), draft_length=draft_length)
    assert target.training
    expected = chances(target, PROMPT, 3)
    assert p_value(found.ids[:, 2:], expected) > 1e-3
    # The test sees drafts that are taken without one.
    assert p_value(kn.sample_text(draft, prompts(6000), 5, step=0)[:, 2:], expected) < 1e-9
    assert abs(found.acceptance - found.expected_acceptance) < 0.015


def test_drawn_text_has_the_models_distribution():
    model = Markov(0)
    rows = kn.sample_text(model.train(), prompts(6000), 5, step=dr.Step(0, seed=1))
    assert model.training
    assert p_value(rows[:, 2:], chances(model, PROMPT, 3)) > 1e-3


@given(seed=st.integers(0, 100), temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]), length=st.integers(1, 5))
def test_a_draft_that_is_the_target_is_always_right(seed, temperature, length):
    model = Markov(seed).eval()
    found = kn.speculative_sample(model, model, prompts(4), 9, step=seed, draft_length=length, temperature=temperature)
    assert found.accepted == found.tested
    assert abs(found.expected - found.tested) < 1e-6
    # Each call of the target gives a whole block and one more.
    assert found.blocks == 4 * -(-7 // (length + 1))
    if temperature == 0:
        assert torch.equal(found.ids, kn.sample_text(model, prompts(4), 9, step=0, temperature=0.0))


@given(seed=st.integers(0, 100), lenience=st.sampled_from([0.3, 1.0]), temperature=st.sampled_from([0.0, 1.0]))
def test_blocks_are_those_of_a_loop_over_one_row(seed, lenience, temperature):
    """The published algorithm, one token at a time, with the same draws."""
    target, draft = Markov(seed).eval(), Markov(seed + 1).eval()
    length, ahead, step = 8, 3, dr.Step(seed, seed=2)
    found = kn.speculative_sample(
        target, draft, prompts(3), length, step=step, draft_length=ahead, temperature=temperature, lenience=lenience
    )
    draws = [
        random.uniform(3, length, step=step, name=f"speculation/{what}", dtype=torch.float64)
        for what in ("proposal", "test", "replacement")
    ]
    accepted = tested = 0
    for row in range(3):
        ids = list(PROMPT)
        while len(ids) < length:
            start = len(ids)
            guess = list(ids)
            q = []
            for _ in range(ahead):
                q.append(tempered(draft(torch.tensor([guess]))[:, -1], temperature))
                guess.append(int(pick(q[-1], draws[0][row, min(len(guess), length - 1)][None])))
            for at in range(ahead + 1):
                place = start + at
                if place >= length:
                    break
                p = tempered(target(torch.tensor([guess[:place]]))[:, -1], temperature).exp()
                if at == ahead:
                    ids.append(int(pick(p.log(), draws[0][row, place][None])))
                    break
                tested += 1
                ratio = p[0, guess[place]] / (lenience * q[at].exp()[0, guess[place]])
                if draws[1][row, place] < ratio:
                    accepted += 1
                    ids.append(guess[place])
                    continue
                rest = (p - lenience * q[at].exp()).clamp(min=0)
                ids.append(int(pick(rest.log(), draws[2][row, place][None])))
                break
        assert found.ids[row].tolist() == ids
    assert (found.accepted, found.tested) == (accepted, tested)


@given(seed=st.integers(0, 2**31), columns=st.integers(1, 6))
def test_a_token_without_weight_is_never_picked(seed, columns):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(64, columns, generator=generator) * (torch.rand(64, columns, generator=generator) < 0.5)
    weights[:, 0] += (weights.sum(1) == 0).float()
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    chosen = pick(weights.log(), uniform)
    assert (weights.gather(1, chosen[:, None]) > 0).all()


@given(seed=st.integers(0, 2**31))
def test_acceptance_is_one_less_the_total_variation(seed):
    generator = torch.Generator().manual_seed(seed)
    draft, target = (3 * torch.randn(4, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    distance = ops.row_divergence(draft, target, ops.TotalVariation(), temperature=2.0, reduction="none")
    torch.testing.assert_close(kn.acceptance(draft, target, 2.0), 1 - distance)


@given(rate=st.floats(0, 1), ahead=st.integers(1, 8), cost=st.floats(0, 2))
def test_blocks_have_their_closed_form(rate, ahead, cost):
    chance, mean = 1.0, 0.0
    for taken in range(ahead + 1):
        stops = 1 - rate if taken < ahead else 1.0
        mean += chance * stops * (taken + 1)
        chance *= rate
    assert kn.block_length(rate, ahead) == pytest.approx(mean)
    assert kn.speed_up(rate, ahead, cost) == pytest.approx(mean / (cost * ahead + 1))


@given(seed=st.integers(0, 1000), first=st.integers(0, 10**6), cut=st.integers(1, 9))
def test_rows_do_not_depend_on_their_batch(seed, first, cut):
    def source(fill):
        return lambda units, step: torch.stack([units, torch.full_like(units, fill)], 1)

    sources = {"given": source(0), "none": source(1), "own": source(2)}
    mix = kn.TextMix(sources, {"given": 1, "none": 0, "own": 2})
    rows, origins = mix.batch(10, dr.Step(5, seed=seed, first_unit=first))
    assert torch.equal(rows[:, 0], torch.arange(first, first + 10))
    assert torch.equal(rows[:, 1], origins)
    assert not (origins == 1).any()
    parts = [mix.batch(cut, dr.Step(5, seed=seed, first_unit=first))[0]]
    parts.append(mix.batch(10 - cut, dr.Step(5, seed=seed, first_unit=first + cut))[0])
    assert torch.equal(torch.cat(parts), rows)


def test_shares_are_those_asked_for():
    def source(units, step):
        return units[:, None]

    mix = kn.TextMix({"a": source, "b": source, "c": source}, {"a": 0.2, "b": 0.5, "c": 0.3})
    counts = torch.bincount(mix.origins(20000, 1), minlength=3) / 20000
    assert (counts - torch.tensor([0.2, 0.5, 0.3])).abs().max() < 0.015


def test_wrong_arguments_are_named():
    model, other = Markov(0), Markov(0, vocabulary=4)
    for arguments, name in (
        ((torch.zeros(1, 0, dtype=torch.int64), 3), "prompts"),
        ((torch.zeros(1, 2), 3), "prompts"),
        ((prompts(1), 1), "length"),
    ):
        with pytest.raises(ArgumentError, match=name):
            kn.sample_text(model, *arguments, step=0)
        with pytest.raises(ArgumentError, match=name):
            kn.speculative_sample(model, model, *arguments, step=0)
    with pytest.raises(ArgumentError, match="temperature"):
        kn.sample_text(model, prompts(1), 4, step=0, temperature=-1.0)
    with pytest.raises(ArgumentError, match="units"):
        kn.sample_text(model, prompts(2), 4, step=0, units=range(3))
    with pytest.raises(ArgumentError, match="draft_length"):
        kn.speculative_sample(model, model, prompts(1), 4, step=0, draft_length=0)
    with pytest.raises(ArgumentError, match="lenience"):
        kn.speculative_sample(model, model, prompts(1), 4, step=0, lenience=0.0)
    with pytest.raises(ArgumentError, match="draft"):
        kn.speculative_sample(model, other, torch.zeros(1, 2, dtype=torch.int64), 4, step=0)
    with pytest.raises(ArgumentError, match="draft_logits"):
        kn.acceptance(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ArgumentError, match="rate"):
        kn.block_length(1.5, 2)
    with pytest.raises(ArgumentError, match="cost"):
        kn.speed_up(0.5, 2, -1.0)
    for shares in ({"b": 1.0}, {"a": 0.0}, {"a": -1.0}):
        with pytest.raises(ArgumentError, match="shares"):
            kn.TextMix({"a": lambda units, step: units}, shares)
    with pytest.raises(ArgumentError, match="sources"):
        kn.TextMix({"a": lambda units, step: units}, {"a": 1.0}).batch(2, 0)
