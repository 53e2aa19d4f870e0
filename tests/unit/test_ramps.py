import math

import pytest

import distillrs as dr
from distillrs.schedule import Constant, Cosine, Doubling, ExpandingWindow, Feedback, Halving, LinearRamp, WarmUp


def test_a_constant_is_the_same_everywhere():
    assert {Constant(0.3)(index) for index in (0, 7, 10**9)} == {0.3}


def test_a_linear_ramp_moves_in_equal_increments_between_its_ends():
    ramp = LinearRamp(1.0, 3.0, steps=4, begin=2)
    assert [ramp(index) for index in range(9)] == [1.0, 1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]


def test_a_ramp_without_a_length_ends_at_the_runs_last_step():
    for kind in (LinearRamp, Cosine):
        ramp = kind(0.0, 1.0)
        assert ramp(dr.Step(0, total=11)) == 0.0
        assert ramp(dr.Step(10, total=11)) == 1.0
        assert ramp(dr.Step(5, total=11)) == pytest.approx(0.5)
        assert ramp(dr.Step(0, total=1)) == 0.0


def test_a_cosine_is_half_a_cosine():
    ramp = Cosine(2.0, 0.0, steps=8)
    for index in range(9):
        assert ramp(index) == pytest.approx(1 + math.cos(math.pi * index / 8))


def test_doubling_doubles_up_to_its_limit():
    assert [Doubling(3.0, every=2, limit=20)(index) for index in range(8)] == [3, 3, 6, 6, 12, 12, 20, 20]
    assert Doubling(1.0, every=1, limit=5)(10**9) == 5
    with pytest.raises(dr.errors.ArgumentError, match=r"^limit: got None"):
        Doubling(1.0, every=1)(10**9)


def test_the_expanding_window_is_that_of_difficulty_alignment():
    """U(t) = min(S+, S0 + floor((S+ - S0) t / E)), with the numbers for ten images per class of CIFAR-10."""
    window = ExpandingWindow(low=0, first_high=10, last_high=20, steps=1000)
    for index in (0, 1, 99, 100, 999, 1000, 5000):
        high = min(20, 10 + math.floor(10 * index / 1000))
        assert window(index) == range(high)
    assert ExpandingWindow(0, 4, 4, steps=1)(dr.Step(3)) == range(4)
    assert ExpandingWindow(1, 2, 6)(dr.Step(50, total=100)) == range(1, 4)


@pytest.mark.parametrize("ramp", [LinearRamp(0, 1), Cosine(0, 1), ExpandingWindow(0, 1, 2)])
def test_without_a_length_and_a_total_a_ramp_is_refused(ramp):
    with pytest.raises(dr.errors.ArgumentError, match=rf"^step: got 'one without a total'.*{type(ramp).__name__}"):
        ramp(3)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Constant(math.nan), "value"),
        (lambda: LinearRamp(0, math.inf), "end"),
        (lambda: LinearRamp(0, 1, steps=0), "steps"),
        (lambda: LinearRamp(0, 1, steps=1, begin=-1), "begin"),
        (lambda: Cosine(math.nan, 0), "start"),
        (lambda: Doubling(-1, 1), "start"),
        (lambda: Doubling(1, 0), "every"),
        (lambda: Doubling(2, 1, limit=1), "limit"),
        (lambda: ExpandingWindow(-1, 1, 2), "low"),
        (lambda: ExpandingWindow(3, 3, 4), "first_high"),
        (lambda: ExpandingWindow(0, 3, 2), "last_high"),
        (lambda: ExpandingWindow(0, 3, 4, steps=0), "steps"),
    ],
)
def test_what_is_refused_names_itself(make, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        make()


def test_halving_halves_down_to_its_limit():
    assert [Halving(12.0, every=2, limit=2)(index) for index in range(9)] == [12, 12, 6, 6, 3, 3, 2, 2, 2]
    assert Halving(1.0, every=1)(10**9) == 0.0


def test_a_warm_up_multiplies_another_ramp():
    ramp = WarmUp(LinearRamp(2.0, 4.0, steps=4), steps=2)
    assert [ramp(index) for index in range(5)] == [0.0, 1.25, 3.0, 3.5, 4.0]


def test_feedback_follows_the_measurement_within_its_limits():
    ramp = Feedback(1.0, target=0.5, rate=2.0, high=10.0)
    above = ramp.after(1.0)
    assert above(7) == pytest.approx(math.e)
    assert ramp(7) == 1.0
    assert above.after(0.0)(0) == pytest.approx(1.0)
    assert ramp.after(1e300)(0) == 10.0
    assert ramp.after(-1e300)(0) == 1e-6


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Halving(1.0, every=0), "every"),
        (lambda: Halving(1.0, every=1, limit=2.0), "limit"),
        (lambda: Halving(math.nan, every=1), "start"),
        (lambda: WarmUp(Constant(1.0), steps=0), "steps"),
        (lambda: Feedback(0.0, 1.0, 1.0), "value"),
        (lambda: Feedback(1.0, math.nan, 1.0), "target"),
        (lambda: Feedback(1.0, 1.0, 1.0).after(math.nan), "measured"),
    ],
)
def test_new_ramps_refuse_what_makes_no_sense(make, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        make()
