from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distillrs.condense.initial import expert_features, judge, nearest_to_centres, rightly_classified
from distillrs.errors import ArgumentError, DataError


class MemoryStore:
    """Trajectories in a dictionary, with the methods that choosing examples calls."""

    def __init__(self, records: dict[str, list[Tensor]]) -> None:
        self.records = records
        self.metadata: dict[str, object] = {}

    def lengths(self) -> dict[str, int]:
        return {key: len(records) for key, records in self.records.items()}

    def read(self, key: str, step: int, *, column: str) -> Tensor:
        assert column == "theta"
        return self.records[key][step]


def linear(weight: list[list[float]]) -> Tensor:
    return torch.tensor(weight).flatten()


NETWORK = nn.Linear(2, 3, bias=False)
RIGHT = linear([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
STRONG = 3 * RIGHT
SWAPPED = linear([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]])
X = torch.tensor([[1.0, 0.1], [0.2, 2.0], [-1.0, -1.0], [0.1, 1.0], [2.0, 0.3], [-2.0, -0.5]])
Y = torch.tensor([0, 1, 2, 0, 0, 2])


def experts() -> MemoryStore:
    zero = torch.zeros(6)
    return MemoryStore({"b": [zero, SWAPPED], "a": [zero, RIGHT], "c": [zero, zero, STRONG]})


def test_logits_are_the_mean_over_the_experts_that_are_right() -> None:
    judged = judge(experts(), NETWORK, X, Y)
    assert judged.experts == 3
    # Example 3 is of class 0 but lies where the straight experts say 1: only the swapped one has it right.
    assert judged.right.tolist() == [2, 2, 3, 1, 2, 3]
    straight, swapped = (X @ each.reshape(3, 2).T for each in (RIGHT, SWAPPED))
    torch.testing.assert_close(judged.logits[0], 2 * straight[0])
    torch.testing.assert_close(judged.logits[2], (4 * straight[2] + swapped[2]) / 3)
    torch.testing.assert_close(judged.logits[3], swapped[3])


def test_an_example_that_no_expert_gets_right_counts_zero() -> None:
    judged = judge(experts(), NETWORK, X, Y, experts=1)
    assert judged.experts == 1
    assert judged.right.tolist() == [1, 1, 1, 0, 1, 1]
    assert judged.logits[3].tolist() == [0.0, 0.0, 0.0]
    assert rightly_classified(Y, judged.right, 1, seed=0).shape == (3,)


def test_judging_does_not_depend_on_how_batches_are_cut() -> None:
    whole, parts = judge(experts(), NETWORK, X, Y), judge(experts(), NETWORK, X, Y, batch=1)
    assert torch.equal(whole.right, parts.right)
    torch.testing.assert_close(whole.logits, parts.logits)


def test_an_earlier_record_may_be_asked() -> None:
    # At record 0 all weights are zero, and ties go to class 0.
    assert judge(experts(), NETWORK, X, Y, record=0).right.tolist() == [3, 0, 0, 3, 3, 0]


def test_the_network_given_keeps_its_own_weights() -> None:
    network = nn.Linear(2, 3, bias=False)
    before = network.weight.detach().clone()
    judge(experts(), network, X, Y)
    assert torch.equal(network.weight, before)
    assert network.training


def test_only_rightly_classified_examples_are_chosen_class_after_class() -> None:
    y = torch.arange(60) % 3
    right = (torch.arange(60) % 4 != 0).long()
    rows = rightly_classified(y, right, 5, seed=3)
    assert y[rows].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert bool((right[rows] > 0).all())
    assert len(set(rows.tolist())) == 15
    assert torch.equal(rows, rightly_classified(y, right, 5, seed=3))
    assert not torch.equal(rows, rightly_classified(y, right, 5, seed=4))


def test_a_class_with_too_few_right_examples_is_named_with_its_counts() -> None:
    with pytest.raises(DataError, match=r"only 1 of the 3 examples of class 0"):
        rightly_classified(Y, torch.tensor([1, 1, 1, 0, 0, 1]), 2)
    with pytest.raises(DataError, match="class 1 has 1 of the 6 examples"):
        rightly_classified(Y, torch.ones(6, dtype=torch.int64), 2)


def test_features_are_the_logits_of_the_last_record() -> None:
    torch.testing.assert_close(expert_features(experts(), NETWORK, X), X @ RIGHT.reshape(3, 2).T)
    torch.testing.assert_close(expert_features(experts(), NETWORK, X, expert="c"), X @ STRONG.reshape(3, 2).T)


def test_one_example_near_each_cluster_of_each_class_is_chosen() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    noise = torch.linspace(0, 50, 180).sin().reshape(2, 45, 2)
    points = torch.cat([centres.repeat(15, 1) + noise[0], 100 + centres.repeat(15, 1) + noise[1]])
    y = torch.arange(90) // 45
    rows = nearest_to_centres(points, y, 3, seed=1)
    assert y[rows].tolist() == [0] * 3 + [1] * 3
    for label in (0, 1):
        own = rows[3 * label : 3 * label + 3]
        # Every third example belongs to one cluster; all three are there, each by the example nearest to its mean.
        assert sorted(((own - 45 * label) % 3).tolist()) == [0, 1, 2]
        for row in own.tolist():
            cluster = torch.arange(90)[(torch.arange(90) // 45 == label) & ((torch.arange(90) - row) % 3 == 0)]
            distances = (points[cluster] - points[cluster].mean(0)).norm(dim=1)
            assert row == int(cluster[distances.argmin()])


def test_chosen_examples_are_all_different_even_among_equal_points() -> None:
    rows = nearest_to_centres(torch.zeros(8, 2), torch.arange(8) // 4, 3)
    assert len(set(rows.tolist())) == 6


def test_a_class_smaller_than_the_number_of_centres_is_named() -> None:
    with pytest.raises(DataError, match="class 1 has 1 of the 6 examples"):
        nearest_to_centres(X, Y, 2)


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="store: got 'no complete trajectory'"):
        judge(MemoryStore({}), NETWORK, X, Y)
    with pytest.raises(ArgumentError, match="record: got 2"):
        judge(experts(), NETWORK, X, Y, record=2)
    with pytest.raises(ArgumentError, match="experts: got 0"):
        judge(experts(), NETWORK, X, Y, experts=0)
    with pytest.raises(ArgumentError, match="y: got"):
        judge(experts(), NETWORK, X, Y[:-1])
    with pytest.raises(ArgumentError, match="y: got 3"):
        judge(experts(), NETWORK, X, Y + 1)
    with pytest.raises(ArgumentError, match="expert: got 'd'"):
        expert_features(experts(), NETWORK, X, expert="d")
    with pytest.raises(ArgumentError, match="per_class: got 0"):
        rightly_classified(Y, torch.ones_like(Y), 0)
    with pytest.raises(ArgumentError, match="points: got"):
        nearest_to_centres(X[:3], Y, 1)
