"""Weights on few levels: values, gradients, files, and the recipes over them."""

import copy
import io
import math
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import distillrs as dr
from distillrs import knowledge, recipes
from distillrs.errors import ArgumentError, DataError
from distillrs.knowledge.forms import LearnedLevels, Quantised, begin_step, bits_by_gradient, gradient_bits
from distillrs.knowledge.forms.levels import Codes
from distillrs.registry import find_recipe
from distillrs.step import Step

MIXED = Quantised({"0.*": 4, "2.weight": 1, "4.weight": 8}, None)


def network(seed: int = 0, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def textbook(weight: torch.Tensor, bits: int, bucket: int | None) -> torch.Tensor:
    """Element by element."""
    values = weight.flatten().tolist()
    size = bucket or max(1, len(values))
    steps = 2**bits - 1
    found = []
    for begin in range(0, len(values), size):
        part = values[begin : begin + size]
        low, scale = min(part), max(part) - min(part)
        found += [scale * round(steps * (v - low) / scale) / steps + low if scale else v for v in part]
    return torch.tensor(found, dtype=torch.float64).view(weight.shape)


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(1, 1), (3, 5), (7, 1, 4), (2, 130), (0, 3)]),
    bits=st.integers(1, 8),
    bucket=st.sampled_from([None, 1, 4, 256]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_uniform_levels_are_those_of_the_formula_and_of_its_file(shape, bits, bucket, dtype, seed, tmp_path_factory):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    module = nn.Module()
    module.weight = nn.Parameter(weight.clone())
    form = Quantised(bits=bits, bucket=bucket)
    form.apply(module)
    span = float(weight.max() - weight.min()) if weight.numel() else 0.0
    # Where a value lies in the middle of two levels, rounding of the division decides.
    error = (module.weight.double() - textbook(weight.double(), bits, bucket)).abs()
    near = error <= 1e-6 + {torch.bfloat16: 0.02}.get(dtype, 0) * (1 + span)
    middle = (error - span / (2**bits - 1)).abs() <= 1e-5 if bucket is None else torch.zeros_like(near)
    assert bool((near | middle).all())
    path = tmp_path_factory.mktemp("forms") / "w"
    form.export(module, path)
    bare = nn.Module()
    bare.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
    assert torch.equal(form.restore(bare, path).weight, module.weight)
    assert torch.equal(form.materialise(module).weight, module.weight)


def test_the_gradient_is_taken_at_the_quantised_weights_and_moves_the_full_ones():
    student = network()
    before = dict(student.named_parameters())
    x, y = torch.randn(9, 6), torch.arange(9) % 4
    plain = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim == 2:
                parameter.copy_(textbook(parameter, 2, 8))
    Quantised(bits=2, bucket=8).apply(student)
    torch.testing.assert_close(student(x), plain(x))
    functional.cross_entropy(student(x), y).backward()
    functional.cross_entropy(plain(x), y).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(before[name].grad, parameter.grad)
    full = before["0.weight"].detach().clone()
    torch.optim.SGD(student.parameters(), 1e-4).step()
    # A step far smaller than the levels' distance is kept.
    torch.testing.assert_close(before["0.weight"], full - 1e-4 * before["0.weight"].grad, rtol=0, atol=1e-8)
    Quantised().remove(student)
    assert all(parameter is before[name] for name, parameter in student.named_parameters())


def test_stochastic_rounding_is_even_on_average_and_belongs_to_the_step():
    module = nn.Linear(40, 30, bias=False)
    weight = module.weight.detach().clone()
    form = Quantised(bits=2, bucket=64, rounding="stochastic")
    form.apply(module)
    with pytest.raises(ArgumentError, match="rounding"):
        module(torch.ones(1, 40))
    total = torch.zeros_like(weight)
    for index in range(600):
        begin_step(module, Step(index, seed=3, first_unit=17 * index))
        total += module.weight.detach()
    noise_of_the_mean = (weight.max() - weight.min()) / 3 * 0.5 / math.sqrt(600)
    assert float((total / 600 - weight).abs().max()) < 5 * float(noise_of_the_mean)
    assert abs(float((total / 600 - weight).mean())) < 0.002
    last = module.weight.detach().clone()
    begin_step(module, Step(0, seed=3))
    assert not torch.equal(module.weight, last)
    begin_step(module, Step(599, seed=3))
    assert torch.equal(module.weight, last)
    module.eval()
    nearest = module.weight.detach().clone()
    torch.testing.assert_close(nearest.double(), textbook(weight, 2, 64), rtol=0, atol=1e-6)
    module.train()
    assert torch.equal(form.materialise(module).weight, nearest)


def test_gradients_of_levels_are_sums_over_their_elements_and_finite_differences():
    module = nn.Linear(12, 10, bias=False)
    target = torch.randn(10, 12)
    LearnedLevels(bits=2, bucket=16).apply(module)
    quantiser = module.parametrizations.weight[0]
    upstream = 2 * (module.weight.detach() - target) * 0.7
    (0.7 * (module.weight - target).square().sum()).backward()
    codes = quantiser.encode(module.parametrizations.weight.original)
    scale = codes.scale.expand(-1, 16).flatten()[:120]
    due = torch.zeros(4).index_add(0, codes.codes.flatten()[:120].long(), upstream.flatten() * scale)
    torch.testing.assert_close(quantiser.levels.grad, due)
    assert module.parametrizations.weight.original.grad is None
    width = 1e-3
    for place in range(4):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                quantiser.levels[place] += sign * width
                moved = Codes(codes.codes, codes.low, codes.scale, quantiser.levels)
                weight = moved.decode(target.shape, torch.float32)
                losses.append(0.7 * (weight - target).double().square().sum())
                quantiser.levels[place] -= sign * width
        slope = float(losses[0] - losses[1]) / (2 * width)
        assert abs(slope - float(due[place])) < 1e-2 * max(1.0, abs(slope))


def test_levels_begin_at_quantiles_and_elements_follow_the_nearest():
    module = nn.Linear(100, 80, bias=False)
    with torch.no_grad():
        # Heavy tails: evenly spaced levels would leave most elements on one.
        module.weight.copy_(torch.randn(80, 100) ** 3)
    LearnedLevels(bits=3, bucket=None).apply(module)
    quantiser = module.parametrizations.weight[0]
    weight = module.parametrizations.weight.original
    shares = quantiser.encode(weight).codes.flatten().bincount(minlength=8) / 8000
    assert float(shares.min()) > 0.05
    with torch.no_grad():
        quantiser.levels.copy_(torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3, 0.6, 0.2, 0.0]))
    found = quantiser.encode(weight)
    rows = (weight.detach().flatten() - weight.min()) / (weight.max() - weight.min())
    due = (rows[:, None] - quantiser.levels.detach()).abs().argmin(1)
    assert (found.codes.flatten() == due).float().mean() > 0.999
    LearnedLevels().remove(module)
    assert module.weight.requires_grad


