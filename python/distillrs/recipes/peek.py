"""PEEK: frames of a video chosen by a small student of a ranking teacher that knew the question."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.errors import argument_error
from distillrs.knowledge import AnyTap, Entry, ListMLE, Objective, SelfTeacher, Term
from distillrs.recipes._networks import LOGITS
from distillrs.registry import recipe
from distillrs.step import Step
from distillrs.training import module_randomness


class FrameScorer(nn.Module):
    """A number for each frame, from the features of all: normalised, mapped, with sines of the place, then attention.

    Args:
        features: Of each frame, from a frozen encoder.
        width: Inside, even and divisible by the heads.
        layers: Of the transformer, each normalised first.
        heads: Of its attention.
        hidden: Width of its feed-forward parts.
        dropout: In its layers.
        seed: Of the weights.

    Raises:
        ArgumentError: A value that is not allowed, such as a width that is odd or that the heads do not divide.
    """

    def __init__(
        self,
        features: int = 512,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        hidden: int = 1024,
        dropout: float = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("layers", layers), ("heads", heads), ("hidden", hidden)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise argument_error(name, value, "a positive integer")
        if isinstance(width, bool) or not isinstance(width, int) or width < 2 or width % 2 or width % heads:
            raise argument_error("width", width, f"an even number that {heads} heads divide")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise argument_error("dropout", dropout, "a number from 0 to below 1")
        with module_randomness(Step(0, seed=seed), "network initialisation"):
            self.start = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True, norm_first=True)
                for _ in range(layers)
            )
            self.end = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        self.features, self.width = features, width

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores ``[B, L]``.

        Args:
            frames: ``[B, L, features]``.
            mask: ``[B, L]``: other than 0 for frames that are there; ``None`` if all are.

        Raises:
            ArgumentError: Other shapes.
        """
        if frames.ndim != 3 or frames.shape[2] != self.features:
            raise argument_error("frames", tuple(frames.shape), f"[B, L, {self.features}]")
        if mask is not None and mask.shape != frames.shape[:2]:
            raise argument_error("mask", tuple(mask.shape), f"{tuple(frames.shape[:2])}, one for each frame")
        found = self.start(frames)
        # In 32 bits at least: 16 do not tell the places of a long video apart.
        kind = torch.promote_types(found.dtype, torch.float32)
        places = torch.arange(frames.shape[1], device=frames.device, dtype=kind)
        rates = torch.exp(
            torch.arange(0, self.width, 2, device=frames.device, dtype=kind) * (-math.log(10_000) / self.width)
        )
        angles = places[:, None] * rates
        found = found + torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(found.dtype)
        for layer in self.layers:
            found = layer(found, src_key_padding_mask=None if mask is None else mask == 0)
        scores: Tensor = self.end(found)[..., 0]
        return scores


@recipe(
    id="peek",
    source="PEEK: Picking Essential frames via Efficient Knowledge distillation, 2026",
    equation="mean_i [log sum_{j >= i} exp s_j - s_i], frames i by falling teacher score; pick the best of each of k "
    "equal stretches",
    deviations=[
        "The teacher's scores are given with the batch; scaling them to 0 to 1 in a segment changes no ranking and is "
        "left out.",
        "The scorer ends with a normalisation before its last map, as transformers that normalise first do.",
    ],
    optimisers={"student": {"lr": 2e-4}},
    engine="select",
)
def peek(
    student: nn.Module,
    logits: AnyTap = LOGITS,
    scores: str = "scores",
    mask: str | None = "mask",
) -> Objective:
    """A student that sees frames alone learns the order in which a teacher, who knew the caption, put them.

    The authors train by AdamW with rate 2e-4 and decay .03, batches of 1024, 25 epochs, 2 of them warm-up, a cosine to
    5%, gradients clipped at 1, and keep the state with the best rank correlation on validation videos. Then
    ``select.stratified(student(frames)[0], k)`` picks ``k`` frames of a video.

    Args:
        student: The network to train, :class:`FrameScorer` for one; a batch without ``scores`` is what it is called
            with.
        logits: Its scores ``[B, L]``.
        scores: The batch entry of the teacher's scores ``[B, L]``, such as cosines with the embedded caption.
        mask: The batch entry that marks frames that are there; ``None`` if all are.

    Returns:
        The objective; its group is "student".
    """
    term = Term(logits, Entry(scores), divergence=ListMLE(mask), name="ranking")
    return Objective(student, SelfTeacher(), [term], withheld=(scores,))


