"""One-shot pruning: importances one part at a time, budgets, the pruned form and its file."""

import contextlib
import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from distillrs import recipes
from distillrs.errors import ArgumentError, DataError
from distillrs.knowledge.forms import Importance, Masks, Pruned, Structure, masks_within, output_changes
from distillrs.knowledge.inputs import read_batch
from tiny_transformers import IDS, make, masks_of, output

BATCH = {"input_ids": IDS}


def inputs():
    return read_batch(BATCH, "labels", "ids", ())


def states(network, structure):
    """The outputs of the layers, and the logits."""
    found = []
    handles = [
        network.get_submodule(path).register_forward_hook(
            lambda module, args, out: found.append((out[0] if isinstance(out, tuple) else out).flatten(0, 1))
        )
        for path in structure.layers
    ]
    logits = output(network, IDS)
    for handle in handles:
        handle.remove()
    return found, logits.flatten(0, 1)


@pytest.mark.parametrize("kind", ["llama", "grouped", "gpt2"])
@torch.no_grad()
def test_importances_are_those_of_fresh_networks_without_the_part(kind):
    network = make(kind)
    structure = Structure.of(network)
    network.train()
    features, logits = output_changes(network, inputs(), tokens=1000, group=7, temperature=2.0)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    network.eval()
    whole, answers = states(network, structure)

    def gram(rows):
        rows = functional.normalize(rows, dim=1)
        return rows @ rows.T

    def check(layer, slots, columns, found):
        broken = copy.deepcopy(network)
        for slot in slots:
            broken.get_parameter(slot.name).index_fill_(slot.dim, columns, 0.0)
        other, changed = states(broken, structure)
        due = sum(float((gram(a) - gram(b)).square().sum()) for a, b in list(zip(other, whole, strict=True))[layer:])
        kl = 4 * functional.kl_div(
            (changed / 2).log_softmax(-1), (answers / 2).log_softmax(-1), log_target=True, reduction="batchmean"
        )
        assert abs(float(found[0]) - due) < 1e-3 * max(due, 1e-2)
        assert abs(float(found[1]) - float(kl)) < 1e-3 * max(float(kl), 1e-2)

    for layer, unit in enumerate(structure.attention):
        assert len(features.heads[layer]) == unit.shared
        size = unit.heads // unit.shared * unit.size
        for part in range(unit.shared):
            columns = torch.arange(part * size, (part + 1) * size)
            check(layer, unit.outputs, columns, (features.heads[layer][part], logits.heads[layer][part]))
    for layer, part in enumerate(structure.feed_forward):
        assert len(features.neurons[layer]) == 3
        for group in range(3):
            columns = torch.arange(group * 7, min(group * 7 + 7, part.neurons))
            check(layer, part.outputs, columns, (features.neurons[layer][group], logits.neurons[layer][group]))


@torch.no_grad()
def test_padding_takes_no_part_in_importances():
    network = make("llama")
    mask = torch.ones_like(IDS)
    mask[:, -2:] = 0
    found = []
    for last in (3, 8):
        ids = IDS.clone()
        ids[:, -2:] = last
        batch = read_batch({"input_ids": ids, "attention_mask": mask}, "labels", "ids", ())
        found.append(output_changes(network, batch, group=10))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(torch.stack(first.heads), torch.stack(second.heads))


def test_budgets_are_met_and_no_other_choice_is_worth_more():
    structure = Structure.of(make("grouped"))
    generator = torch.Generator().manual_seed(0)
    for share in (0.5, 0.7, 0.9):
        heads = tuple(torch.rand(2, generator=generator, dtype=torch.float64) for _ in range(2))
        neurons = tuple(torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2))
        importance = Importance(heads, neurons, 5)
        masks = masks_within(structure, importance, share, 9)
        limit = share * structure.macs(9)
        assert structure.macs(9, masks) <= limit

        def worth(head_marks, neuron_marks, values=importance):
            return float(
                (torch.cat(values.heads) * head_marks).sum() + (torch.cat(values.neurons) * neuron_marks).sum()
            )

        best = 0.0
        for marks in itertools.product((0.0, 1.0), repeat=12):
            head, neuron = torch.tensor(marks[:4]), torch.tensor(marks[4:])
            tops = [head[0 + int(heads[0].argmax())], head[2 + int(heads[1].argmax())]]
            tops += [neuron[int(neurons[0].argmax())], neuron[4 + int(neurons[1].argmax())]]
            tried = Masks(tuple(head.repeat_interleave(2).split(4)), tuple(neuron.repeat_interleave(5).split(20)))
            if all(tops) and structure.macs(9, tried) <= limit:
                best = max(best, worth(head, neuron))
        kept = torch.cat(masks.heads)[::2], torch.cat(masks.neurons)[::5]
        assert abs(worth(*kept) - best) < 1e-12
    with pytest.raises(ArgumentError, match=r"^share: got"):
        masks_within(structure, importance, 0.01, 9)
    with pytest.raises(ArgumentError, match="share"):
        masks_within(structure, importance, 1.5, 9)
    with pytest.raises(ArgumentError, match="importance"):
        masks_within(structure, Importance(heads, neurons, 4), 0.5, 9)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "encoder"])
