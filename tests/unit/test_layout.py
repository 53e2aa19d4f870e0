from __future__ import annotations

import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from distillrs.errors import ArgumentError, SchemaMismatch
from distillrs.trajectory import Column, ParameterLayout


def network(width: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, width, bias=False))


def test_slots_follow_named_parameters_without_gaps() -> None:
    model = network()
    layout = ParameterLayout.of(model)
    assert [slot.name for slot in layout.slots] == [name for name, _ in model.named_parameters()]
    assert layout.size == sum(parameter.numel() for parameter in model.parameters())
    assert layout.slots[0].shape == (3, 1, 3, 3)
    assert [slot.offset for slot in layout.slots] == [0, 27, 30]


def test_flatten_equals_concatenated_parameters() -> None:
    model = network()
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.equal(ParameterLayout.of(model).flatten(model), expected)


def test_flatten_copies_so_a_later_update_leaves_the_snapshot() -> None:
    model = network()
    layout = ParameterLayout.of(model)
    first = layout.flatten(model)
    kept = first.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(first, kept)
    assert (layout.flatten(model) - first).norm() > 0
    assert not first.requires_grad


def test_a_model_of_one_parameter_is_copied_too() -> None:
    model = nn.Linear(4, 1, bias=False)
    snapshot = ParameterLayout.of(model).flatten(model)
    assert snapshot.data_ptr() != model.weight.data_ptr()


def test_flatten_writes_into_out() -> None:
    model = network()
    layout = ParameterLayout.of(model)
    out = torch.full((layout.size,), torch.nan)
    assert layout.flatten(model, out=out) is out
    assert torch.equal(out, layout.flatten(model))


@pytest.mark.parametrize(
    "out",
    [torch.empty(3), torch.empty(90, dtype=torch.float64), torch.empty(180)[::2], torch.empty(90, requires_grad=True)],
)
def test_flatten_refuses_an_out_that_does_not_fit(out: torch.Tensor) -> None:
    model = network()
    assert ParameterLayout.of(model).size == 90
    with pytest.raises(ArgumentError, match=r"^out: got .*allowed is a contiguous float32 tensor of shape \[90\]"):
        ParameterLayout.of(model).flatten(model, out=out)


def test_load_restores_every_parameter() -> None:
    source, target = network(), network()
    layout = ParameterLayout.of(source)
    layout.load(target, layout.flatten(source))
    for mine, theirs in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_load_copies_the_vector() -> None:
    model = network()
    layout = ParameterLayout.of(model)
    vector = torch.zeros(layout.size)
    layout.load(model, vector)
    vector.fill_(7.0)
    assert torch.equal(layout.flatten(model), torch.zeros(layout.size))


def test_load_refuses_another_length_and_changes_nothing() -> None:
    model = network()
    layout = ParameterLayout.of(model)
    before = layout.flatten(model)
    with pytest.raises(ArgumentError, match=r"vector: got \[91\], allowed is shape \[90\]"):
        layout.load(model, torch.zeros(91))
    assert torch.equal(layout.flatten(model), before)


def test_unflatten_gives_views_that_a_functional_call_takes() -> None:
    model = network()
    layout = ParameterLayout.of(model)
    vector = layout.flatten(model)
    views = layout.unflatten(vector)
    images = torch.randn(2, 1, 4, 4)
    assert torch.equal(functional_call(model, views, (images,)), model(images))
    views["3.weight"].zero_()
    assert vector[-60:].count_nonzero() == 0


def test_unflatten_carries_gradients_and_float64_and_leading_axes() -> None:
    layout = ParameterLayout.of(network())
    vector = torch.randn(4, 90, dtype=torch.float64, requires_grad=True)
    views = layout.unflatten(vector)
    assert views["0.weight"].shape == (4, 3, 1, 3, 3)
    sum((index + 1) * view.sum() for index, view in enumerate(views.values())).backward()
    assert vector.grad is not None
    assert torch.equal(
        vector.grad[0], torch.cat([torch.full((27,), 1.0), torch.full((3,), 2.0), torch.full((60,), 3.0)])
    )


