import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from distillrs import evaluate
from distillrs.errors import ArgumentError, DataError, TrainingDivergedError
from distillrs.evaluate import RealSet, compare, random_real
from distillrs.training import TrainingSettings
from distillrs.transforms import Standardise

SETTINGS = TrainingSettings(epochs=30, batch_size=32, learning_rate=0.1, momentum=0.9)
FULL = TrainingSettings(epochs=6, batch_size=64, learning_rate=0.1, momentum=0.9)


@pytest.fixture(scope="module")
def digits():
    return evaluate.data.load("digits")


@pytest.fixture(scope="module")
def transform(digits):
    return Standardise.fit(digits.x_train)


def factory(seed):
    return evaluate.networks.build("mlp", (1, 8, 8), 10, seed=seed, widths=(16,))


def mean_images(digits, transform, settings=SETTINGS):
    """Class means: better than one random example, cheap to make."""
    x = transform.forward(digits.x_train)
    images = torch.stack([x[digits.y_train == label].mean(0) for label in range(10)])
    return RealSet(images, torch.arange(10), transform, settings)


def soft(data, confidence=0.9):
    probabilities = torch.full((len(data.images), 10), (1 - confidence) / 9)
    probabilities[torch.arange(len(data.images)), data.labels] = confidence
    return RealSet(data.images, probabilities, data.transform, data.training)


@pytest.fixture(scope="module")
def hard_comparison(digits, transform):
    return compare(mean_images(digits, transform), digits, factory, full_data_settings=FULL)


def test_the_report_has_what_a_reader_needs_and_is_plain_json(hard_comparison):
    report = json.loads(json.dumps(hard_comparison.to_dict(), allow_nan=False))
    assert list(report["accuracy"]) == ["distilled", "random_real", "full_data"]
    for figures in report["accuracy"].values():
        assert figures["seeds"] == [0, 1, 2]
        assert figures["mean"] == pytest.approx(sum(figures["values"]) / 3)
        assert figures["std"] >= 0
    assert report["accuracy"]["full_data"]["mean"] > 0.9
    assert report["accuracy"]["distilled"]["mean"] > report["accuracy"]["random_real"]["mean"]
    assert report["labels"] == "hard"
    assert report["examples"] == {"distilled": 10, "random_real": 10, "full_data": 1294}
    assert set(report["seconds"]) == {"tuning", "distilled", "random_real", "full_data"}


def test_per_class_accuracies_average_to_the_accuracy(hard_comparison, digits):
    counts = torch.bincount(digits.y_test).double()
    for name, values in hard_comparison.per_class.items():
        together = float((torch.tensor(values, dtype=torch.float64) * counts).sum() / counts.sum())
        assert together == pytest.approx(hard_comparison.accuracy[name].mean, abs=1e-12)


def test_seeds_are_paired(hard_comparison):
    paired = hard_comparison.paired["random_real"]
    first, second = hard_comparison.accuracy["distilled"], hard_comparison.accuracy["random_real"]
    assert paired.differences == tuple(one - two for one, two in zip(first.values, second.values, strict=True))
    assert paired.low < paired.mean < paired.high


def test_scores_are_those_of_the_formula(hard_comparison):
    mean = {name: figures.mean for name, figures in hard_comparison.accuracy.items()}
    found = hard_comparison.scores
    assert found["improvement_over_random"] == mean["distilled"] - mean["random_real"]
    assert found["hard_label_recovery"] == mean["full_data"] - mean["distilled"]
    alpha = 0.5 * found["improvement_over_random"] - 0.5 * found["hard_label_recovery"]
    assert found["label_robust_score"] == pytest.approx((math.exp(alpha) - 1 / math.e) / (math.e - 1 / math.e))


def test_every_small_set_has_the_same_tuning_budget_on_validation_only(hard_comparison, digits, transform):
    tuned = hard_comparison.tuning
    assert set(tuned) == {"distilled", "random_real"}
    assert tuned["distilled"].keys() == tuned["random_real"].keys() == {0.1, 0.03, 0.3}
    for name, tried in tuned.items():
        assert tried[hard_comparison.learning_rates[name]] == max(tried.values())
    # The scores are validation accuracies of the first seed's networks, by hand:
    data = mean_images(digits, transform)
    for rate, score in tuned["distilled"].items():
        network = factory(0)
        evaluate.train(network, data, settings=TrainingSettings(30, 32, rate, 0.9), seed=0)
        by_hand = evaluate.accuracy(network, transform.forward(digits.x_val), digits.y_val)
        assert score == by_hand


