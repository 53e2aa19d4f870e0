"""Nemotron Elastic on the characters of a text: three networks out of one run, against a run for each of them.

The parent is a transformer of three layers. One elastic run at budgets of 100, 60 and 35% of its multiplications is
held to three runs of a third of its steps, each of which starts from the same parent pruned in the same order to the
sizes that the router begins with, and learns the parent's distribution.
"""

from __future__ import annotations

import copy
import math
from functools import cache
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distillrs as dr
from distillrs import knowledge, random, recipes
from distillrs.knowledge.forms import (
    ActivationImportance,
    Elastic,
    Structure,
    activation_importance,
    layer_order,
    nested,
    router_of,
)
from proofs.knowledge.bed import LENGTH, Text, held_out_loss, llama, train
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SEEDS = [1, 2, 3]
BUDGETS = (1.0, 0.6, 0.35)
PARENT_STEPS = 500
STEPS = 450
RATE = 3e-3
SEPARATE_RATE = 3e-3
ROUTER_RATE = 3e-2
CALIBRATION = 8
RANDOM_ORDERS = 3
WIDTH, LAYERS = 64, 3


@cache
def parent_of(seed: int) -> nn.Module:
    network = llama(WIDTH, LAYERS, seed)
    train(network, Text.shakespeare().batches(PARENT_STEPS, seed), PARENT_STEPS)
    return network


def form_of(order: tuple[int, ...]) -> Elastic:
    return Elastic(BUDGETS, order=order, heads=(0.25, 0.5, 0.75), layers=(2 / 3,), length=LENGTH)


def calibration(seed: int) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids} for ids in Text.shakespeare().batches(CALIBRATION, seed + 300)]


def at_random(structure: Structure, seed: int) -> ActivationImportance:
    """An order that says nothing."""

    def draw(size: int, name: str) -> Tensor:
        return random.uniform(range(1), size, step=dr.Step(0, seed=seed), name=name, dtype=torch.float64)[0]

    return ActivationImportance(
        draw(structure.width, "channels"),
        tuple(draw(unit.heads, f"heads {place}") for place, unit in enumerate(structure.attention)),
        tuple(draw(part.neurons, f"neurons {place}") for place, part in enumerate(structure.feed_forward)),
    )


