import math

import pytest
import torch

from distillrs import evaluate
from distillrs.errors import ArgumentError, DataError
from distillrs.evaluate import Validation, choose_best
from distillrs.transforms import Standardise


def small(count=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 4, generator=generator), torch.arange(count) % 3


def test_choices_are_made_on_validation_examples_and_on_nothing_else():
    x, y = small()
    bundle = evaluate.data.load("digits", limit=40)

    def never(candidate, validation):
        raise AssertionError("the candidates must not even be measured")

    for wrong in ((x, y), x, bundle, (bundle.x_test, bundle.y_test), None):
        with pytest.raises(ArgumentError, match=r"^validation: got .*choices are made on nothing else"):
            choose_best([1, 2], wrong, never)


def test_the_best_wins_and_the_first_of_equals():
    validation = Validation(*small())
    seen = []

    def measure(candidate, given):
        seen.append(given)
        return {"a": 0.5, "b": 0.9, "c": 0.9, "d": math.nan}[candidate]

    choice = choose_best(["a", "d", "b", "c"], validation, measure)
    assert (choice.best, choice.index) == ("b", 2)
    assert choice.scores[0] == 0.5
    assert math.isnan(choice.scores[1])
    assert all(given is validation for given in seen)


def test_without_a_score_there_is_no_choice():
    validation = Validation(*small())
    with pytest.raises(DataError, match="none of the 2 candidates"):
        choose_best([1, 2], validation, lambda *_: math.nan)
    with pytest.raises(ArgumentError, match=r"^candidates"):
        choose_best([], validation, lambda *_: 0.0)


def test_validation_examples_from_the_test_set_are_refused():
    x, y = small()
    test = torch.cat([torch.zeros(2, 4), x[1:3]])
    with pytest.raises(DataError, match="2 of 6 validation examples also stand in the test set"):
        Validation(x, y, test=test)
    assert len(Validation(x, y, test=torch.zeros(2, 4))) == 6


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), r"^x: got 'no example'"),
        (torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"^x: got"),
        (torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), r"^y: got '3 labels'"),
        (torch.zeros(2, 4), torch.zeros(2), r"^y: got"),
        (torch.full((2, 4), torch.nan), torch.zeros(2, dtype=torch.int64), "row 0 holds a value that is not finite"),
    ],
)
def test_what_cannot_validate_is_refused(x, y, message):
    with pytest.raises((ArgumentError, DataError), match=message):
        Validation(x, y)


def test_a_bundles_validation_part_is_of_the_type_and_can_be_transformed():
    bundle = evaluate.data.load("digits", limit=60)
    transform = Standardise.fit(bundle.x_train)
    seen = bundle.validation.through(transform)
    assert torch.equal(seen.x, transform.forward(bundle.x_val))
    assert torch.equal(seen.y, bundle.y_val)