def peek_batch(
    features: Sequence[Tensor],
    scores: Sequence[Tensor],
    *,
    step: Step | int,
    first_unit: int = 0,
    crop: float = 0.7,
    drop: tuple[float, float] = (0.05, 0.25),
    most: int = 32,
    least: int = 6,
) -> dict[str, Tensor]:
    """Cuts a random stretch out of each video, drops some of its frames, and pads them to one batch.

    Args:
        features: Of each video, ``[frames, features]``.
        scores: The teacher's, ``[frames]``.
        step: Where in the run.
        first_unit: Number of the first video in the global batch.
        crop: Least share of the frames that the stretch has; its length and place are drawn evenly.
        drop: Least and largest share of its frames that are dropped.
        most: Most frames; of more, evenly spaced ones are kept.
        least: Least frames of a video that has so many.

    Returns:
        "frames" ``[B, L, features]``, "scores" and "mask" ``[B, L]``; padding is 0.

    Raises:
        ArgumentError: A value out of range, a video whose scores are not one for each frame, or one whose features are
            of another shape.
    """
    if isinstance(crop, bool) or not 0 < crop <= 1:
        raise argument_error("crop", crop, "a number above 0 to 1")
    if len(drop) != 2 or not 0 <= drop[0] <= drop[1] < 1:
        raise argument_error("drop", drop, "two numbers that rise, from 0 to below 1")
    if not 1 <= least <= most:
        raise argument_error("least", least, f"a number from 1 to most, {most}")
    if len(features) != len(scores) or not len(features):
        raise argument_error("scores", f"{len(scores)} videos", f"as many as features, {len(features)}, at least one")
    step = Step.of(step)
    draws = random.uniform(
        range(first_unit, first_unit + len(features)), 3, step=step, name="peek crop", dtype=torch.float64
    ).tolist()
    kept = []
    for place, (own, marks) in enumerate(zip(features, scores, strict=True)):
        frames = len(own)
        if marks.shape != (frames,) or not frames:
            raise argument_error("scores", f"shape {tuple(marks.shape)} at {place}", f"[{max(frames, 1)}]")
        if own.shape[1:] != features[0].shape[1:]:
            got = f"shape {tuple(own.shape)} at {place}"
            raise argument_error("features", got, f"[frames, ...] as the first, {tuple(features[0].shape)}")
        length, start, share = draws[place]
        size = max(min(least, frames), math.ceil(frames * (crop + (1 - crop) * length)))
        size = min(size, frames)
        first = int(start * (frames - size + 1))
        left = max(min(least, size), size - int(size * (drop[0] + (drop[1] - drop[0]) * share)))
        unit = (first_unit + place) * 2**20
        order = random.uniform(range(unit, unit + size), step=step, name="peek drop").argsort()
        rows = first + order[:left].sort().values
        if left > most:
            rows = rows[torch.arange(most) * left // most]
        kept.append(rows)
    longest = max(len(rows) for rows in kept)
    batch = {
        "frames": features[0].new_zeros(len(features), longest, *features[0].shape[1:]),
        "scores": scores[0].new_zeros(len(features), longest),
        "mask": torch.zeros(len(features), longest, dtype=torch.bool, device=features[0].device),
    }
    for place, rows in enumerate(kept):
        batch["frames"][place, : len(rows)] = features[place][rows]
        batch["scores"][place, : len(rows)] = scores[place][rows]
        batch["mask"][place, : len(rows)] = True
    return batch
