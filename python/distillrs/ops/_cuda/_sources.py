"""The text of a kernel's source as the compiler gets it."""

from __future__ import annotations

import re
from functools import cache

from distillrs import _core

_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$')


@cache
def source(name: str) -> str:
    """A source with its own headers in their places, so that it stands alone.

    A compiler that keeps binaries by the source's text would not see a header change.

    Args:
        name: Such as "row_divergence.cu".

    Raises:
        ArgumentError: For a name that is none.
    """
    return "\n".join(_lines(name, set()))


def _lines(name: str, seen: set[str]) -> list[str]:
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(_core.cuda_source(name).splitlines(), 1):
        match = _INCLUDE.match(line)
        if match is None:
            lines.append(line)
        elif match[1] not in seen:
            seen.add(match[1])
            lines += [*_lines(match[1], seen), f'#line {number + 1} "{name}"']
    return lines
