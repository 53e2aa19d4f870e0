"""Checks that a part keeps what its kind promises; each raises ``AssertionError`` with what it found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distillrs import random
from distillrs.errors import ArgumentError
from distillrs.ops import RowDivergence, row_divergence
from distillrs.schedule import Kind, TimeLaw
from distillrs.schedule import Path as NoisePath
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


def check_path(path: NoisePath, *, points: int = 64, tolerance: float = 1e-10) -> None:
    """Checks a Gaussian noise path.

    Time 0 is data; the signal does not rise, the log-SNR falls strictly; derivatives are those of automatic
    differentiation; times come back from log-SNR and sigma; every pair of kinds converts back and forth.

    Args:
        path: The path; one between two images is given a reference.
        points: Times that are looked at.
        tolerance: Largest error of a round trip away from the ends.

    Raises:
        AssertionError: The path breaks one of these promises.
    """
    clean = float(path.alpha(0.0)), float(path.sigma(0.0))
    assert clean == (1.0, 0.0), f"time 0 has alpha and sigma {clean}, not 1 and 0"
    # Off the rows of any table, where slopes jump.
    times = (torch.arange(points, dtype=torch.float64) + 0.4321) / points
    one = torch.ones_like(times)
    for name in ("alpha", "sigma"):
        slope: Tensor = torch.func.jvp(getattr(path, name), (times,), (one,))[1]
        stated = getattr(path, f"{name}_derivative")(times)
        worst = float(((slope - stated).abs() / (1 + stated.abs())).max())
        assert worst < 1e-9, f"{name}_derivative differs from the derivative of {name} by {worst:.1e}"
    log_snr = path.log_snr(times)
    assert bool((log_snr.diff() < 0).all()), "the log-SNR does not fall"
    assert bool((path.alpha(times).diff() <= 0).all()), "the signal rises"
    expected = 2 * (path.alpha(times).log() - path.sigma(times).log())
    assert torch.allclose(log_snr, expected, rtol=1e-9, atol=1e-9), "the log-SNR is not log(alpha^2 / sigma^2)"
    inside = (times > 0.02) & (times < 0.98)
    back = {"log_snr": path.time_of_log_snr(log_snr), "sigma": path.time_of_sigma(path.sigma(times))}
    for name, found in back.items():
        worst = float((found - times)[inside].abs().max())
        assert worst <= tolerance, f"times come back from {name} off by {worst:.1e}"
    _check_conversions(path, times[inside & (times < 0.9)], tolerance)


def check_time_law(law: TimeLaw, *, draws: int = 20_000, seed: int = 0) -> None:
    """Checks a law of time.

    Draws lie in [0, 1], follow the law's own distribution function (Kolmogorov and Smirnov, at a level of 1e-4) with
    and without bounds, and belong to their units whatever the batch; ``quantile`` inverts ``cdf``.

    Args:
        law: The law.
        draws: How many.
        seed: Of the draws.

    Raises:
        AssertionError: The law breaks one of these promises.
    """
    step = Step(0, seed=seed)
    whole = law.draw(draws, step=step)
    assert whole.dtype == torch.float64, f"draws are {whole.dtype}, not float64"
    assert whole.shape == (draws,), f"{draws} units gave the shape {tuple(whole.shape)}"
    assert bool(((whole >= 0) & (whole <= 1)).all()), "a draw is outside [0, 1]"
    _check_units(law, whole, step)
    shares = (torch.arange(1, 200, dtype=torch.float64)) / 200
    times = law.quantile(shares)
    assert bool((times.diff() >= 0).all()), "the quantile falls"
    assert bool((law.cdf(times) >= shares - 1e-9).all()), "the quantile is below what the distribution function says"
    below = (times - 1e-9).clamp(min=0.0)
    assert bool(((law.cdf(below) <= shares + 1e-6) | (times <= 1e-9)).all()), (
        "the quantile is not the smallest such time"
    )
    _check_distribution(whole, law.cdf)
    # Between the quartiles.
    low, high = (float(law.quantile(torch.tensor(share, dtype=torch.float64))) for share in (0.25, 0.75))
    start, end = float(law.cdf_below(low)), float(law.cdf(high))
    bounded = law.draw(draws, step=step, name="bounded", low=low, high=torch.full((draws,), high, dtype=torch.float64))
    assert bool(((bounded >= low) & (bounded <= high)).all()), "a draw is outside its bounds"
    _check_distribution(bounded, lambda t: ((law.cdf(t) - start) / (end - start)).clamp(0, 1))


def _check_units(law: TimeLaw, whole: Tensor, step: Step) -> None:
    half = len(whole) // 3
    parts = [law.draw(range(half), step=step), law.draw(len(whole) - half, step=replace(step, first_unit=half))]
    assert torch.equal(torch.cat(parts), whole), "a draw depends on how the batch is split"
    ids = torch.tensor([7, 3, len(whole) - 1])
    assert torch.equal(law.draw(ids, step=step), whole[ids]), "a draw depends on the order of the units"
    assert not torch.equal(law.draw(len(whole), step=step.at(1)), whole), "every step draws the same"
    assert not torch.equal(law.draw(len(whole), step=step, name="other"), whole), "every name draws the same"


def _check_distribution(draws: Tensor, cdf: Callable[[Tensor], Tensor]) -> None:
    """Kolmogorov and Smirnov's distance, on both sides of every step, so that atoms are seen as well."""
    values, counts = torch.unique(draws, return_counts=True)
    above = counts.cumsum(0).double() / len(draws)
    below = above - counts / len(draws)
    # Just below an atom the distribution function lacks it.
    beneath = cdf((values - 1e-12).clamp(min=0.0))
    beneath = torch.where(values > 0, beneath, torch.zeros_like(beneath))
    distance = float(torch.maximum((above - cdf(values)).abs(), (below - beneath).abs()).max())
    # sqrt(log(2 / level) / 2) at a level of 1e-4.
    limit = 2.23 / len(draws) ** 0.5
    assert distance < limit, f"draws are {distance:.4f} from the distribution function, beyond {limit:.4f}"


def _check_conversions(path: NoisePath, times: Tensor, tolerance: float) -> None:
    count = len(times)
    x0, noise, other = (random.normal(count, 3, step=0, name=name, dtype=torch.float64) for name in ("x", "e", "y"))
    reference = None
    try:
        state = path.corrupt(x0, noise, times)
    except ArgumentError:
        reference = other
        state = path.corrupt(x0, noise, times, reference=reference)
    for kind in _KINDS:
        value = path.convert(x0, state, times, kind="x0", to=kind, reference=reference)
        for to in _KINDS:
            middle = path.convert(value, state, times, kind=kind, to=to, reference=reference)
            back = path.convert(middle, state, times, kind=to, to=kind, reference=reference)
            # Where the signal is weak, the data are a small difference of large numbers, and no formula gets them back.
            size = (1 + value.abs() + middle.abs()) * (1 + 1 / path.alpha(times) + 1 / path.sigma(times))[:, None]
            worst = float(((back - value).abs() / size).max())
            assert worst <= tolerance, f"{kind} as {to} and back is off by {worst:.1e}"


_KINDS: tuple[Kind, ...] = ("x0", "noise", "v", "velocity", "score")
