"""Shares of random draws: unbiased, repeatable, and kept by the cache."""

import pytest
import torch

from distillrs.errors import ArgumentError
from distillrs.trajectory import UNCHECKED, TeacherCache, random_sample


def dense(topk, vocabulary):
    shares = torch.zeros(len(topk.ids), vocabulary, dtype=torch.float64)
    return shares.scatter_add(1, topk.ids.clamp(min=0), topk.log_probs.double().exp())


def test_the_expectation_of_the_shares_is_the_distribution():
    torch.manual_seed(0)
    row = torch.randn(12) * 2
    row[4] = row[11] = -torch.inf
    rows, draws = 20_000, 5
    shares = dense(random_sample(row.expand(rows, -1), draws, key="a"), 12)
    assert torch.allclose(shares.sum(1), torch.ones(rows, dtype=torch.float64), atol=1e-6)
    probability = torch.softmax(row.double(), 0)
    # Five standard deviations of a mean of rows * draws Bernoulli variables.
    allowed = 5 * (probability * (1 - probability) / (rows * draws)).sqrt()
    assert ((shares.mean(0) - probability).abs() <= allowed + 1e-7).all()
    # The largest probabilities, renormalised, would be off by far more.
    top = torch.zeros_like(probability).scatter(0, *reversed(probability.topk(5)))
    assert ((top / top.sum() - probability).abs() > allowed).any()
    # The variance is that of independent draws.
    assert torch.allclose(shares.var(0), probability * (1 - probability) / draws, rtol=0.1, atol=1e-4)


def test_draws_belong_to_seed_key_and_position():
    logits = torch.randn(9, 50)
    whole = random_sample(logits, 7, key="a", seed=3)
    assert torch.equal(whole.ids, random_sample(logits, 7, key="a", seed=3).ids)
    parts = [random_sample(logits[:4], 7, key="a", seed=3), random_sample(logits[4:], 7, key="a", seed=3, first=4)]
    assert torch.equal(whole.ids, torch.cat([part.ids for part in parts]))
    assert not torch.equal(whole.ids, random_sample(logits, 7, key="b", seed=3).ids)
    assert not torch.equal(whole.ids, random_sample(logits, 7, key="a", seed=4).ids)
    flat = random_sample(torch.zeros(2, 50), 7, key="a")
    assert not torch.equal(flat.ids[0], flat.ids[1])


@pytest.mark.parametrize(("code", "error"), [("f16", 3e-3), ("u8", 2e-2)])
def test_a_cache_keeps_the_shares(tmp_path, code, error):
    logits = torch.randn(30, 40) * 3
    drawn = random_sample(logits, 16, key="a")
    with TeacherCache.create(tmp_path / "c", 40, 16, UNCHECKED, code=code) as cache:
        cache.append("a", drawn)
        topk = cache.gather(cache.index(["a"]) + torch.arange(30))
    assert (topk.tail_log_mass == -torch.inf).all()
    assert (dense(topk, 40) - dense(drawn, 40)).abs().max() < error
    assert torch.equal(dense(topk, 40) > 0, dense(drawn, 40) > 0)


@pytest.mark.parametrize(
    ("logits", "settings", "name"),
    [
        (torch.zeros(3), {}, "logits"),
        (torch.zeros(2, 3, dtype=torch.int64), {}, "logits"),
        (torch.full((2, 3), torch.nan), {}, "logits"),
        (torch.full((2, 3), -torch.inf), {}, "logits"),
        (torch.zeros(2, 3), {"draws": 0}, "draws"),
        (torch.zeros(2, 3), {"key": 5}, "key"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(logits, settings, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        random_sample(logits, **{"draws": 4, "key": "a", **settings})