def elastic_run(network: nn.Module, parent: nn.Module, form: Elastic, seed: int, rate: float = RATE) -> nn.Module:
    """The recipe; the router's scores have a rate of their own."""
    student = form.apply(copy.deepcopy(network))
    objective = recipes.nemotron_elastic(student, parent)
    scores = list(router_of(student).parameters())
    rest = [each for each in student.parameters() if all(each is not score for score in scores)]
    groups = [{"params": rest, "lr": rate}, {"params": scores, "lr": ROUTER_RATE, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01)
    student.train()
    for step, ids in enumerate(Text.shakespeare().batches(STEPS, seed + 100)):
        share = min((step + 1) / max(1, STEPS / 20), 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        optimiser.param_groups[0]["lr"] = rate * share
        optimiser.zero_grad()
        objective({"input_ids": ids}, dr.Step(step, seed=seed, total=STEPS)).total.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        optimiser.step()
    return student.eval()


def separate_run(student: nn.Module, parent: nn.Module, seed: int, rate: float = SEPARATE_RATE) -> nn.Module:
    """A pruned network learns the parent's distribution for a third of the steps."""
    objective = knowledge.Objective(student, dr.Frozen(parent), [knowledge.Term(knowledge.Output("logits"))])
    steps = STEPS // len(BUDGETS)

    def loss_of(ids: Tensor, step: int) -> Tensor:
        return objective({"input_ids": ids}, dr.Step(step, seed=seed, total=steps)).total

    train(student, Text.shakespeare().batches(steps, seed + 100), steps, loss_of, rate=rate)
    return student


@torch.no_grad()
def equalities(student: nn.Module, form: Elastic, parent: nn.Module) -> dict[str, list[float]]:
    """How far exports are from the masked network, and costs from budgets."""
    ids = Text.shakespeare().held_out[:50]
    full = Structure.of(parent).macs(LENGTH)
    differences, costs = [], []
    for budget in BUDGETS:
        masked = form.choose(student, budget)(ids).logits
        small = form.materialise(student)
        differences.append(float((small(ids).logits - masked).abs().max()))
        costs.append(Structure.of(small).macs(LENGTH) / full)
    return {"masked and exported differ by": differences, "costs": costs}


def losses_of(student: nn.Module, form: Elastic) -> list[float]:
    """Held-out losses of the submodels, by budget."""
    return [held_out_loss(form.materialise(form.choose(student, budget))) for budget in BUDGETS]


def measure(seed: int) -> dict[str, Any]:
    """All figures of one seed."""
    parent = parent_of(seed)
    importance = activation_importance(parent, calibration(seed))
    network = nested(parent, importance)
    form = form_of(layer_order(network, calibration(seed)))
    start = form.apply(copy.deepcopy(network))
    orders = [at_random(Structure.of(parent), seed * 100 + number) for number in range(RANDOM_ORDERS)]
    shuffled = [losses_of(form.apply(nested(parent, order)), form)[1:] for order in orders]
    pruned = [form.materialise(form.choose(start, budget)) for budget in BUDGETS]
    before = [held_out_loss(each) for each in pruned]
    separate = [held_out_loss(separate_run(each, parent, seed)) for each in pruned]
    student = elastic_run(network, parent, form, seed)
    return {
        "parent": held_out_loss(parent),
        "before training": before,
        "random orders": shuffled,
        "separate": separate,
        "elastic": losses_of(student, form),
        "sizes": [str(form.sizes(student, budget)) for budget in BUDGETS],
        "order": list(form.order or ()),
        **equalities(student, form, parent),
    }


@pytest.fixture
def figures(proof: Proof) -> list[dict[str, Any]]:
    return [proof.cell(f"seed{seed}", lambda seed=seed: measure(seed)) for seed in SEEDS]


def listed(figures: list[dict[str, Any]], *names: str) -> dict[str, Any]:
    return {name: [each[name] for each in figures] for name in names}


def test_one_run_is_no_worse_than_three(proof: Proof, figures: list[dict[str, Any]]) -> None:
    differences = [fmean(each["elastic"]) - fmean(each["separate"]) for each in figures]
    proof.conclude(
        "a",
        f"tinyshakespeare, budgets 100, 60 and 35%: the mean held-out loss of the three networks of one elastic run of "
        f"{STEPS} steps is at most 0.02 nats above that of three separate runs of {STEPS // 3}, averaged over 3 seeds",
        holds=fmean(differences) <= 0.02,
        figures={"elastic less separate": differences, **listed(figures, "parent", "elastic", "separate")},
        seeds=SEEDS,
    )


def test_the_full_network_stays_with_its_parent(proof: Proof, figures: list[dict[str, Any]]) -> None:
    differences = [each["elastic"][0] - each["parent"] for each in figures]
    proof.conclude(
        "b",
        "the elastic run's full network is within 0.02 nats of its parent's held-out loss, for each of 3 seeds",
        holds=max(abs(each) for each in differences) <= 0.02,
        figures={"full less parent": differences},
        seeds=SEEDS,
    )


def test_exports_compute_what_masks_do_at_their_budgets(proof: Proof, figures: list[dict[str, Any]]) -> None:
    off = [max(abs(c - b) / b for c, b in zip(each["costs"], BUDGETS, strict=True)) for each in figures]
    proof.conclude(
        "c",
        "logits of each exported submodel equal those of the masked network to 1e-5, and its multiplications are "
        "within 2% of its budget, for each of 3 seeds",
        holds=max(max(each["masked and exported differ by"]) for each in figures) <= 1e-5 and max(off) <= 0.02,
        figures=listed(figures, "masked and exported differ by", "costs", "sizes", "order"),
        seeds=SEEDS,
    )


def test_the_order_of_importance_beats_a_random_one(proof: Proof, figures: list[dict[str, Any]]) -> None:
    gains = []
    for each in figures:
        means = [fmean(losses) for losses in zip(*each["random orders"], strict=True)]
        gains.append([mean - own for mean, own in zip(means, each["before training"][1:], strict=True)])
    proof.conclude(
        "d",
        f"before training, at 60 and at 35%: the held-out loss in the order of importance is at least 0.05 nats below "
        f"the mean of {RANDOM_ORDERS} random orders, for each of 3 seeds",
        holds=min(min(each) for each in gains) >= 0.05,
        figures={"random less importance": gains, **listed(figures, "before training", "random orders")},
        seeds=SEEDS,
    )
