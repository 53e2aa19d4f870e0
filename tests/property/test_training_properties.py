import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distillrs import training
from distillrs.training import TrainingSettings, classification_loss, train

SETTINGS = st.builds(
    TrainingSettings,
    epochs=st.integers(1, 5),
    batch_size=st.integers(1, 12),
    learning_rate=st.floats(0.001, 0.5),
    momentum=st.floats(0, 0.95),
    weight_decay=st.floats(0, 0.01),
    schedule=st.sampled_from(["constant", "cosine", "halve", "step"]),
    drop_at=st.lists(st.floats(0.01, 0.99), max_size=3, unique=True).map(sorted).map(tuple),
    drop_factor=st.floats(0.01, 1),
    augmentation=st.sampled_from([None, "flip"]),
)


@given(SETTINGS)
def test_settings_survive_their_dictionary(settings):
    assert TrainingSettings.from_dict(settings.to_dict()) == settings


@given(SETTINGS)
def test_rates_never_rise_and_stay_positive(settings):
    rates = [settings.rate(epoch) for epoch in range(settings.epochs)]
    assert rates[0] <= settings.learning_rate
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
    assert min(rates) > 0


@given(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**32))
def test_soft_labels_of_certainty_are_hard_labels(rows, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=generator)
    certain = nn.functional.one_hot(labels, classes).double()
    torch.testing.assert_close(classification_loss(logits, labels), classification_loss(logits, certain))


@given(SETTINGS, st.integers(1, 25), st.integers(0, 2**64 - 1), st.data())
def test_a_run_continued_at_any_epoch_is_bit_for_bit_the_whole_run(settings, count, seed, data):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 3, 4, generator=generator)
    y = torch.randint(3, (count,), generator=generator)
    cut = data.draw(st.integers(0, settings.epochs))

    def make():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        return network, torch.optim.SGD(
            network.parameters(), lr=1.0, momentum=settings.momentum, weight_decay=settings.weight_decay
        )

    whole, optimiser = make()
    result = train(whole, x, y, settings, seed=seed, optimiser=optimiser)
    second, fresh = make()
    kept = {}

    def keep(epoch, network):
        if epoch + 1 == cut:
            kept.update({name: value.clone() for name, value in network.state_dict().items()})
            kept["optimiser"] = {key: value.clone() for key, value in _buffers(fresh).items()}

    first = train(second, x, y, settings, seed=seed, optimiser=fresh, after_epoch=keep)
    third, restored = make()
    if cut:
        momenta = kept.pop("optimiser")
        third.load_state_dict(kept)
        for place, parameter in enumerate(third.parameters()):
            if place in momenta:
                restored.state[parameter]["momentum_buffer"] = momenta[place]
    rest = train(third, x, y, settings, seed=seed, optimiser=restored, first_epoch=cut)
    for one, two in zip(whole.parameters(), third.parameters(), strict=True):
        assert torch.equal(one, two)
    assert first.losses == result.losses
    assert rest.losses == result.losses[cut:]


def _buffers(optimiser):
    parameters = optimiser.param_groups[0]["params"]
    found = {}
    for place, parameter in enumerate(parameters):
        buffer = optimiser.state[parameter].get("momentum_buffer")
        if buffer is not None:
            found[place] = buffer
    return found


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3))
def test_each_epoch_visits_every_row_exactly_once(count, batch_size, epochs):
    x = torch.arange(count, dtype=torch.float32)[:, None]
    y = torch.zeros(count, dtype=torch.int64)
    network = nn.Linear(1, 2)
    visited = [[] for _ in range(epochs)]

    def rule(network, images, labels, loss, position):
        assert len(images) == (
            batch_size if position.batch < position.batches - 1 else count - batch_size * position.batch
        )
        visited[position.epoch] += images[:, 0].long().tolist()
        return training.plain(network, images * 0, labels, loss, position)

    train(network, x, y, TrainingSettings(epochs, batch_size, 0.1), rule=rule)
    assert all(sorted(rows) == list(range(count)) for rows in visited)
