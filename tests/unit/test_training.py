import json
import math

import pytest
import torch
from torch import nn

from distillrs import training
from distillrs.errors import ArgumentError, TrainingDivergedError, UnknownNameError
from distillrs.training import TrainingSettings, classification_loss, train

SETTINGS = TrainingSettings(epochs=3, batch_size=4, learning_rate=0.1, momentum=0.9, weight_decay=1e-3)


def blobs(count=22, classes=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(count) % classes
    x = torch.randn(count, 5, generator=generator, dtype=dtype)
    x[torch.arange(count), y] += 3
    return x, y


def linear(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    network = nn.Linear(5, 3, dtype=dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.1)
    return network


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_hard_and_soft_losses_agree_with_their_formula():
    logits = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 2, 2, 0])
    probabilities = torch.rand(6, 4, dtype=torch.float64).softmax(1)
    by_hand = -(probabilities * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classification_loss(logits, probabilities), by_hand)
    one_hot = torch.eye(4, dtype=torch.float64)[labels]
    torch.testing.assert_close(classification_loss(logits, labels), classification_loss(logits, one_hot))


def test_the_soft_loss_reaches_the_labels():
    logits = torch.randn(3, 4, dtype=torch.float64)
    label_logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda free: classification_loss(logits, free.softmax(1)), (label_logits,))
    assert torch.autograd.gradgradcheck(lambda free: classification_loss(logits, free.softmax(1)), (label_logits,))


@pytest.mark.parametrize(
    "labels", [torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(3, 3), torch.zeros(3, dtype=torch.int32)]
)
def test_labels_that_do_not_fit_the_logits_are_refused(labels):
    with pytest.raises(ArgumentError, match=r"^labels: got"):
        classification_loss(torch.zeros(3, 4), labels)


def test_training_is_plain_sgd_with_momentum_and_decay_on_the_drawn_order():
    from distillrs import Step, random

    x, y = blobs()
    network = linear()
    result = train(network, x, y, SETTINGS, seed=5)
    reference = linear()
    w, b = (parameter.detach().clone() for parameter in reference.parameters())
    velocity = [torch.zeros_like(w), torch.zeros_like(b)]
    steps = 0
    for epoch in range(3):
        order = random.permutation(22, step=Step(epoch, seed=5), name="training order")
        for rows in order.split(4):
            error = (x[rows] @ w.T + b).softmax(1) - torch.eye(3, dtype=torch.float64)[y[rows]]
            gradients = [error.T @ x[rows] / len(rows), error.mean(0)]
            for value, moving, gradient in zip((w, b), velocity, gradients, strict=True):
                moving.mul_(0.9).add_(gradient + 1e-3 * value)
                value.sub_(0.1 * moving)
            steps += 1
    torch.testing.assert_close(weights(network), torch.cat([w.flatten(), b]), atol=1e-12, rtol=0)
    assert result.steps == steps == 18
    assert len(result.losses) == 3


def test_every_example_is_seen_once_in_an_epoch_and_the_last_batch_may_be_smaller():
    x, y = blobs()
    seen = []

    def rule(network, images, labels, loss, position):
        assert torch.equal(images, x[position.examples])
        assert torch.equal(labels, y[position.examples])
        assert images is position.unaugmented
        seen.append((position.epoch, position.batch, position.batches, position.epochs, position.examples))
        return training.plain(network, images, labels, loss, position)

    train(linear(), x, y, SETTINGS, rule=rule)
    assert [len(entry[4]) for entry in seen[:6]] == [4, 4, 4, 4, 4, 2]
    assert [entry[:4] for entry in seen[:6]] == [(0, batch, 6, 3) for batch in range(6)]
    for epoch in range(3):
        rows = torch.cat([entry[4] for entry in seen if entry[0] == epoch])
        assert rows.sort().values.tolist() == list(range(22))
    assert not torch.equal(seen[0][4], seen[6][4])


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    x, y = blobs(dtype=torch.float32)
    runs = []
    for seed in (0, 0, 1):
        network = linear(torch.float32)
        train(network, x, y, SETTINGS, seed=seed)
        runs.append(weights(network))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_continued_run_equals_one_that_was_never_interrupted_dropout_included():
    x, y = blobs(dtype=torch.float32)

    def make():
        torch.manual_seed(7)
        network = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        return network, torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9)

    whole, optimiser = make()
    train(whole, x, y, SETTINGS, optimiser=optimiser)

    class Interrupted(Exception):
        pass

    def stop(epoch, network):
        torch.rand(100)  # a caller's own draws between epochs must change nothing
        if epoch == 1:
            raise Interrupted

    half, optimiser = make()
    with pytest.raises(Interrupted):
        train(half, x, y, SETTINGS, optimiser=optimiser, after_epoch=stop)
    torch.manual_seed(99)
    result = train(half, x, y, SETTINGS, optimiser=optimiser, first_epoch=2)
    assert torch.equal(weights(half), weights(whole))
    assert result.steps == 6


