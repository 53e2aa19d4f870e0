"""Mixers of fixed memory in a small Llama with grouped heads: against their formulas, and in generation."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillrs as dr
from distillrs import recipes
from distillrs.errors import ArgumentError, UnknownNameError
from distillrs.knowledge import Objective
from distillrs.knowledge.forms import (
    FeatureMap,
    LinearAttention,
    MambaMixer,
    Tokens,
    chunked_recurrence,
    convert_mixers,
    mixer_paths,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VOCABULARY = 23


def llama(seed=0, implementation="sdpa", layers=2, **options):
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        attn_implementation=implementation,
        **options,
    )
    return transformers.LlamaForCausalLM(config).eval()


def shaken(network, scale=0.5, seed=5):
    """All that a conversion added, away from where it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".self_attn." in name and "_proj" not in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
                if name.endswith("rate"):
                    parameter.abs_()
    return network


def converted(kind, seed=0, shake=True, **options):
    network = llama(seed, **options)
    convert_mixers(network, kind="linear")
    if shake:
        shaken(network)
    if kind == "mamba":
        convert_mixers(network, kind="mamba")
        if shake:
            shaken(network)
    return network


def ids(batch=2, length=11, seed=3):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def rotate(x, positions, base=10000.0):
    """Pairs (i, i + d / 2) as complex numbers, turned by position times frequency."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def by_formula(mixer, u):
    """One sequence ``[L, hidden]`` through a mixer, from the equations, token by token."""
    is_mamba = isinstance(mixer, MambaMixer)
    length, d, repeats = len(u), mixer.head_dim, mixer.heads // mixer.groups
    x = torch.cat([mixer.q_proj(u), mixer.k_proj(u), mixer.v_proj(u)], -1)
    if is_mamba:
        kernel = mixer.convolution.shape[1]
        rows = [
            sum(mixer.convolution[:, kernel - 1 - j] * x[t - j] for j in range(kernel) if t >= j) for t in range(length)
        ]
        x = torch.stack(rows)
    heads = x.view(length, -1, d).transpose(0, 1)
    q, k, v = heads[: mixer.heads], heads[mixer.heads : mixer.heads + mixer.groups], heads[-mixer.groups :]
    positions = torch.arange(length, dtype=u.dtype)
    q, k = rotate(q, positions), rotate(k, positions)

    def features(part, vector):
        mapped = part @ vector
        return torch.cat([mapped.softmax(0), (-mapped).softmax(0)]) + 1e-6

    out = torch.zeros(length, mixer.heads, d, dtype=u.dtype)
    for h in range(mixer.heads):
        g = h // repeats
        memory = torch.zeros(2 * mixer.key_map.weight.shape[1], d, dtype=u.dtype)
        normaliser = memory[:, 0].clone()
        for t in range(length):
            step, decay = 1.0, 1.0
            if is_mamba:
                step = F.softplus(mixer.step(u[t]))[g]
                decay = torch.exp(-step * mixer.rate[g].clamp(min=0))
            write = step * features(mixer.key_map.weight[g], k[g, t])
            memory = decay * memory + torch.outer(write, v[g, t])
            normaliser = decay * normaliser + write
            read = features(mixer.query_map.weight[h], q[h, t])
            out[t, h] = (read @ memory) / (read @ normaliser)
            if is_mamba:
                out[t, h] += mixer.skip[h] * v[g, t]
    joined = out.flatten(1)
    if is_mamba:
        joined = joined * F.silu(mixer.gate(u))
    return mixer.o_proj(joined)


@pytest.mark.parametrize("kind", ["linear", "mamba"])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_a_mixer_gives_what_its_equations_give(kind, chunk):
    network = converted(kind).double()
    mixer = network.model.layers[1].self_attn
    mixer.chunk = chunk
    u = torch.randn(9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cosine_sine = network.model.rotary_emb.double()(u[None], torch.arange(9)[None])
    found, weights = mixer(u[None], cosine_sine)
    assert weights is None
    torch.testing.assert_close(found[0], by_formula(mixer, u), rtol=1e-6, atol=1e-6)


def test_the_mamba_mixer_begins_as_the_linear_attention_that_it_is_made_of():
    network = converted("linear")
    before = copy.deepcopy(network)
    assert convert_mixers(network, kind="mamba") == [f"model.layers.{i}.self_attn" for i in range(2)]
    tokens = ids(3, 40)
    torch.testing.assert_close(network(tokens).logits, before(tokens).logits, rtol=0, atol=1e-5)
    # Ranking by likelihood says little of a converted model: what it writes must be the same, too.
    options = {"max_new_tokens": 20, "do_sample": False}
    assert torch.equal(network.generate(tokens[:, :5], **options), before.generate(tokens[:, :5], **options))
    attention = llama()
    convert_mixers(attention, kind="mamba")
    torch.testing.assert_close(
        attention(tokens).logits, converted("linear", shake=False)(tokens).logits, atol=1e-5, rtol=0
    )


def test_every_new_parameter_of_the_mamba_mixer_gets_a_gradient_where_it_begins():
    network = converted("mamba", shake=False)
    F.cross_entropy(network(ids()).logits.flatten(0, 1), ids(seed=4).flatten()).backward()
    moved = {}
    for name, parameter in network.model.layers[0].self_attn.named_parameters():
        moved[name] = float(parameter.grad.abs().max())
    moved.pop("rate")
    assert all(value > 0 for value in moved.values()), moved


def test_a_rate_of_zero_may_rise_and_not_fall():
    mixer = converted("mamba", shake=False).model.layers[0].self_attn
    with torch.no_grad():
        mixer.rate[1] = -0.5
    for sign, expected in ((1, [-3.0, -3.0]), (-1, [0.0, 0.0])):
        mixer.rate.grad = None
        log_decay = mixer._dynamics(torch.ones(1, 3, 16))[1]
        assert (log_decay == 0).all()
        (sign * log_decay.sum()).backward()
        # Descent adds to the rate what the gradient takes.
        torch.testing.assert_close(mixer.rate.grad, torch.tensor(expected))


@pytest.mark.parametrize("kind", ["linear", "mamba"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_token_by_token_through_a_cache_gives_what_all_at_once_gives(kind, implementation):
    import transformers

    network = converted(kind, implementation=implementation)
    tokens = ids(2, 17)
    with torch.no_grad():
        whole = network(tokens).logits
        cache = transformers.DynamicCache(config=network.config)
        parts, sizes = [], []
        for part in tokens.split([5, 1, 1, 1, 6, 1, 2], 1):
            parts.append(network(part, past_key_values=cache, use_cache=True).logits)
            state = cache.layers[1].state
            sizes.append(state.memory.numel() + (0 if state.window is None else state.window.numel()))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=2e-5)
    assert cache.get_seq_length() == 17
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("kind", ["linear", "mamba"])
def test_generation_by_the_state_is_generation_by_full_passes(kind):
    network = converted(kind)
    prompt = ids(2, 6)
    found = network.generate(prompt, max_new_tokens=12, do_sample=False)
    expected = prompt
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat([expected, network(expected, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, expected)
    beams = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    slow = network.generate(prompt, use_cache=False, **beams)
    assert torch.equal(network.generate(prompt, **beams), slow)


@pytest.mark.parametrize("kind", ["linear", "mamba"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_changes_nothing_for_the_tokens_that_are_there(kind, implementation):
    network = converted(kind, implementation=implementation)
    tokens = ids(1, 8)
    with torch.no_grad():
        alone = network(tokens).logits
        for left, right in ((0, 4), (3, 0)):
            padded = F.pad(tokens, (left, right))
            mask = (padded != 0).long()
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            other = F.pad(ids(1, 8, seed=9), (0, left + right))
            found = network(
                torch.cat([padded, other]),
                attention_mask=torch.cat([mask, (other != 0).long()]),
                position_ids=torch.cat([positions, torch.arange(8 + left + right)[None]]),
            ).logits
            torch.testing.assert_close(found[:1, left : left + 8], alone, rtol=0, atol=1e-5)
            assert torch.isfinite(found).all()
        padded = F.pad(tokens, (3, 0))
        options = {"max_new_tokens": 7, "do_sample": False}
        written = network.generate(padded, attention_mask=(padded != 0).long(), **options)
        assert torch.equal(written[:, 3:], network.generate(tokens, **options))


@pytest.mark.parametrize("kind", ["linear", "mamba"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(kind, implementation):
    network = converted(kind, implementation=implementation)
    first, second, third = ids(1, 5), ids(1, 2, seed=8), ids(1, 6, seed=7)
    with torch.no_grad():
        parts = [network(each).logits for each in (first, second, third)]
        positions = torch.cat([torch.arange(n) for n in (5, 2, 6)])[None]
        packed = torch.cat([first, second, third], 1)
        found = network(packed, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, torch.cat(parts, 1), rtol=0, atol=1e-5)


def test_positions_tell_documents_apart_where_no_mask_is_made():
    mixer = converted("mamba").model.layers[0].self_attn
    mixer.config = copy.copy(mixer.config)
    mixer.config._attn_implementation_internal = "flash_attention_2"
    u = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, _ = mixer(u, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
        torch.testing.assert_close(found, torch.cat([mixer(u[:, :3])[0], mixer(u[:, 3:])[0]], 1), rtol=0, atol=1e-5)
        masked, _ = mixer(u, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 1]]))
        torch.testing.assert_close(masked[:, 2:], mixer(u[:, 2:])[0], rtol=0, atol=1e-5)


def test_low_precision_keeps_its_dtype_and_comes_near():
    network = converted("mamba")
    low = copy.deepcopy(network).bfloat16()
    with torch.no_grad():
        found = low(ids()).logits
        assert found.dtype == torch.bfloat16
        assert F.cosine_similarity(found.float().flatten(), network(ids()).logits.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("kind", ["linear", "mamba"])
def test_a_checkpoint_of_a_converted_network_is_read_into_one_that_is_converted_alike(kind):
    network = converted(kind)
    again = llama(9)
    convert_mixers(again, kind=kind)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(ids()).logits, network(ids()).logits)


def test_maps_are_drawn_by_their_seed_alone():
    networks = [llama() for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        torch.manual_seed(seed + 10)
        convert_mixers(network, initial="random", seed=seed, features=3)
    first, same, other = (network.model.layers[0].self_attn.query_map.weight for network in networks)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.shape == (4, 3, 6)
    assert not torch.equal(first[:2], networks[0].model.layers[0].self_attn.key_map.weight)
    assert not torch.equal(first, networks[0].model.layers[1].self_attn.query_map.weight)


class TestRefusals:
    def test_attention_that_this_form_cannot_take_over(self):
        with pytest.raises(ArgumentError, match="o_proj"):
            LinearAttention(nn.Linear(3, 3))
        attention = llama().model.layers[0].self_attn
        attention.is_causal = False
        with pytest.raises(ArgumentError, match="causal"):
            LinearAttention(attention)
        attention.is_causal, attention.sliding_window = True, 8
        with pytest.raises(ArgumentError, match="window of 8"):
            LinearAttention(attention)

    def test_a_rotation_of_another_kind(self):
        from transformers.models.cohere.configuration_cohere import CohereConfig
        from transformers.models.cohere.modeling_cohere import CohereAttention

        config = CohereConfig(hidden_size=16, num_attention_heads=2, num_key_value_heads=2, vocab_size=8)
        config._attn_implementation = "eager"
        with pytest.raises(ArgumentError, match="pairs coordinates"):
            LinearAttention(CohereAttention(config, 0))
        mixer = converted("linear").model.layers[0].self_attn
        with pytest.raises(ArgumentError, match="position_embeddings"):
            mixer(torch.zeros(1, 2, 16), (torch.ones(1, 2, 4), torch.zeros(1, 2, 4)))

    def test_masks_and_caches(self):
        import transformers

        network = converted("linear")
        mixer = network.model.layers[0].self_attn
        u = torch.zeros(1, 3, 16)
        with pytest.raises(ArgumentError, match="attention_mask"):
            mixer(u, attention_mask=torch.ones(1, 1, 3, 3, dtype=torch.bool))
        with pytest.raises(ArgumentError, match="attention_mask"):
            mixer(u, attention_mask=torch.ones(1, 2, 3, 3, dtype=torch.bool))
        with pytest.raises(ArgumentError, match="past_key_values"):
            mixer(u, past_key_values={})
        filled = transformers.DynamicCache(config=network.config)
        filled.update(torch.zeros(1, 2, 3, 6), torch.zeros(1, 2, 3, 6), 0)
        with pytest.raises(ArgumentError, match="past_key_values"):
            mixer(u, past_key_values=filled)
        cache = transformers.DynamicCache(config=network.config)
        mixer(u, past_key_values=cache)
        with pytest.raises(ArgumentError, match="past_key_values"):
            cache.update(torch.zeros(1, 2, 1, 6), torch.zeros(1, 2, 1, 6), 0)
        cache.reset()
        assert cache.get_seq_length() == 0

    def test_conversions(self):
        network = llama()
        with pytest.raises(ArgumentError, match="kind"):
            convert_mixers(network, kind="rwkv")
        with pytest.raises(UnknownNameError, match="self_attn"):
            convert_mixers(network, "model.layers.7.self_attn")
        with pytest.raises(ArgumentError, match="q_proj"):
            convert_mixers(network, ["model.layers.0.self_attn", "model.layers.1.mlp"])
        assert not mixer_paths(network)
        assert convert_mixers(network, "model.layers.0.self_attn") == ["model.layers.0.self_attn"]
        with pytest.raises(ArgumentError, match="not yet linear"):
            convert_mixers(network)
        convert_mixers(network, kind="mamba")
        assert mixer_paths(network, MambaMixer) == mixer_paths(network)
        with pytest.raises(ArgumentError, match="not yet mamba"):
            convert_mixers(network, kind="mamba")

    def test_numbers(self):
        with pytest.raises(ArgumentError, match="features"):
            FeatureMap(2, 4, features=0)
        with pytest.raises(ArgumentError, match="initial"):
            FeatureMap(2, 4, initial="zero")
        attention = llama().model.layers[0].self_attn
        with pytest.raises(ArgumentError, match="chunk"):
            LinearAttention(attention, chunk=0)
        with pytest.raises(ArgumentError, match="kernel"):
            MambaMixer(LinearAttention(attention), kernel=0)
        with pytest.raises(ArgumentError, match="mixer"):
            MambaMixer(attention)
        x = torch.zeros(1, 2, 3, 4)
        with pytest.raises(ArgumentError, match="chunk"):
            chunked_recurrence(x, x, x, chunk=0)
        with pytest.raises(ArgumentError, match="shapes"):
            chunked_recurrence(x, x, x[:, :, :2])
        with pytest.raises(ArgumentError, match="multiple"):
            chunked_recurrence(x[:, :1], x, x)


def test_a_mixed_network_keeps_keys_for_one_layer_and_a_state_for_the_other():
    network = llama()
    convert_mixers(network, "model.layers.0.self_attn", kind="mamba")
    shaken(network)
    prompt = ids(2, 4)
    found = network.generate(prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(found, network.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=False))


def test_nothing_and_one_token():
    x = torch.zeros(2, 2, 0, 3)
    outputs, memory = chunked_recurrence(x, x, x)
    assert outputs.shape == (2, 2, 0, 3)
    assert memory.shape == (2, 2, 3, 3)
    mixer = converted("mamba").model.layers[0].self_attn
    assert mixer(torch.zeros(2, 1, 16))[0].shape == (2, 1, 16)
    padded, _ = mixer.mix(torch.ones(1, 3, 16), None, Tokens(torch.zeros(1, 3, dtype=torch.bool)))
    assert torch.isfinite(padded).all()


class TestRecipe:
    def make(self, **options):
        teacher, student = llama(), converted("mamba", shake=False)
        return teacher, student, recipes.attention_to_mamba(student, teacher, align_steps=6, **options)

    def test_stage_one_is_the_mean_of_the_cosines_and_trains_the_maps(self):
        teacher, student, objective = self.make()
        batch = {"input_ids": ids(), "labels": ids()}
        assert isinstance(objective, Objective)
        loss = objective(batch, 0)
        outputs = []
        for network in (student, teacher):
            seen = []
            hooks = [
                layer.self_attn.register_forward_hook(lambda *given, seen=seen: seen.append(given[2][0]))
                for layer in network.model.layers
            ]
            network(ids())
            outputs.append(seen)
            for hook in hooks:
                hook.remove()
        gaps = [1 - F.cosine_similarity(s, t, dim=-1).mean() for s, t in zip(*outputs, strict=True)]
        torch.testing.assert_close(loss.total, torch.stack(gaps).mean())
        loss.total.backward()
        trained = {name for name, each in student.named_parameters() if each.grad is not None}
        assert trained == {
            f"model.layers.{i}.self_attn.{side}_map.weight" for i in range(2) for side in ("query", "key")
        }

    def test_stage_two_is_the_cross_entropy_of_the_next_token_and_trains_everything(self):
        _, student, objective = self.make()
        labels = ids().clone()
        labels[0, 4:] = -100
        loss = objective({"input_ids": ids(), "labels": labels}, 6)
        expected = F.cross_entropy(student(ids()).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        torch.testing.assert_close(loss.total, expected)
        loss.total.backward()
        assert all(each.grad is not None for each in student.parameters())

    def test_the_first_stage_brings_the_mixers_near_to_attention(self):
        _, student, objective = self.make()
        batch = {"input_ids": ids(8, 16), "labels": ids(8, 16)}
        optimiser = torch.optim.Adam(objective.parameter_groups()["student"], 0.05)
        losses = []
        for _ in range(25):
            loss = objective(batch, dr.Step(0))
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
            losses.append(float(loss.total.detach()))
        assert losses[-1] < 0.6 * losses[0]
        assert math.isfinite(losses[-1])
        assert len(objective.parameter_groups()["student"]) == len(list(student.parameters()))

    def test_a_student_with_attention_is_refused(self):
        with pytest.raises(ArgumentError, match="convert_mixers"):
            recipes.attention_to_mamba(llama(), llama(), align_steps=3)
        student = converted("mamba")
        with pytest.raises(ArgumentError, match="steps"):
            recipes.attention_to_mamba(student, llama(), align_steps=0)