def test_values_are_test_accuracies_of_networks_trained_as_stated(hard_comparison, digits, transform):
    rate = hard_comparison.learning_rates["random_real"]
    for place, seed in enumerate((0, 1, 2)):
        network = factory(seed)
        data = random_real(digits, [1] * 10, seed=seed, transform=transform)
        evaluate.train(network, data, settings=TrainingSettings(30, 32, rate, 0.9), seed=seed)
        by_hand = evaluate.accuracy(network, transform.forward(digits.x_test), digits.y_test)
        assert hard_comparison.accuracy["random_real"].values[place] == by_hand


def test_the_test_labels_have_no_influence_on_any_choice(digits, transform):
    shuffled = dataclasses.replace(digits, y_test=digits.y_test.flip(0))
    data = mean_images(digits, transform)
    first = compare(data, digits, factory, seeds=(0,))
    second = compare(data, shuffled, factory, seeds=(0,))
    assert first.tuning == second.tuning
    assert first.learning_rates == second.learning_rates
    assert first.accuracy["distilled"].mean > second.accuracy["distilled"].mean + 0.3


def test_a_learned_rate_is_offered_to_the_random_set_too(digits, transform):
    data = mean_images(digits, transform)
    object.__setattr__(data, "inner_lr", 0.0625)
    found = compare(data, digits, factory, seeds=(0,), learning_rates=())
    assert set(found.tuning["random_real"]) == set(found.tuning["distilled"]) == {0.1, 0.0625}


def test_without_a_search_the_settings_rate_is_used_for_all(digits, transform):
    found = compare(mean_images(digits, transform), digits, factory, seeds=(3, 4), learning_rates=())
    assert found.tuning == {}
    assert found.learning_rates == {"distilled": 0.1, "random_real": 0.1}
    assert found.accuracy["distilled"].seeds == (3, 4)
    assert "full_data" not in found.accuracy
    assert set(found.scores) == {"improvement_over_random"}


def test_the_same_comparison_gives_the_same_figures(hard_comparison, digits, transform):
    again = compare(mean_images(digits, transform), digits, factory, full_data_settings=FULL)
    assert again.accuracy == hard_comparison.accuracy
    assert again.per_class == hard_comparison.per_class


