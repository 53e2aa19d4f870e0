from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs.errors import ArgumentError, UnknownNameError
from distillrs.trajectory import Column, DeltaInt8, HalfDelta, Lossless, Raw, Schema


def test_a_column_says_what_it_holds() -> None:
    column = Column((3, 4), "bfloat16")
    assert column.dtype == torch.bfloat16
    assert column.codec == Raw()
    assert column.size == 12
    assert column.nbytes == 24
    assert Column((), "float64").nbytes == 8
    assert Column([2], torch.float32) == Column((2,), "torch.float32")


@pytest.mark.parametrize("dtype", ["complex64", "object", torch.complex64, torch.qint8, 3])
def test_types_that_a_store_cannot_hold_are_refused(dtype: object) -> None:
    with pytest.raises(ArgumentError, match=r"dtype: got .*allowed is one of bool, uint8"):
        Column((1,), dtype)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("shape", [3, (0,), (-1,), (2.0,), "3", None])
def test_shapes_that_are_none_are_refused(shape: object) -> None:
    with pytest.raises(ArgumentError, match="shape: got"):
        Column(shape, "float32")  # type: ignore[arg-type]  # what is refused


def test_codecs_come_by_name_or_with_parameters() -> None:
    assert Column((4,), "float32", codec="delta-int8").codec == DeltaInt8()
    assert Column((4,), "float32", codec=DeltaInt8(keyframe_every=3)).codec == DeltaInt8(3)
    assert Column((4,), "float32", codec="half-delta").codec == HalfDelta()
    assert Column((4,), "int16", codec="lossless").codec == Lossless()
    with pytest.raises(UnknownNameError, match="did you mean 'delta-int8'"):
        Column((4,), "float32", codec="delta-int9")
    with pytest.raises(ArgumentError, match="codec: got 7"):
        Column((4,), "float32", codec=7)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ArgumentError, match="keyframe_every: got 0"):
        DeltaInt8(keyframe_every=0)
    with pytest.raises(ArgumentError, match="keyframe_every: got 70000"):
        Lossless(keyframe_every=70_000)


def test_codecs_that_do_not_apply_are_refused() -> None:
    with pytest.raises(ArgumentError, match="dtype: got 'bfloat16', allowed is float32 or float64"):
        Column((4,), "bfloat16", codec="delta-int8")
    with pytest.raises(ArgumentError, match="dtype: got 'int32'"):
        Column((4,), "int32", codec="half-delta")
    with pytest.raises(ArgumentError, match="codec: got 'lossless', allowed is 'raw' for a ragged column"):
        Column((4,), "float32", codec="lossless", ragged=True)


def test_tensor_sizes_add_up_to_the_record() -> None:
    assert Column((6,), "float32", tensor_sizes=(2, 4)).tensor_sizes == (2, 4)
    with pytest.raises(ArgumentError, match="tensor_sizes: got 'a sum of 5', allowed is a sum of 6"):
        Column((6,), "float32", tensor_sizes=(2, 3))
    with pytest.raises(ArgumentError, match="tensor_sizes"):
        Column((6,), "float32", tensor_sizes=(7, -1))


def test_a_schema_is_a_mapping_in_order() -> None:
    schema = Schema(theta=Column((4,), "float32"), loss=Column((), "float64"))
    assert list(schema) == ["theta", "loss"]
    assert schema["loss"].shape == ()
    assert schema == Schema(theta=Column((4,), "float32"), loss=Column((), "float64"))
    assert schema != Schema(loss=Column((), "float64"), theta=Column((4,), "float32"))
    assert hash(schema) == hash(Schema(**schema))


def test_columns_are_asked_for_by_name() -> None:
    one = Schema(theta=Column((4,), "float32"))
    assert one.column(None)[0] == "theta"
    two = Schema(theta=Column((4,), "float32"), loss=Column((), "float64"))
    with pytest.raises(ArgumentError, match="column: got None, allowed is one of theta, loss"):
        two.column(None)
    with pytest.raises(UnknownNameError, match="did you mean 'theta'"):
        two.column("thetas")


def test_bad_schemas_are_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one name=Column"):
        Schema()
    for name in ("a/b", "a b", "é", "", "x" * 129):
        with pytest.raises(ArgumentError, match="columns: got"):
            Schema(**{name: Column((1,), "float32")})
    with pytest.raises(ArgumentError, match=r"theta: got .*allowed is a Column"):
        Schema(theta=torch.float32)  # type: ignore[arg-type]  # what is refused


_COLUMNS = st.one_of(
    st.builds(
        Column,
        st.lists(st.integers(1, 5), max_size=3).map(tuple),
        st.sampled_from(["float32", "bfloat16", "float8_e4m3fn", "bool", "int64", "uint16"]),
        st.sampled_from(["raw", "lossless"]),
    ),
    st.builds(
        Column,
        st.just((6,)),
        st.just("float64"),
        st.builds(DeltaInt8, st.integers(1, 9)),
        st.just(False),
        st.just((2, 4)),
    ),
    st.builds(Column, st.just((2,)), st.just("float16"), st.just("raw"), st.just(True)),
)


@given(st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9_]{0,5}\Z"), _COLUMNS, min_size=1, max_size=4))
def test_schemas_round_trip_through_json(columns: dict[str, Column]) -> None:
    schema = Schema(**columns)
    assert Schema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"columns": 3}',
        '{"columns": [{"name": "a"}]}',
        json.dumps({"columns": [{"name": "a", "shape": [1], "dtype": "F12", "codec": "raw"}]}),
        json.dumps({"columns": [{"name": "a", "shape": [1], "dtype": "F32", "codec": {"name": "raw", "level": 3}}]}),
        json.dumps({"columns": [{"name": "a", "shape": [1], "dtype": "F32", "codec": {"name": "zip"}}]}),
    ],
)
def test_texts_that_are_no_schema_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError):
        Schema.from_json(text)