def test_wrappers_leave_names_and_vectors_alike() -> None:
    model = network()
    plain = ParameterLayout.of(model)
    parallel = nn.DataParallel(model)
    compiled = torch.compile(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for wrapped in (parallel, compiled, averaged, nn.DataParallel(nn.DataParallel(model))):
        assert ParameterLayout.of(wrapped) == plain
        assert torch.equal(plain.flatten(wrapped), plain.flatten(model))
        assert ParameterLayout.of(wrapped).fingerprint == plain.fingerprint


def test_unflatten_names_views_as_a_wrapped_model_does() -> None:
    parallel = nn.DataParallel(network())
    layout = ParameterLayout.of(parallel)
    views = layout.unflatten(layout.flatten(parallel), parallel)
    assert list(views) == [name for name, _ in parallel.named_parameters()]


def test_an_attribute_named_module_beside_others_is_kept() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    assert ParameterLayout.of(Holder()).slots[0].name == "module.weight"


def test_a_gathered_state_flattens_like_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    layout = ParameterLayout.of(model)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    assert torch.equal(layout.flatten(state), layout.flatten(model))


def test_shared_parameters_lie_once() -> None:
    embedding = nn.Embedding(5, 3)
    head = nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    assert ParameterLayout.of(nn.Sequential(embedding, head)).size == 15


def test_trainable_only_leaves_frozen_parameters_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    layout = ParameterLayout.of(model, trainable_only=True)
    assert [slot.name for slot in layout.slots] == ["3.weight"]
    before = model[0].weight.clone()
    layout.load(model, torch.zeros(layout.size))
    assert torch.equal(model[0].weight, before)
    assert model[3].weight.count_nonzero() == 0
    assert ParameterLayout.of(model).size == 90


def test_a_model_with_surplus_parameters_is_refused() -> None:
    layout = ParameterLayout.of(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ArgumentError, match=r"model: got \"a parameter '1.bias'\""):
        layout.flatten(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_a_model_of_other_shapes_is_refused_by_name() -> None:
    layout = ParameterLayout.of(network())
    with pytest.raises(ArgumentError, match=r"'3.weight' of shape \[6, 12\].*allowed is shape \[5, 12\]"):
        layout.flatten(network(width=6))
    with pytest.raises(ArgumentError, match=r"no parameter '0\.weight'"):
        layout.flatten({})


def test_running_statistics_are_told() -> None:
    assert not ParameterLayout.of(network()).has_running_statistics
    assert not ParameterLayout.of(nn.GroupNorm(1, 4)).has_running_statistics
    assert not ParameterLayout.of(nn.BatchNorm1d(4, track_running_stats=False)).has_running_statistics
    layout = ParameterLayout.of(nn.DataParallel(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))))
    assert layout.has_running_statistics
    assert layout.running_statistics == ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def test_mixed_types_are_refused_unless_one_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ArgumentError, match=r"parameters of types float32, float64.*dtype="):
        ParameterLayout.of(model)
    layout = ParameterLayout.of(model, dtype="float64")
    vector = layout.flatten(model)
    assert vector.dtype == torch.float64
    layout.load(model, vector + 1)
    assert model[0].weight.dtype == torch.float32


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ArgumentError, match="model: got 'ReLU'"):
        ParameterLayout.of(nn.ReLU())
    with pytest.raises(ArgumentError, match="requires a gradient"):
        ParameterLayout.of(nn.Linear(2, 2).requires_grad_(False), trainable_only=True)


def test_lazy_and_flat_parameters_are_refused_with_the_remedy() -> None:
    with warnings.catch_warnings():
        # Up to torch 2.8 a lazy module warns that it is new.
        warnings.simplefilter("ignore", UserWarning)
        lazy = nn.LazyLinear(3)
    with pytest.raises(ArgumentError, match="after its first forward pass"):
        ParameterLayout.of(lazy)
    flat = nn.Module()
    flat._flat_param = nn.Parameter(torch.zeros(3))
    with pytest.raises(ArgumentError, match="get_model_state_dict"):
        ParameterLayout.of(flat)


