"""Nested networks: importance by hand, prefixes as submodels, the router's draws and costs, export."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillrs as dr
from distillrs import random, recipes, schedule
from distillrs.errors import ArgumentError, DataError
from distillrs.knowledge.forms import (
    ActivationImportance,
    Elastic,
    Masks,
    Sizes,
    Structure,
    activation_importance,
    layer_order,
    nested,
    router_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VOCABULARY = 19
BUDGETS = (1.0, 0.7, 0.45)


def llama(seed=0, layers=3, shared=2, tied=False):
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=shared,
        head_dim=4,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    network = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return network


def gpt2(seed=0):
    import transformers

    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_inner": 24, "n_layer": 3, "n_head": 4, "n_positions": 32}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, initializer_range=0.3)
    return transformers.GPT2LMHeadModel(config).eval()


def ids(rows=2, length=9, seed=3):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(network, tokens=None):
    with torch.no_grad():
        return network(ids() if tokens is None else tokens, use_cache=False).logits


def elastic(network=None, **options):
    form = Elastic(**({"budgets": BUDGETS, "order": (0, 2, 1), "layers": (2 / 3,), "length": 16} | options))
    return form, form.apply(llama() if network is None else network)


class TestImportance:
    def test_it_is_the_mean_over_the_tokens_that_are_there(self):
        network = llama()
        tokens, mask = ids(2, 6), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
        found = activation_importance(network, [{"input_ids": tokens, "attention_mask": mask}])
        # Without the padding: the rows one by one.
        norms, heads, neurons = torch.zeros(16), torch.zeros(4), torch.zeros(24)
        layer = network.model.layers[1]
        parts = [(module, norms, lambda i, o: o.abs()) for name, module in network.named_modules() if "norm" in name]
        parts.append((layer.self_attn.o_proj, heads, lambda i, o: i[0].unflatten(-1, (4, 4)).square().sum(-1).sqrt()))
        parts.append((layer.mlp.down_proj, neurons, lambda i, o: i[0].abs()))
        hooks = []
        for module, total, size in parts:

            def add(module, inputs, output, total=total, size=size):
                total += size(inputs, output).sum((0, 1))

            hooks.append(module.register_forward_hook(add))
        logits(network, tokens[:1])
        logits(network, tokens[1:, :4])
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(found.channels.float(), norms / 10, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.heads[1].float(), heads / 10, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.neurons[1].float(), neurons / 10, rtol=1e-4, atol=1e-5)
        parts = [{"input_ids": tokens[:1]}, {"input_ids": tokens[1:, :4]}]
        again = activation_importance(network, parts)
        torch.testing.assert_close(again.neurons[0], found.neurons[0], rtol=1e-5, atol=1e-6)

    def test_layers_go_one_by_one_by_what_their_removal_changes(self):
        network = llama()
        batches = [{"input_ids": ids()}]
        before = {name: value.clone() for name, value in network.state_dict().items()}
        found = layer_order(network, batches)
        assert network.state_dict().keys() == before.keys()

        def error(kept):
            small = copy.deepcopy(network)
            small.model.layers = nn.ModuleList([small.model.layers[i] for i in kept])
            small.config.num_hidden_layers = len(kept)
            full = logits(network)
            return float((logits(small) - full).square().sum() / full.square().sum())

        first = min(range(3), key=lambda gone: error([i for i in range(3) if i != gone]))
        rest = [i for i in range(3) if i != first]
        second = min(rest, key=lambda gone: error([i for i in rest if i != gone]))
        assert found == (next(i for i in rest if i != second), second, first)

    @pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(shared=4, tied=True), lambda: llama(shared=1)])
    def test_a_nested_network_computes_the_same_and_its_prefixes_matter_most(self, make):
        network = make()
        batches = [{"input_ids": ids(4, 12, 8)}]
        importance = activation_importance(network, batches)
        ordered = nested(network, importance)
        torch.testing.assert_close(logits(ordered), logits(network), rtol=0, atol=1e-5)
        again = activation_importance(ordered, batches)
        structure = Structure.of(ordered)
        for values in (again.channels, *again.neurons):
            assert (values.diff() <= 1e-6).all()
        for unit, values in zip(structure.attention, again.heads, strict=True):
            groups = values.view(unit.shared, -1)
            assert (groups.diff(dim=1) <= 1e-6).all()
            assert (groups.sum(1).diff() <= 1e-6).all()

    def test_what_does_not_fit_is_refused(self):
        network = llama()
        with pytest.raises(ArgumentError, match="batches"):
            activation_importance(network, [])
        with pytest.raises(ArgumentError, match="batches"):
            layer_order(network, [])
        found = activation_importance(network, [{"input_ids": ids()}])
        with pytest.raises(ArgumentError, match=r"neurons\[0\]"):
            nested(
                network, ActivationImportance(found.channels, found.heads, tuple(each[1:] for each in found.neurons))
            )
        with pytest.raises(ArgumentError, match="importance"):
            nested(network, ActivationImportance(found.channels, found.heads[:1], found.neurons))
        _, student = elastic()
        with pytest.raises(ArgumentError, match="plain network"):
            layer_order(student, [{"input_ids": ids()}])


class TestBudgets:
    @pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(shared=4, tied=True)])
    def test_the_exported_network_computes_what_the_masked_one_does_at_its_budget(self, make, tmp_path):
        network = nested(make(), activation_importance(make(), [{"input_ids": ids()}]))
        plain = copy.deepcopy(network)
        form, student = elastic(network)
        full = Structure.of(plain).macs(form.length)
        for budget in BUDGETS:
            masked = logits(form.choose(student, budget).eval())
            small = form.materialise(student)
            torch.testing.assert_close(logits(small), masked, rtol=0, atol=1e-5)
            cost = Structure.of(small).macs(form.length) / full
            assert abs(cost - budget) <= 0.02 * budget
            size = form.export(student, tmp_path / "small.safetensors")
            assert size == (tmp_path / "small.safetensors").stat().st_size
            again = form.restore(plain, tmp_path / "small.safetensors")
            assert torch.equal(logits(again), logits(small))
        torch.testing.assert_close(logits(form.choose(student, 1.0)), logits(plain), rtol=0, atol=1e-5)
        assert sum(each.numel() for each in small.parameters()) < sum(each.numel() for each in plain.parameters())

    def test_taking_the_form_off_gives_the_plain_network_back(self):
        plain = llama()
        form, student = elastic(copy.deepcopy(plain))
        parameters = {id(each) for each in plain.parameters()}
        assert not parameters & {id(each) for each in student.parameters()}
        kept = {id(each) for each in student.parameters()}
        assert form.remove(student) is student
        assert student.state_dict().keys() == plain.state_dict().keys()
        assert {id(each) for each in student.parameters()} < kept
        assert torch.equal(logits(student), logits(plain))
        with pytest.raises(ArgumentError, match="Elastic"):
            form.remove(student)

    def test_a_submodel_of_fewer_layers_leaves_out_the_last_of_the_order(self):
        form = Elastic((1.0, 2 / 3), order=(0, 2, 1), channels=(), heads=(), neurons=(), layers=(1 / 3, 2 / 3))
        plain = llama()
        student = form.apply(copy.deepcopy(plain))
        small = form.materialise(form.choose(student, 2 / 3))
        assert form.sizes(student, 2 / 3) == Sizes(16, (4, 4, 4), (24, 24, 24), 2)
        expected = copy.deepcopy(plain)
        expected.model.layers = nn.ModuleList([plain.model.layers[0], plain.model.layers[2]])
        expected.config.num_hidden_layers = 2
        torch.testing.assert_close(logits(small), logits(expected), rtol=0, atol=1e-6)

    def test_scores_decide_between_sizes_of_the_same_cost(self):
        form, student = elastic(layers=())
        router = router_of(student)
        wide = form.sizes(student, 0.7)
        with torch.no_grad():
            router.scores["neurons"][1] = torch.linspace(5, -5, router.scores["neurons"].shape[-1])
        narrow = form.sizes(student, 0.7)
        assert sum(narrow.neurons) < sum(wide.neurons)
        assert abs(router.cost(narrow) - 0.7) <= 0.02 * 0.7

    def test_the_cost_is_that_of_the_structure(self):
        _, student = elastic(head=True, length=20)
        router = router_of(student)
        student.train()
        for index in range(4):
            router.begin_step(dr.Step(index, total=10))
            masks = router.masks()
            expected = router.structure.macs(20, Masks(*(_detached(masks))), head=True)
            full = router.structure.macs(20, head=True)
            assert float(router.spent.detach()) == pytest.approx(expected / full, rel=1e-5)

    def test_arguments_that_are_not_allowed(self, tmp_path):
        for options, name in (
            ({"budgets": (1.2,)}, "budgets"),
            ({"budgets": (0.5, 0.5)}, "budgets"),
            ({"neurons": (0.0,)}, "neurons"),
            ({"weights": (1.0,)}, "weights"),
            ({"temperature": 0.0}, "temperature"),
            ({"length": 0}, "length"),
        ):
            with pytest.raises(ArgumentError, match=name):
                Elastic(**options)
        with pytest.raises(ArgumentError, match="allow more sizes"):
            Elastic((0.01,)).apply(llama())
        with pytest.raises(ArgumentError, match="order"):
            Elastic(order=(0, 0, 1)).apply(llama())
        with pytest.raises(ArgumentError, match="module"):
            Elastic().apply(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False))
        form, student = elastic()
        with pytest.raises(ArgumentError, match="module"):
            form.apply(student)
        with pytest.raises(ArgumentError, match="budget"):
            form.choose(student, 0.5)
        with pytest.raises(ArgumentError, match="budget"):
            form.sizes(student, 0.5)
        with pytest.raises(ArgumentError, match="Elastic"):
            form.materialise(llama())
        path = tmp_path / "file"
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match="damaged"):
            form.restore(llama(), path)
        form.export(form.choose(student, 0.7), path)
        with pytest.raises(ArgumentError, match="made of"):
            form.restore(llama(layers=1), path)
        with pytest.raises(ArgumentError, match="made of"):
            form.restore(llama(tied=True, shared=4), path)
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(DataError, match="damaged"):
            form.restore(llama(), path)


def _detached(masks):
    heads, neurons = (tuple(each.detach().round() for each in part) for part in (masks.heads, masks.neurons))
    return heads, neurons, masks.channels.detach().round(), masks.layers.detach().round()


class TestDraws:
    def test_budgets_are_drawn_by_their_weights_and_the_same_for_every_rank(self):
        _, student = elastic(weights=(0.5, 0.3, 0.2))
        router = router_of(student)
        drawn = [router.budget_at(dr.Step(index, seed=4)) for index in range(2000)]
        shares = [drawn.count(place) / 2000 for place in range(3)]
        assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
        assert drawn[:50] == [router.budget_at(dr.Step(index, seed=4, first_unit=77)) for index in range(50)]
        assert drawn[:50] != [router.budget_at(dr.Step(index, seed=5)) for index in range(50)]
        _, later = elastic(
            weights=(0.0, schedule.LinearRamp(1.0, 0.0, 1, begin=10), schedule.LinearRamp(0.0, 1.0, 1, begin=10))
        )
        assert {router_of(later).budget_at(dr.Step(index)) for index in range(10)} == {1}
        assert {router_of(later).budget_at(dr.Step(index)) for index in range(11, 30)} == {2}

    @pytest.mark.parametrize("hard", [True, False])
    def test_masks_are_the_mixture_of_prefixes_by_the_formula(self, hard):
        _, student = elastic(budgets=(0.7,), temperature=0.5, hard=hard)
        router = router_of(student.train())
        step = dr.Step(3, seed=2)
        router.begin_step(step)
        masks = router.masks()
        scores = router.scores["neurons"][0].detach()
        chance = random.uniform(range(1), *scores.shape, step=step, name="elastic neurons")[0]
        shares = ((scores - (-chance.log()).log()) / 0.5).softmax(-1)
        if hard:
            shares = F.one_hot(shares.argmax(-1), shares.shape[-1]).float()
        expected = sum(
            shares[:, place, None] * (torch.arange(24) < size) for place, size in enumerate(router.sizes["neurons"])
        )
        torch.testing.assert_close(torch.stack(masks.neurons).detach(), expected, rtol=0, atol=1e-6)
        values = torch.cat([*masks.heads, *masks.neurons, masks.channels, masks.layers]).detach()
        assert bool(((values == 0) | (values == 1)).all()) == hard
        if not hard:
            assert torch.autograd.grad(masks.channels.sum(), router.scores["channels"])[0].abs().sum() > 0

    def test_the_gradient_of_hard_masks_is_that_of_the_soft_ones(self):
        gradients = []
        for hard in (True, False):
            _, student = elastic(budgets=(0.7,), temperature=0.5, hard=hard)
            router = router_of(student.train())
            router.begin_step(dr.Step(1))
            masks = router.masks()
            total = sum(
                (torch.linspace(0, 1, len(each)) * each).sum() for each in (*masks.heads, masks.channels, masks.layers)
            )
            gradients.append(
                torch.autograd.grad(total, [router.scores[name] for name in ("heads", "channels", "layers")])
            )
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)

    def test_a_step_draws_what_it_draws_and_evaluation_draws_nothing(self):
        form, student = elastic(weights=(0.0, 1.0, 0.0))
        router = router_of(student)
        student.train()
        seen = []
        for index in (0, 1, 0):
            router.begin_step(dr.Step(index, total=10))
            seen.append(student(ids()).logits.detach())
        assert torch.equal(seen[0], seen[2])
        assert not torch.equal(seen[0], seen[1])
        student.eval()
        assert torch.equal(logits(form.choose(student, 1.0)), logits(student))
        torch.testing.assert_close(logits(student), logits(llama()), rtol=0, atol=1e-5)

    def test_accumulation_and_copies_work_between_forward_passes(self):
        form, student = elastic(weights=(0.0, 1.0, 0.0))
        router = router_of(student.train())
        router.begin_step(dr.Step(0, total=10))
        for part in ids().split(1):
            student(part).logits.square().mean().backward()
        assert all(each.grad is not None for each in router.scores.values())
        assert form.materialise(student) is not None
        # With the graph of a step in it, before and after its backward pass: averages and trainers copy then.
        pending = student(ids()).logits.square().mean()
        other = copy.deepcopy(student)
        assert router_of(other).spent.item() == router.spent.item()
        assert not router_of(other).spent.requires_grad
        assert torch.equal(other(ids()).logits, student(ids()).logits)
        router_of(other).begin_step(dr.Step(3, total=10))
        other(ids()).logits.square().mean().backward()
        assert all(each.grad is not None for each in router_of(other).scores.values())
        before = router.scores["heads"].grad.clone()
        pending.backward()
        assert not torch.equal(router.scores["heads"].grad, before)
        assert not any(value.requires_grad for value in student.state_dict(keep_vars=True).values()
                       if not isinstance(value, torch.nn.Parameter))  # fmt: skip
        student.eval()
        logits(student)
        copied = copy.deepcopy(student)
        assert torch.equal(logits(copied), logits(student))
        with torch.no_grad():
            next(copied.parameters()).add_(1)
        assert not torch.equal(logits(copied), logits(student))
        again = form.apply(llama(5))
        again.load_state_dict(student.state_dict())
        assert torch.equal(logits(form.choose(again, 0.45)), logits(form.choose(student, 0.45)))


class TestRecipe:
    def test_its_loss_is_the_divergence_of_the_submodel_and_the_distance_to_the_budget(self):
        parent = llama()
        _, student = elastic(copy.deepcopy(parent), weights=(0.0, 1.0, 0.0))
        objective = recipes.nemotron_elastic(student, parent, cost_weight=3.0, temperature=2.0)
        student.train()
        step = dr.Step(1, total=20)
        loss = objective({"input_ids": ids()}, step)
        router = router_of(student)
        p, q = (network.log_softmax(-1) for network in (logits(parent) / 2, student(ids()).logits / 2))
        expected = 4 * (p.exp() * (p - q)).sum(-1).mean()
        torch.testing.assert_close(loss.terms["distillation"], expected.detach(), rtol=1e-4, atol=1e-6)
        distance = abs(float(router.spent.detach()) - 0.7)
        assert distance > 0
        assert float(loss.terms["cost"]) == pytest.approx(distance, rel=1e-5)
        torch.testing.assert_close(loss.total.detach(), expected.detach() + 3 * distance, rtol=1e-4, atol=1e-6)
        loss.total.backward()
        assert all(each.grad is not None and each.grad[1].abs().sum() > 0 for each in router.scores.values())
        assert len(objective.parameter_groups()["student"]) == len(list(student.parameters()))

    def test_the_router_learns_the_budgets_and_submodels_come_nearer(self):
        parent = llama()
        form, student = elastic(
            nested(parent, activation_importance(parent, [{"input_ids": ids()}])),
            temperature=schedule.LinearRamp(1, 0.2),
        )
        objective = recipes.nemotron_elastic(student, parent, cost_weight=2.0)
        tokens, total = ids(8, 12), 60

        def distance():
            p = logits(parent, tokens).log_softmax(-1)
            q = logits(form.choose(student, 0.45).eval(), tokens).log_softmax(-1)
            return float((p.exp() * (p - q)).sum(-1).mean())

        before = distance()
        optimiser = torch.optim.Adam(objective.parameter_groups()["student"], 3e-3)
        student.train()
        costs = []
        for index in range(total):
            loss = objective({"input_ids": tokens}, dr.Step(index, total=total))
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
            costs.append(float(loss.terms["cost"]))
        assert distance() < 0.7 * before
        assert math.isfinite(sum(costs))

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ArgumentError, match="Elastic"):
            recipes.nemotron_elastic(llama(), llama())
        parent = llama()
        _, student = elastic(parent)
        with pytest.raises(ArgumentError, match="shares parameters"):
            recipes.nemotron_elastic(student, student)
