"""The small networks and the file of a sampler."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors
import safetensors.torch
import torch

from distillrs import random, transforms
from distillrs.diffusion import FewStepSampler, denoisers, few_step
from distillrs.errors import ArgumentError, DataError, UnknownNameError
from distillrs.schedule import Grid, RectifiedFlow, spaced
from distillrs.step import Step

T = torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64)
GAP = torch.tensor([0.4, 0.1, 0.0], dtype=torch.float64)
LABEL = torch.tensor([0, 2, 1])
NOISE = random.normal(3, 2, 3, step=0, name="noise")


def awake(network):
    """With other weights where a fresh network has zeros."""
    for index, value in enumerate(network.parameters()):
        value.data += 0.1 * random.normal(1, *value.shape, step=index, name="wake")[0]
    return network


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("mlp", (5,), {"width": 12, "depth": 2}),
        ("mlp", (1, 3, 4), {"width": 8, "depth": 1}),
        ("unet", (3, 7, 9), {"width": 8, "depth": 3}),
        ("unet", (1, 8, 8), {"width": 6, "depth": 2}),
    ],
)
def test_networks_keep_the_shape_and_read_everything(name, shape, options):
    x = random.normal(3, *shape, step=0, name="x")
    network = denoisers.build(name, shape, 3, seed=1, **options)
    out = network(x, T, label=LABEL)
    assert out.shape == x.shape
    assert torch.equal(network(x, T, GAP, label=LABEL), out)  # of a gap it knows nothing yet
    awake(network)
    out = network(x, T, GAP, label=LABEL)
    for other in (
        network(x + 0.1, T, GAP, label=LABEL),
        network(x, T / 2, GAP, label=LABEL),
        network(x, T, GAP / 2, label=LABEL),
        network(x, T, GAP, label=LABEL.flip(0)),
    ):
        assert float((out - other).detach().abs().max()) > 1e-4
    rows = torch.cat([network(x[i : i + 1], T[i : i + 1], GAP[i : i + 1], label=LABEL[i : i + 1]) for i in range(3)])
    assert torch.allclose(rows, out, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_forward_derivatives_are_those_of_differences(name):
    network = awake(denoisers.build(name, (1, 6, 6), width=8, depth=2)).double()
    x, d = (random.normal(3, 1, 6, 6, step=0, name=n, dtype=torch.float64) for n in ("x", "d"))
    _, slope = torch.func.jvp(lambda x, t, g: network(x, t, g), (x, T, GAP), (d, torch.ones(3).double(), -T))
    h = 1e-4
    up, down = network(x + h * d, T + h, GAP - h * T), network(x - h * d, T - h, GAP + h * T)
    # The waves of a time are single precision.
    assert torch.allclose(slope, (up - down) / (2 * h), rtol=1e-2, atol=2e-2)


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (denoisers.build("mlp", (4,), seed=seed, width=8) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.first.weight, same.first.weight)
    assert not torch.equal(one.first.weight, other.first.weight)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: denoisers.build("mlq", (4,)), UnknownNameError, "^network.*'mlq'.*mlp"),
        (lambda: denoisers.build("mlp", (4,), widht=3), UnknownNameError, "'widht'.*width"),
        (lambda: denoisers.build("mlp", (0,)), ArgumentError, r"^shape: got \(0,\)"),
        (lambda: denoisers.build("mlp", 4), ArgumentError, "^shape: got 4"),
        (lambda: denoisers.build("mlp", (2**16, 2**16)), ArgumentError, r"^shape: got \(65536"),
        (lambda: denoisers.build(3, (4,)), UnknownNameError, "^network: got '3'"),
        (lambda: denoisers.build("mlp", (4,), width=10**9), ArgumentError, "^width: got 1000000000"),
        (lambda: denoisers.build("unet", (1, 8, 8), depth=65536), ArgumentError, "^depth: got 65536, .* at most 4"),
        (lambda: denoisers.build("mlp", (4,), -1), ArgumentError, "^classes: got -1"),
        (lambda: denoisers.build("mlp", (4,), width=0), ArgumentError, "^width: got 0"),
        (lambda: denoisers.build("unet", (4,)), ArgumentError, r"^shape: got \(4,\)"),
        (lambda: denoisers.build("unet", (1, 4, 4), depth=4), ArgumentError, "^depth: got 4, allowed is at most 3"),
        (lambda: denoisers.build("mlp", (4,), 2)(torch.zeros(3, 4), T), ArgumentError, "^label: got None"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def sampler(method="ode", classes=("a", "b", "c"), times="t_gap"):
    path, options = RectifiedFlow(), {"width": 8, "depth": 1}
    grids = {1: spaced(1, path), 2: Grid([1.0, 0.3, 0.0], path)}
    raw = random.normal(40, 2, 3, step=0, name="raw") * 2 + 1
    network = awake(denoisers.build("mlp", (2, 3), len(classes), **options)).eval()
    transform = transforms.Standardise.fit(raw)
    return FewStepSampler(network, "mlp", options, (2, 3), classes, grids, times, method, transform)


@pytest.mark.parametrize("method", ["ode", "renoise"])
def test_a_sampler_goes_through_its_times(method):
    made = sampler(method)
    noise = random.normal(3, 2, 3, step=0, name="noise")
    one = torch.ones(3).double()
    with torch.no_grad():
        whole = noise - made.network(noise, one, one, label=LABEL)
        assert torch.allclose(made.run(noise, LABEL, steps=1), whole, atol=1e-6)
        if method == "ode":
            middle = noise - 0.7 * made.network(noise, one, one * 0.7, label=LABEL)
            end = middle - 0.3 * made.network(middle, one * 0.3, one * 0.3, label=LABEL)
            assert torch.allclose(made.run(noise, LABEL), end, atol=1e-6)
        else:
            first, second = made.run(noise, LABEL, seed=1), made.run(noise, LABEL, seed=2)
            assert not torch.allclose(first, second)
    drawn = made(3, labels=LABEL, seed=4, steps=1)
    start = random.normal(3, 2, 3, step=Step(0, seed=4), name="sampler")
    assert torch.allclose(drawn, made.transform.inverse(made.run(start, LABEL, steps=1)))
    assert torch.equal(made(4), made(4, labels=[0, 1, 2, 0]))


def test_a_sampler_comes_back_from_its_file(tmp_path):
    for made in (sampler(), sampler("renoise", (), "t")):
        made.save(tmp_path / "deep" / "sampler.safetensors")
        back = FewStepSampler.load(tmp_path / "deep" / "sampler.safetensors")
        assert (back.shape, back.classes, dict(back.grids)) == (made.shape, made.classes, dict(made.grids))
        for steps in (1, 2):
            assert torch.equal(back(5, steps=steps, seed=3), made(5, steps=steps, seed=3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_sampler_of_another_type_comes_back_in_it(dtype, tmp_path):
    made = sampler()
    made.network.to(dtype)
    made.save(tmp_path / "sampler.safetensors")
    back = FewStepSampler.load(tmp_path / "sampler.safetensors")
    assert {value.dtype for value in back.network.parameters()} == {dtype}
    assert back.run(NOISE, LABEL).dtype == dtype
    drawn = made(5, seed=3)
    assert drawn.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(back(5, seed=3), drawn)


@pytest.mark.parametrize("method", ["ode", "renoise"])
def test_many_rows_are_drawn_some_at_a_time(method, monkeypatch):
    made, noise = sampler(method), random.normal(11, 2, 3, step=0, name="many")
    labels = torch.arange(11) % 3
    whole = made.run(noise, labels, seed=6)
    seen = []
    made.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(few_step, "_TOGETHER", 4 * 6)
    parts = made.run(noise, labels, seed=6)
    assert seen == [4, 4, 4, 4, 3, 3]
    assert torch.allclose(parts, whole, atol=1e-6)
    assert made.run(noise[:0], labels[:0]).shape == (0, 2, 3)


def change(path, changes, more=()):
    with safetensors.safe_open(path, "pt") as opened:
        page = json.loads(opened.metadata()["distillrs"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    safetensors.torch.save_file(tensors | dict(more), path, {"distillrs": json.dumps(page | changes)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "another"}, "a sampler's file of version 1"),
        ({"version": 2}, "a sampler's file of version 1"),
        ({"path": "EDM"}, "^path: got 'EDM'"),
        ({"shape": "2, 3"}, "^shape: got"),
        ({"network": {"name": "mlp", "options": {"width": 16, "depth": 1}}}, "^network: got .tensors such as"),
        ({"network": {"name": "mlp", "options": {"width": 10**9}}}, "^network: got 'width 1000000000 beside"),
        ({"network": {"name": "mlp", "options": {"width": 900}}}, "^network: got .tensors such as"),
        ({"network": {"name": "mlp", "options": {"width": 10**30}}}, "^network: got 'width 1000"),
        ({"network": {"name": "mlp", "options": {"width": 8, "depth": 10**9}}}, "^network: got 'depth 1000"),
        ({"network": {"name": "unet", "options": {"width": 8, "depth": 10**12}}, "shape": [1, 8, 8]}, "^network: got"),
        ({"network": {"name": "mlp", "options": {"shape": [1], "width": 8}}}, "^option of mlp: got 'shape'"),
        ({"network": {"name": "mlp", "options": {"classes": 1}}}, "^option of mlp: got 'classes'"),
        ({"network": {"name": "mlp", "options": {"seed": 5}}}, "^option of mlp: got 'seed'"),
        ({"shape": [2**62, 4]}, r"^shape: got \(4611"),
        ({"shape": [2**20, 2**10]}, "^network: got .tensors such as"),
        ({"network": {"name": "os", "options": {}}}, "^network.*'os'"),
        ({"grids": {"x": [1.0, 0.0]}}, "^grids: got 'x'"),
        ({"grids": {"2": [1.0, 0.0]}}, "^grids: got"),
        ({"grids": {}}, "^grids: got"),
        ({"times": "r"}, "^times: got 'r'"),
        ({"method": "odd"}, "^method: got 'odd'"),
        ({"transform": {"kind": "pickle"}}, "pickle"),
    ],
)
def test_files_that_do_not_fit_are_refused(changes, message, tmp_path):
    path = tmp_path / "sampler.safetensors"
    sampler().save(path)
    change(path, changes)
    with pytest.raises(ArgumentError, match=message):
        FewStepSampler.load(path)


def test_a_network_of_more_numbers_than_torch_counts_is_refused(tmp_path):
    path = tmp_path / "sampler.safetensors"
    sampler().save(path)
    claim = {"network": {"name": "unet", "options": {"width": 2**16, "depth": 16}}, "shape": [1, 46340, 46340]}
    change(path, claim, {"network.ballast": torch.zeros(2**16)})
    with pytest.raises(ArgumentError, match=r"^network: got .unet with"):
        FewStepSampler.load(path)


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Standardise(torch.zeros(5), torch.ones(5)),
        transforms.Zca(torch.zeros(7), torch.eye(7), torch.ones(7), 0.1),
    ],
)
def test_a_transform_of_other_examples_is_refused(transform, tmp_path):
    replace(sampler(), transform=transform).save(tmp_path / "sampler")
    with pytest.raises(ArgumentError, match=r"^transform: got .* examples of shape \(2, 3\)"):
        FewStepSampler.load(tmp_path / "sampler")


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        FewStepSampler.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"something else")
    with pytest.raises(ArgumentError, match=r"^path: got .*a safetensors file"):
        FewStepSampler.load(tmp_path / "bad")
    safetensors.torch.save_file({"a": T}, tmp_path / "bare")
    with pytest.raises(ArgumentError, match="a sampler's file of version 1"):
        FewStepSampler.load(tmp_path / "bare")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampler()(0), "^count: got 0"),
        (lambda: sampler()(2, labels=[0]), "^labels: got"),
        (lambda: sampler()(2, labels=[0, 3]), "2 class numbers below 3"),
        (lambda: sampler()(2, steps=7), "^steps: got 7, allowed is one of 1, 2"),
        (lambda: sampler()(2, steps=[1]), r"^steps: got \[1\]"),
        (lambda: sampler()(2, labels="ab"), "^labels: got 'ab'"),
        (lambda: sampler()(1, labels=[0.7]), "^labels: got 'torch.float32"),
        (lambda: sampler()(2, labels=[True, False]), "^labels: got 'torch.bool"),
        (lambda: sampler()(2, labels=[[0], [1]]), "^labels: got 'torch.int64 of shape"),
        (lambda: sampler(classes=())(2, labels=[0, 0]), r"^labels: got \[0, 0\], allowed is None"),
        (lambda: sampler().run(NOISE), "^labels: got None, allowed is 3 class numbers below 3"),
        (lambda: sampler().run(NOISE, LABEL[:1]), "^labels: got"),
        (lambda: sampler().run(NOISE, LABEL + 1), r"^labels: got \[1, 3, 2\]"),
        (lambda: sampler().run(NOISE.flatten(1), LABEL), r"^noise: got 'shape \(3, 6\)"),
        (lambda: sampler().run(NOISE.long(), LABEL), "^noise: got"),
        (lambda: sampler().run([0.0], LABEL), "^noise: got 'list'"),
        (lambda: replace(sampler(), network=3), "^network: got 'int'"),
        (lambda: replace(sampler(), name="cnn"), "^network: got 'cnn'"),
        (lambda: replace(sampler(), options={"wide": 8}), "^option of mlp: got 'wide'"),
        (lambda: replace(sampler(), grids=3), "^grids: got 3"),
        (lambda: replace(sampler(), grids={1: 3}), "^grids: got"),
    ],
)
def test_calls_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
