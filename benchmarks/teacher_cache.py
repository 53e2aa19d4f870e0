"""The teacher cache: bytes a token, gathering against copying, writing against `torch.topk` and Parquet.

Usage::

    PYTHONPATH=python python benchmarks/teacher_cache.py [--rounds N] [--tokens N]

`gather` unpacks rows of whole documents in a shuffled order into reused tensors, `random` single rows; `copy` copies
the same packed bytes in one piece, with one thread. `write` goes from logits in memory to a durable file: the cache's
append and flush, against `torch.topk`, `torch.logsumexp` and a Parquet file of the same content (ids as int32,
log-probabilities as float16, tail).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

from distillrs import _core
from distillrs.ops import TopK
from distillrs.trajectory import UNCHECKED, TeacherCache

VOCABULARY = 151_936
LENGTH = 512
"""Tokens of a document."""


def selected(tokens: int, k: int, seed: int) -> TopK:
    """Rows with the spread of a language model's, made without the logits, which would take gigabytes."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(tokens, 1000, generator=generator).exp() * 2
    rows = TopK.from_logits(small, k)
    return replace(rows, ids=rows.ids * 151 + torch.randint(0, 151, (tokens, k), generator=generator))


def fill(path: Path, k: int, tokens: int) -> tuple[float, float]:
    """Bytes a token of payload, and framing as a share of it."""
    kinds = [selected(LENGTH, k, seed) for seed in range(4)]
    with TeacherCache.create(path, VOCABULARY, k, UNCHECKED) as cache:
        for document in range(tokens // LENGTH):
            cache.append(f"document {document}", kinds[document % 4])
        row_bytes = cache.row_bytes
    payload = row_bytes * (tokens // LENGTH) * LENGTH
    on_disk = sum(file.stat().st_size for file in path.iterdir())
    return row_bytes, on_disk / payload - 1


def gathering(path: Path, k: int, rounds: int, batch: int) -> dict[str, Any]:
    """Rates of gathering a batch of rows into reused tensors, and of copying the same packed bytes."""
    cache = TeacherCache.open(path, UNCHECKED)
    keys = cache.keys()
    starts = cache.index(keys)
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))
    documents = (starts[order, None] + torch.arange(LENGTH)).flatten()
    everything = documents[torch.randperm(len(documents), generator=torch.Generator().manual_seed(1))]
    packed = np.concatenate([np.frombuffer(cache._rows.packed(key), np.uint8) for key in keys])
    size = batch * cache.row_bytes
    target = np.empty(size, np.uint8)
    turn = 0
    outs = {dtype: cache.gather(documents[:batch], dtype=dtype) for dtype in (torch.int64, torch.int32)}
    cache.gather(everything)  # every checksum has been looked at

    def next_start(whole: int, unit: int) -> int:
        nonlocal turn
        turn = (turn + 7) % (whole // unit)
        return turn * unit

    def gather(rows: torch.Tensor, dtype: torch.dtype) -> None:
        start = next_start(len(rows), batch)
        cache.gather(rows[start : start + batch], out=outs[dtype], dtype=dtype)

    def copy() -> None:
        start = next_start(len(packed), size)
        _core.copy_bytes(packed[start : start + size].data, target.data)

    contenders: dict[str, Callable[[], object]] = {
        "copy": copy,
        "gather int64": lambda: gather(documents, torch.int64),
        "gather int32": lambda: gather(documents, torch.int32),
        "random int64": lambda: gather(everything, torch.int64),
    }
    before = _core.threads()
    results: dict[str, Any] = {"row_bytes": cache.row_bytes, "batch": batch}
    for threads in sorted({1, os.cpu_count() or 1}):
        _core.set_threads(threads)
        seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=3))
        results[f"{threads} threads"] = {
            "seconds": seconds,
            "million_tokens_per_second": {name: batch / each / 1e6 for name, each in seconds.items()},
            "share_of_copy": {name: seconds["copy"] / each for name, each in seconds.items()},
        }
    _core.set_threads(before)
    return results


