from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from distillrs import configuration
from distillrs.errors import ArgumentError, UnknownNameError, argument_error
from distillrs.files import write_whole


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    rule: Literal["plain", "sharp"] = "plain"
    window: range = range(5)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise argument_error("rate", self.rate, "a number above 0")


@dataclass(frozen=True)
class Outer:
    data: str
    count: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    size: tuple[int, float] = (1, 0.5)
    limit: int | None = None
    out: Path = Path("out/demo")
    plot: bool = True
    options: dict[str, int | float | str | bool] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def test_file_round_trips_to_an_equal_configuration(tmp_path: Path) -> None:
    config = Outer(
        "digits", 3, (5,), (2, 1.5), 10, Path("a/b c"), False, {"x": 1, "y": "z"}, Inner(1e-7, "sharp", range(2, 9))
    )
    path = tmp_path / "config.toml"
    configuration.save(config, path, comment="made by\na test")
    assert configuration.load(Outer, path) == config
    assert path.read_text().startswith("# made by\n# a test\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    text = configuration.to_toml({"rate": np.float64(0.1), "none": np.float64("nan"), "top": np.float64("inf")})
    assert text == "rate = 0.1\nnone = nan\ntop = inf\n"


def test_field_that_is_none_is_left_out_and_comes_back() -> None:
    plain = configuration.to_dict(Outer("digits"))
    assert "limit" not in plain
    assert configuration.from_dict(Outer, plain) == Outer("digits")


def test_none_where_the_default_is_a_value_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        steps: int | None = 5

    with pytest.raises(ArgumentError, match="steps"):
        configuration.to_dict(Odd(None))


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'count'"):
        configuration.from_dict(Outer, {"data": "digits", "cuont": 1})
    with pytest.raises(UnknownNameError, match=r"inner\.key: got 'rte'.*did you mean 'rate'"):
        configuration.from_dict(Outer, {"data": "digits", "inner": {"rte": 1}})


def test_required_key_that_is_missing_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"data: .*required"):
        configuration.from_dict(Outer, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.5}, "count: got 1.5, allowed is a whole number"),
        ({"count": True}, "count: got True, allowed is a whole number"),
        ({"count": "3"}, "count: got '3'"),
        ({"seeds": [1, "x"]}, r"seeds\[1\]: got 'x'"),
        ({"size": [1]}, r"size: got \[1\]"),
        ({"limit": "all"}, "limit: got 'all', allowed is a whole number"),
        ({"plot": 1}, "plot: got 1, allowed is true or false"),
        ({"out": 3}, "out: got 3, allowed is a path"),
        ({"inner": {"rule": "flat"}}, r"inner\.rule: got 'flat', allowed is one of 'plain', 'sharp'"),
        ({"inner": {"rate": -1}}, r"inner\.rate: got -1\.0, allowed is a number above 0"),
        ({"inner": {"window": [1, 2, 3]}}, r"inner\.window: .*\[start, stop\]"),
        ({"inner": 3}, "inner: got 3, allowed is a table"),
        ({"options": {"x": [1]}}, r"options\.x: got \[1\]"),
    ],
)
def test_wrong_value_names_key_value_and_what_is_allowed(values: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        configuration.from_dict(Outer, {"data": "digits", **values})


def test_whole_number_becomes_a_float_where_one_is_asked_for() -> None:
    rate = configuration.from_dict(Inner, {"rate": 2}).rate
    assert isinstance(rate, float)
    assert rate == 2.0


def test_file_that_is_missing_or_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="exists"):
        configuration.load(Outer, tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("data = \n")
    with pytest.raises(ArgumentError, match="line 1"):
        configuration.load(Outer, bad)


def test_integer_beyond_64_bits_is_refused_at_writing() -> None:
    with pytest.raises(ArgumentError, match=r"a\.b"):
        configuration.to_toml({"a": {"b": 2**63}})


def test_differences_name_dotted_keys_of_both_sides() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}}
    new = {"a": 1, "b": {"c": 5, "d": 3}, "e": 4}
    assert configuration.differences(old, new) == [("b.c", 2, 5), ("e", None, 4)]
    assert configuration.differences(old, old) == []


def test_merge_changes_only_what_is_named() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert configuration.merge(base, {"a": {"c": 5}}) == {"a": {"b": 1, "c": 5}, "d": 3}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner_steps=20", ("inner_steps", 20)),
        ("rate = 1e-3", ("rate", 1e-3)),
        ("gradient=adjoint", ("gradient", "adjoint")),
        ('name="a=b"', ("name", "a=b")),
        ("start=[0, 5]", ("start", [0, 5])),
        ("learn=true", ("learn", True)),
        ("empty=", ("empty", "")),
    ],
)
def test_assignment_reads_toml_values_and_bare_words(text: str, expected: tuple[str, object]) -> None:
    assert configuration.parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["inner_steps", "=3", ""])
def test_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="key=value"):
        configuration.parse_assignment(text)


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_keys_that_are_not_bare_are_quoted() -> None:
    values = {"a b": {"c.d": 1, "": 2}}
    assert tomllib.loads(configuration.to_toml(values)) == values