@torch.no_grad()
def test_optin_gives_the_network_of_its_masks(kind):
    network = make(kind)
    before = copy.deepcopy(network.state_dict())
    found = recipes.optin(network, IDS if kind == "encoder" else BATCH, share=0.6, group=2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert 0.5 < found.report["share of multiplications"] <= 0.6
    assert found.macs == Structure.of(found.network).macs(IDS.shape[1])
    found.form.apply(network)
    torch.testing.assert_close(output(found.network, IDS), output(network, IDS), rtol=1e-5, atol=1e-5)
    assert sum(found.report["heads"]) == sum(int(mask.sum()) for mask in found.masks.heads)


@pytest.mark.parametrize("kind", ["grouped", "tied", "gpt2", "encoder"])
@torch.no_grad()
def test_the_form_gives_its_file_back(kind, tmp_path):
    network = make(kind)
    structure = Structure.of(network)
    form = Pruned(structure, masks_of(structure, 1, layers=True))
    form.apply(network)
    due = output(network, IDS)
    size = form.export(network, tmp_path / "student")
    assert size == (tmp_path / "student").stat().st_size
    assert size < sum(4 * p.numel() for p in make(kind).parameters())
    other = Pruned(structure, structure.full())
    read = other.restore(make(kind, seed=4), tmp_path / "student")
    torch.testing.assert_close(output(read, IDS), due, rtol=1e-5, atol=1e-5)
    form.remove(network)
    torch.testing.assert_close(output(network, IDS), output(make(kind), IDS), rtol=0, atol=0)
    sound = (tmp_path / "student").read_bytes()
    generator = torch.Generator().manual_seed(0)
    header = 8 + int.from_bytes(sound[:8], "little")
    for _ in range(60):
        content = bytearray(sound)
        place, bit = (int(torch.randint(high, (), generator=generator)) for high in (header, 8))
        content[place] ^= 1 << bit
        (tmp_path / "damaged").write_bytes(content)
        with contextlib.suppress(DataError, ArgumentError):
            form.restore(make(kind), tmp_path / "damaged")
    (tmp_path / "damaged").write_bytes(sound[:-1])
    with pytest.raises(DataError, match="damaged"):
        form.restore(make(kind), tmp_path / "damaged")


def test_what_masks_leave_is_trained_under_them():
    network = make("llama")
    structure = Structure.of(network)
    form = Pruned(structure, masks_of(structure, 1, channels=False))
    form.apply(network)
    output(network, IDS).square().mean().backward()
    unit, mask = structure.attention[0], form.masks.heads[0]
    gradient = network.get_parameter(unit.outputs[0].name.replace(".weight", ".parametrizations.weight.original")).grad
    parts = gradient.view(24, unit.heads, unit.size).square().sum((0, 2))
    assert torch.equal(parts > 0, mask > 0)


@pytest.mark.parametrize(
    ("make_it", "match"),
    [
        (lambda network: recipes.optin(network, BATCH, logit_share=-1), "logit_share"),
        (lambda network: recipes.optin(network, BATCH, tokens=0), "tokens"),
        (lambda network: recipes.optin(network, BATCH, group=0), "group"),
        (lambda network: recipes.optin(nn.Linear(2, 2), BATCH), "network"),
        (lambda network: Pruned(Structure.of(network), Masks((), ())), "masks"),
        (lambda network: Pruned(Structure.of(network), Structure.of(network).full()).materialise(network), "module"),
    ],
)
def test_messages(make_it, match):
    with pytest.raises(ArgumentError, match=match):
        make_it(make("llama"))


def test_masks_on_masks_are_refused():
    network = make("llama")
    structure = Structure.of(network)
    form = Pruned(structure, structure.full())
    form.apply(network)
    with pytest.raises(ArgumentError, match="module"):
        form.apply(network)
    with pytest.raises(ArgumentError, match="network"):
        output_changes(network, inputs(), structure)
