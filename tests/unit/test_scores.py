import math

import pytest

from distillrs.errors import ArgumentError
from distillrs.evaluate import scores


def test_the_score_has_its_fixed_points():
    assert scores.label_robust_score(1, -1) == pytest.approx(1)
    assert scores.label_robust_score(-1, 1) == pytest.approx(0)
    middle = (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.label_robust_score(0, 0) == pytest.approx(middle)
    assert middle == pytest.approx(0.2689, abs=1e-4)


def test_the_score_is_the_stated_formula():
    alpha = 0.3 * 0.12 - 0.7 * 0.25
    wanted = (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.label_robust_score(0.12, 0.25, weight=0.3) == pytest.approx(wanted, abs=1e-15)


def test_recovery_and_improvement_are_differences_of_accuracies():
    assert scores.hard_label_recovery(0.85, 0.6) == pytest.approx(0.25)
    assert scores.improvement_over_random(0.6, 0.5) == pytest.approx(0.1)


def test_percentages_would_change_the_ranking_and_are_refused():
    # One set gains 10 points and lacks 30, the other gains nothing and lacks 15: in shares the first is behind, and the
    # score hardly moves; in percent the exponential overwhelms everything.
    with pytest.raises(ArgumentError, match=r"^distilled: got 60.*percentages"):
        scores.improvement_over_random(60.0, 50.0)
    with pytest.raises(ArgumentError, match="divide percentages by 100"):
        scores.hard_label_recovery(0.85, 60.0)
    with pytest.raises(ArgumentError, match=r"^improvement: got 10.*percentages"):
        scores.label_robust_score(10.0, 0.3)
    with pytest.raises(ArgumentError, match=r"^recovery: got 30"):
        scores.label_robust_score(0.1, 30.0)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_what_is_no_accuracy_is_refused(value):
    with pytest.raises(ArgumentError):
        scores.improvement_over_random(value, 0.5)
    with pytest.raises(ArgumentError):
        scores.hard_label_recovery(0.5, value)
    with pytest.raises(ArgumentError, match="weight"):
        scores.label_robust_score(0, 0, weight=value)
