"""Drafts for speculative decoding: what distillation adds to their acceptance, on real text.

The target has four layers, the draft one. A draft that was trained on the text alone goes on for 600 steps: on the text
again, or by DistillSpec on the text (forward KL) or on what it draws itself (total variation, Jensen-Shannon).
Acceptance is ``1 - TVD`` at the places of text that the target drew; it is also counted in the verified sampler.
"""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

import distillrs as dr
from distillrs import knowledge, ops, recipes
from proofs.knowledge.bed import LENGTH, Text, cross_entropy, llama, train
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SEEDS = [1, 2, 3]
TARGET_STEPS = 450
DRAFT_STEPS = 900
STEPS = 600
BATCH = 8
POOL = 64
PROMPT = 8
RATE = 2e-3
WAYS = {
    "forward KL, text": (ops.ForwardKL(), False),
    "total variation, own": (ops.TotalVariation(), True),
    "Jensen-Shannon, own": (ops.JensenShannon(0.5), True),
}


def target_network() -> torch.nn.Module:
    network = llama(80, 4, 100)
    train(network, Text.shakespeare().batches(TARGET_STEPS, seed=100), TARGET_STEPS)
    return network


def own_text(draft: torch.nn.Module, seed: int) -> Any:
    """The draft's own continuations of the text's beginnings, drawn anew after each eight batches."""
    rows = Text.shakespeare().train
    pool: dict[int, Tensor] = {}

    def source(units: Tensor, step: dr.Step) -> Tensor:
        at = step.index * BATCH // POOL
        if at not in pool:
            pool.clear()
            chosen = dr.random.integers(POOL, len(rows), step=dr.Step(at, seed=seed), name="prompts")
            prompts = rows[chosen, :PROMPT]
            pool[at] = knowledge.sample_text(draft, prompts, LENGTH, step=dr.Step(at, seed=seed), name="own text")
        return pool[at][(step.index * BATCH + units) % POOL]

    return source


def distilled(draft: torch.nn.Module, target: torch.nn.Module, divergence: Any, own: bool, seed: int) -> Any:
    """A copy of the draft after its steps."""
    network = copy.deepcopy(draft)
    objective = recipes.distillspec(network, target, divergence)
    fixed = list(Text.shakespeare().batches(STEPS, seed=seed + 20, size=BATCH))
    sources = {"text": lambda units, step: fixed[step.index][units], "own": own_text(network, seed)}
    mix = knowledge.TextMix(sources, {"text": 0.0 if own else 1.0, "own": 1.0 if own else 0.0})

    def loss(ids: Tensor, step: int) -> Tensor:
        ids, _ = mix.batch(BATCH, dr.Step(step, seed=seed))
        labels = ids.clone()
        labels[:, : PROMPT if own else 1] = -100
        return objective({"input_ids": ids, "labels": labels}, step).total

    train(network, iter(fixed), STEPS, loss, rate=RATE)
    return network


@torch.no_grad()
def rate_of(draft: torch.nn.Module, text: Tensor, logits: Tensor) -> float:
    """Mean acceptance at the places of the target's own text."""
    own = torch.cat([draft(input_ids=part).logits for part in text.split(64)])
    return float(knowledge.acceptance(own, logits)[:, PROMPT - 1 : -1].mean())


def p_value(target: torch.nn.Module, draft: torch.nn.Module, prompt: Tensor, seed: int, rows: int = 4000) -> float:
    """Chi-square of two verified characters behind one prompt against the target's own probabilities."""
    prompts = prompt[None].expand(rows, -1).contiguous()
    step = dr.Step(0, seed=seed)
    length = len(prompt) + 2
    drawn = knowledge.speculative_sample(target, draft, prompts, length, step=step, name="chi", draft_length=2).ids
    with torch.no_grad():
        vocabulary = len(Text.shakespeare().alphabet)
        first = target(input_ids=prompt[None]).logits[0, -1].double().log_softmax(-1)
        rows_of = torch.cat([prompt[None].expand(vocabulary, -1), torch.arange(vocabulary)[:, None]], 1)
        second = target(input_ids=rows_of).logits[:, -1].double().log_softmax(-1)
    expected = rows * (first[:, None] + second).exp().flatten()
    counts = torch.bincount(drawn[:, -2] * vocabulary + drawn[:, -1], minlength=vocabulary**2).double()
    rare = expected < 5
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2, dtype=torch.float64), statistic / 2))