class Watched(nn.Module):
    """A teacher that remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []
        self.train()

    def forward(self, x):
        assert not self.training
        self.asked.append(x)
        return x.flatten(1)[:, :10] * 3


def test_soft_sets_stand_against_real_examples_with_soft_labels_of_the_same_teacher(digits, transform):
    teacher = Watched()
    found = compare(soft(mean_images(digits, transform)), digits, factory, seeds=(0, 1), teacher=teacher,
                    learning_rates=())  # fmt: skip
    assert found.labels == "soft"
    real = [random_real(digits, [1] * 10, seed=seed, transform=transform).images for seed in (0, 1)]
    assert any(torch.equal(asked, real[0]) for asked in teacher.asked)
    assert any(torch.equal(asked, real[1]) for asked in teacher.asked)
    assert teacher.training
    by_hand = factory(0)
    labels = teacher.eval()(real[0]).softmax(1)
    evaluate.train(by_hand, RealSet(real[0], labels, transform), settings=SETTINGS, seed=0)
    wanted = evaluate.accuracy(by_hand, transform.forward(digits.x_test), digits.y_test)
    assert found.accuracy["random_real"].values[0] == wanted
    assert "distilled_hard" in found.accuracy


def test_a_teacher_is_asked_in_batches(digits, transform):
    images = transform.forward(digits.x_train)
    data = soft(RealSet(images, digits.y_train, transform, TrainingSettings(1, 256, 0.1)))
    teacher = Watched()
    compare(data, digits, factory, seeds=(0,), teacher=teacher, learning_rates=())
    assert sum(map(len, teacher.asked)) == len(images)
    assert max(map(len, teacher.asked)) <= 512


def test_without_a_teacher_the_full_data_networks_label_the_real_examples(digits, transform):
    data = soft(mean_images(digits, transform))
    with pytest.raises(ArgumentError, match=r"^teacher: got None.*full_data_settings"):
        compare(data, digits, factory)
    found = compare(data, digits, factory, seeds=(0,), full_data_settings=FULL, learning_rates=())
    teacher = factory(0)
    everything = RealSet(transform.forward(digits.x_train), digits.y_train, transform)
    evaluate.train(teacher, everything, settings=FULL, seed=0)
    real = random_real(digits, [1] * 10, seed=0, transform=transform).images
    with torch.no_grad():
        labels = teacher(real).softmax(1).clamp_min(1e-30).log().softmax(1)
    network = factory(0)
    evaluate.train(network, RealSet(real, labels, transform), settings=SETTINGS, seed=0)
    wanted = evaluate.accuracy(network, transform.forward(digits.x_test), digits.y_test)
    assert found.accuracy["random_real"].values[0] == wanted
    assert found.scores["hard_label_recovery"] == pytest.approx(
        found.accuracy["full_data"].mean - found.accuracy["distilled_hard"].mean
    )
    assert list(found.accuracy)[-1] == "full_data"


def test_bytes_of_soft_labels_buy_real_examples(digits, transform):
    data = soft(mean_images(digits, transform))
    # A hundred classes would make it plainer; here a factor does: labels in float64, ten copies' worth.
    heavy = RealSet(data.images, data.labels.double(), transform, SETTINGS)
    found = compare(heavy, digits, factory, seeds=(0,), teacher=Watched(), learning_rates=())
    budget = 10 * (64 * 4 + 10 * 8)
    assert found.stored_bytes["distilled"] == budget
    assert found.equal_bytes == {"same_types": budget // (64 * 4 + 8), "original_types": budget // (64 * 4 + 1)}
    assert found.examples["random_real_equal_bytes"] == 12
    assert found.stored_bytes["random_real_equal_bytes"] <= budget
    assert found.labels == "soft"


def test_hard_sets_cost_what_real_ones_cost(hard_comparison):
    assert hard_comparison.stored_bytes["distilled"] == hard_comparison.stored_bytes["random_real"] == 2640
    assert hard_comparison.equal_bytes["same_types"] == 10
    assert "random_real_equal_bytes" not in hard_comparison.accuracy


def test_other_sets_are_judged_the_same_way(digits, transform):
    other = random_real(digits, [2] * 10, seed=9, transform=transform)
    found = compare(mean_images(digits, transform), digits, factory, seeds=(0,), others={"twice": other})
    assert found.tuning["twice"].keys() == found.tuning["distilled"].keys()
    assert found.examples["twice"] == 20
    assert "twice" in found.paired


def test_selected_rows_are_real_examples_with_the_same_labels(digits, transform):
    rows = torch.arange(10)
    found = compare(mean_images(digits, transform), digits, factory, seeds=(0,), selected={"first": rows})
    real = RealSet(transform.forward(digits.x_train[rows]), digits.y_train[rows], transform)
    expected = compare(mean_images(digits, transform), digits, factory, seeds=(0,), others={"first": real})
    assert found.accuracy["first"] == expected.accuracy["first"]
    assert found.tuning["first"] == expected.tuning["first"]
    teacher = Watched()
    compare(soft(mean_images(digits, transform)), digits, factory, seeds=(0,), teacher=teacher, learning_rates=(),
            selected={"first": rows})  # fmt: skip
    assert any(torch.equal(asked, real.images) for asked in teacher.asked)


@pytest.mark.parametrize("rows", [torch.tensor([5000]), torch.tensor([-1]), torch.tensor([0.0]), [1]])
def test_rows_that_are_none_are_refused(digits, transform, rows):
    with pytest.raises(ArgumentError, match=r"^first: got"):
        compare(mean_images(digits, transform), digits, factory, selected={"first": rows})


class Shifted:
    """Views by hand: images moved by the epoch's number, and their labels by a teacher."""

    temperature = 3.0

    def __init__(self, teacher):
        self.teacher = teacher

    def at(self, images, epoch):
        seen = images.roll(epoch % 2, -1)
        return seen, (self.teacher(seen) / 3).softmax(1)

    def by(self, teacher):
        return Shifted(teacher)

    def label_bytes(self, images, classes):
        return 2 * images * classes * 2


