"""Checks that a part keeps what its kind promises; each raises ``AssertionError`` with what it found."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillrs import random
from distillrs.errors import ArgumentError
from distillrs.step import Step
from distillrs.trajectory import Codec, Column, Schema, Store


def check_codec(
    codec: str | Codec,
    *,
    dtype: torch.dtype | str = "float32",
    tensor_sizes: Sequence[int] = (5, 700, 1, 300),
    steps: int = 40,
    maximum_error: float = 0.03,
    seed: int = 0,
) -> None:
    """Checks a codec on random walks whose tensors move at very different rates.

    What is read must not depend on which steps are read together, on sealing, or on an interruption; it is exact, or
    its error is at most ``maximum_error`` of the displacement between neighbours and was measured as such; a resting
    trajectory comes back exactly; values that are not finite come back or are refused, never changed.

    Args:
        codec: The codec, by name or with its parameters.
        dtype: Type of the column.
        tensor_sizes: Elements of the tensors in a record.
        steps: Length of the trajectories, at least 4.
        maximum_error: Largest error of a record relative to the displacement from the one before. These walks are
            harder than training: where tensors of very different motion share a block, the smaller drown.
        seed: Seed of the trajectories.

    Raises:
        AssertionError: The codec breaks one of these promises.
    """
    column = Column((sum(tensor_sizes),), dtype, codec=codec, tensor_sizes=tuple(tensor_sizes))
    schema = Schema(x=column)
    walk = _walk(column, steps, seed)
    with tempfile.TemporaryDirectory() as folder:
        with Store.create(Path(folder) / "whole", schema) as store:
            with store.begin("walk") as writer:
                for record in walk:
                    writer.append(x=record)
            open_log = store.read("walk", range(steps))
        sealed = Store.open(Path(folder) / "whole")
        decoded = sealed.read("walk", range(steps))
        assert _same(decoded, open_log), "sealing changed what is read"
        for step in range(steps):
            assert _same(sealed.read("walk", step), decoded[step]), (
                f"step {step} alone differs from step {step} in a row"
            )
        backwards = list(range(steps))[::-1]
        assert _same(sealed.read("walk", backwards), decoded[backwards]), "the order of reading changes what is read"
        _check_error(sealed, walk, decoded, maximum_error)
        sealed.close()
        _check_resumption(Path(folder) / "pieces", schema, walk, decoded)
        _check_rest(Path(folder) / "rest", schema, walk[0])
        _check_non_finite(Path(folder) / "non-finite", schema, walk)


def _walk(column: Column, steps: int, seed: int) -> Tensor:
    """[steps, size] A random walk with drift; each tensor has its own scale."""
    step = Step(0, seed=seed)
    noise = random.normal(steps, column.size, step=step, name="check.noise", dtype=torch.float64)
    drift = random.normal(1, column.size, step=step, name="check.drift", dtype=torch.float64)
    scales = torch.cat([torch.full((size,), 10.0 ** -(index % 4)) for index, size in enumerate(column.tensor_sizes)])
    start = random.normal(1, column.size, step=step, name="check.start", dtype=torch.float64)
    return (scales * (start + 0.03 * (noise + drift).cumsum(0))).to(column.dtype)


def _check_error(store: Store, walk: Tensor, decoded: Tensor, maximum_error: float) -> None:
    measured = store.codec_error("walk")
    if measured is None:
        assert _same(decoded, walk), "the codec says it is exact, and is not"
        return
    exact, found = walk.double(), decoded.double()
    relative = (found - exact)[1:].norm(dim=1) / (exact[1:] - exact[:-1]).norm(dim=1)
    worst = float(relative.max())
    assert worst <= maximum_error, f"an error of {worst:.3g} of the displacement, allowed are {maximum_error:.3g}"
    assert abs(measured.maximum - worst) <= 0.02 * worst, f"measured was {measured.maximum:.6g}, found is {worst:.6g}"


def _check_resumption(path: Path, schema: Schema, walk: Tensor, decoded: Tensor) -> None:
    steps = len(walk)
    store = Store.create(path, schema)
    for end in (1, steps // 3, steps // 2, steps):
        writer = store.begin("walk")
        for record in walk[len(writer) : end]:
            writer.append(x=record)
        writer.close()
    with store.begin("walk"):
        pass
    assert _same(store.read("walk", range(steps)), decoded), "an interruption changed what is read"
    store.close()


def _check_rest(path: Path, schema: Schema, record: Tensor) -> None:
    store = Store.create(path, schema)
    with store.begin("rest") as writer:
        for _ in range(3):
            writer.append(x=record)
    assert _same(store.read("rest", 2), record), "a trajectory that does not move is changed"
    store.close()


def _check_non_finite(path: Path, schema: Schema, walk: Tensor) -> None:
    if not walk.is_floating_point():
        return
    store = Store.create(path, schema)
    for number, value in enumerate((torch.inf, -torch.inf, torch.nan)):
        for place in (0, 1):
            key = f"{number}-{place}"
            records = walk[:3].clone()
            records[place, 2] = value
            with store.begin(key) as writer:
                try:
                    for record in records:
                        writer.append(x=record)
                except ArgumentError:
                    continue
            found = store.read(key, place)[2]
            assert torch.equal(torch.isnan(found), torch.isnan(records[place, 2])), f"{value} came back as {found}"
            assert torch.isnan(found) or found == value, f"{value} came back as {found}"
    store.close()


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
