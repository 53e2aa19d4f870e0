"""The parts of a transformer: masked and sliced networks agree, costs are those of the matrices."""

import copy

import pytest
import torch
from torch import nn

from distillrs.errors import ArgumentError
from distillrs.knowledge.forms import Form, Masks, Stepped, Structure, ungate
from distillrs.knowledge.forms.protocol import begin_step
from distillrs.step import Step
from tiny_transformers import IDS, KINDS, VOCABULARY, make, masks_of, output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [False, True])
@torch.no_grad()
def test_masked_and_sliced_networks_agree(kind, layers):
    network = make(kind)
    whole = output(network, IDS)
    structure = Structure.of(network)
    for seed in range(4):
        masks = masks_of(structure, seed, layers=layers)
        small = structure.slice(network, masks)
        structure.gate(network, masks)
        masked = output(network, IDS)
        torch.testing.assert_close(output(small, IDS), masked, rtol=1e-5, atol=1e-5)
        assert (masked - whole).abs().max() > 1e-2
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())
        for length in (1, 9):
            assert Structure.of(small).macs(length, head=True) == structure.macs(length, masks, head=True)
        ungate(network)
        torch.testing.assert_close(output(network, IDS), whole, rtol=0, atol=0)
        assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_permuted_parts_give_the_same_function(kind):
    network = make(kind)
    structure = Structure.of(network)
    generator = torch.Generator().manual_seed(1)

    def order(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator)

    heads = [order(unit.heads) for unit in structure.attention]
    neurons = [order(part.neurons) for part in structure.feed_forward]
    channels = order(structure.width) if structure.residual else None
    permuted = structure.take(network, heads, neurons, channels)
    torch.testing.assert_close(output(permuted, IDS), output(network, IDS), rtol=1e-5, atol=1e-5)
    assert not torch.equal(next(iter(permuted.parameters())), next(iter(network.parameters()))) or channels is None


def test_heads_that_share_keys_keep_sharing_them_where_groups_stay_even():
    structure = Structure.of(make("grouped"))
    unit = structure.attention[0]
    assert (unit.heads, unit.shared) == (4, 2)
    for heads, due in (
        ([0, 1], ([0], 2)),
        ([0, 2], ([0, 1], 1)),
        ([2, 3, 0, 1], ([1, 0], 2)),
        ([0, 1, 2], ([0, 0, 1], 1)),
    ):
        found, group = unit.key_value_heads(torch.tensor(heads))
        assert (found.tolist(), group) == due


@pytest.mark.parametrize("kind", ["llama", "grouped", "gpt2", "encoder"])
def test_costs_are_those_of_the_matrices(kind):
    network = make(kind)
    structure = Structure.of(network)
    inside = [p for name, p in network.named_parameters() if p.ndim == 2 and ("layer" in name or ".h." in name)]
    products = sum(p.numel() for p in inside)
    seen = {"encoder": 2 * 8}.get(kind, 9)
    assert structure.macs(8) == products + 2 * 24 * seen
    assert structure.macs(8, head=True) - structure.macs(8) == (0 if kind == "encoder" else 24 * VOCABULARY)


@torch.no_grad()
def test_a_sliced_encoder_takes_masks_of_tokens_as_the_original_does():
    network = make("encoder")
    structure = Structure.of(network)
    masks = masks_of(structure, 1)
    small = structure.slice(network, masks)
    structure.gate(network, masks)
    x = torch.randn(3, 7, 24)
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    padding = torch.arange(7)[None] >= torch.tensor([[7], [5], [2]])
    for options in (
        {"mask": causal},
        {"mask": causal.isinf(), "src_key_padding_mask": padding},
        {"src_key_padding_mask": padding},
        {"mask": causal, "is_causal": True},
    ):
        found, due = small[1](x, **options), network[1](x, **options)
        there = ~padding[..., None] if "src_key_padding_mask" in options else torch.ones(3, 7, 1, dtype=torch.bool)
        torch.testing.assert_close(found * there, due * there, rtol=1e-5, atol=1e-5)
    with pytest.raises(ArgumentError, match="attn_mask"):
        small[1](x, mask=causal.expand(12, 7, 7))


