"""Checks that a part keeps what its kind promises; each raises ``AssertionError`` with what it found."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillrs import random
from distillrs.errors import ArgumentError
from distillrs.ops import RowDivergence, row_divergence
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


def check_divergence(
    divergence: RowDivergence, *, rows: int = 6, vocabulary: int = 17, scale: float = 1.5, seed: int = 0
) -> None:
    """Checks a divergence in float64 on random rows.

    Its derivative must be that of its value by ``log_q``; it must be 0, with gradient 0, for equal rows, and nowhere
    negative; entries that both sides exclude must not count; and the gradient by the logits must be that of the value.

    Args:
        divergence: The divergence; per-row weights of a mixture are of ``rows`` rows.
        rows: Rows to try.
        vocabulary: Entries of a row.
        scale: Standard deviation of the logits.
        seed: Seed of the rows.

    Raises:
        AssertionError: The divergence breaks one of these promises.
    """
    step = Step(0, seed=seed)
    student, teacher = (
        scale * random.normal(rows, vocabulary, step=step, name=f"check.{side}", dtype=torch.float64)
        for side in ("student", "teacher")
    )
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    width = 1e-5
    found = divergence.derivative(log_p, log_q)
    assert found.shape == log_q.shape, f"the derivative has shape {list(found.shape)} for {list(log_q.shape)}"
    high, low = divergence.value(log_p, log_q + width), divergence.value(log_p, log_q - width)
    assert high.shape == log_q.shape, f"the value has shape {list(high.shape)} for {list(log_q.shape)}"
    worst = float((found - (high - low) / (2 * width)).abs().max())
    assert worst <= 1e-6, f"the derivative by log_q differs from finite differences of the value by {worst:.3g}"
    leaf = teacher.clone().requires_grad_()
    same = row_divergence(leaf, teacher, divergence, reduction="none", backend="torch")
    worst = float(same.detach().abs().max())
    assert worst <= 1e-12, f"equal rows have a divergence of {worst:.3g}"
    (gradient,) = torch.autograd.grad(same.sum(), leaf)
    assert float(gradient.abs().max()) <= 1e-9, f"equal rows have a gradient of {float(gradient.abs().max()):.3g}"
    plain = row_divergence(student, teacher, divergence, reduction="none", backend="torch")
    assert float(plain.min()) >= -1e-12, f"a divergence of {float(plain.min()):.3g}"
    excluded = torch.full((rows, 2), -torch.inf, dtype=torch.float64)
    wider = row_divergence(
        torch.cat([student, excluded], 1),
        torch.cat([teacher, excluded], 1),
        divergence,
        reduction="none",
        backend="torch",
    )
    assert torch.allclose(plain, wider, rtol=1e-10, atol=1e-12), "entries that both sides exclude change the value"
    _check_slope(divergence, student, teacher, width)


def _check_slope(divergence: RowDivergence, student: Tensor, teacher: Tensor, width: float) -> None:
    leaf = student.clone().requires_grad_()
    rows = row_divergence(leaf, teacher, divergence, reduction="none", backend="torch")
    (gradient,) = torch.autograd.grad(rows.sum(), leaf)
    for column in range(student.shape[1]):
        shift = torch.zeros_like(student)
        shift[:, column] = width
        high, low = (
            row_divergence(student + sign * shift, teacher, divergence, reduction="none", backend="torch")
            for sign in (1, -1)
        )
        worst = float((gradient[:, column] - (high - low) / (2 * width)).abs().max())
        assert worst <= 1e-6, f"the gradient differs from finite differences by {worst:.3g}"


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
