import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillrs.errors import ArgumentError
from distillrs.evaluate.statistics import Paired, Summary, student_distribution, student_quantile

# Printed tables of Student's t, two-sided 95%.
TABLE = {1: 12.7062047, 2: 4.3026527, 3: 3.1824463, 4: 2.7764451, 9: 2.2621572, 10: 2.2281389, 30: 2.0422725}


@pytest.mark.parametrize(("freedom", "value"), TABLE.items())
def test_quantiles_are_those_of_the_tables(freedom, value):
    assert student_quantile(0.975, freedom) == pytest.approx(value, rel=1e-7)


def test_one_degree_of_freedom_is_cauchys_distribution():
    for value in (-3.0, -0.2, 0.0, 1.0, 40.0):
        assert student_distribution(value, 1) == pytest.approx(0.5 + math.atan(value) / math.pi, abs=1e-15)


@given(st.integers(1, 40), st.floats(0.5, 0.9995))
def test_the_quantile_inverts_the_distribution(freedom, probability):
    assert student_distribution(student_quantile(probability, freedom), freedom) == pytest.approx(probability, abs=1e-9)


@given(st.integers(1, 40), st.floats(-50, 50))
def test_the_distribution_is_symmetric(freedom, value):
    total = student_distribution(value, freedom) + student_distribution(-value, freedom)
    assert total == pytest.approx(1, abs=1e-12)


def test_the_density_integrates_to_the_distribution():
    for freedom in (3, 4, 7):
        scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
        steps = 20_000
        width = 2.5 / steps
        area = sum(
            scale * (1 + ((index + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) * width
            for index in range(steps)
        )
        assert student_distribution(2.5, freedom) == pytest.approx(0.5 + area, abs=1e-8)


def test_the_deviation_is_the_samples():
    summary = Summary.of([0.5, 0.6, 0.7], [0, 1, 2])
    assert summary.mean == pytest.approx(0.6)
    assert summary.std == pytest.approx(0.1)
    assert summary.to_dict() == {"mean": summary.mean, "std": summary.std, "seeds": [0, 1, 2],
                                 "values": [0.5, 0.6, 0.7]}  # fmt: skip


def test_one_seed_has_no_deviation_and_no_interval():
    one = Summary.of([0.5], [7])
    assert one.std is None
    paired = Paired.of(one, Summary.of([0.2], [7]))
    assert (paired.mean, paired.std, paired.low, paired.high, paired.wins) == (0.3, None, None, None, 1)
    assert paired.to_dict()["interval"] is None


def test_pairs_of_runs_vary_less_than_the_runs_themselves():
    first = Summary.of([0.50, 0.70, 0.90], [0, 1, 2])
    second = Summary.of([0.41, 0.60, 0.79], [0, 1, 2])
    paired = Paired.of(first, second)
    assert paired.differences == pytest.approx([0.09, 0.10, 0.11])
    reach = TABLE[2] * 0.01 / math.sqrt(3)
    assert (paired.low, paired.high) == pytest.approx((0.1 - reach, 0.1 + reach), abs=1e-8)
    assert paired.wins == 3
    assert first.std > 10 * paired.std


def test_summaries_over_other_seeds_are_not_paired():
    with pytest.raises(ArgumentError, match="same seeds"):
        Paired.of(Summary.of([0.5, 0.6], [0, 1]), Summary.of([0.5, 0.6], [1, 0]))


@pytest.mark.parametrize(("values", "seeds"), [([], []), ([math.nan], [0]), ([0.5], [0, 1])])
def test_what_cannot_be_summarised_is_refused(values, seeds):
    with pytest.raises(ArgumentError):
        Summary.of(values, seeds)
