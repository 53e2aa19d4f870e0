import pytest
import torch

import distillrs as dr
from distillrs.errors import ArgumentError
from distillrs.schedule import MovingBuffer, RectifiedFlow, shifted, spaced

GRID = spaced(6, RectifiedFlow())


def follow(buffer, chunks, start):
    """Plays a plan frame by frame: every frame's times in the order in which it has them."""
    history, present = {}, None
    for move in buffer.plan(chunks, start):
        frames = range(move.first, move.first + len(move.levels))
        assert present is None or list(frames) == present
        for frame, level, to in zip(frames, move.levels.tolist(), move.to.tolist(), strict=True):
            assert not history.get(frame) or history[frame][-1] == level
            history.setdefault(frame, [level]).append(to)
        first = move.first + move.pops
        present = list(range(first, move.first + len(move.levels) + move.pushes))
    return history


@pytest.mark.parametrize(("chunks", "chunk_frames"), [(1, 2), (2, 1), (3, 4), (6, 1)])
def test_every_frame_walks_the_whole_grid(chunks, chunk_frames):
    buffer = MovingBuffer(GRID, chunks, chunk_frames)
    history = follow(buffer, 5, "grow")
    finished = [frame for frame, times in history.items() if times[-1] == 0]
    assert finished == list(range(5 * chunk_frames))
    for frame in finished:
        assert history[frame] == GRID.times.tolist()
    assert len(buffer.plan(5, "grow")) == GRID.steps + 4 * buffer.micro_steps


def test_a_full_buffer_starts_with_the_levels_of_its_chunks():
    buffer = MovingBuffer(GRID, 3, 2)
    assert buffer.frames == 6
    assert buffer.micro_steps == 2
    assert buffer.levels(0).tolist() == GRID.times[[4, 4, 2, 2, 0, 0]].tolist()
    history = follow(buffer, 4, "full")
    assert [frame for frame, times in history.items() if times[-1] == 0] == list(range(8))
    assert history[0] == GRID.times[4:].tolist()
    assert history[6] == GRID.times.tolist()
    moves = buffer.plan(2, "full")
    assert [move.pops for move in moves] == [0, 2, 0, 2]
    assert len(moves) == 4


def test_training_levels_are_those_of_the_stream_and_between():
    buffer = MovingBuffer(shifted(8, 3.0), 4, 2)
    levels = buffer.draw(500, step=dr.Step(2, seed=1))
    assert levels.shape == (500, 8)
    assert bool((levels.diff(dim=1) >= 0).all())
    assert torch.equal(levels[:, ::2], levels[:, 1::2])
    lower, upper = buffer.levels(2), buffer.levels(0)
    assert bool(((levels >= lower) & (levels <= upper)).all())
    # One share for all frames: each frame's level tells every other's.
    order = levels[:, 0].argsort()
    assert bool((levels[order].diff(dim=0) >= 0).all())
    assert torch.equal(buffer.draw(range(100, 200), step=dr.Step(2, seed=1)), levels[100:200])
    halves = (levels[:, 0] < buffer.levels(1)[0]).double().mean()
    assert float(halves) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MovingBuffer(GRID, 4), "^chunks: got 4"),
        (lambda: MovingBuffer(GRID, 0), "^chunks: got 0"),
        (lambda: MovingBuffer(GRID, 2, 0), "^chunk_frames: got 0"),
        (lambda: MovingBuffer(GRID, 2).levels(4), "^micro_step: got 4"),
        (lambda: MovingBuffer(GRID, 2).levels(0, 3), "^chunks: got 3"),
        (lambda: MovingBuffer(GRID, 2).plan(0), "^chunks: got 0"),
        (lambda: MovingBuffer(GRID, 2).plan(1, "cold"), "^start: got 'cold'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
