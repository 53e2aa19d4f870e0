import pickle
from fractions import Fraction
from math import floor

from hypothesis import given
from hypothesis import strategies as st

from distillrs.schedule import Cosine, Doubling, ExpandingWindow, LinearRamp
from distillrs.step import Step

NUMBERS = st.floats(-1e6, 1e6)
STEPS = st.integers(1, 10_000)
KINDS = st.sampled_from([LinearRamp, Cosine])


@given(KINDS, NUMBERS, NUMBERS, STEPS, st.integers(0, 100), st.integers(0, 20_000))
def test_ramps_stay_between_their_ends_and_reach_them(kind, start, end, steps, begin, index):
    ramp = kind(start, end, steps=steps, begin=begin)
    slack = 1e-9 * (1 + abs(start) + abs(end))
    assert min(start, end) - slack <= ramp(index) <= max(start, end) + slack
    assert ramp(begin) == start
    assert ramp(begin + steps) == end


@given(KINDS, STEPS, st.integers(0, 10_000), st.integers(0, 10_000))
def test_ramps_are_monotone(kind, steps, one, other):
    ramp = kind(0.0, 1.0, steps=steps)
    assert ramp(min(one, other)) <= ramp(max(one, other))


@given(st.floats(0, 100), st.integers(1, 50), st.integers(0, 200))
def test_doubling_doubles(start, every, index):
    ramp = Doubling(start, every)
    assert ramp(index + every) == 2 * ramp(index)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 50), STEPS, st.integers(0, 20_000))
def test_the_expanding_window_is_exact_and_never_shrinks(low, width, growth, steps, index):
    window = ExpandingWindow(low, low + width, low + width + growth, steps=steps)
    exact = low + width + floor(Fraction(growth * index, steps))
    assert window(index) == range(low, min(low + width + growth, exact))
    assert window(index + 1).stop >= window(index).stop


@given(KINDS, NUMBERS, NUMBERS, st.integers(1, 1000), st.integers(0, 2**63))
def test_ramps_depend_on_the_step_alone_and_travel_between_processes(kind, start, end, total, seed):
    ramp = kind(start, end)
    step = Step(total // 2, seed=seed, total=total)
    assert pickle.loads(pickle.dumps(ramp))(step) == ramp(step) == ramp(Step(total // 2, seed=0, total=total))