def parquet(path: Path, logits: torch.Tensor, k: int) -> None:
    """The peer: what is usually written today, with the tail so that the content is the same."""
    import pyarrow
    import pyarrow.parquet

    values = logits.float()
    top, ids = values.topk(k)
    log_sum = values.logsumexp(-1, keepdim=True)
    log_probs = top - log_sum
    tail = torch.log1p(-log_probs.exp().sum(-1).clamp(max=1 - 1e-7))
    table = pyarrow.table(
        {
            "ids": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ids.int().flatten().numpy()), k),
            "log_probs": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(log_probs.half().flatten().numpy()), k),
            "tail": pyarrow.array(tail.half().numpy()),
        }
    )
    with path.open("wb") as file:
        pyarrow.parquet.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())


def writing(folder: Path, dtype: torch.dtype, k: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds to write one document from logits in memory, durably."""
    logits = (torch.randn(tokens, VOCABULARY) * 3).to(dtype)
    cache = TeacherCache.create(folder / f"write-{dtype}", VOCABULARY, k, UNCHECKED)
    number = 0

    def append() -> None:
        nonlocal number
        number += 1
        cache.append(f"document {number}", logits)
        cache.flush()

    contenders: dict[str, Callable[[], object]] = {"cache": append}
    try:
        import pyarrow.parquet  # noqa: F401  # only whether it is there

        contenders["topk + parquet"] = lambda: parquet(folder / "peer.parquet", logits, k)
    except ImportError:
        print("pyarrow is not installed: writing has no peer")
    contenders["torch.topk"] = lambda: logits.topk(k)
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=1))
    cache.close()
    found: dict[str, Any] = {"seconds": seconds, "tokens": tokens}
    if "topk + parquet" in seconds:
        found["times_faster_than_parquet"] = seconds["topk + parquet"] / seconds["cache"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--tokens", type=int, default=512 * 256)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--no-result", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in (16, 64):
            start = time.perf_counter()
            row_bytes, framing = fill(folder / f"top-{k}", k, arguments.tokens)
            print(f"top {k}: {row_bytes} bytes a token, framing {framing:.2%} ({time.perf_counter() - start:.1f} s)")
            found = gathering(folder / f"top-{k}", k, arguments.rounds, arguments.batch)
            results[f"top {k}"] = {"framing": framing, **found}
            for title, part in found.items():
                if not title.endswith("threads"):
                    continue
                for contender, rate in part["million_tokens_per_second"].items():
                    share = part["share_of_copy"][contender]
                    print(f"  {title} {contender:14} {rate:8.2f} M tokens/s  {share:6.2f} of the copy")
        for dtype in (torch.float32, torch.bfloat16):
            found = writing(folder, dtype, 64, 128, max(3, arguments.rounds // 4))
            results[f"write {dtype}"] = found
            print(f"write {dtype}: {found}")
    many = f"{os.cpu_count()} threads"
    bars = {
        "top 64 of 151,936 takes at most 216 bytes": results["top 64"]["row_bytes"] <= 216,
        "framing is at most 2%": max(results[f"top {k}"]["framing"] for k in (16, 64)) <= 0.02,
        "gathering reaches 0.30 of a copy": all(
            results[f"top {k}"][many]["share_of_copy"]["gather int64"] >= 0.30 for k in (16, 64)
        ),
        "top 16 is gathered at 5 M tokens/s": results["top 16"][many]["million_tokens_per_second"]["gather int64"] >= 5,
        "writing is at least 3 times faster than topk + parquet": all(
            results[f"write {dtype}"].get("times_faster_than_parquet", 0) >= 3
            for dtype in ("torch.float32", "torch.bfloat16")
        ),
    }
    for bar, held in bars.items():
        print(f"{'held' if held else 'MISSED':7} {bar}")
    if not arguments.no_result:
        measure.write("teacher_cache", {**results, "bars": bars})


if __name__ == "__main__":
    main()