@pytest.mark.parametrize("form", [Quantised(bits=2), LearnedLevels(bits=2), MIXED])
def test_a_file_gives_exactly_what_was_evaluated(form, tmp_path):
    student = form.apply(network(1, 64))
    student.eval()
    x = torch.randn(5, 6)
    plain = form.materialise(student)
    size = form.export(student, tmp_path / "student")
    assert size == (tmp_path / "student").stat().st_size
    read = form.restore(network(2, 64), tmp_path / "student")
    for found in (plain, read):
        assert torch.equal(found(x), student(x))
        assert set(found.state_dict()) == set(network(0, 64).state_dict())
    assert not any(hasattr(module, "parametrizations") for module in plain.modules())


def test_two_bits_take_less_than_a_twelfth_of_single_precision(tmp_path):
    student = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
    form = Quantised(bits=2)
    size = form.export(form.apply(student), tmp_path / "student")
    assert size * 12 <= sum(4 * p.numel() for p in form.materialise(student).parameters())


def test_tied_weights_stay_tied_and_are_written_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(64, 64, bias=False)
            self.outer = nn.Linear(64, 64, bias=False)
            self.outer.weight = self.inner.weight

        def forward(self, x):
            return self.outer(self.inner(x).relu())

    student = Tied()
    form = LearnedLevels(bits=2)
    form.apply(student)
    x = torch.randn(3, 64)
    student(x).square().sum().backward()
    assert len([p for p in student.parameters() if p.requires_grad]) == 1
    plain = form.materialise(student)
    assert plain.inner.weight is plain.outer.weight
    assert torch.equal(plain(x), student(x))
    size = form.export(student, tmp_path / "tied")
    assert size < 64 * 64 / 4 + 2000
    assert torch.equal(form.restore(Tied(), tmp_path / "tied")(x), student(x))