def test_training_leaves_torchs_generator_and_the_networks_mode_alone():
    x, y = blobs(dtype=torch.float32)
    network = nn.Sequential(linear(torch.float32), nn.Dropout(0.2)).eval()
    before = torch.random.get_rng_state()
    train(network, x, y, SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not network.training


def test_parts_that_were_in_evaluation_mode_stay_there():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network[1].eval()
    train(network, torch.randn(6, 3), torch.arange(6) % 2, TrainingSettings(1, 3, 0.1))
    assert [part.training for part in network] == [True, False, True]


def test_callbacks_come_before_and_after_each_epoch():
    x, y = blobs()
    calls = []
    network = linear()
    train(
        network, x, y, SETTINGS,
        before_epoch=lambda epoch, given: calls.append(("before", epoch, given is network)),
        after_epoch=lambda epoch, given: calls.append(("after", epoch, given is network)),
    )  # fmt: skip
    assert calls == [(when, epoch, True) for epoch in range(3) for when in ("before", "after")]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.8] * 4),
        ("cosine", [0.4 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]),
        ("halve", [0.8, 0.8, 0.4, 0.4]),
        ("step", [0.8, 0.08, 0.08, 0.008]),
    ],
)
def test_schedules_give_their_rates_and_the_optimiser_gets_them(schedule, rates):
    settings = TrainingSettings(4, 32, 0.8, schedule=schedule, drop_at=(0.25, 0.75))
    assert [settings.rate(epoch) for epoch in range(4)] == pytest.approx(rates)
    x, y = blobs()
    network = linear()
    optimiser = torch.optim.SGD(network.parameters(), lr=123.0)
    used = []
    train(network, x, y, settings, optimiser=optimiser,
          after_epoch=lambda epoch, _: used.append(optimiser.param_groups[0]["lr"]))  # fmt: skip
    assert used == pytest.approx(rates)


def test_divergence_names_epoch_and_step():
    x, y = blobs()

    def rule(network, images, labels, loss, position):
        value = training.plain(network, images, labels, loss, position)
        return value * torch.nan if (position.epoch, position.batch) == (1, 2) else value

    with pytest.raises(TrainingDivergedError, match="epoch 1, step 2") as caught:
        train(linear(), x, y, SETTINGS, rule=rule)
    assert (caught.value.epoch, caught.value.step) == (1, 2)


def test_parameters_that_blow_up_in_the_last_step_are_noticed():
    x, y = blobs()

    def rule(network, images, labels, loss, position):
        value = training.plain(network, images, labels, loss, position)
        if (position.epoch, position.batch) == (2, position.batches - 1):
            network.weight.grad.fill_(torch.inf)
        return value

    with pytest.raises(TrainingDivergedError, match="parameter is not finite after epoch 2"):
        train(linear(), x, y, SETTINGS, rule=rule)


