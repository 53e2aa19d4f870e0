from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import Step
from distillrs.augment import Augmentation

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate", "resizedcrop")


@st.composite
def augmentations(draw: st.DrawFn) -> Augmentation:
    names = draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=6, unique=True))
    return Augmentation("_".join(names), combine=draw(st.sampled_from(("one", "all"))))


def batch(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    channels, height, width = shape
    return torch.linspace(0, 9, count * channels * height * width, dtype=torch.float64).sin().reshape(count, *shape)


@given(
    augmentation=augmentations(),
    count=st.integers(1, 9),
    cut=st.integers(0, 9),
    index=st.integers(0, 1000),
    seed=st.integers(0, 2**64 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
)
def test_what_happens_to_an_example_does_not_depend_on_how_the_batch_is_cut(
    augmentation: Augmentation, count: int, cut: int, index: int, seed: int, shape: tuple[int, int, int]
) -> None:
    cut = min(cut, count)
    x = batch(count, shape)
    whole = augmentation.apply(x, augmentation.plan(count, step=Step(index, seed=seed), shape=shape))
    parts = []
    for first, last in ((0, cut), (cut, count)):
        step = Step(index, seed=seed, first_unit=first)
        plan = augmentation.plan(last - first, step=step, shape=shape)
        parts.append(augmentation.apply(x[first:last], plan))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    order = torch.arange(count).flip(0)
    plan = augmentation.plan(order, step=Step(index, seed=seed), shape=shape)
    torch.testing.assert_close(augmentation.apply(x[order], plan), whole[order], rtol=0, atol=0)


@given(augmentation=augmentations(), index=st.integers(0, 1000), factor=st.floats(-3, 3))
def test_without_brightness_every_augmentation_is_linear(augmentation: Augmentation, index: int, factor: float) -> None:
    shape = (2, 6, 5)
    augmentation = Augmentation(augmentation.strategy, combine=augmentation.combine, brightness=0.0)
    plan = augmentation.plan(3, step=index, shape=shape)
    x, y = batch(3, shape), batch(6, shape)[3:]
    together = augmentation.apply(x + factor * y, plan)
    apart = augmentation.apply(x, plan) + factor * augmentation.apply(y, plan)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