def test_copies_states_and_compiled_networks_have_the_form():
    form = Quantised(bits=2, bucket=32)
    student = form.apply(network(3))
    x = torch.randn(4, 6)
    twin = form.apply(network(4))
    twin.load_state_dict(student.state_dict())
    compiled = torch.compile(student, backend="eager", fullgraph=True)
    for other in (twin, copy.deepcopy(student), compiled):
        assert torch.equal(other(x), student(x))
    assert torch.equal(form.materialise(compiled)(x), student(x))


def test_data_parallel_students_train_the_same_parameters():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        form = Quantised(bits=2, rounding="stochastic")
        student = form.apply(network(3))
        alone = copy.deepcopy(student)
        wrapped = nn.parallel.DistributedDataParallel(student)
        x = torch.randn(4, 6)
        for module in (wrapped, alone):
            begin_step(module, Step(2))
            module(x).square().sum().backward()
        for first, second in zip(student.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(first.grad, second.grad)
        assert torch.equal(form.materialise(wrapped)[0].weight, form.materialise(alone)[0].weight)
    finally:
        torch.distributed.destroy_process_group()


def damaged(form, content: bytes, tmp_path) -> bool:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    try:
        form.restore(network(0, 64), path)
    except (DataError, ArgumentError):
        return True
    return False


def test_damaged_and_foreign_files_are_refused(tmp_path):
    form = LearnedLevels(bits=2)
    form.export(form.apply(network(1, 64)), tmp_path / "student")
    sound = (tmp_path / "student").read_bytes()
    for length in range(0, len(sound), 37):
        assert damaged(form, sound[:length], tmp_path)
    header = int.from_bytes(sound[:8], "little")
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        place, bit = (int(torch.randint(high, (), generator=generator)) for high in (8 + header, 8))
        content = bytearray(sound)
        content[place] ^= 1 << bit
        damaged(form, bytes(content), tmp_path)  # raises nothing but what is promised
    for old, new in (
        (b"[16,64]", b"[64,64]"),
        (b"[64,6]", b"[6,64]"),
        (b'float32\\",2,', b'float32\\",3,'),
        (b'float32\\",2,256', b'float32\\",2,999'),
        (b"few levels", b"new levels"),
        (b'"version":"0"', b'"version":"7"'),
        (b"plain.0.bias", b"plain.0.bios"),
    ):
        if old in sound:
            assert damaged(form, sound.replace(old, new), tmp_path), (old, new)
    buffer = io.BytesIO()
    torch.save({}, buffer)
    assert damaged(form, buffer.getvalue(), tmp_path)


def test_larger_gradients_get_more_bits_within_the_mean():
    norms, sizes = {"a": 8.0, "b": 1.0, "c": 1.0}, {"a": 100, "b": 100, "c": 100}
    given_bits = bits_by_gradient(norms, sizes, 3.0)
    assert given_bits["a"] > given_bits["b"]
    assert sum(given_bits.values()) == 9
    assert bits_by_gradient({"a": 0.0, "b": 0.0}, {"a": 5, "b": 500}, 2.0) == {"a": 8, "b": 1}
    assert bits_by_gradient(norms, sizes, 50.0) == dict.fromkeys("abc", 8)
    student = network()
    x = torch.randn(8, 6)
    chosen = gradient_bits(student, lambda: student(x).square().sum(), 3.0)
    assert chosen.keys() == {"0.weight", "2.weight", "4.weight"}
    weights = {name: student.get_parameter(name).numel() for name in chosen}
    assert sum(chosen[name] * size for name, size in weights.items()) <= 3 * sum(weights.values())
    Quantised(chosen).apply(student)
    assert student[0].parametrizations.weight[0].bits == chosen["0.weight"]
    with pytest.raises(ArgumentError, match="sizes"):
        bits_by_gradient(norms, {"a": 1}, 2.0)
    with pytest.raises(ArgumentError, match="bits"):
        bits_by_gradient(norms, sizes, 0.5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Quantised(bits=0), "bits"),
        (lambda: Quantised(bits=True), "bits"),
        (lambda: LearnedLevels({"*": 9}), "bits"),
        (lambda: Quantised(bucket=0), "bucket"),
        (lambda: Quantised(rounding="up"), "rounding"),
        (lambda: Quantised({"nothing": 2}).apply(network()), "bits"),
        (lambda: Quantised().apply(Quantised().apply(network())), "module"),
        (lambda: Quantised().materialise(network()), "module"),
        (lambda: Quantised().remove(network()), "module"),
        (lambda: recipes.quantized_distillation(network(), network(), LearnedLevels()), "form"),
        (lambda: recipes.differentiable_quantization(network(), network(), weight=2), "weight"),
    ],
)
def test_messages(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()


def test_a_file_of_another_network_is_refused(tmp_path):
    form = Quantised()
    form.export(form.apply(network(0, 16)), tmp_path / "student")
    with pytest.raises(ArgumentError, match="shape"):
        form.restore(network(0, 8), tmp_path / "student")
    with pytest.raises(ArgumentError, match="differs"):
        form.restore(nn.Linear(2, 2), tmp_path / "student")


def blobs(count: int = 512):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (count,), generator=generator)
    x = 1.5 * functional.one_hot(y, 6).float() + 0.5 * torch.randn(count, 6, generator=generator)
    return x, y


