"""Curriculum data synthesis: squeeze, recover, relabel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distillrs import random
from distillrs.augment import Augmentation
from distillrs.checks import check_choice, check_floating, check_number, check_whole
from distillrs.condense import Committee, HardLabels, Recovery, Synthetic, ViewPlan
from distillrs.condense.labels import check_classes
from distillrs.errors import argument_error, renamed
from distillrs.recipes._signals import channel_box
from distillrs.registry import recipe
from distillrs.step import Step

_MOST = 1 << 24


@dataclass(frozen=True, slots=True)
class CropCurriculum:
    """A resized crop and a flip, whose smallest area falls from ``start`` to ``end`` along half a cosine or a line.

    ``a(t) = end + (start - end) (1 + cos(pi t / (share I))) / 2`` up to ``share I`` of I steps, then ``end``.

    Attributes:
        start: Smallest area at the first step.
        end: At the end.
        share: Of the run's length after which it has fallen.
        kind: "cosine", "linear", or "constant" for ``end`` throughout.
        steps: I; ``None`` takes the run's own.
    """

    start: float = 1.0
    end: float = 0.08
    share: float = 1.0
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end", "share"):
            check_number(name, getattr(self, name), "a number above 0, at most 1", above=0, most=1)
        check_choice("kind", self.kind, ("cosine", "linear", "constant"))
        if self.steps is not None:
            check_whole("steps", self.steps, "None or a positive integer", least=1)

    def area(self, step: Step | int) -> float:
        """A at a step."""
        step = Step.of(step)
        total = self.steps if self.steps is not None else step.total
        if self.kind == "constant":
            return self.end
        if total is None:
            raise argument_error("steps", None, "the curriculum's length, or a step that says the run's (Step.total)")
        done = min(1.0, step.index / (self.share * max(1, total - 1)))
        left = (1 + math.cos(math.pi * done)) / 2 if self.kind == "cosine" else 1 - done
        # Rounding may lead a hair beyond the larger of the two, and an area above 1 is none.
        return min(self.end + (self.start - self.end) * left, max(self.start, self.end))

    def __call__(self, step: Step) -> Augmentation:
        """The augmentation of a step."""
        return Augmentation("resizedcrop_flip", combine="all", resizedcrop=self.area(step))


def cda_initial(x: Tensor, y: Tensor, per_class: int, *, seed: int = 0, inner_lr: float = 0.01) -> Synthetic:
    """Standard normal noise, kept within each channel's range in the real examples.

    Args:
        x: ``[n, C, ...]`` real examples in the network's input space, of which only the range is used.
        y: int64 ``[n]`` classes.
        per_class: Images of each class.
        seed: Of the noise.
        inner_lr: The learning rate that is stored with the set.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
    check_whole("per_class", per_class, f"a whole number from 1 to {_MOST}", least=1, most=_MOST)
    check_classes("y", y, len(x))
    count = int(y.max()) + 1
    classes = torch.arange(count, device=y.device).repeat_interleave(per_class)
    noise = random.normal(len(classes), *x.shape[1:], step=Step(0, seed=seed), name="initial noise").to(x)
    return Synthetic(noise, HardLabels(classes, count), inner_lr=inner_lr, learn_inner_lr=False, box=channel_box(x))


def cda_views(
    count: int = 300,
    area: float = 0.08,
    mix: Literal["none", "cutmix", "mixup"] = "cutmix",
    temperature: float = 20.0,
    seed: int = 0,
) -> ViewPlan:
    """The views that teachers label: a resized crop, a flip and a mix, anew for each epoch of a student's training.

    Args:
        count: Number of views.
        area: Smallest share of an image that a crop has.
        mix: "cutmix", "mixup" or "none".
        temperature: At which teacher and student are compared.
        seed: Of all draws.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return ViewPlan(count, "resizedcrop_flip", area, mix, temperature, seed)


@recipe(
    id="cda",
    source="Yin, Shen: Dataset Distillation via Curriculum Data Synthesis in Large Data Era, TMLR 2024; recovering and "
    "relabelling of Yin, Xing, Shen: Squeeze, Recover and Relabel, NeurIPS 2023",
    equation="CE(f(A_t(s)), y) + r sum_l w_l (|mu_l - mu*_l| + |sigma^2_l - sigma^2*_l|), A_t a crop of area in "
    "[a(t), 1], a falling from 1 to .08; labels f(view)",
    deviations=[
        "There is no random roll of the images.",
        "The curriculum reaches its end at the last step, not one step after it.",
        "From the command line, of the checked states the one that is best on validation examples is kept, not the "
        "last.",
        "From the command line students are trained as on every other set, by gradient descent, so that the divergence "
        "has the factor T^2 that the code leaves to AdamW's scale.",
        "A committee may stand in the teacher's place.",
    ],
    needs="teachers",
    initial=cda_initial,
    views=cda_views,
    network={"name": "convnet", "options": {"normalisation": "batch"}},
    optimisers={"images": {"lr": 0.25, "betas": (0.5, 0.9), "schedule": "cosine"}},
)
def cda(
    teachers: Committee,
    synthetic: Synthetic,
    strength: float = 0.01,
    first_area: float = 1.0,
    last_area: float = 0.08,
    share: float = 1.0,
    curriculum: Literal["cosine", "linear", "constant"] = "cosine",
    members: int = 1,
    seed: int = 0,
) -> Recovery:
    """CDA: images are recovered from a trained network, with crops that begin whole and grow small.

    A large crop settles an image's layout before small ones fill in its parts. With ``curriculum="constant"`` this is
    SRe2L. The paper has 4000 steps of Adam with rate 0.25 (betas 0.5 and 0.9, cosine) and ``strength`` 0.01 for
    ImageNet, rate 0.4 and 0.05 for Tiny ImageNet.

    Args:
        teachers: Networks with batch normalisation, trained on the real data.
        synthetic: What is trained; made by :func:`cda_initial`.
        strength: r, factor of the statistics; its scale depends on the network.
        first_area: Smallest area of a crop at the first step.
        last_area: At the end.
        share: Of the run's length after which it has fallen.
        curriculum: How it falls; "constant" is ``last_area`` throughout.
        members: Teachers for each group of images and step.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its group is "images". Its steps must say the run's length, as those of :func:`distillrs.fit` do.

    Raises:
        ArgumentError: A value that is not allowed, or a teacher without batch normalisation.
    """
    with renamed(start="first_area", end="last_area", kind="curriculum"):
        return Recovery(
            teachers,
            synthetic,
            strength=strength,
            augmentation=CropCurriculum(first_area, last_area, share, curriculum),
            members=members,
            seed=seed,
        )
