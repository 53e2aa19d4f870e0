"""Low-rank adapters as a student form: what is evaluated is what is merged, written and read."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import distillrs as dr
from distillrs import recipes
from distillrs.errors import ArgumentError, DataError
from distillrs.knowledge.forms import Adapted, LowRank, Quantised
from tiny_transformers import IDS, KINDS, make, output


def same(kind, first, second):
    """Equal bits; torch's encoder layers take another path, of another rounding, where nothing requires a gradient."""
    exact = kind not in ("encoder", "post-norm")
    return torch.equal(first, second) if exact else torch.allclose(first, second, rtol=0, atol=1e-5)


def trained(form, network, seed=0):
    """The form with adapters at random values."""
    form.apply(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_taking_it_off_leaves_nothing(kind):
    network = make(kind)
    before, state = output(network, IDS), copy.deepcopy(network.state_dict())
    own = dict(network.named_parameters())
    next(iter(own.values())).requires_grad_(False)
    form = Adapted(LowRank(2))
    assert form.apply(network) is network
    assert same(kind, output(network, IDS), before)
    free = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert free
    assert all(name.endswith((".0.up", ".0.down")) for name in free)
    trained(form, form.remove(network))
    assert not same(kind, output(network, IDS), before)
    form.remove(network)
    assert same(kind, output(network, IDS), before)
    assert dict(network.named_parameters()).keys() == own.keys()
    assert all(parameter is own[name] for name, parameter in network.named_parameters())
    assert [each.requires_grad for each in network.parameters()] == [False] + [True] * (len(own) - 1)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_evaluated_is_what_is_merged_written_and_read(kind, tmp_path):
    form, network = Adapted(LowRank(2, alpha=3.0)), make(kind)
    trained(form, network)
    evaluated = output(network, IDS)
    plain = form.materialise(network)
    assert not any(hasattr(module, "parametrizations") for module in plain.modules())
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert same(kind, output(plain, IDS), evaluated)
    size = form.export(network, tmp_path / "adapter.safetensors")
    assert size == (tmp_path / "adapter.safetensors").stat().st_size
    # The form of the file counts.
    read = Adapted(LowRank(5)).restore(make(kind), tmp_path / "adapter.safetensors")
    assert same(kind, output(read, IDS), evaluated)
    assert torch.equal(output(network, IDS), evaluated)


def test_the_change_is_the_written_formula():
    layer = nn.Linear(5, 4, dtype=torch.float64)
    weight = layer.weight.detach().clone()
    form = Adapted(LowRank(3, alpha=2.0))
    trained(form, layer)
    delta = layer.parametrizations.weight[0]
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = x @ weight.mT + 2 / 3 * (x @ delta.down.mT) @ delta.up.mT + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert delta.up.shape == (4, 3)
    assert delta.down.shape == (3, 5)
    layer(x).square().sum().backward()
    assert layer.parametrizations.weight.original.grad is None
    assert delta.up.grad.abs().sum() > 0


def test_draws_are_bounded_differ_by_layer_and_repeat():
    made = [nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50), nn.Conv2d(4, 3, 3)) for _ in range(2)]
    for network in made:
        Adapted(LowRank(4, seed=3)).apply(network)
    first, second = ([layer.parametrizations.weight[0].down for layer in network] for network in made)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert 0.9 / math.sqrt(50) < float(first[0].detach().abs().max()) <= 1 / math.sqrt(50)
    assert 0.9 / 6 < float(first[2].detach().abs().max()) <= 1 / 6
    assert abs(float(first[0].detach().mean())) < 0.02


def test_targets_choose_layers_and_a_tied_weight_has_one_change():
    network = make("llama")
    Adapted(LowRank(2, targets=("q_proj", "layers.1.mlp.up_proj"))).apply(network)
    adapted = {name.split(".parametrizations")[0] for name, each in network.named_parameters() if each.requires_grad}
    expected = {f"model.layers.{i}.self_attn.q_proj" for i in range(2)} | {"model.layers.1.mlp.up_proj"}
    assert adapted == expected
    tied = make("tied")
    trained(Adapted(LowRank(2, targets=("lm_head",))), tied)
    assert tied.lm_head.parametrizations.weight[0] is tied.model.embed_tokens.parametrizations.weight[0]
    assert torch.equal(tied.lm_head.weight, tied.model.embed_tokens.weight)
    assert sum(parameter.requires_grad for parameter in tied.parameters()) == 2


def test_half_precision_weights_have_adapters_that_can_take_small_steps():
    layer = nn.Linear(8, 8, dtype=torch.bfloat16)
    form = Adapted(LowRank(2))
    trained(form, layer)
    delta = layer.parametrizations.weight[0]
    assert delta.up.dtype == torch.float32
    assert layer.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(form.materialise(layer).weight, layer.weight)


