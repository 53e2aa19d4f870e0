from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from distillrs.cli import report


def example(**changes):
    return {
        "format": report.FORMAT,
        "command": "distillrs condense --data digits",
        "per_class": 1,
        "data": {
            "name": "digits",
            "fingerprint": "abc",
            "classes": ["0", "1"],
            "train": 1100,
            "validation": 300,
            "test": 397,
        },
        "method": {"id": "tesla", "source": "Cui et al. 2023", "equation": "L = r'r/D", "deviations": ["no ZCA"]},
        "network": {"name": "mlp", "parameters": 2410},
        "examples": {"distilled": 10, "random_real": 10, "full_data": 1100},
        "accuracy": {
            "distilled": {"mean": 0.9184, "std": 0.004, "seeds": [0, 1, 2]},
            "random_real": {"mean": 0.552, "std": 0.03, "seeds": [0, 1, 2]},
            "full_data": {"mean": 0.97, "std": 0.0, "seeds": [0]},
        },
        "distillation": {"steps": 1000, "best_step": 800, "best_validation_accuracy": 0.93, "skipped_steps": 2},
        "comparison": {
            "paired": {"random_real": {"mean": 0.3664, "interval": [0.312, 0.4208], "confidence": 0.95}},
            "learning_rates": {"distilled": 0.1, "random_real": 0.03, "full_data": 0.05},
        },
        "stored_bytes": 2648,
        "seconds": {"data": 0.2, "experts": 12.0, "distil": 65.0, "evaluate": 5.0},
        "peak_rss_bytes": 500_000_000,
        "versions": {"torch": "2.15"},
        "files": ["condensed.png"],
    } | changes


def test_json_holds_every_figure_and_no_number_that_json_lacks():
    text = report.to_json(example(extra={"loss": [1.0, float("nan")], "worst": float("inf")}))
    back = json.loads(text, parse_constant=pytest.fail)
    assert back["accuracy"] == example()["accuracy"]
    assert back["extra"] == {"loss": [1.0, None], "worst": None}


def test_markdown_compares_with_random_real_examples():
    text = report.to_markdown(example())
    assert "# digits, 1 example per class, tesla, mlp" in text
    assert "91.8% on the test set, 36.6 points above as many random real examples" in text
    assert "(95% interval of the difference 31.2 to 42.1 points)" in text
    assert "distilled 0.1, random real 0.03, full data 0.05" in text
    assert "| distilled | 10 | 91.8% | 0.4% | 0, 1, 2 |" in text
    assert "| full data | 1,100 | 97.0% |  | 0 |" in text
    assert "![The condensed set](condensed.png)" in text
    assert "curve.png" not in text
    assert "differs from the publication: no ZCA" in text
    assert "2 steps skipped by the guard" in text
    assert "2.6 kB" in text
    assert "distil 1 min 5 s" in text


def test_markdown_says_when_distilled_is_worse():
    worse = example()
    worse["comparison"]["paired"]["random_real"] |= {"mean": -0.052, "interval": None}
    text = report.to_markdown(worse)
    assert "5.2 points below" in text
    assert "interval" not in text


def test_table_shows_every_set():
    drawn = io.StringIO()
    Console(file=drawn, width=100).print(report.table(example(per_class=10)))
    text = drawn.getvalue()
    for part in ("digits, 10 examples per class, tesla, mlp", "distilled", "random real", "full data", "91.8%"):
        assert part in text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (2648, "2.6 kB"), (5e14, "500.0 TB")])
def test_sizes_have_units(count, text):
    assert report.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7300, "2 h 1 min")]
)
def test_durations_have_units(seconds, text):
    assert report.duration(seconds) == text