def test_a_large_rate_diverges_with_our_error():
    x, y = blobs()
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    with pytest.raises(TrainingDivergedError):
        train(network, x * 1e100, y, TrainingSettings(50, 4, 1e200))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "^epochs: got 0"),
        ({"epochs": True}, "^epochs: got True"),
        ({"batch_size": 2.0}, "^batch_size"),
        ({"learning_rate": 0}, "^learning_rate"),
        ({"learning_rate": math.nan}, "^learning_rate: got nan"),
        ({"momentum": 1.0}, "^momentum: got 1.0"),
        ({"weight_decay": -1}, "^weight_decay"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"drop_at": (0.5, 0.2)}, "^drop_at"),
        ({"drop_factor": 2}, "^drop_factor"),
        ({"augmentation": 3}, "^augmentation"),
    ],
)
def test_settings_that_are_not_allowed_name_themselves(change, message):
    with pytest.raises(ArgumentError, match=message):
        TrainingSettings(**({"epochs": 1, "batch_size": 1, "learning_rate": 1.0} | change))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"drop_at": 5}, "drop_at"), ({"drop_at": "abc"}, "drop_at"), ({"drop_at": None}, "drop_at"),
     ({"learning_rate": 10**400}, "learning_rate")],
)  # fmt: skip
def test_settings_of_the_wrong_kind_name_themselves(change, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        TrainingSettings(**{"epochs": 1, "batch_size": 1, "learning_rate": 0.1, **change})


def test_settings_survive_json_and_refuse_unknown_keys():
    settings = TrainingSettings(3, 4, 1, schedule="step", drop_at=(0.2, 0.4), augmentation="flip")
    assert TrainingSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert TrainingSettings.from_dict(SETTINGS.to_dict()) == SETTINGS
    with pytest.raises(UnknownNameError, match="did you mean 'momentum'"):
        TrainingSettings.from_dict(SETTINGS.to_dict() | {"momentun": 0.9})
    with pytest.raises(ArgumentError, match=r"^learning_rate: got None"):
        TrainingSettings.from_dict({"epochs": 1, "batch_size": 1})


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), "^images"),
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), "^images"),
        (torch.zeros(4, 5), torch.zeros(3, dtype=torch.int64), "^labels: got '3 rows'"),
        (torch.zeros(4, 5), torch.tensor([0, 1, 2, 3]), "^labels: got 3, allowed is class numbers below"),
        (torch.zeros(4, 5), torch.tensor([0, 1, 2, -1]), "^labels: got -1"),
        (torch.zeros(4, 5), torch.full((4, 3), 0.5), "^labels: .*probabilities"),
        (torch.zeros(4, 5), torch.full((4, 3), torch.nan), "^labels: .*probabilities"),
        (torch.zeros(4, 5), torch.full((4, 2), 0.5), "^labels: got '2 classes'"),
        (torch.zeros(4, 5), torch.zeros(4), "^labels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(x, y, message):
    with pytest.raises(ArgumentError, match=message):
        train(linear(torch.float32), x, y, SETTINGS)


def test_a_network_that_gives_no_logits_is_refused():
    x, y = blobs()
    with pytest.raises(ArgumentError, match=r"^network: got"):
        train(nn.Sequential(linear(), nn.Flatten(0)), x, y, SETTINGS)
    with pytest.raises(ArgumentError, match=r"^network: got"):
        train(nn.Flatten(), x, y, SETTINGS)
    with pytest.raises(ArgumentError, match=r"^network: got .*error on one example torch.float32 \(5,\)"):
        train(linear(), x.float(), y, SETTINGS)
    with pytest.raises(ArgumentError, match=r"^network: got .*error on one example torch.float64 \(4,\)"):
        train(linear(), x[:, :4], y, SETTINGS)


def test_the_augmentation_of_an_example_does_not_depend_on_its_batch():
    x = torch.rand(8, 1, 6, 6)
    y = torch.arange(8) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    seen = {}
    for batch_size in (8, 3):
        rows = {}

        def rule(network, images, labels, loss, position, rows=rows):
            for row, image in zip(position.examples.tolist(), images, strict=True):
                rows[row, position.epoch] = image.detach().clone()
            assert torch.equal(position.unaugmented, x[position.examples])
            return training.plain(network, images, labels, loss, position)

        settings = TrainingSettings(2, batch_size, 0.1, augmentation="crop_flip")
        train(network, x, y, settings, seed=1, rule=rule)
        seen[batch_size] = rows
    assert all(torch.equal(seen[8][key], seen[3][key]) for key in seen[8])
    assert any(not torch.equal(seen[8][row, 0], x[row]) for row in range(8))
    assert any(not torch.equal(seen[8][row, 0], seen[8][row, 1]) for row in range(8))