def fit(objective, optimiser, batch, steps):
    for index in range(steps):
        loss = objective(batch, Step(index, total=steps))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    return float(loss.total.detach())


def test_quantized_distillation_trains_better_than_rounding_afterwards():
    x, y = blobs()
    teacher = network(7, 32)
    fit(
        knowledge.Objective(teacher, None, [knowledge.Term(knowledge.Output("logits"), target=knowledge.Labels())]),
        torch.optim.Adam(teacher.parameters(), 0.01),
        (x, y),
        60,
    )
    student = network(8, 16)
    rounded = copy.deepcopy(student)
    form = Quantised(bits=1, bucket=None)
    objective = recipes.quantized_distillation(student, dr.Frozen(teacher), form)
    fit(objective, torch.optim.Adam(student.parameters(), 0.01), (x, y), 120)
    fit(recipes.hinton(rounded, teacher, 4.0, 0.7), torch.optim.Adam(rounded.parameters(), 0.01), (x, y), 120)
    accuracy = {}
    for name, plain in (("trained", form.materialise(student)), ("rounded", form.materialise(form.apply(rounded)))):
        accuracy[name] = float((plain.eval()(x).argmax(1) == y).float().mean())
    assert accuracy["trained"] > accuracy["rounded"] + 0.05


def test_a_step_that_is_taken_again_rounds_alike():
    x, y = blobs(64)
    losses = []
    for _ in range(2):
        student = network(8)
        objective = recipes.quantized_distillation(student, network(7, 32), Quantised(rounding="stochastic"))
        losses.append([objective((x, y), Step(index, seed=5)).total.detach() for index in (4, 4, 5)])
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
    assert losses[0][0] == losses[0][1] != losses[0][2]


def test_taking_the_form_off_a_copy_leaves_the_original():
    form = Quantised()
    student = form.apply(network())
    x = torch.randn(2, 6)
    before = student(x)
    form.remove(copy.deepcopy(student))
    assert torch.equal(student(x), before)


def test_differentiable_quantization_trains_the_levels_alone():
    x, y = blobs()
    teacher = network(7, 32)
    fit(
        knowledge.Objective(teacher, None, [knowledge.Term(knowledge.Output("logits"), target=knowledge.Labels())]),
        torch.optim.Adam(teacher.parameters(), 0.01),
        (x, y),
        60,
    )
    student = network(8, 16)
    fit(recipes.hinton(student, teacher), torch.optim.Adam(student.parameters(), 0.01), (x, y), 150)
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    objective = recipes.differentiable_quantization(student, teacher, weight=1.0)
    groups = objective.parameter_groups()
    assert list(groups) == ["student"]
    first = float(objective((x, y), 0).total.detach())
    assert fit(objective, torch.optim.SGD(groups["student"], 0.02), (x, y), 60) < 0.9 * first
    LearnedLevels().remove(student)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name])


def test_recipes_are_registered():
    for name in ("quantized-distillation", "differentiable-quantization"):
        assert find_recipe(name).engine == "knowledge"
