import pytest
import torch
from torch import nn

from distillrs.errors import ArgumentError, UnknownNameError
from distillrs.evaluate import networks


def a_network(shape, classes, scale=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * scale, classes))


def no_network(shape, classes):
    return shape


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_convnet_has_the_published_number_of_parameters():
    # 320,010 is the size of the ConvNet that stored CIFAR-10 trajectories have.
    assert count(networks.build("convnet", (3, 32, 32), 10)) == 320_010
    assert count(networks.build("convnet", (3, 32, 32), 100)) == 504_420


def test_images_of_28_pixels_are_padded_to_32():
    network = networks.build("convnet", (1, 28, 28), 10, width=8)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert network[-1].in_features == 8 * 4 * 4


def test_the_perceptron_has_the_asked_widths():
    network = networks.build("mlp", (1, 8, 8), 10, widths=(32, 16))
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [32, 16, 10]
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("name", ["convnet", "mlp", "linear"])
def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_untouched(name):
    before = torch.random.get_rng_state()
    first = networks.build(name, (1, 8, 8), 10, seed=3)
    again = networks.build(name, (1, 8, 8), 10, seed=3)
    other = networks.build(name, (1, 8, 8), 10, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(left, right) for left, right in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["convnet", "mlp", "linear"])
def test_no_network_keeps_running_statistics(name):
    assert not list(networks.build(name, (1, 8, 8), 10).buffers())


def test_one_example_does_not_change_anothers_logits():
    network = networks.build("convnet", (1, 8, 8), 10, width=8)
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]))


def test_a_function_of_the_users_own_is_taken_by_name():
    assert count(networks.build(f"{__name__}:a_network", (4,), 3, scale=1)) == 15
    with pytest.raises(UnknownNameError, match="did you mean 'scale'"):
        networks.build(f"{__name__}:a_network", (4,), 3, scael=1)
    with pytest.raises(ArgumentError, match=r"^network: .*not tuple"):
        networks.build(f"{__name__}:no_network", (4,), 3)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "message"),
    [
        ("convent", (1, 8, 8), 10, {}, "did you mean 'convnet'"),
        ("no_such_module:f", (1, 8, 8), 10, {}, "no_such_module"),
        ("json:nothing", (1, 8, 8), 10, {}, "nothing"),
        (":f", (1, 8, 8), 10, {}, "^network"),
        ("convnet", (64,), 10, {}, r"^shape: got \(64,\).*mlp"),
        ("convnet", (1, 8, 8), 10, {"depth": 4}, "^depth: got 4, allowed is at most 3 for images of 8 x 8"),
        ("convnet", (1, 8, 8), 10, {"with": 4}, "did you mean 'width'"),
        ("convnet", (1, 8, 8), 10, {"width": 0}, "^width: got 0"),
        ("mlp", (64,), 10, {"widths": "64"}, "^widths"),
        ("mlp", (64,), 10, {"widths": (0,)}, "^widths"),
        ("mlp", (64,), 1, {}, "^classes: got 1"),
        ("mlp", (), 10, {}, "^shape"),
        ("mlp", (64.0,), 10, {}, "^shape"),
    ],
)
def test_what_makes_no_network_is_refused_by_name(name, shape, classes, options, message):
    with pytest.raises(ArgumentError, match=message):
        networks.build(name, shape, classes, **options)
