from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs.errors import ArgumentError, DataError
from distillrs.step import Step
from distillrs.testing import strategies
from distillrs.trajectory import Column, Schema, Store
from distillrs.trajectory.windows import Starts, draw_windows, starts_at, window_choices


def draw(
    lengths: dict[str, int],
    span: int = 2,
    start: Starts = None,
    units: Any = 1,
    step: Step | int = 0,
    gone: dict[str, list[int]] | None = None,
) -> list[tuple[str, int]]:
    def missing(key: str) -> Sequence[int]:
        return (gone or {}).get(key, [])

    step = Step.of(step)
    return draw_windows(window_choices(lengths, missing, span, starts_at(start, step)), units, step, "window")


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 12), min_size=1),
    st.integers(1, 6),
    st.one_of(st.none(), st.builds(range, st.integers(0, 5), st.integers(6, 15), st.integers(1, 3))),
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 12), max_size=5)),
    st.integers(0, 10),
)
def test_only_whole_windows_are_drawn_and_every_one_can_be(
    lengths: dict[str, int], span: int, start: range | None, gone: dict[str, list[int]], index: int
) -> None:
    there = {key: set(range(length)) - set(gone.get(key, [])) for key, length in lengths.items()}
    possible = {
        (key, first)
        for key, steps in there.items()
        for first in steps
        if first + span in steps and (start is None or first in start)
    }
    if not possible:
        with pytest.raises(ArgumentError):
            draw(lengths, span, start, gone=gone)
        return
    found = draw(lengths, span, start, units=600, step=index, gone=gone)
    assert set(found) <= possible
    if len(possible) <= 20:
        assert set(found) == possible


def test_trajectories_are_drawn_uniformly_whatever_their_length() -> None:
    found = draw({"long": 103, "short": 4}, units=4000)
    share = np.mean([key == "short" for key, _ in found])
    assert abs(share - 0.5) < 0.04
    short = np.mean([start for key, start in found if key == "short"])
    assert abs(short - 0.5) < 0.05


def test_a_draw_is_a_function_of_seed_step_and_unit() -> None:
    lengths = {f"expert-{number}": 51 for number in range(20)}
    step = Step(11, seed=5)
    whole = draw(lengths, units=16, step=step)
    assert draw(lengths, units=16, step=step) == whole
    ranks = [draw(lengths, units=range(4 * rank, 4 * rank + 4), step=step) for rank in range(4)]
    assert [window for rank in ranks for window in rank] == whole
    assert draw(lengths, units=torch.tensor([7, 3]), step=step) == [whole[7], whole[3]]
    assert draw(lengths, units=4, step=Step(11, seed=5, first_unit=8)) == whole[8:12]
    assert draw(lengths, units=16, step=step.at(12)) != whole
    assert draw(lengths, units=16, step=Step(11, seed=6)) != whole


@given(strategies.steps(), st.integers(1, 6))
def test_units_draw_the_same_alone_as_together(step: Step, count: int) -> None:
    lengths = {"a": 9, "b": 30}
    together = draw(lengths, units=count, step=step)
    ids = range(step.first_unit, step.first_unit + count)
    assert draw(lengths, units=ids, step=step) == together
    assert [draw(lengths, units=range(id, id + 1), step=step)[0] for id in ids] == together


def test_a_start_range_excludes_its_end() -> None:
    starts = {start for _, start in draw({"a": 51}, start=range(3, 6), units=300)}
    assert starts == {3, 4, 5}


def test_a_range_that_reaches_beyond_the_trajectory_is_cut_to_whole_windows() -> None:
    starts = {start for _, start in draw({"a": 6}, span=2, start=range(2, 90), units=300)}
    assert starts == {2, 3}


def test_a_curriculum_gives_the_starts_of_each_step() -> None:
    def expanding(step: Step) -> range:
        return range(min(20, 5 + step.index))

    def ramp(step: Step) -> float:
        return 1.9 + step.index

    assert {start for _, start in draw({"a": 51}, start=expanding, units=300)} == set(range(5))
    assert {start for _, start in draw({"a": 51}, start=expanding, units=900, step=90)} == set(range(20))
    assert {start for _, start in draw({"a": 51}, start=ramp, units=300, step=2)} == set(range(3))


def test_refused_arguments_name_themselves() -> None:
    for span in (0, -1, 1.0, True, None):
        with pytest.raises(ArgumentError, match=rf"span: got {span}, allowed is a number of steps of at least 1"):
            draw({"a": 5}, span=span)  # type: ignore[arg-type]  # what is refused
    for start in (range(0), range(5, 2), range(5, 0, -1), range(-1, 3), 5, lambda step: range(0), lambda step: 0.5):
        with pytest.raises(ArgumentError, match="start: got"):
            draw({"a": 5}, start=start)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ArgumentError, match=r"start: got range\(3, 9\), allowed is starts from 0 to 2 .*has 5 steps"):
        draw({"a": 5, "b": 3}, start=range(3, 9))
    with pytest.raises(
        ArgumentError, match=r"span: got 5, allowed is at most 4 \(the longest trajectory has 5 steps\)"
    ):
        draw({"a": 5}, span=5)
    with pytest.raises(DataError, match="no complete trajectory"):
        draw({})


def test_a_window_must_lie_in_its_trajectory(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", Schema(theta=Column((2,), "float32"))) as store:
        with store.begin("a") as writer:
            for step in range(5):
                writer.append(theta=[step, step])
        with store.begin("b") as writer:
            writer.append(theta=[0, 0])
    store = Store.open(tmp_path / "s")
    first, last = store.window("a", start=2, span=2)
    assert (first.tolist(), last.tolist()) == ([2, 2], [4, 4])
    for start in (3, 4, 5, -1, 1.0):
        message = rf"start: got {start}, allowed is a step from 0 to 2: 'a' has 5 steps, and start \+ span = start \+ 2"
        with pytest.raises(ArgumentError, match=message):
            store.window("a", start=start, span=2)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ArgumentError, match="allowed is no step at all: 'b' has 1 steps"):
        store.window("b", start=0, span=1)
    with pytest.raises(ArgumentError, match="span: got 0"):
        store.window("a", start=0, span=0)
    good = torch.empty(2)
    with pytest.raises(ArgumentError, match=r"out: got .*allowed is a pair of tensors"):
        store.window("a", start=0, span=1, out=(good,))  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ArgumentError, match=r"out\[1\]: got 'float32 \[3\]'"):
        store.window("a", start=0, span=1, out=(good, torch.empty(3)))
    assert [key for key, _ in store.sample(1, units=50)] == ["a"] * 50


def test_reading_into_a_tensor_that_autograd_holds_is_noticed(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", Schema(theta=Column((2,), "float32"))) as store, store.begin("a") as writer:
        for step in range(3):
            writer.append(theta=[step, step])
    out = (torch.empty(2), torch.empty(2))
    store = Store.open(tmp_path / "s")
    first, _ = store.window("a", start=0, span=1, out=out)
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * first).sum()
    store.window("a", start=1, span=1, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
