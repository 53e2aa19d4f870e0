import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillrs.errors import ArgumentError
from distillrs.evaluate import scores

SHARE = st.floats(0, 1)


@given(SHARE, SHARE, SHARE, SHARE, SHARE)
def test_the_score_lies_between_0_and_1(full, hard, distilled, real, weight):
    recovery = scores.hard_label_recovery(full, hard)
    improvement = scores.improvement_over_random(distilled, real)
    assert -1e-12 <= scores.label_robust_score(improvement, recovery, weight) <= 1 + 1e-12


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1), SHARE)
def test_more_improvement_or_less_to_recover_never_lowers_the_score(improvement, recovery, other, weight):
    low, high = sorted((improvement, other))
    assert scores.label_robust_score(low, recovery, weight) <= scores.label_robust_score(high, recovery, weight)
    low, high = sorted((recovery, other))
    assert scores.label_robust_score(improvement, high, weight) <= scores.label_robust_score(improvement, low, weight)


@given(st.floats(1.0001, 100))
def test_percentages_are_always_refused(percent):
    with pytest.raises(ArgumentError, match="divide percentages by 100"):
        scores.improvement_over_random(percent, 0.5)
    with pytest.raises(ArgumentError, match="divide percentages by 100"):
        scores.hard_label_recovery(0.5, percent)
