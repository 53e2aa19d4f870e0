from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distillrs.testing import check_codec
from distillrs.trajectory import Codec, Column, DeltaInt8, HalfDelta, Lossless, Raw, Schema, Store
from distillrs.trajectory.reports import CodecError


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "codec", [Raw(), Lossless(), Lossless(1), DeltaInt8(), DeltaInt8(1), DeltaInt8(3), DeltaInt8(64)], ids=repr
)
def test_codecs_keep_their_promises(codec: Codec, dtype: str) -> None:
    check_codec(codec, dtype=dtype)


def test_half_delta_keeps_its_promises_near_the_start() -> None:
    # Its error grows with the distance from the first record: 40 steps of a walk with drift are far.
    check_codec(HalfDelta(), steps=20, maximum_error=0.05)


def test_lossless_keeps_every_type() -> None:
    for dtype in ("bfloat16", "float16", "int64", "uint8"):
        check_codec("lossless", dtype=dtype)


def altered(change: Callable[[str, Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    read = Store.read

    def wrong(self: Store, key: str, step: Any, column: str | None = None, *, out: Tensor | None = None) -> Tensor:
        return change(key, step, read(self, key, step, column, out=out))

    return wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key, step, value: value + (key == "walk"), "the codec says it is exact, and is not"),
        (lambda key, step, value: value * (1.0 if isinstance(step, range) else 1.5), "step 0 alone differs"),
        (lambda key, step, value: value * (1.5 if isinstance(step, list) else 1.0), "the order of reading"),
        (
            lambda key, step, value: value * (2.0 if key == "rest" else 1.0),
            "a trajectory that does not move is changed",
        ),
        (lambda key, step, value: value.nan_to_num(), "came back as"),
    ],
)
def test_the_check_notices_a_broken_codec(
    change: Callable[[str, Any, Tensor], Tensor], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "read", altered(change))
    with pytest.raises(AssertionError, match=message):
        check_codec("raw")


def test_the_check_notices_an_error_that_is_too_large_or_wrongly_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=r"of the displacement, allowed are 1e-06"):
        check_codec("delta-int8", maximum_error=1e-6)
    monkeypatch.setattr(Store, "codec_error", lambda *_: CodecError(0.5, 0.1, 3))
    with pytest.raises(AssertionError, match=r"measured was 0\.5"):
        check_codec("delta-int8")


@pytest.mark.parametrize("seal", [False, True])
def test_coded_bytes_are_fewer_on_disk(tmp_path: Path, seal: bool) -> None:
    steps = torch.randn(1, 50_000) + 0.01 * torch.randn(51, 50_000).cumsum(0)
    sizes = {}
    for codec in ("raw", "delta-int8", "half-delta", "lossless"):
        store = Store.create(tmp_path / codec, Schema(theta=Column((50_000,), "float32", codec=codec)))
        with store.begin("a") as writer:
            for step in steps:
                writer.append(theta=step)
        if seal:
            store.seal()
        store.close()
        sizes[codec] = sum(file.stat().st_size for file in (tmp_path / codec).iterdir())
    plain = 51 * 50_000 * 4
    assert 1.0 <= sizes["raw"] / plain < 1.01
    assert sizes["delta-int8"] / plain <= 0.30
    assert sizes["half-delta"] / plain < 0.53
    assert sizes["lossless"] / plain < 0.95


def test_delta_int8_keeps_late_small_displacements(tmp_path: Path) -> None:
    # Late in training the weights are far from the start and hardly move: a difference to the start would drown that.
    start, far = torch.randn(10_000), torch.randn(10_000)
    steps = [start, *(far + 1e-4 * step * torch.ones(10_000) for step in range(60))]
    store = Store.create(tmp_path / "s", Schema(theta=Column((10_000,), "float32", codec=DeltaInt8())))
    with store.begin("a") as writer:
        for step in steps:
            writer.append(theta=step)
    first, last = store.window("a", start=50, span=2)
    displacement = steps[52] - steps[50]
    assert (last - first - displacement).norm() / displacement.norm() < 0.02