def test_a_sharded_model_has_a_layout_and_refuses_to_flatten(tmp_path: object) -> None:
    from torch import distributed
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(3, 2)
        plain = ParameterLayout.of(model)
        for name, parameter in list(model.named_parameters()):
            sharded = DTensor.from_local(parameter.detach(), mesh, [Replicate()])
            setattr(model, name, nn.Parameter(sharded))
        assert ParameterLayout.of(model) == plain
        with pytest.raises(ArgumentError, match=r"sharded parameter 'weight'.*full_state_dict=True"):
            plain.flatten(model)
        with pytest.raises(ArgumentError, match="sharded parameter"):
            plain.load(model, torch.zeros(plain.size))
    finally:
        distributed.destroy_process_group()


def test_parameters_without_data_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    layout = ParameterLayout.of(model)
    assert layout.size == 8
    with pytest.raises(ArgumentError, match="on the meta device"):
        layout.flatten(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_half_precision_parameter_columns_need_asking(dtype: str) -> None:
    layout = ParameterLayout.of(network())
    with pytest.raises(ArgumentError, match=rf"dtype: got '{dtype}'.*27-66% of one epoch's displacement"):
        layout.column(dtype=dtype)
    assert layout.column(dtype=dtype, half_precision="allow").dtype == getattr(torch, dtype)


def test_a_half_precision_model_is_refused_by_its_own_type() -> None:
    model = network().bfloat16()
    with pytest.raises(ArgumentError, match="bfloat16"):
        ParameterLayout.of(model).column()
    layout = ParameterLayout.of(model, dtype=torch.float32)
    assert layout.column().dtype == torch.float32
    assert layout.flatten(model).dtype == torch.float32


def test_other_columns_may_be_half() -> None:
    assert Column((4,), "bfloat16").dtype == torch.bfloat16


def test_column_carries_the_tensors_sizes() -> None:
    column = ParameterLayout.of(network()).column(codec="half-delta")
    assert column.shape == (90,)
    assert column.tensor_sizes == (27, 3, 60)
    with pytest.raises(ArgumentError, match="half_precision: got 'yes'"):
        ParameterLayout.of(network()).column(half_precision="yes")  # type: ignore[arg-type]  # what is refused


def test_layouts_that_differ_say_where() -> None:
    layout = ParameterLayout.of(network())
    layout.require_same(ParameterLayout.of(network()))
    with pytest.raises(SchemaMismatch, match=r"'3.weight' \[5, 12\] here, '3.weight' \[6, 12\] there"):
        layout.require_same(ParameterLayout.of(network(6)))
    with pytest.raises(SchemaMismatch, match="float32 here, float64 there"):
        layout.require_same(ParameterLayout.of(network().double()))
    with pytest.raises(SchemaMismatch, match="1 parameters here, 2 there"):
        ParameterLayout.of(nn.Linear(2, 2, bias=False)).require_same(ParameterLayout.of(nn.Linear(2, 2)))


def test_a_layout_from_a_hostile_form_is_refused() -> None:
    form = ParameterLayout.of(network()).to_dict()
    bad: list[dict[str, object]] = [
        {},
        {**form, "dtype": "object"},
        {**form, "parameters": [["a", [-1]]]},
        {**form, "parameters": [["a", [2]], ["a", [2]]]},
        {**form, "parameters": 3},
        {**form, "parameters": []},
    ]
    for each in bad:
        with pytest.raises(ArgumentError):
            ParameterLayout.from_dict(each)


@given(
    st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_flatten_load_and_json_round_trip(shapes: list[list[int]], dtype: torch.dtype) -> None:
    model = nn.ParameterList([nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes])
    layout = ParameterLayout.of(model)
    assert ParameterLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    vector = torch.randn(layout.size, dtype=dtype)
    layout.load(model, vector)
    assert torch.equal(layout.flatten(model), vector)
    assert torch.equal(layout.flatten(layout.unflatten(vector)), vector)


@pytest.mark.gpu
def test_vectors_lie_on_the_parameters_device() -> None:
    model = network().cuda()
    layout = ParameterLayout.of(model)
    vector = layout.flatten(model)
    assert vector.is_cuda
    assert torch.equal(layout.flatten(model, out=torch.empty(layout.size)), vector.cpu())
    layout.load(model, vector.cpu() + 1)
    assert torch.equal(layout.flatten(model), vector + 1)
    model[3].cpu()
    assert layout.flatten(model).device.type == "cpu"
