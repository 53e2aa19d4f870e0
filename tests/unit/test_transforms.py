import json

import pytest
import torch

from distillrs import transforms
from distillrs.errors import ArgumentError, UnknownNameError
from distillrs.transforms import Identity, Standardise, Zca


def examples(count=40, shape=(3, 4, 4), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator, dtype=dtype)


def test_standardise_gives_zero_mean_and_unit_deviation_per_channel():
    x = examples() * torch.tensor([1.0, 5.0, 0.1]).reshape(3, 1, 1) + 2
    seen = Standardise.fit(x).forward(x)
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3, dtype=x.dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3, dtype=x.dtype), atol=1e-5, rtol=0)


def test_a_constant_channel_keeps_its_scale():
    x = examples()
    x[:, 1] = 0.3
    fitted = Standardise.fit(x)
    assert fitted.std[1] == 1
    assert fitted.forward(x)[:, 1].abs().max() < 1e-6


def test_one_mean_serves_every_number_of_channels():
    one = Standardise(torch.tensor([0.5]), torch.tensor([0.25]))
    torch.testing.assert_close(one.forward(examples()), (examples() - 0.5) / 0.25)


def test_zca_whitens_to_the_covariance_of_its_formula():
    x = examples(400, (6,)) @ examples(6, (6,), seed=1)
    fitted = Zca.fit(x, regularisation=0.01)
    covariance = torch.cov(x.T)
    identity = torch.eye(6, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)
    wanted = vectors @ torch.diag(values / (values + 0.01)) @ vectors.T
    torch.testing.assert_close(torch.cov(fitted.forward(x).T), wanted, atol=1e-4, rtol=1e-4)
    # ZCA is the symmetric root: applying the map twice is dividing by (covariance + r).
    mapped = fitted.forward(fitted.mean.double() + identity)
    torch.testing.assert_close(mapped @ mapped, torch.linalg.inv(covariance + 0.01 * identity), atol=1e-2, rtol=1e-4)


def test_zca_of_examples_without_full_rank_can_be_inverted():
    x = examples(5, (1, 4, 4))
    fitted = Zca.fit(x)
    torch.testing.assert_close(fitted.inverse(fitted.forward(x)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["identity", "standardise", "zca"])
def test_a_transform_survives_json_and_tensors(kind):
    x = examples()
    made = {"identity": Identity(), "standardise": Standardise.fit(x), "zca": Zca.fit(x)}[kind]
    description = json.loads(json.dumps(made.describe()))
    again = transforms.restore(description, {name: value.clone() for name, value in made.tensors().items()})
    assert type(again) is type(made)
    assert isinstance(again, transforms.Transform)
    assert torch.equal(again.forward(x), made.forward(x))
    assert torch.equal(again.inverse(x), made.inverse(x))


@pytest.mark.parametrize(
    ("description", "tensors", "message"),
    [
        ({"kind": "zcaa"}, {}, "did you mean 'zca'"),
        ({}, {}, "transform: got 'None'"),
        ({"kind": "standardise"}, {"mean": torch.zeros(2)}, "transform standardise: std"),
        ({"kind": "zca", "regularisation": "x"}, {}, "transform zca: regularisation"),
        ({"kind": "standardise"}, {"mean": torch.zeros(2), "std": torch.ones(3)}, "^std: got"),
        ({"kind": "standardise"}, {"mean": torch.zeros(2), "std": torch.zeros(2)}, "^std: got 0.0"),
        ({"kind": "standardise"}, {"mean": torch.tensor([torch.nan]), "std": torch.ones(1)}, "^mean: .*finite"),
        ({"kind": "zca", "regularisation": -1}, {"mean": torch.zeros(2), "directions": torch.eye(2),
                                                 "variances": torch.ones(2)}, "^regularisation"),
        ({"kind": "zca", "regularisation": 1}, {"mean": torch.zeros(2), "directions": torch.eye(3),
                                                "variances": torch.ones(2)}, "^directions"),
        ({"kind": "zca", "regularisation": 1}, {"mean": torch.zeros(2), "directions": torch.eye(2),
                                                "variances": -torch.ones(2)}, "^variances"),
    ],
)  # fmt: skip
def test_a_broken_description_is_refused_by_name(description, tensors, message):
    with pytest.raises(ArgumentError, match=message):
        transforms.restore(description, tensors)


def test_an_unknown_kind_has_its_own_error():
    with pytest.raises(UnknownNameError):
        transforms.restore({"kind": "pca"}, {})


@pytest.mark.parametrize("x", [torch.zeros(2, 5, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3)])
def test_examples_of_another_shape_or_type_are_refused(x):
    for fitted in (Standardise.fit(examples()), Zca.fit(examples())):
        for call in (fitted.forward, fitted.inverse):
            with pytest.raises(ArgumentError, match=r"^x: got"):
                call(x)


def test_the_transform_does_not_alias_its_arguments():
    mean = torch.zeros(3)
    made = Standardise(mean, torch.ones(3))
    mean.fill_(9)
    assert made.mean.sum() == 0


def test_standardise_in_pieces_equals_the_whole_in_float64():
    x = torch.randn(9000, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 5 + 100
    fitted = Standardise.fit(x)
    flat = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(fitted.mean, flat.mean(1).float())
    torch.testing.assert_close(fitted.std, flat.std(1, correction=0).float())
