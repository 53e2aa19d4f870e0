"""Chunks of two token streams and shared vocabularies, against loops in Python.

Usage::

    python benchmarks/alignment.py [--rounds N] [--rows N]

Rows are texts of 4096 bytes, on one side in bytes, on the other in pieces of 1 to 8 bytes. The peer is the loop that
public code has: two pointers over lists. Both get what they take best, tensors here and lists there.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import measure
import torch

from distillrs import _core, knowledge, random

BYTES = 4096


def loop(student: list[list[tuple[int, int]]], teacher: list[list[tuple[int, int]]]) -> list[list[Any]]:
    """Two pointers: each row's chunks as ranges of tokens."""
    found = []
    for own, other in zip(student, teacher, strict=True):
        chunks = []
        i = j = first = second = 0
        while i < len(own) and j < len(other):
            if own[i][1] == other[j][1]:
                i, j = i + 1, j + 1
                chunks.append((first, i, second, j))
                first, second = i, j
            elif own[i][1] < other[j][1]:
                i += 1
            else:
                j += 1
        found.append(chunks)
    return found


def match(student: list[bytes], teacher: list[bytes]) -> list[int]:
    """The usual dictionary."""
    known = {token: number for number, token in reversed(list(enumerate(teacher)))}
    return [known.get(token, -1) for token in student]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    rows = arguments.rows
    sizes = 1 + random.integers(rows, 8, BYTES, step=0, name="pieces")
    cuts = [[0, *(cut for cut in row.cumsum(0).tolist() if cut < BYTES), BYTES] for row in sizes]
    teacher = [list(itertools.pairwise(row)) for row in cuts]
    student = [[(place, place + 1) for place in range(BYTES)] for _ in range(rows)]
    longest = max(map(len, teacher))
    own = torch.tensor(student)
    other = torch.tensor([row + [(-1, -1)] * (longest - len(row)) for row in teacher])
    tokens = sum(map(len, student)) + sum(map(len, teacher))
    expected = loop(student, teacher)
    results: dict[str, Any] = {"rows": rows, "tokens": tokens}
    for threads in (1, 2):
        _core.set_threads(threads)
        found = knowledge.token_chunks(own, other)
        assert [int((row >= 0).sum()) for row in found.ends] == [len(row) for row in expected]
        seconds = measure.medians(
            measure.alternate(
                {
                    "distillrs": lambda: knowledge.token_chunks(own, other),
                    "loop": lambda: loop(student, teacher),
                },
                rounds=arguments.rounds,
            )
        )
        ratio = seconds["loop"] / seconds["distillrs"]
        rate = tokens / seconds["distillrs"] / 1e6
        results[f"{threads} threads"] = {"seconds": seconds, "ratio": ratio, "million tokens per second": rate}
        print(f"chunks, {threads} threads: {rate:.0f} M tokens/s, {ratio:.1f}x the loop", flush=True)
    pieces = [bytes(row.tolist()) for row in random.integers(128_000, 26, 5, step=0, name="vocabulary")]
    first, second = [*dict.fromkeys(pieces)], [*dict.fromkeys(reversed(pieces))][: len(pieces) // 2]
    assert knowledge.shared_tokens(first, second).tolist() == match(first, second)
    seconds = measure.medians(
        measure.alternate(
            {"distillrs": lambda: knowledge.shared_tokens(first, second), "dictionary": lambda: match(first, second)},
            rounds=arguments.rounds,
        )
    )
    results["vocabularies"] = {"sizes": [len(first), len(second)], "seconds": seconds}
    print(f"vocabularies: {seconds['distillrs'] * 1e3:.1f} ms, a dictionary {seconds['dictionary'] * 1e3:.1f} ms")
    measure.write("alignment", results)


if __name__ == "__main__":
    main()
