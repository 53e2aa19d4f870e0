from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs.errors import ArgumentError, DataError, KeyNotFound, UnknownNameError
from distillrs.step import Step
from distillrs.trajectory import Column, Ring, Schema

SCHEMA = Schema(state=Column((2,), "float32"), version=Column((), "int64"), tokens=Column((), "int32", ragged=True))


def record(number: int, version: int = 0) -> dict[str, object]:
    return {
        "state": torch.full((2,), float(number)),
        "version": version,
        "tokens": torch.arange(number % 4, dtype=torch.int32),
    }


def test_records_come_back_as_they_went_in() -> None:
    ring = Ring(SCHEMA, 3)
    assert [ring.append(**record(number)) for number in range(3)] == [0, 1, 2]
    assert torch.equal(ring.read(1, "state"), torch.tensor([1.0, 1.0]))
    assert torch.equal(ring.read([2, 0], "state"), torch.tensor([[2.0, 2.0], [0.0, 0.0]]))
    assert ring.read(2, "tokens").tolist() == [0, 1]
    assert ring.ids().tolist() == [0, 1, 2]
    assert len(ring) == ring.capacity == 3


def test_values_are_copied_in_and_out() -> None:
    ring = Ring(Schema(state=Column((2,), "float32")), 2)
    value = torch.ones(2)
    ring.append(state=value)
    value.zero_()
    ring.read(0).zero_()
    assert torch.equal(ring.read(0), torch.ones(2))


def test_the_oldest_makes_room() -> None:
    ring = Ring(SCHEMA, 2)
    for number in range(5):
        ring.append(**record(number))
    assert ring.ids().tolist() == [3, 4]
    assert 2 not in ring
    with pytest.raises(KeyNotFound, match="id: got 2, allowed is one of the 2 ids"):
        ring.read(2, "state")


def test_the_lowest_version_makes_room_and_among_equals_the_oldest() -> None:
    ring = Ring(SCHEMA, 3, version="version")
    for number, version in enumerate([5, 1, 1]):
        ring.append(**record(number, version))
    ring.append(**record(3, 9))
    assert ring.ids().tolist() == [0, 2, 3]
    ring.append(**record(4, 0))
    assert ring.ids().tolist() == [0, 3, 4]
    ring.append(**record(5, 7))
    assert ring.ids().tolist() == [0, 3, 5]


@given(st.lists(st.one_of(st.integers(0, 9), st.just(-1)), max_size=30), st.integers(1, 5), st.booleans())
def test_a_ring_is_a_bounded_dictionary(actions: list[int], capacity: int, by_version: bool) -> None:
    ring = Ring(SCHEMA, capacity, version="version" if by_version else None)
    model: OrderedDict[int, int] = OrderedDict()
    made = 0
    for action in actions:
        if action < 0:
            gone = [id for id in model if id % 2]
            ring.evict(gone)
            for id in gone:
                del model[id]
            continue
        if len(model) == capacity:
            del model[min(model, key=lambda id: (model[id] if by_version else 0, id))]
        assert ring.append(**record(made, action)) == made
        model[made] = action
        made += 1
    assert ring.ids().tolist() == sorted(model)
    for id, version in model.items():
        assert int(ring.read(id, "version")) == version
        assert ring.read(id, "state").tolist() == [float(id)] * 2
        assert len(ring.read(id, "tokens")) == id % 4
    other = Ring(SCHEMA, capacity + 1, version="version" if by_version else None)
    other.load_state_dict(ring.state_dict())
    assert other.ids().tolist() == ring.ids().tolist()
    assert other.append(**record(made)) == made
    for id in model:
        assert torch.equal(other.read(id, "state"), ring.read(id, "state"))


def test_sampling_is_a_function_of_step_seed_and_unit() -> None:
    ring = Ring(SCHEMA, 50)
    for number in range(60):
        ring.append(**record(number))
    step = Step(3, seed=7)
    whole = ring.sample(units=8, step=step)
    assert torch.equal(ring.sample(units=range(4, 8), step=step), whole[4:])
    assert not torch.equal(ring.sample(units=8, step=step.at(4)), whole)
    assert not torch.equal(ring.sample(units=8, step=step, name="other"), whole)
    assert set(whole.tolist()) <= set(ring.ids().tolist())


