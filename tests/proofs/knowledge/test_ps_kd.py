"""PS-KD's proof: students that are their own teachers of an epoch ago, on Fashion-MNIST."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import distillrs as dr
from distillrs import evaluate, knowledge, random, recipes
from distillrs.transforms import Standardise
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3, 4, 5]
EXAMPLES = 3000
EPOCHS = 30
BATCH = 100
RATE = 0.1
WAYS = ("cross-entropy", "smoothing", "ps-kd")


class Bed:
    """3,000 pictures, a small ConvNet and one way to train it."""

    def __init__(self) -> None:
        bundle = evaluate.data.load("fashion")
        order = random.choice(len(bundle.x_train), EXAMPLES, step=0, name="rows of the proof")
        to_input = Standardise.fit(bundle.x_train[order]).forward
        self.x, self.y = to_input(bundle.x_train[order]), bundle.y_train[order]
        self.x_test, self.y_test = to_input(bundle.x_test), bundle.y_test
        self.x_val, self.y_val = to_input(bundle.x_val), bundle.y_val
        self.shape, self.classes = bundle.shape, len(bundle.classes)

    def student(self, seed: int) -> nn.Module:
        return evaluate.networks.build("convnet", self.shape, self.classes, seed=seed, width=8, depth=2)

    def objective(self, way: str, student: nn.Module) -> knowledge.Objective:
        if way == "ps-kd":
            return recipes.ps_kd(student, EXAMPLES, self.classes)
        labels = knowledge.Labels(0.1 if way == "smoothing" else 0.0)
        return knowledge.Objective(student, None, [knowledge.Term(knowledge.Output("logits"), target=labels)])

    def train(self, way: str, seed: int, *, stop: int | None = None, state: Any = None) -> tuple[nn.Module, Any]:
        """SGD as in the paper: momentum .9, decay 5e-4, the rate falls tenfold at 1/2 and 3/4 of the run."""
        student = self.student(seed)
        objective = self.objective(way, student)
        optimiser = torch.optim.SGD(student.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
        steps = EPOCHS * EXAMPLES // BATCH
        first = 0
        if state is not None:
            student.load_state_dict(state["student"])
            objective.load_state_dict(state["objective"])
            optimiser.load_state_dict(state["optimiser"])
            first = state["next"]
        student.train()
        last = steps if stop is None else stop
        for index in range(first, last):
            epoch, place = divmod(index, EXAMPLES // BATCH)
            order = random.permutation(EXAMPLES, step=dr.Step(epoch, seed=seed), name="epoch")
            rows = order[place * BATCH : (place + 1) * BATCH]
            for group in optimiser.param_groups:
                group["lr"] = RATE * 0.1 ** ((index >= steps / 2) + (index >= 3 * steps / 4))
            loss = objective((self.x[rows], self.y[rows], rows), dr.Step(index, seed=seed, total=steps))
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
        state = {
            "student": student.state_dict(),
            "objective": objective.state_dict(),
            "optimiser": optimiser.state_dict(),
            "next": last,
        }
        return student.eval(), state

    def measures(self, student: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
        with torch.inference_mode():
            log_probs = torch.cat([student(part).log_softmax(1) for part in x.split(500)])
        return {
            "accuracy": float((log_probs.argmax(1) == y).double().mean()),
            "nll": float(functional.nll_loss(log_probs, y)),
            "ece": calibration_error(log_probs.exp(), y),
        }


def calibration_error(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error over bins of equal width: the mean of |accuracy - confidence|, weighed by counts."""
    confidence, found = probs.max(1)
    which = (confidence * bins).long().clamp(max=bins - 1)
    gap = (found == y).double() - confidence.double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, which, gap).abs().sum() / len(y))


def measure() -> dict[str, Any]:
    bed = Bed()
    found: dict[str, Any] = {way: {"accuracy": [], "nll": [], "ece": []} for way in WAYS}
    for seed in SEEDS:
        for way in WAYS:
            student, _ = bed.train(way, seed)
            for name, value in bed.measures(student, bed.x_test, bed.y_test).items():
                found[way][name].append(value)
    return found


def test_a_likelihood_and_calibration_at_no_cost_of_accuracy(proof: Proof) -> None:
    found = proof.cell("a", measure)
    means = {way: {name: fmean(values) for name, values in found[way].items()} for way in WAYS}
    plain, own = means["cross-entropy"], means["ps-kd"]
    parts = {
        "nll": own["nll"] <= 0.95 * plain["nll"],
        "ece": own["ece"] <= 0.5 * plain["ece"],
        "accuracy": own["accuracy"] >= plain["accuracy"] - 0.002,
    }
    proof.conclude(
        "a",
        f"Fashion-MNIST, {EXAMPLES} pictures, {EPOCHS} epochs, means over five seeds on the test set: PS-KD's NLL is "
        "at least 5% below cross-entropy's, its ECE at most half, its accuracy no more than 0.2 points below",
        holds=all(parts.values()),
        figures={**found, "means": means, "parts": parts},
        seeds=SEEDS,
    )


def test_b_table_and_copy_of_the_weights_agree_where_nothing_is_augmented(proof: Proof) -> None:
    bed, seed, epoch = Bed(), SEEDS[0], EXAMPLES // BATCH
    x, y, every = bed.x.double(), bed.y, torch.arange(EXAMPLES)
    runs = []
    for past in ("weights", "table"):
        student = bed.student(seed).double().eval()
        objective = (
            recipes.ps_kd(student, past="weights", epoch_steps=epoch)
            if past == "weights"
            else recipes.ps_kd(student, EXAMPLES, bed.classes).double()
        )
        optimiser = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9)
        losses = []
        for index in range(3 * epoch):
            step = dr.Step(index, seed=seed, total=3 * epoch)
            if past == "table" and index % epoch == 0:
                # What the epoch's first weights say of every picture.
                for rows in every.split(500):
                    objective((x[rows], y[rows], rows), step)
            order = random.permutation(EXAMPLES, step=dr.Step(index // epoch, seed=seed), name="epoch")
            rows = order[index % epoch * BATCH :][:BATCH]
            loss = objective((x[rows], y[rows], rows), step)
            losses.append(float(loss.total.detach()))
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
        runs.append(losses)
    gap = max(abs(one - other) for one, other in zip(*runs, strict=True))
    proof.conclude(
        "b",
        "without augmentation, three epochs from the table, filled at the beginning of each, and three from a copy of "
        "the weights have the same losses to 1e-6",
        holds=gap <= 1e-6,
        figures={"largest difference of a step's loss": gap, "first and last loss": [runs[0][0], runs[0][-1]]},
        seeds=[seed],
    )


def test_c_a_run_goes_on_bit_for_bit(proof: Proof) -> None:
    bed, seed, epoch = Bed(), SEEDS[0], EXAMPLES // BATCH
    _, cut = bed.train("ps-kd", seed, stop=epoch + 7)
    _, whole = bed.train("ps-kd", seed, stop=2 * epoch + 3)
    _, rest = bed.train("ps-kd", seed, stop=2 * epoch + 3, state=cut)
    same = [
        torch.equal(value, rest[part][name]) for part in ("student", "objective") for name, value in whole[part].items()
    ]
    proof.conclude(
        "c",
        "a run that stops within the second epoch and goes on from its state has the weights and the table of one that "
        "was never interrupted, bit for bit",
        holds=all(same),
        figures={"tensors": len(same), "equal": sum(same)},
        seeds=[seed],
    )
