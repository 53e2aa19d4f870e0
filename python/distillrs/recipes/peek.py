"""PEEK: frames of a video chosen by a small student of a ranking teacher that knew the question."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_floating, check_number, check_text, check_whole, described, numbers
from distillrs.errors import argument_error
from distillrs.knowledge import AnyTap, Entry, ListMLE, Objective, SelfTeacher, Term
from distillrs.recipes._networks import LOGITS
from distillrs.registry import recipe
from distillrs.step import Step
from distillrs.training import module_randomness

_MOST = 1 << 16


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
            check_whole(name, value, f"a whole number from 1 to {_MOST}", least=1, most=_MOST)
        allowed = f"an even number that {heads} heads divide, at most {_MOST}"
        check_whole("width", width, allowed, least=2, most=_MOST)
        if width % 2 or width % heads:
            raise argument_error("width", width, allowed)
        check_number("dropout", dropout, "a number from 0 to below 1", least=0, below=1)
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
        check_floating("frames", frames, f"floating [B, L, {self.features}]", axes=3)
        if frames.ndim != 3 or frames.shape[2] != self.features:
            raise argument_error("frames", tuple(frames.shape), f"[B, L, {self.features}]")
        if mask is not None and not isinstance(mask, Tensor):
            raise argument_error("mask", described(mask), f"None or a tensor {tuple(frames.shape[:2])}")
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
    check_text("scores", scores, "the name of an entry of the batch")
    if mask is not None:
        check_text("mask", mask, "None or the name of an entry of the batch")
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
    check_number("crop", crop, "a number above 0 to 1", above=0, most=1)
    shares = numbers("drop", drop)
    if len(shares) != 2 or not 0 <= shares[0] <= shares[1] < 1:
        raise argument_error("drop", drop, "two numbers that rise, from 0 to below 1")
    check_whole("most", most, "a positive integer", least=1)
    check_whole("least", least, f"a whole number from 1 to most, {most}", least=1, most=most)
    check_whole("first_unit", first_unit, "a whole number from 0", least=0)
    for name, given, axes in (("features", features, 2), ("scores", scores, 1)):
        if not isinstance(given, list | tuple | Tensor):
            raise argument_error(name, described(given), "a list of tensors, one for each video")
        for place, each in enumerate(given):
            check_floating(f"{name}[{place}]", each, "a floating tensor of frames", least_axes=axes)
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
        left = max(min(least, size), size - int(size * (shares[0] + (shares[1] - shares[0]) * share)))
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
