from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from distillrs import configuration

text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), text)
values = st.recursive(
    st.one_of(scalars, st.lists(scalars, max_size=3)),
    lambda inner: st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(text, values, max_size=5))
def test_toml_reads_back_to_equal_values(document: dict[str, object]) -> None:
    back = tomllib.loads(configuration.to_toml(document))
    assert back == document
    assert repr(back) == repr(_ordered(document))  # types as well: 1 is not 1.0 and not True


def _ordered(value: object) -> object:
    """The same values in the writer's order: plain keys before tables."""
    if not isinstance(value, dict):
        return value
    ordered = {name: _ordered(item) for name, item in value.items() if not isinstance(item, dict)}
    ordered |= {name: _ordered(item) for name, item in value.items() if isinstance(item, dict)}
    return ordered


@given(
    st.dictionaries(st.sampled_from("abc"), values, max_size=3),
    st.dictionaries(st.sampled_from("abc"), values, max_size=3),
)
def test_no_difference_only_between_equal_leaves(left: dict[str, object], right: dict[str, object]) -> None:
    same = dict(configuration.flatten(left)) == dict(configuration.flatten(right))
    assert (configuration.differences(left, right) == []) == same


@given(st.dictionaries(st.sampled_from("abc"), values), st.dictionaries(st.sampled_from("abc"), values))
def test_merge_with_itself_changes_nothing_and_change_wins(base: dict[str, object], change: dict[str, object]) -> None:
    assert configuration.merge(base, base) == base
    merged = configuration.merge(base, change)
    assert configuration.merge(merged, change) == merged
