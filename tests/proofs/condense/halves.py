"""What the proofs over pairs share: upper and lower halves of digits, frozen encoders, experts, students."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from distillrs import Step, condense, evaluate, random, trajectory
from distillrs.condense import PairedSynthetic, PairNetwork, Pairs
from distillrs.condense.pair_training import PairLoss, plain_pair_loss
from distillrs.training import TrainingSettings, module_randomness
from proofs.ledger import CELLS, source_fingerprint

Encoders = Literal["pca", "random"]
Part = Literal["test", "validation"]

CHOOSING_SEED = 100
"""Of the runs that choose settings on validation data; none of a proof's own seeds."""

BUDGET = 50
EMBEDDED = 16
COMPONENTS = 24
FEATURES = 128
EXPERTS = 8
EXPERT = TrainingSettings(epochs=10, batch_size=64, learning_rate=0.1)
STUDENT = TrainingSettings(epochs=150, batch_size=25, learning_rate=0.1)
RATES = (0.03, 0.1, 0.3)

# Of the trajectory engine, for both proofs.
RANK = 1
PAIRS = 47
"""With the similarities and the rates they take no more numbers than the budget's pairs, 47 x (64 + 3) + 2 of 3,200."""
INNER = 8
STARTS = range(3)
BATCH = 20
MATCHING = {
    "images": {"lr": 10.0, "momentum": 0.5},
    "texts": {"lr": 10.0, "momentum": 0.5},
    "similarities": {"lr": 0.5, "momentum": 0.5},
    "rates": {"lr": 0.01, "momentum": 0.5},
}


@dataclass(frozen=True)
class Halves:
    """Pairs of halves, in deviations of their pixels, in parts for training, choosing and testing."""

    train: Pairs
    validation: Pairs
    test: Pairs


@cache
def data() -> Halves:
    """The digits of scikit-learn: the upper four rows of each are the image, the lower four the text."""
    bundle = evaluate.data.load("digits")
    mean, scale = bundle.x_train.mean(), bundle.x_train.std()
    parts = [(x - mean) / scale for x in (bundle.x_train, bundle.x_val, bundle.x_test)]
    return Halves(*(Pairs(x[:, 0, :4].flatten(1), x[:, 0, 4:].flatten(1)) for x in parts))


class Principal(nn.Module):
    """The first principal components, of unit mean variance together."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        centred = points - points.mean(0)
        _, values, directions = torch.linalg.svd(centred.double(), full_matrices=False)
        kept = directions[:COMPONENTS].T / (values[:COMPONENTS].square().mean() / len(points)).sqrt()
        self.mean: Tensor
        self.directions: Tensor
        self.register_buffer("mean", points.mean(0))
        self.register_buffer("directions", kept.float())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.directions


class RandomFeatures(nn.Module):
    """Rectified random projections."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = random.normal(32, FEATURES, step=Step(0, seed=seed), name="features")
        self.directions: Tensor
        self.register_buffer("directions", drawn / 32**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.directions)


def network(seed: int, encoders: Encoders = "pca") -> PairNetwork:
    """Fresh linear heads on frozen encoders, which are the same whatever the seed."""
    if encoders == "pca":
        sides = [Principal(side) for side in data().train]
    else:
        sides = [RandomFeatures(number) for number in (1, 2)]
    width = COMPONENTS if encoders == "pca" else FEATURES
    with module_randomness(Step(0, seed=seed), "heads"):
        heads = nn.Linear(width, EMBEDDED), nn.Linear(width, EMBEDDED)
    return PairNetwork(*heads, image_encoder=sides[0], text_encoder=sides[1])


def experts(seed: int, *, shared_start: bool) -> trajectory.Store:
    """Heads trained on all pairs, recorded; kept beside the proofs' cells."""
    key = f"halves-{seed}-{shared_start}-{source_fingerprint(Path(__file__))}"
    path = CELLS / "condense" / "stores" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = trajectory.ParameterLayout.of(network(0))
    schema = trajectory.Schema(theta=layout.column())
    metadata = {"layout": layout.to_dict(), "seed": seed}
    with trajectory.Store.create(path, schema, metadata=metadata, exist_ok=True) as store:
        condense.record_pair_experts(
            store, network, data().train, EXPERT, count=EXPERTS, shared_start=shared_start, seed=seed
        )
    return trajectory.Store.open(path)


def random_rows(count: int, seed: int) -> Tensor:
    """Rows of real pairs."""
    return random.choice(data().train.rows, count, step=Step(0, seed=seed), name="random pairs")


@torch.no_grad()
def recall(model: PairNetwork, part: Part) -> float:
    """IR@10 + TR@10 in percent, from 0 to 200."""
    pairs = data().test if part == "test" else data().validation
    images, texts = model(model.encode(pairs))
    return 100 * (evaluate.recall(texts, images, 10) + evaluate.recall(images, texts, 10))


def judged(
    pairs: Pairs,
    seed: int,
    *,
    loss: PairLoss = plain_pair_loss,
    learned: tuple[float, float] | None = None,
    encoders: Encoders = "pca",
    part: Part = "test",
) -> float:
    """Recall of fresh heads trained on few pairs, with the rate that is best on the validation pairs.

    Args:
        pairs: What they learn.
        seed: Of heads and orders.
        loss: With which.
        learned: Rates of both heads that were learned with the pairs; tried beside the three that all sets may have.
        encoders: Of the student.
        part: What is looked at.
    """
    plain = Pairs(*(side.detach() for side in pairs))
    settings = STUDENT
    found = []
    for rates in [(rate, rate) for rate in RATES] + ([learned] if learned else []):
        model = network(1000 + seed, encoders)
        condense.train_pairs(model, plain, settings, rates=rates, loss=loss, seed=seed)
        found.append((recall(model, "validation"), -len(found), recall(model, part)))
    return max(found)[2]


@torch.no_grad()
def likeness(pairs: Pairs) -> float:
    """Mean cosine of different members' encoded features, over both modalities."""
    encoded = network(0).encode(pairs)
    cosines = []
    for side in encoded:
        unit = nn.functional.normalize(side, dim=1)
        total = (unit @ unit.T).sum() - len(unit)
        cosines.append(float(total) / (len(unit) * (len(unit) - 1)))
    return sum(cosines) / 2


def student_of(synthetic: PairedSynthetic) -> tuple[Pairs, PairLoss, tuple[float, float]]:
    """What a student of a distilled set is trained on, with which loss and rates."""
    loss: Callable[[Pairs, Tensor], Tensor] = plain_pair_loss
    if synthetic.targets is not None:
        loss = synthetic.targets.loss()  # type: ignore[operator]  # a module's attribute
    one, two = synthetic.rates.tolist()
    return synthetic.pairs(), loss, (one, two)
