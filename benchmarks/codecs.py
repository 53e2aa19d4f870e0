"""Codecs against plain copies of the same bytes, on the weights of a network while it is trained.

Usage::

    python benchmarks/codecs.py [--rounds N]

For every codec: bytes of a delta and of a whole trajectory, error relative to one epoch's displacement, rates of
encoding and decoding, and the rate of decoding as a share of a copy's in the same run, one thread each, in seconds of
this thread's processor time. `one delta` is a delta applied to its keyframe, `chain` a record at the end of the longest
chain, `random` a random window (t, t+2).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import measure
import numpy as np
import torch
from torch import nn

import distillrs as dr
from distillrs import _core, random

RECORDS = 51
DEFAULT = "delta-int8"
CODECS = ("raw", "delta-int8", "half-delta", "lossless")


def trajectory() -> tuple[np.ndarray, list[int]]:
    """Weights of a perceptron (319 k) after each of 50 epochs of plain SGD on scikit-learn's digits; tensor sizes."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)
    torch.manual_seed(0)
    widths = [(64, 530), (530, 530), (530, 5)]
    layers = [layer for width in widths for layer in (nn.Linear(*width), nn.ReLU())]
    network = nn.Sequential(*layers, nn.Linear(5, 10))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    records = []
    for epoch in range(RECORDS):
        records.append(torch.cat([value.detach().flatten() for value in network.parameters()]).numpy())
        order = random.permutation(len(inputs), step=dr.Step(epoch), name="order")
        for batch in order.split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimiser.step()
    return np.stack(records), [value.numel() for value in network.parameters()]


class Coded:
    """The payloads of one codec, and chains through them."""

    def __init__(self, spec: dict[str, object], records: np.ndarray, sizes: list[int]) -> None:
        self.spec, self.sizes = json.dumps(spec), sizes
        self.records = [record.view(np.uint8).data for record in records]
        encoded, (self.largest, self.mean, _) = self.encode()
        self.payloads = [payload for payload, _ in encoded]
        self.bases = [base for _, base in encoded]

    def encode(self) -> tuple[list[tuple[bytes, int | None]], tuple[float, float, int]]:
        """Payloads with the steps they refer to; the measured error."""
        return _core.codec_encode(self.spec, "F32", self.sizes, self.records)

    def chain(self, step: int) -> list[int]:
        """Steps that one record needs, rising."""
        steps = [step]
        while (base := self.bases[steps[0]]) is not None:
            steps.insert(0, base)
        return steps

    def read(self, step: int, out: np.ndarray) -> None:
        """One record."""
        chain = self.chain(step)
        payloads = [self.payloads[index] for index in chain]
        _core.codec_decode(self.spec, "F32", self.sizes, payloads, [(len(chain) - 1, out.data)])

    def window(self, start: int, first: np.ndarray, second: np.ndarray) -> None:
        """Steps `start` and `start + 2`, in one pass where they share a chain."""
        early, late = self.chain(start), self.chain(start + 2)
        if early[0] != late[0]:
            self.read(start, first)
            self.read(start + 2, second)
            return
        steps = sorted({*early, *late})
        payloads = [self.payloads[index] for index in steps]
        wanted = [(steps.index(start), first.data), (steps.index(start + 2), second.data)]
        _core.codec_decode(self.spec, "F32", self.sizes, payloads, wanted)


def processor_medians(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of processor time of each, in turns: a call of milliseconds must not pay for other processes."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 2):
        for name, work in contenders.items():
            start = time.thread_time()
            work()
            if turn >= 2:
                seconds[name].append(time.thread_time() - start)
    return measure.medians(seconds)


def measure_codec(coded: Coded, records: np.ndarray, rounds: int) -> dict[str, Any]:
    size = records[0].nbytes
    first, second = np.empty(size, np.uint8), np.empty(size, np.uint8)
    plain = [record.view(np.uint8) for record in records]
    deltas = [step for step, base in enumerate(coded.bases) if base is not None]
    one = deltas[0] if deltas else 0
    longest = max(range(RECORDS), key=lambda step: len(coded.chain(step)))
    starts = random.integers(32, RECORDS - 2, step=0, name="windows").tolist()

    def windows() -> None:
        for start in starts:
            coded.window(start, first, second)

    def copied_windows() -> None:
        for start in starts:
            _core.copy_bytes(plain[start].data, first.data)
            _core.copy_bytes(plain[start + 2].data, second.data)

    middle = processor_medians(
        {
            "copy": lambda: _core.copy_bytes(plain[one].data, first.data),
            "one delta": lambda: coded.read(one, first),
            "chain": lambda: coded.read(longest, first),
            "random copy": copied_windows,
            "random": windows,
        },
        rounds,
    )
    encoding = processor_medians({"encode": coded.encode}, 3)
    return {
        "values": records.shape[1],
        "delta_share": max((len(coded.payloads[step]) for step in deltas), default=size) / size,
        "trajectory_share": sum(len(payload) for payload in coded.payloads) / (size * RECORDS),
        "error_max": coded.largest,
        "error_mean": coded.mean,
        "encode_bytes_per_second": size * RECORDS / encoding["encode"],
        "copy_bytes_per_second": size / middle["copy"],
        "chain_length": len(coded.chain(longest)),
        "window_seconds": middle["random"] / len(starts),
        "seconds": middle,
        "share_of_copy": {
            "one delta": middle["copy"] / middle["one delta"],
            "chain": middle["copy"] / middle["chain"],
            "random": middle["random copy"] / middle["random"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    records, sizes = trajectory()
    results = {name: measure_codec(Coded({"name": name}, records, sizes), records, rounds) for name in CODECS}
    print(
        f"{records.shape[1]} values, {RECORDS} records, copy {results['raw']['copy_bytes_per_second'] / 1e9:.1f} GB/s"
    )
    columns = ["delta", "total", "max error", "mean", "encode GB/s", "one delta", "chain", "random", "window ms"]
    print(f"{'codec':12}" + "".join(f"{column:>12}" for column in columns))
    for name, row in results.items():
        share = row["share_of_copy"]
        cells = [row["delta_share"], row["trajectory_share"], row["error_max"], row["error_mean"]]
        cells += [row["encode_bytes_per_second"] / 1e9, share["one delta"], share["chain"], share["random"]]
        print(f"{name:12}" + "".join(f"{cell:12.4f}" for cell in [*cells, row["window_seconds"] * 1e3]))
    bars = {
        "decoding one delta reaches 0.40 of a copy": results[DEFAULT]["share_of_copy"]["one delta"] >= 0.40,
        "a delta costs at most 0.257 of f32": results[DEFAULT]["delta_share"] <= 0.257,
        "51 records cost at most 0.30 of f32": results[DEFAULT]["trajectory_share"] <= 0.30,
        "the error is at most 0.01 of an epoch": results[DEFAULT]["error_max"] <= 0.01,
    }
    for bar, held in bars.items():
        print(f"{'held' if held else 'MISSED':7} {bar}")
    measure.write("codecs", {"codecs": results, "bars": bars})


if __name__ == "__main__":
    main()
