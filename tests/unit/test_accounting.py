import sys
import time

import pytest
import torch

from distillrs.errors import ArgumentError
from distillrs.evaluate import accounting


def test_bytes_are_counted_by_kind_as_they_are_stored():
    stored = accounting.count_stored(
        torch.zeros(10, 1, 8, 8),
        torch.zeros(10, 10, dtype=torch.float16),
        factors={"basis": torch.zeros(4, 64, dtype=torch.float64)},
        rates={"inner_lr": torch.zeros(())},
    )
    assert stored.to_dict() == {"images": 2560, "labels": 200, "factors": 2048, "rates": 4, "total": 4812}


def test_soft_labels_cost_bytes_that_real_examples_could_use():
    # 100 classes: a float32 label of 400 bytes costs as much as most of a 3 x 8 x 8 image in 8 bits.
    images, labels = torch.zeros(100, 3, 8, 8), torch.zeros(100, 100)
    budget = accounting.count_stored(images, labels).total
    assert budget == 100 * (768 + 400)
    assert accounting.equal_bytes_count(budget, 768 + 8) == 150
    assert accounting.equal_bytes_count(budget, 192 + 1) == 605


@pytest.mark.parametrize(("budget", "example"), [(-1, 5), (5, 0)])
def test_impossible_budgets_are_refused(budget, example):
    with pytest.raises(ArgumentError):
        accounting.equal_bytes_count(budget, example)


def test_negative_bytes_are_refused():
    with pytest.raises(ArgumentError, match=r"^labels: got -1"):
        accounting.StoredBytes(1, -1)


def test_phases_add_up_even_when_they_raise():
    timer = accounting.Timer()
    with timer.phase("train"):
        time.sleep(0.01)

    def fails():
        with timer.phase("train"):
            time.sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with timer.phase("evaluate"):
        pass
    assert list(timer.seconds) == ["train", "evaluate"]
    assert 0.02 <= timer.seconds["train"] < 10
    assert timer.seconds["evaluate"] < timer.seconds["train"]


@pytest.mark.skipif(sys.platform == "win32", reason="compares with what Linux and macOS report")
def test_peak_memory_is_in_bytes_and_grows_with_what_is_touched():
    before = accounting.peak_memory()
    # A Python with torch takes tens of megabytes at the least, and less than the machine has.
    assert 30e6 < before < 1e12
    room = torch.ones(before // 8 + 16_000_000)
    after = accounting.peak_memory()
    assert after >= room.numel() * 4
