"""Hypothesis strategies for what distillrs takes."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from distillrs.ops import TopK
from distillrs.schedule import EDM, VP, CosineAlpha, LinearBeta, RectifiedFlow, Residual, SubVP, Trig
from distillrs.schedule import Path as NoisePath
from distillrs.step import Step
from distillrs.trajectory import Codec, Column, DeltaInt8, HalfDelta, Lossless, Raw, Schema, Store
from distillrs.trajectory.dtypes import dtype_of

Draw = Callable[[st.SearchStrategy[Any]], Any]

_DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip


def steps(*, maximum_index: int = 10**6) -> st.SearchStrategy[Step]:
    """Steps of runs with any seed, some with a total length, a first unit and a count of items.

    Args:
        maximum_index: Highest index.
    """
    return st.builds(
        Step,
        index=st.integers(0, maximum_index),
        seed=st.integers(0, 2**64 - 1),
        total=st.none() | st.integers(1, maximum_index),
        first_unit=st.integers(0, 2**40),
        items=st.none() | st.integers(1, 10**6),
    )


def paths(*, referenced: bool = False) -> st.SearchStrategy[NoisePath]:
    """Gaussian noise paths of every kind.

    Args:
        referenced: Also those between two images, whose methods take a ``reference``.
    """
    signals = st.one_of(
        st.builds(LinearBeta, st.floats(0.05, 1.0), st.floats(5.0, 25.0)),
        st.builds(CosineAlpha, st.floats(0.002, 0.05)),
    )
    tables = st.builds(VP.betas, st.sampled_from(["linear", "scaled_linear", "cosine"]), st.sampled_from([10, 1000]))
    kinds: list[st.SearchStrategy[NoisePath]] = [
        st.builds(EDM, st.floats(1.0, 200.0), st.floats(0.1, 2.0)),
        st.just(RectifiedFlow()),
        st.builds(Trig, st.floats(0.1, 2.0)),
        st.builds(VP, signals),
        st.builds(SubVP, signals),
        tables,
    ]
    if referenced:
        kinds.append(st.builds(Residual, st.integers(2, 20), st.floats(0.5, 3.0), st.floats(0.3, 3.0)))
    return st.one_of(kinds)


def tensors(shape: tuple[int, ...], dtype: torch.dtype | str) -> st.SearchStrategy[Tensor]:
    """Tensors of any bit pattern, so that not-a-number, infinities and subnormal numbers occur.

    Args:
        shape: Their shape.
        dtype: Their type.
    """
    kind = dtype_of(dtype)
    count = prod(shape) * kind.itemsize

    def build(data: bytes) -> Tensor:
        raw = torch.tensor(list(data), dtype=torch.uint8)
        return (raw % 2).bool().reshape(shape) if kind is torch.bool else raw.view(kind).reshape(shape)

    return st.binary(min_size=count, max_size=count).map(build)


def logits(
    *shape: int, dtype: torch.dtype = torch.float32, maximum_scale: float = 8.0, excluded: bool = True
) -> st.SearchStrategy[Tensor]:
    """Rows of logits of any spread and offset, some with entries of minus infinity; never a whole row of them.

    Args:
        *shape: Their shape, the vocabulary last.
        dtype: float64, float32, bfloat16 or float16.
        maximum_scale: Largest standard deviation.
        excluded: Whether entries may be minus infinity.
    """

    def build(seed: int, scale: float, offset: float, share: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64) + offset
        drop = torch.rand(*shape, generator=generator) < share
        drop[..., 0] = False
        return values.masked_fill(drop, -torch.inf).to(dtype)

    return st.builds(
        build,
        st.integers(0, 2**32 - 1),
        st.floats(0, maximum_scale),
        st.sampled_from([0.0, 20.0, -100.0]),
        st.sampled_from([0.0, 0.5]) if excluded else st.just(0.0),
    )


def points(
    *,
    maximum_count: int = 30,
    maximum_width: int = 5,
    minimum_count: int = 1,
    dtype: torch.dtype = torch.float32,
    repeated: bool = True,
) -> st.SearchStrategy[Tensor]:
    """Points ``[n, width]`` of any spread, some far from the origin, some on a grid, where distances tie.

    Args:
        maximum_count: Most points.
        maximum_width: Most columns.
        minimum_count: Fewest points.
        dtype: float64, float32, bfloat16 or float16.
        repeated: Whether a point may come several times.
    """

    def build(count: int, width: int, seed: int, scale: float, offset: float, form: str) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(count, width, generator=generator, dtype=torch.float64)
        if form == "grid":
            values = (2 * values).round()
        elif form == "repeated":
            values = values[torch.randint(0, (count + 1) // 2, (count,), generator=generator)]
        return (scale * values + offset).to(dtype)

    return st.builds(
        build,
        st.integers(minimum_count, maximum_count),
        st.integers(1, maximum_width),
        st.integers(0, 2**32 - 1),
        st.sampled_from([1.0, 1e-3, 100.0]),
        st.sampled_from([0.0, 0.0, 50.0]),
        st.sampled_from(["free", "grid", "repeated"] if repeated else ["free"]),
    )


@st.composite
def top_k(draw: Draw, *shape: int, maximum_k: int = 8, temperatures: tuple[float, ...] = (1.0,)) -> TopK:
    """Top-k distributions of random rows of logits.

    Args:
        draw: Given by hypothesis.
        *shape: Shape of the rows, the vocabulary last.
        maximum_k: Most entries.
        temperatures: Those whose log-partition is kept.
    """
    rows = draw(logits(*shape, dtype=torch.float64, excluded=False))
    k = draw(st.integers(1, min(maximum_k, shape[-1])))
    return TopK.from_logits(rows, k, temperatures)


def codecs() -> st.SearchStrategy[Codec]:
    """Codecs with any parameters."""
    return st.one_of(
        st.just(Raw()),
        st.just(HalfDelta()),
        st.builds(DeltaInt8, keyframe_every=st.integers(1, 20)),
        st.builds(Lossless, keyframe_every=st.integers(1, 20)),
    )


def columns(*, exact: bool = False, maximum_extent: int = 4) -> st.SearchStrategy[Column]:
    """Columns of any type, fixed-shape or ragged.

    Args:
        exact: Only codecs that give back what went in, bit for bit.
        maximum_extent: Longest axis.
    """
    shapes = st.lists(st.integers(1, maximum_extent), max_size=3).map(tuple)
    types = st.sampled_from(_DTYPES)
    kinds = [
        st.builds(Column, shapes, types, st.just("raw"), st.booleans()),
        st.builds(Column, shapes, types, st.builds(Lossless, keyframe_every=st.integers(1, 5))),
    ]
    if not exact:
        reals = st.sampled_from(["float32", "float64"])
        kinds.append(st.builds(Column, shapes, reals, codecs()))
    return st.one_of(kinds)


def schemas(*, exact: bool = False, maximum_columns: int = 3) -> st.SearchStrategy[Schema]:
    """Schemas of one or several columns.

    Args:
        exact: Only codecs that give back what went in, bit for bit.
        maximum_columns: Most columns.
    """
    names = st.from_regex(r"\A[a-z][a-z0-9_]{0,7}\Z")
    return st.dictionaries(names, columns(exact=exact), min_size=1, max_size=maximum_columns).map(
        lambda chosen: Schema(**chosen)
    )


def records(schema: Schema, *, maximum_rows: int = 3) -> st.SearchStrategy[dict[str, Tensor]]:
    """Records that fit a schema, as ``writer.append(**record)`` takes them.

    Args:
        schema: The columns.
        maximum_rows: Most rows of a ragged column.
    """

    def values(column: Column) -> st.SearchStrategy[Tensor]:
        if not column.ragged:
            return tensors(column.shape, column.dtype)
        return st.integers(0, maximum_rows).flatmap(lambda rows: tensors((rows, *column.shape), column.dtype))

    return st.fixed_dictionaries({name: values(column) for name, column in schema.items()})


@dataclass(frozen=True, slots=True, weakref_slot=True)
class FilledStore:
    """A store on disk and what was put into it.

    Attributes:
        store: The store, opened to read. Its directory goes when this object does.
        contents: The records of every complete trajectory.
    """

    store: Store
    contents: dict[str, list[dict[str, Tensor]]]


@st.composite
def stores(
    draw: Draw, *, schema: Schema | None = None, maximum_trajectories: int = 3, maximum_steps: int = 6
) -> FilledStore:
    """Stores with complete trajectories, sealed or not, in directories of their own.

    Args:
        draw: Given by hypothesis.
        schema: The columns; ``None`` draws some whose codecs are exact.
        maximum_trajectories: Most trajectories.
        maximum_steps: Most records of each.
    """
    if schema is None:
        schema = draw(schemas(exact=True))
    keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    contents = draw(
        st.dictionaries(
            keys,
            st.lists(records(schema), min_size=1, max_size=maximum_steps),
            min_size=1,
            max_size=maximum_trajectories,
        )
    )
    seal = draw(st.booleans())
    folder = Path(tempfile.mkdtemp(prefix="distillrs-"))
    store = Store.create(folder / "store", schema)
    for key, trajectory in contents.items():
        with store.begin(key) as writer:
            for record in trajectory:
                writer.append(**record)
    if seal:
        store.seal()
    store.close()
    filled = FilledStore(Store.open(folder / "store"), contents)
    weakref.finalize(filled, shutil.rmtree, folder, ignore_errors=True)
    return filled