def test_generation_of_a_sliced_network_uses_its_cache():
    network = make("grouped")
    structure = Structure.of(network)
    small = structure.slice(network, masks_of(structure, 3, layers=True))
    found = small.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    plain = small.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(found, plain)


def test_parameters_stay_the_same_objects_and_masks_reach_their_gradients():
    network = make("llama")
    before = dict(network.named_parameters())
    structure = Structure.of(network)
    soft = Masks(
        tuple(torch.full((unit.heads,), 0.5, requires_grad=True) for unit in structure.attention),
        tuple(torch.ones(part.neurons) for part in structure.feed_forward),
        torch.full((structure.width,), 0.5, requires_grad=True),
        torch.full((2,), 0.5, requires_grad=True),
    )
    structure.gate(network, soft)
    output(network, IDS).square().sum().backward()
    assert all(
        mask.grad is not None and mask.grad.abs().sum() > 0 for mask in (*soft.heads, soft.channels, soft.layers)
    )
    ungate(network)
    assert all(after is before[name] for name, after in network.named_parameters())


def test_masks_live_in_the_state_and_in_copies():
    network = make("tied")
    structure = Structure.of(network)
    masks = masks_of(structure, 2)
    structure.gate(network, masks)
    twin = make("tied", seed=9)
    structure.gate(twin, Masks(structure.full().heads, structure.full().neurons, torch.ones(structure.width)))
    twin.load_state_dict(network.state_dict())
    for other in (twin, copy.deepcopy(network)):
        torch.testing.assert_close(output(other, IDS), output(network, IDS), rtol=0, atol=0)


def test_messages():
    network = make("encoder")
    structure = Structure.of(network)
    full = structure.full()
    with pytest.raises(ArgumentError, match=r"masks\.channels"):
        structure.gate(network, Masks(full.heads, full.neurons, torch.ones(24)))
    with pytest.raises(ArgumentError, match=r"masks\.heads"):
        structure.gate(network, Masks(full.neurons, full.neurons))
    with pytest.raises(ArgumentError, match=r"masks.*between"):
        structure.slice(network, Masks(tuple(0.5 * each for each in full.heads), full.neurons))
    with pytest.raises(ArgumentError, match="leave out the layer"):
        structure.slice(network, Masks(tuple(0 * each for each in full.heads), full.neurons))
    with pytest.raises(ArgumentError, match="rising"):
        structure.take(network, layers=torch.tensor([1, 0]))
    with pytest.raises(ArgumentError, match="channels"):
        structure.take(network, channels=torch.arange(3))
    with pytest.raises(ArgumentError, match="network"):
        Structure.of(nn.Linear(3, 3))
    llama = make("llama")
    structure = Structure.of(llama)
    structure.gate(llama, structure.full())
    with pytest.raises(ArgumentError, match="plain network"):
        structure.take(llama, channels=torch.arange(3))


def test_a_normalisation_of_another_formula_is_refused():
    network = make("llama")
    structure = Structure.of(network)
    norm = network.get_submodule(structure.norms[0])
    norm.forward = lambda x: (1 + norm.weight) * x
    with pytest.raises(ArgumentError, match="RMSNorm"):
        structure.gate(network, masks_of(structure, 0))


def test_every_stepped_module_hears_of_the_step():
    class Noise(nn.Module):
        def begin_step(self, step):
            self.seen = step

    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Noise()))
    begin_step(network, Step(7, seed=3))
    assert network[1][0].seen == Step(7, seed=3)
    assert isinstance(network[1][0], Stepped)
    assert not isinstance(network[0], Stepped)
    assert Form.__abstractmethods__ == {"apply", "remove", "materialise", "export", "restore"}