def measure(seeds: list[int] | None = None) -> dict[str, Any]:
    seeds = SEEDS if seeds is None else seeds
    target = target_network()
    data = Text.shakespeare()
    text = knowledge.sample_text(target, data.held_out[:128, :PROMPT], LENGTH, step=dr.Step(0, seed=7))
    with torch.no_grad():
        logits = torch.cat([target(input_ids=part).logits for part in text.split(64)])
        found: dict[str, Any] = {"target's loss": float(cross_entropy(target, data.held_out[:200]))}
    names = ("before", "more text", *WAYS, "counted", "expected where counted", "tested", "p")
    found |= {name: [] for name in names}
    for seed in seeds:
        draft = llama(48, 1, seed)
        train(draft, data.batches(DRAFT_STEPS, seed=seed), DRAFT_STEPS)
        found["before"].append(rate_of(draft, text, logits))
        more = copy.deepcopy(draft)
        train(more, data.batches(STEPS, seed=seed + 20, size=BATCH), STEPS, rate=RATE)
        found["more text"].append(rate_of(more, text, logits))
        drafts = {name: distilled(draft, target, *way, seed) for name, way in WAYS.items()}
        for name, network in drafts.items():
            found[name].append(rate_of(network, text, logits))
        best = drafts["total variation, own"]
        prompts = data.held_out[200 : 200 + 64, :PROMPT]
        counted = knowledge.speculative_sample(target, best, prompts, LENGTH, step=dr.Step(0, seed=seed))
        found["counted"].append(counted.acceptance)
        found["expected where counted"].append(counted.expected_acceptance)
        found["tested"].append(counted.tested)
        found["p"].append(p_value(target, best, data.held_out[300, :PROMPT], seed))
    return found


def test_a_acceptance_is_one_less_the_total_variation(proof: Proof) -> None:
    found = proof.cell("all", measure)
    tested = found["tested"]
    counted = sum(rate * n for rate, n in zip(found["counted"], tested, strict=True)) / sum(tested)
    expected = sum(rate * n for rate, n in zip(found["expected where counted"], tested, strict=True)) / sum(tested)
    names = ("counted", "expected where counted", "tested")
    proof.conclude(
        "a",
        "the acceptance that the verified sampler counts, over all tests of three seeds, equals the mean of 1 - TVD at "
        "the tested places within 1 percentage point",
        holds=abs(counted - expected) <= 0.01,
        figures={name: found[name] for name in names} | {"difference": counted - expected},
        seeds=SEEDS,
    )


def test_b_distilled_drafts_are_accepted_more_often(proof: Proof) -> None:
    found = proof.cell("all", measure)
    best = fmean(found["total variation, own"])
    gains = {name: best - fmean(found[name]) for name in ("before", "more text")}
    proof.conclude(
        "b",
        f"{STEPS} steps of total variation on the draft's own text raise the mean acceptance by at least 3 percentage "
        "points over the draft before them, and over as many more steps on the text",
        holds=min(gains.values()) >= 0.03,
        figures={name: found[name] for name in ("before", "more text", *WAYS, "target's loss")} | {"gains": gains},
        seeds=SEEDS,
    )


def test_c_own_text_is_no_worse_than_fixed_text(proof: Proof) -> None:
    found = proof.cell("all", measure)
    fixed = fmean(found["forward KL, text"])
    margins = {name: fmean(found[name]) - fixed for name, (_, own) in WAYS.items() if own}
    proof.conclude(
        "c",
        "total variation and Jensen-Shannon on the draft's own text each reach the mean acceptance of forward KL on "
        "the text, less 0.5 percentage points",
        holds=min(margins.values()) >= -0.005,
        figures={name: found[name] for name in WAYS} | {"margins": margins},
        seeds=SEEDS,
    )


def test_d_verified_text_is_the_targets(proof: Proof) -> None:
    found = proof.cell("all", measure)
    proof.conclude(
        "d",
        "two characters behind a prompt, 4000 times by the verified sampler: chi-square against the target's exact "
        "probabilities gives p above 0.01 for each of three seeds",
        holds=min(found["p"]) > 0.01,
        figures={"p": found["p"]},
        seeds=SEEDS,
    )