def test_what_is_trained_beside_the_adapters_and_moves_in_buffers_is_written(tmp_path):
    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))

    form, network = Adapted(LowRank(2, targets=("0",))), fresh()
    form.apply(network)
    network[2].weight.requires_grad_(True)
    optimiser = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], 0.5)
    for seed in range(3):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        network(x).square().sum().backward()
        optimiser.step()
    network.eval()
    form.export(network, tmp_path / "a.safetensors")
    read = form.restore(fresh(), tmp_path / "a.safetensors").eval()
    assert torch.equal(read(x), network(x))
    assert not torch.equal(read[2].weight, fresh()[2].weight)
    assert not torch.equal(read[1].running_mean, fresh()[1].running_mean)


def test_a_student_with_adapters_learns_and_its_base_does_not():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    teacher = copy.deepcopy(base)
    with torch.no_grad():
        teacher[2].weight.add_(torch.outer(torch.randn(3), torch.randn(16)))
    student = Adapted(LowRank(1)).apply(copy.deepcopy(base))
    objective = recipes.hinton(student, teacher, weight=1.0)
    parameters = objective.parameter_groups()["student"]
    assert {id(each) for each in parameters} == {id(each) for each in student.parameters() if each.requires_grad}
    optimiser = torch.optim.Adam(parameters, 0.05)
    x = torch.randn(64, 5)
    losses = []
    for index in range(150):
        loss = objective((x, torch.zeros(64, dtype=torch.int64)), dr.Step(index))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < 0.02 * losses[0]
    for layer, own in ((0, base[0]), (2, base[2])):
        assert torch.equal(student[layer].parametrizations.weight.original, own.weight)
    copied = copy.deepcopy(student)
    assert torch.equal(copied(x), student(x))
    loaded = Adapted(LowRank(1)).apply(copy.deepcopy(base))
    loaded.load_state_dict(student.state_dict())
    assert torch.equal(loaded(x), student(x))


def written(folder):
    network = trained(Adapted(LowRank(2)), make("llama"))
    Adapted(LowRank(2)).export(network, folder / "a.safetensors")
    return folder / "a.safetensors"


def other(change):
    network = make("llama")
    with torch.no_grad():
        change(network)
    return network


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda path: Adapted("a"), "adapter"),
        (lambda path: Adapted(LowRank(2)).apply(None), "module"),
        (lambda path: Adapted(LowRank(2)).apply(nn.Tanh()), "adapter"),
        (lambda path: Adapted(LowRank(2, targets=("q",))).apply(make("llama")), "adapter"),
        (lambda path: Adapted(LowRank(2)).apply(Quantised(2).apply(make("llama"))), "module"),
        (lambda path: Adapted(LowRank(2)).remove(make("llama")), "module"),
        (lambda path: Adapted(LowRank(2)).materialise(make("llama")), "module"),
        (lambda path: Adapted(LowRank(2)).export(make("llama"), path), "module"),
        (lambda path: Adapted(LowRank(2)).export(make("llama"), 3), "path"),
        (lambda path: Adapted(LowRank(2)).restore(make("llama"), None), "path"),
        (lambda path: Adapted(LowRank(2)).restore(make("gpt2"), written(path)), "module"),
        (lambda path: Adapted(LowRank(2)).restore(other(lambda n: n.lm_head.weight.mul_(2)), written(path)), "module"),
        (lambda path: LowRank(0), "rank"),
        (lambda path: LowRank(True), "rank"),
        (lambda path: LowRank(10**30), "rank"),
        (lambda path: LowRank(2, alpha=math.nan), "alpha"),
        (lambda path: LowRank(2, targets=(3,)), "targets"),
        (lambda path: LowRank(2, targets="q_proj"), "targets"),
        (lambda path: LowRank(2, seed=-1), "seed"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, name, tmp_path):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        call(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, about: about.update({"distillrs.form": "parts"}),
        lambda tensors, about: about.update(version="1"),
        lambda tensors, about: about.update(factors="[" * 100_000),
        lambda tensors, about: about.update(factors=json.dumps({"a": "b"})),
        lambda tensors, about: about.update(factors="{}"),
        lambda tensors, about: about.pop("base"),
        lambda tensors, about: tensors.pop(next(name for name in tensors if name.startswith("up."))),
        lambda tensors, about: tensors.update(other=torch.zeros(2)),
        lambda tensors, about: tensors.update({next(n for n in tensors if n.startswith("up.")): torch.zeros(2, 9)}),
        lambda tensors, about: tensors.update({next(n for n in tensors if n.startswith("up.")): torch.zeros(2)}),
    ],
)
def test_files_from_strangers(damage, tmp_path):
    path = written(tmp_path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    damage(tensors, about)
    save_file(tensors, path, about)
    with pytest.raises(DataError, match=r"a\.safetensors"):
        Adapted(LowRank(2)).restore(make("llama"), path)


def test_every_broken_byte_is_refused_or_harmless(tmp_path):
    path = written(tmp_path)
    content = path.read_bytes()
    for place in range(0, 2000, 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            read = Adapted(LowRank(2)).restore(make("llama"), path)
        except (DataError, ArgumentError):
            continue
        assert output(read, IDS).shape == (3, 7, 11)
