import pytest
import torch
from torch import nn

from distillrs import evaluate
from distillrs.errors import ArgumentError, DataError
from distillrs.evaluate import RealSet, SmallSet, random_real
from distillrs.evaluate.data import make_bundle
from distillrs.evaluate.measure import class_accuracies
from distillrs.evaluate.small_sets import counts_of
from distillrs.training import TrainingSettings, train
from distillrs.transforms import Standardise


@pytest.fixture(scope="module")
def digits():
    return evaluate.data.load("digits")


def test_accuracy_is_the_share_of_right_answers_whatever_the_batch():
    network = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3))
    x = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    y = torch.tensor([0, 1, 2, 1, 1, 0, 0])
    for batch in (1, 3, 100):
        assert evaluate.accuracy(network, x, y, batch=batch) == pytest.approx(5 / 7)
    assert class_accuracies(evaluate.predictions(network, x), y, 4) == [
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        1.0,
        None,
    ]


def test_measuring_runs_in_evaluation_mode_and_restores_it():
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
    x = torch.rand(50, 3)
    first = evaluate.predictions(network, x)
    assert torch.equal(first, evaluate.predictions(network, x))
    assert network.training


def test_measuring_leaves_parts_in_evaluation_mode_as_they_are():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network[1].eval()
    evaluate.predictions(network, torch.rand(5, 3))
    assert [part.training for part in (network, *network)] == [True, True, False]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(2)),
    ],
)
def test_accuracy_of_what_does_not_fit_is_refused(x, y):
    with pytest.raises(ArgumentError):
        evaluate.accuracy(nn.Linear(3, 3), x, y)


def test_random_real_examples_are_training_rows_with_their_labels(digits):
    transform = Standardise.fit(digits.x_train)
    counts = [1, 2, 3, 0, 1, 1, 1, 1, 1, 4]
    real = random_real(digits, counts, seed=5, transform=transform)
    assert isinstance(real, SmallSet)
    assert torch.bincount(real.labels, minlength=10).tolist() == counts
    known = {row.numpy().tobytes(): int(label) for row, label in
             zip(transform.forward(digits.x_train), digits.y_train, strict=True)}  # fmt: skip
    found = [known[row.numpy().tobytes()] for row in real.images]
    assert found == real.labels.tolist()
    assert len({row.numpy().tobytes() for row in real.images}) == sum(counts)
    assert real.stored_bytes() == sum(counts) * (64 * 4 + 8)


def test_random_real_examples_depend_on_the_seed_alone(digits):
    first, again, other = (random_real(digits, [2] * 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_a_class_with_too_few_examples_is_named(digits):
    with pytest.raises(DataError, match="class 3: 5000 examples are wanted, 1"):
        random_real(digits, [1, 1, 1, 5000, 1, 1, 1, 1, 1, 1])
    with pytest.raises(ArgumentError, match=r"^counts: got '2 counts'"):
        random_real(digits, [1, 1])


def test_classes_of_a_target_are_counted_hard_or_soft():
    hard = torch.tensor([0, 2, 2])
    assert counts_of(hard, 4) == [1, 0, 2, 0]
    assert counts_of(torch.eye(4)[hard] * 0.4 + 0.15, 4) == [1, 0, 2, 0]
    with pytest.raises(DataError, match="the set has class 2, the data has 2 classes"):
        counts_of(hard, 2)


def test_training_on_a_small_set_is_two_lines(digits):
    settings = TrainingSettings(epochs=60, batch_size=50, learning_rate=0.2, momentum=0.9)
    data = random_real(digits, [10] * 10)
    data = RealSet(data.images, data.labels, data.transform, settings)
    network = evaluate.networks.build("mlp", digits.shape, 10)
    model = evaluate.train(network, data)
    assert model is network
    assert evaluate.accuracy(model, digits.x_test, digits.y_test) > 0.75


def test_the_settings_are_the_sets_own_unless_others_are_given(digits):
    data = random_real(digits, [1] * 10)
    network = evaluate.networks.build("linear", digits.shape, 10)
    with pytest.raises(ArgumentError, match=r"^settings: got None"):
        evaluate.train(network, data)
    given = TrainingSettings(epochs=2, batch_size=5, learning_rate=0.1)
    other = evaluate.networks.build("linear", digits.shape, 10)
    result = train(other, data.images, data.target(), given)
    assert result.steps == 4
    for mine, theirs in zip(
        evaluate.train(network, data, settings=given).parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_what_is_no_network_or_no_set_is_refused_by_name(digits):
    data = random_real(digits, [1] * 10)
    with pytest.raises(ArgumentError, match=r"^network: got 3"):
        evaluate.train(3, data)
    with pytest.raises(ArgumentError, match=r"^data: got 'Tensor'"):
        evaluate.train(evaluate.networks.build("linear", digits.shape, 10), digits.x_train)


def test_zca_sets_are_evaluated_on_the_zca_transformed_test_set():
    # The transform travels with the set; judged on raw pixels the same network is worthless.
    from distillrs.transforms import Zca

    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator) * torch.logspace(0, -2, 12)[:, None]
    y = torch.arange(900) % 3
    hidden = torch.randn(900, 12, generator=generator)
    hidden[torch.arange(900), 9 + y] += 6
    x = (hidden @ mixing).numpy()
    bundle = make_bundle("mixed", {"x_train": x[:600], "y_train": y[:600].numpy(),
                                   "x_test": x[600:], "y_test": y[600:].numpy()})  # fmt: skip
    transform = Zca.fit(bundle.x_train, regularisation=1e-4)
    data = random_real(bundle, [60] * 3, transform=transform)
    settings = TrainingSettings(epochs=40, batch_size=32, learning_rate=0.1)
    network = evaluate.networks.build("linear", bundle.shape, 3)
    evaluate.train(network, data, settings=settings)
    through = evaluate.accuracy(network, data.transform.forward(bundle.x_test), bundle.y_test)
    raw = evaluate.accuracy(network, bundle.x_test, bundle.y_test)
    assert through > 0.9
    assert raw < through - 0.2


def test_a_condensed_set_from_disk_is_trained_and_compared_like_any_other(digits, tmp_path):
    from distillrs import condense

    transform = Standardise.fit(digits.x_train)
    x = transform.forward(digits.x_train)
    means = torch.stack([x[digits.y_train == label].mean(0) for label in range(10)])
    settings = TrainingSettings(epochs=40, batch_size=10, learning_rate=0.1, momentum=0.9)
    made = condense.Synthetic(means, condense.HardLabels(torch.arange(10)), inner_lr=0.0625)
    made.save(tmp_path, transform=transform, training=settings)
    data = condense.load(tmp_path)
    assert isinstance(data, SmallSet)
    network = evaluate.networks.build("mlp", digits.shape, 10)
    evaluate.train(network, data)
    alone = evaluate.accuracy(network, data.transform.forward(digits.x_test), digits.y_test)
    found = evaluate.compare(
        data, digits, lambda seed: evaluate.networks.build("mlp", digits.shape, 10, seed=seed),
        seeds=(0,), learning_rates=(),
    )  # fmt: skip
    assert set(found.tuning["distilled"]) == {0.1, 0.0625}
    assert found.stored_bytes["distilled"] == data.stored_bytes()
    if found.learning_rates["distilled"] == 0.1:
        assert found.accuracy["distilled"].mean == alone