def test_all_real_sets_are_labelled_view_by_view_as_the_distilled_one_is(digits, transform):
    teacher = Watched().eval()
    own = mean_images(digits, transform)
    data = dataclasses.replace(own, views=Shifted(teacher), classes=10)
    rows = torch.arange(10)
    found = compare(data, digits, factory, seeds=(0,), teacher=teacher, learning_rates=(), selected={"first": rows})
    assert found.labels == "views"
    assert list(found.accuracy) == ["distilled", "random_real", "first", "distilled_hard", "random_real_equal_bytes"]
    size = 10 * (64 * 4 + 8) + 2 * 10 * 10 * 2
    assert found.stored_bytes["distilled"] == found.stored_bytes["random_real"] == found.stored_bytes["first"] == size
    assert found.examples["random_real_equal_bytes"] == size // (64 * 4 + 8)
    x_test = transform.forward(digits.x_test)
    real = {"first": RealSet(transform.forward(digits.x_train[rows]), digits.y_train[rows], transform),
            "random_real": random_real(digits, [1] * 10, seed=0, transform=transform)}  # fmt: skip
    for name, small in real.items():
        network = factory(0)
        evaluate.train(network, dataclasses.replace(small, views=Shifted(teacher)), settings=SETTINGS, seed=0)
        assert found.accuracy[name].values == (evaluate.accuracy(network, x_test, digits.y_test),)
    network = factory(0)
    evaluate.train(network, own, settings=SETTINGS, seed=0)
    assert found.accuracy["distilled_hard"].values == (evaluate.accuracy(network, x_test, digits.y_test),)


def test_views_with_labels_of_their_own_are_not_augmented(digits, transform):
    data = mean_images(digits, transform, dataclasses.replace(SETTINGS, augmentation="flip"))
    object.__setattr__(data, "views", object())
    with pytest.raises(ArgumentError, match=r"^settings\.augmentation: got 'flip'"):
        compare(data, digits, factory, teacher=Watched())


def test_progress_counts_every_run_once(digits, transform):
    calls = []
    compare(mean_images(digits, transform), digits, factory, seeds=(0, 1), full_data_settings=FULL,
            on_progress=lambda *call: calls.append(call))  # fmt: skip
    assert [call[0] for call in calls] == list(range(1, 11))
    assert {call[1] for call in calls} == {10}
    assert {call[2] for call in calls} == {"distilled", "random_real", "full_data"}


def test_distilled_examples_from_the_test_set_are_refused(digits, transform):
    images = transform.forward(digits.x_test[:10])
    with pytest.raises(DataError, match="distilled: 10 of 10 examples stand in the test set"):
        compare(RealSet(images, torch.arange(10), transform, SETTINGS), digits, factory)


def test_rates_that_diverge_are_ruled_out_and_a_set_that_only_diverges_says_so(digits, transform):
    data = mean_images(digits, transform)
    found = compare(data, digits, factory, seeds=(0,), learning_rates=(1e38,))
    assert found.tuning["distilled"][1e38] is None
    assert found.learning_rates["distilled"] == 0.1
    wild = TrainingSettings(epochs=30, batch_size=32, learning_rate=1e38)
    with pytest.raises(TrainingDivergedError, match="distilled, seed 0, learning rate 1e"):
        compare(data, digits, factory, settings=wild, learning_rates=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, r"^seeds"),
        ({"seeds": (1, 1)}, r"^seeds"),
        ({"learning_rates": (-1.0,)}, r"^learning_rate: got -1"),
        ({"others": {"full_data": None}}, r"^others"),
    ],
)
def test_arguments_that_are_not_allowed_name_themselves(digits, transform, options, message):
    with pytest.raises(ArgumentError, match=message):
        compare(mean_images(digits, transform), digits, factory, **options)


def test_sets_that_do_not_fit_the_data_are_refused(digits, transform):
    data = mean_images(digits, transform)
    with pytest.raises(ArgumentError, match=r"^distilled: got \(64,\)"):
        compare(RealSet(data.images.flatten(1), data.labels, transform, SETTINGS), digits, factory)
    with pytest.raises(ArgumentError, match=r"^distilled: got '3 classes'"):
        compare(
            RealSet(data.images, torch.full((10, 3), 1 / 3), transform, SETTINGS), digits, factory, teacher=nn.Flatten()
        )
    with pytest.raises(ArgumentError, match=r"^settings: got None"):
        compare(RealSet(data.images, data.labels, transform), digits, factory)
    with pytest.raises(ArgumentError, match=r"^x: got 'another transform'"):
        compare(data, digits, factory, others={"x": random_real(digits, [1] * 10)})
    with pytest.raises(ArgumentError, match=r"^teacher: got \(10, 64\)"):
        compare(soft(data), digits, factory, teacher=nn.Flatten())
    with pytest.raises(ArgumentError, match=r"^bundle"):
        compare(data, (digits.x_train, digits.y_train), factory)