def test_sampling_is_uniform_over_what_is_held() -> None:
    ring = Ring(SCHEMA, 4)
    for number in range(10):
        ring.append(**record(number))
    counts = np.bincount(ring.sample(units=4000).numpy() - 6, minlength=4)
    assert counts.sum() == 4000
    assert abs(counts - 1000).max() < 5 * 1000**0.5


def test_windows_are_drawn_whole() -> None:
    ring = Ring(SCHEMA, 6)
    for number in range(10):
        ring.append(**record(number))
    ring.evict([6])
    starts = set(ring.sample(units=200, span=2).tolist())
    assert starts == {5, 7}
    first, last = ring.window(7, "state", span=2)
    assert (first[0].item(), last[0].item()) == (7.0, 9.0)
    with pytest.raises(DataError, match="no two records that lie 6 apart"):
        ring.sample(span=6)
    with pytest.raises(ArgumentError, match="span: got 0"):
        ring.sample(span=0)


def test_an_empty_ring_gives_nothing() -> None:
    with pytest.raises(DataError, match="ring: it holds no record"):
        Ring(SCHEMA, 3).sample()


def test_refused_appends_change_nothing() -> None:
    ring = Ring(SCHEMA, 2)
    ring.append(**record(0))
    bad = [
        ({"state": torch.zeros(2)}, "columns: got 'state', allowed is all of"),
        ({**record(1), "extra": 1}, "column: got 'extra'"),
        ({**record(1), "state": torch.zeros(3)}, r"state: got 'float32 \[3\]'"),
        ({**record(1), "state": torch.zeros(2).double()}, r"state: got 'float64 \[2\]'"),
        ({**record(1), "tokens": torch.zeros((), dtype=torch.int32)}, r"tokens: got 'int32 \[\]'"),
        ({**record(1), "version": "one"}, "version: got 'one'"),
    ]
    for values, message in bad:
        with pytest.raises(ArgumentError, match=message):
            ring.append(**values)
    assert ring.ids().tolist() == [0]


def test_refused_arguments_name_themselves() -> None:
    with pytest.raises(ArgumentError, match="capacity: got 0"):
        Ring(SCHEMA, 0)
    with pytest.raises(ArgumentError, match="schema: got 3"):
        Ring(3, 1)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(UnknownNameError, match="versions"):
        Ring(SCHEMA, 1, version="versions")
    with pytest.raises(ArgumentError, match=r"version: got 'state', allowed is a column of shape \(\)"):
        Ring(SCHEMA, 1, version="state")
    ring = Ring(SCHEMA, 1)
    ring.append(**record(0))
    with pytest.raises(ArgumentError, match=r"ids: got .*one id"):
        ring.read([0], "tokens")


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    ring = Ring(SCHEMA, 2)
    ring.append(**record(0))
    source = Ring(SCHEMA, 3)
    for number in range(3):
        source.append(**record(number))
    state = source.state_dict()
    with pytest.raises(ArgumentError, match=r"3 records.*at most the capacity, 2"):
        ring.load_state_dict(state)
    small = Ring(SCHEMA, 3)
    bad = [
        {},
        {**state, "ids": torch.tensor([0, 0, 1])},
        {**state, "next": 1},
        {**state, "columns": {"state": torch.zeros(3, 2)}},
        {**state, "columns": {**state["columns"], "state": torch.zeros(3, 5)}},
    ]
    for each in bad:
        with pytest.raises(ArgumentError):
            small.load_state_dict(each)
    assert len(small) == 0
    assert ring.ids().tolist() == [0]


@pytest.mark.gpu
def test_a_ring_on_a_device_keeps_its_records_there() -> None:
    ring = Ring(SCHEMA, 2, device="cuda")
    for number in range(3):
        ring.append(**{**record(number), "state": torch.full((2,), float(number), device="cuda")})
    assert ring.read([1, 2], "state").is_cuda
    assert ring.read([1, 2], "state").tolist() == [[1, 1], [2, 2]]
    other = Ring(SCHEMA, 2, device="cuda")
    other.load_state_dict(ring.state_dict())
    assert other.read(2, "state").tolist() == [2, 2]
